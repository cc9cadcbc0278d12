"""Build the book from executed notebooks and their results; nothing is run again.

`python tools/book.py --profile cpu` takes `runs/cpu/`, `--committed` takes what is in the tree (`notebooks/*.ipynb`,
`results/cpu/`, `figures/`). Sources are staged in `runs/PROFILE/book-src/`, only changed files are written, so that a
second build reads only what changed. Any warning fails the build.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # also without an installed package

from lib.record.files import PROFILES, UserError, read_results  # noqa: E402
from tools.notebooks import paths  # noqa: E402

SKIPPED = {"_build", "__pycache__", ".ipynb_checkpoints"}
WARNING = re.compile(r"\b(WARNING|ERROR|CRITICAL)\b|^(\w+Error|Could not import|No module)\b")
PROGRESS = re.compile(r"^\s*(.*:\s*)?\d*%?\|")  # the plain text of a tqdm bar


class Sources:
    """Where this build takes notebooks, results and figures from, and where it stages and builds."""

    def __init__(self, profile: str, committed: bool) -> None:
        base = ROOT / "runs" / ("preview" if committed else profile)
        run = ROOT / "runs" / profile
        self.profile = "cpu" if committed else profile
        self.committed = committed
        self.staged, self.built = base / "book-src", base / "book"
        self.run = run
        self.results = ROOT / "results" / "cpu" if committed else run / "results"
        self.figures = ROOT / "figures" if committed else run / "figures"
        self.command = "make refresh" if committed else f"make book PROFILE={profile}"


def main() -> int:
    """Stage, build, print the path of the first page."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--profile", choices=PROFILES, default="cpu", help="whose run to publish (default: cpu)")
    parser.add_argument("--committed", action="store_true", help="publish the outputs in the tree instead of a run")
    arguments = parser.parse_args()
    try:
        page = build(Sources(arguments.profile, arguments.committed))
    except UserError as error:
        print(f"book: {error}", file=sys.stderr)
        return 1
    print(page)
    return 0


def build(sources: Sources) -> Path:
    """Stage the sources and build; return the path of the first page.

    Raises
    ------
    UserError
        A notebook or its results are missing or failed, or the build gave a warning or an error.
    """
    page = sources.built / "_build" / "html" / "index.html"
    stamp = sources.built / "digests.json"
    before = json.loads(stamp.read_text(encoding="utf-8")) if stamp.exists() else {}
    now, removed = stage(sources)
    if page.exists() and before == now and not removed:
        return page
    stamp.unlink(missing_ok=True)
    # The builder would keep pages of sources that are gone, ignore a changed style sheet or extension, and keep source
    # listings with links of an older build.
    everything = removed or before.get("machinery") != now["machinery"]
    shutil.rmtree(sources.built / "_build" if everything else page.parent / "_modules", ignore_errors=True)
    tool = Path(sys.executable).parent / "jupyter-book"
    command = [str(tool), "build", str(sources.staged), "--path-output", str(sources.built), "-W", "-n", "--keep-going"]
    log = sources.built / "build.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    with log.open("w", encoding="utf-8") as file:
        done = subprocess.run(command, cwd=ROOT, env=environment, stdout=file, stderr=subprocess.STDOUT, check=False)
    output = re.sub(r"\x1b\[[0-9;]*m", "", log.read_text(encoding="utf-8"))
    warnings = [line for line in output.splitlines() if WARNING.search(line)]
    if done.returncode or warnings or not page.exists():
        # A page that was read with a warning would not warn again: forget what was read.
        shutil.rmtree(sources.built / "_build", ignore_errors=True)
        lines = warnings or output.splitlines()[-15:]
        shown = "\n".join(line.replace(f"{sources.staged}/", "") for line in lines)
        raise UserError(f"the build failed, full output in {log.relative_to(ROOT)}:\n{shown}")
    write_if_changed(stamp, json.dumps(now).encode())
    return page


def stage(sources: Sources) -> tuple[dict[str, str], bool]:
    """Bring `book-src` up to date: pages, notebooks, API pages, figures, one data file.

    Returns
    -------
    tuple
        Digests of what pages show and of what makes them (extension, style, `lib.record.claims`), and whether a file is
        gone.
    """
    names = notebook_names()
    results = {name: find_results(sources, name) for name in names}
    files: dict[str, bytes | Path] = {
        str(path.relative_to(ROOT / "book")): path
        for path in sorted((ROOT / "book").rglob("*"))
        if path.is_file() and not SKIPPED & set(path.parts)
    }
    files |= {f"notebooks/{name}.ipynb": executed_notebook(sources, name) for name in names}
    files |= api_pages()
    for result in results.values():
        for figure in result["figures"].values():
            files |= {f"_static/figures/{name}": sources.figures / name for name in figure["files"]}
    files["_data/companion.json"] = companion_data(sources, results)
    for name, content in files.items():
        write_if_changed(sources.staged / name, content)
    staged = [path for path in sources.staged.rglob("*") if path.is_file() and not SKIPPED & set(path.parts)]
    gone = [path for path in staged if str(path.relative_to(sources.staged)) not in files]
    for path in gone:
        path.unlink()
    machinery = [sources.staged / name for name in files if is_machinery(name)] + [
        ROOT / "lib" / "record" / "claims.py"
    ]
    pages = [sources.staged / name for name in files if not is_machinery(name)] + sorted((ROOT / "lib").rglob("*.py"))
    return {"machinery": digest(machinery), "pages": digest(pages)}, bool(gone)


def is_machinery(name: str) -> bool:
    """Whether a staged file acts on every page."""
    return name.startswith(("_ext/", "_static/")) and not name.startswith("_static/figures/")


def digest(paths: list[Path]) -> str:
    """Return a digest of files, names included."""
    total = hashlib.sha256()
    for path in paths:
        total.update(path.name.encode() + hashlib.sha256(path.read_bytes()).digest())
    return total.hexdigest()


def write_if_changed(path: Path, content: bytes | Path) -> None:
    """Write a staged file only where it differs: the builder goes by modification times."""
    if isinstance(content, Path):
        if not content.exists():
            raise UserError(f"{content.relative_to(ROOT)} is missing; run its notebook again")
        content = content.read_bytes()
    if not path.exists() or path.read_bytes() != content:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


def notebook_names() -> list[str]:
    """Return the notebooks of the table of contents, in its order."""
    toc = (ROOT / "book" / "_toc.yml").read_text(encoding="utf-8")
    return re.findall(r"^\s*- file: notebooks/(\w+)\s*$", toc, flags=re.MULTILINE)


def find_results(sources: Sources, name: str) -> dict[str, Any]:
    """Return a notebook's results.

    Raises
    ------
    UserError
        The file is missing, unreadable, or of another version.
    """
    path = sources.results / f"{name}.json"
    if not path.exists():
        raise UserError(f"results of notebook {name} are missing ({path.relative_to(ROOT)}); run `{sources.command}`")
    return read_results(path)


def executed_notebook(sources: Sources, name: str) -> bytes:
    """Return an executed notebook without the progress bars of its run.

    Raises
    ------
    UserError
        It is missing, was not run, or stopped with an error.
    """
    path = paths()[name].with_suffix(".ipynb") if sources.committed else sources.run / "notebooks" / f"{name}.ipynb"
    if not path.exists():
        raise UserError(f"notebook {path.relative_to(ROOT)} is missing; run `{sources.command}`")
    notebook = json.loads(path.read_text(encoding="utf-8"))
    code = [cell for cell in notebook["cells"] if cell["cell_type"] == "code" and "".join(cell["source"]).strip()]
    failed = [output for cell in code for output in cell["outputs"] if output["output_type"] == "error"]
    if failed:
        where = path.relative_to(ROOT)
        raise UserError(
            f"notebook {where} stopped with {failed[0]['ename']}: {failed[0]['evalue']}; "
            f"mend it, then run `{sources.command}`"
        )
    if not any(cell["outputs"] for cell in code):
        raise UserError(f"notebook {path.relative_to(ROOT)} has no outputs; run `{sources.command}`")
    for cell in code:
        cell["outputs"] = [output for output in cell["outputs"] if not is_progress(output)]
    keep_used_widgets(notebook)
    return json.dumps(notebook, indent=1, ensure_ascii=False, sort_keys=True).encode()


def is_progress(output: dict[str, Any]) -> bool:
    """Whether an output is a progress bar: text on stderr, or tqdm's widget."""
    data = output.get("data", {})
    plain = "".join(data.get("text/plain", ""))
    bar = "application/vnd.jupyter.widget-view+json" in data and PROGRESS.match(plain)
    return output.get("name") == "stderr" or bool(bar)


def keep_used_widgets(notebook: dict[str, Any]) -> None:
    """Drop the stored state of widgets that no output shows; progress bars leave theirs behind."""
    kind = "application/vnd.jupyter.widget-state+json"
    state = notebook["metadata"].get("widgets", {}).get(kind, {}).get("state", {})
    views = [output.get("data", {}) for cell in notebook["cells"] for output in cell.get("outputs", [])]
    shown = {
        view["application/vnd.jupyter.widget-view+json"]["model_id"]
        for view in views
        if "application/vnd.jupyter.widget-view+json" in view
    }
    used = reachable(state, shown)
    links = {key for key, model in state.items() if model["model_name"] in ("LinkModel", "DirectionalLinkModel")}
    used |= reachable(state, {key for key in links if reachable(state, {key}) & used - {key}})
    for key in set(state) - used:
        del state[key]
    if not state:
        notebook["metadata"].pop("widgets", None)


def reachable(state: dict[str, Any], start: set[str]) -> set[str]:
    """Return the widget models that `start` refers to, directly or through others."""
    found: set[str] = set()
    queue = [key for key in start if key in state]
    while queue:
        key = queue.pop()
        found.add(key)
        queue += [k for k in re.findall(r"IPY_MODEL_(\w+)", json.dumps(state[key])) if k in state and k not in found]
    return found


def api_pages() -> dict[str, bytes]:
    """Return one page for each module of `lib`, and the list of them."""
    files = (path for path in (ROOT / "lib").rglob("*.py") if path.stem != "__init__")
    modules = sorted(".".join(path.relative_to(ROOT).with_suffix("").parts) for path in files)
    pages = {}
    for name in modules:
        directive = f".. automodule:: {name}\n   :members:\n   :ignore-module-all:"
        pages[f"api/{name.replace('.', '_')}.md"] = f"# `{name}`\n\n```{{eval-rst}}\n{directive}\n```\n".encode()
    index = (ROOT / "book" / "api" / "index.md").read_text(encoding="utf-8")
    rows = "\n".join(f"- [`{name}`]({name.replace('.', '_')}.md): {first_line(name)}" for name in modules)
    pages["api/index.md"] = index.replace("<!-- modules -->", rows).encode()
    return pages


def first_line(module: str) -> str:
    """Return the first line of a module's docstring."""
    source = ROOT.joinpath(*module.split(".")).with_suffix(".py").read_text(encoding="utf-8")
    found = re.match(r'\s*r?"""(.*?)(\n|""")', source)
    return re.sub(r"([*|$])", r"\\\1", found.group(1).strip()) if found else ""


def companion_data(sources: Sources, results: dict[str, Any]) -> bytes:
    """Return what the pages read: profile, claims, results without the single values, costs of every profile."""
    kept = {}
    for name, result in results.items():
        numbers = {key: {"text": value["text"]} for key, value in result["numbers"].items()}
        kept[name] = {"numbers": numbers, **{k: result[k] for k in ("claims", "figures", "provenance", "parameters")}}
    claims = yaml.safe_load((ROOT / "claims.yaml").read_text(encoding="utf-8"))
    data = {"profile": sources.profile, "claims": claims, "results": kept, "costs": costs(sources), "bench": bench()}
    return json.dumps(data, indent=1, ensure_ascii=False).encode()


def costs(sources: Sources) -> dict[str, dict[str, Any]]:
    """Return profile -> notebook -> seconds, memory, figures and machine, wherever results exist.

    A run counts before the committed results of the same profile; `--committed` takes committed ones only.
    """
    table: dict[str, dict[str, Any]] = {}
    for profile in PROFILES:
        folders = [ROOT / "results" / profile, *([] if sources.committed else [ROOT / "runs" / profile / "results"])]
        files = {path.stem: path for folder in folders for path in sorted(folder.glob("*.json"))}
        if files:
            table[profile] = {name: cost(read_results(path)) for name, path in sorted(files.items())}
    return table


def bench() -> dict[str, Any]:
    """Return what `make bench` left in `results/bench`: cpu or gpu -> its file."""
    return {path.stem: read_results(path) for path in sorted((ROOT / "results" / "bench").glob("*.json"))}


def cost(result: dict[str, Any]) -> dict[str, Any]:
    """Return what one run of one notebook cost."""
    provenance = result["provenance"]
    hardware = provenance["hardware"]
    threads = f"{hardware['cpu']}, {hardware['threads']} thread{'s' * (hardware['threads'] > 1)}"
    return {
        "seconds": provenance["seconds"],
        "peak_memory_gb": provenance["peak_memory_gb"],
        "peak_gpu_memory_gb": provenance.get("peak_gpu_memory_gb"),
        "figures": len(result["figures"]),
        "machine": hardware["gpu"] or threads,
    }


if __name__ == "__main__":
    sys.exit(main())
