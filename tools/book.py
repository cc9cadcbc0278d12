"""Build the book from executed notebooks and their results; nothing is run again.

`python -m tools.book --profile cpu` takes `runs/cpu/`, `--committed` takes what is in the tree (notebooks,
`results/record/`, `figures/`). Sources are staged in `runs/PROFILE/book-src/`, only changed files are written, so that
a second build reads only what changed. Any warning fails the build.
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

from lib.record import claims
from lib.record.files import PROFILES, RECORD, ROOT, UserError, read_results
from tools.compare import collect
from tools.notebooks import folders, names, paths
from tools.pages import page as as_page

SKIPPED = {"_build", "__pycache__", ".ipynb_checkpoints"}
WARNING = re.compile(r"\b(WARNING|ERROR|CRITICAL)\b|^(\w+Error|Could not import|No module)\b")
FOLDERS = {"data": "worlds"}  # page -> folder of notebooks, where they are not of one name


class Sources:
    """Where this build takes notebooks, results and figures from, and where it stages and builds."""

    def __init__(self, profile: str, committed: bool) -> None:
        base = ROOT / "runs" / ("preview" if committed else profile)
        run = ROOT / "runs" / profile
        self.profile = RECORD if committed else profile
        self.committed = committed
        self.staged, self.built = base / "book-src", base / "book"
        self.run = run
        self.results = ROOT / "results" / RECORD if committed else run / "results"
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
    """Stage the sources and build; return the path of the first page, or say in a `UserError` what is amiss."""
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
        print(*(line.replace(f"{sources.staged}/", "") for line in lines), sep="\n", file=sys.stderr)
        raise UserError(f"the build failed for what stands above, full output in {log.relative_to(ROOT)}")
    write_if_changed(stamp, json.dumps(now).encode())
    return page


def stage(sources: Sources) -> tuple[dict[str, str], bool]:
    """Bring `book-src` up to date: pages, contents, notebooks, figures, one data file.

    Returns digests of what pages show and of what makes them, and whether a file is gone.
    """
    results = {name: read_results(sources.results / f"{name}.json") for name in names()}
    files: dict[str, bytes | Path] = {
        str(path.relative_to(ROOT / "book")): path
        for path in sorted((ROOT / "book").rglob("*"))
        if path.is_file() and not SKIPPED & set(path.relative_to(ROOT).parts)
    }
    files["_toc.yml"] = yaml.safe_dump(contents(), sort_keys=False).encode()
    sliders: dict[str, Any] = {}
    for name, result in results.items():
        notebook = executed_notebook(sources, name)
        sliders |= {f"{name}/{slider}": frames for slider, frames in as_page(notebook, result["figures"]).items()}
        files[f"notebooks/{name}.ipynb"] = json.dumps(notebook, indent=1, ensure_ascii=False, sort_keys=True).encode()
    lines = "\n".join(f"   {module}" for module in modules())
    files["api/index.md"] = (ROOT / "book" / "api" / "index.md").read_bytes().replace(b"   <modules>", lines.encode())
    for result in results.values():
        for figure in result["figures"].values():
            files |= {f"_static/figures/{name}": sources.figures / name for name in figure["files"]}
    files["_data/companion.json"] = companion_data(sources, results, sliders)
    for name, content in files.items():
        write_if_changed(sources.staged / name, content)
    expected = {*files, *(f"api/{module}.rst" for module in modules())}  # the latter are made by autosummary
    staged = [path.relative_to(sources.staged) for path in sources.staged.rglob("*") if path.is_file()]
    gone = [sources.staged / path for path in staged if not SKIPPED & set(path.parts) and str(path) not in expected]
    for path in gone:
        path.unlink()
    record = ROOT / "lib" / "record"
    shown = [record / "claims.py", record / "show.py", *sorted((record / "templates").iterdir())]
    machinery = [sources.staged / name for name in files if is_machinery(name)] + shown
    pages = [sources.staged / name for name in files if not is_machinery(name)] + sorted((ROOT / "lib").rglob("*.py"))
    return {"machinery": digest(machinery), "pages": digest(pages)}, bool(gone)


def contents() -> dict[str, Any]:
    """Return the table of contents: the notebooks of a folder lie below the page of its name, if there is one.

    Papers come in the order in which claims.yaml names them, then folders of notebooks that belong nowhere else.
    """
    book = ROOT / "book"
    pages = {path.stem for path in book.glob("*.md")} - {"index"}

    def chapters(page: str) -> list[dict[str, Any]]:
        inside = [{"file": f"notebooks/{name}"} for name in folders().get(FOLDERS.get(page, page), [])]
        return [{"file": page, "sections": inside} if inside else {"file": page}] if page in pages else inside

    papers = list(paper_pages())
    fixed = ["start", "scorecard", "verdicts", "own_images", "trouble"]
    pages_of = {FOLDERS.get(page, page) for page in pages}
    loose = [folder for folder in folders() if folder not in {*papers, *fixed, *pages_of}]
    parts = {
        "Start": ["start", "scorecard", "verdicts"],
        "Papers": papers + loose,
        "Your own images": ["own_images", "trouble"],
        "Reference": sorted(pages - {*papers, *fixed}),
    }
    listed = [{"caption": part, "chapters": [c for page in of for c in chapters(page)]} for part, of in parts.items()]
    listed[-1]["chapters"].append({"file": "api/index"})
    return {"format": "jb-book", "root": "index", "parts": [part for part in listed if part["chapters"]]}


def paper_pages() -> dict[str, str]:
    """Return the papers in the order of claims.yaml, page (and folder of notebooks) -> name."""
    return {entry["paper"].lower(): entry["paper"] for entry in claims.load(ROOT / "claims.yaml").values()}


def modules() -> list[str]:
    """Return the modules of `lib` that have a page."""
    files = (path for path in (ROOT / "lib").rglob("*.py") if path.stem != "__init__")
    return sorted(".".join(path.relative_to(ROOT).with_suffix("").parts) for path in files)


def is_machinery(name: str) -> bool:
    """Whether a staged file acts on every page."""
    return name.startswith(("_ext/", "_static/", "_templates/", "_toc", "_config")) and not name.startswith(
        "_static/figures/"
    )


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


def executed_notebook(sources: Sources, name: str) -> dict[str, Any]:
    """Return an executed notebook, or say in a `UserError` that it is missing or was not run."""
    path = paths()[name].with_suffix(".ipynb") if sources.committed else sources.run / "notebooks" / f"{name}.ipynb"
    if not path.exists():
        raise UserError(f"notebook {path.relative_to(ROOT)} is missing; run `{sources.command}`")
    notebook = json.loads(path.read_text(encoding="utf-8"))
    if not any(cell.get("outputs") for cell in notebook["cells"]):
        raise UserError(f"notebook {path.relative_to(ROOT)} has no outputs; run `{sources.command}`")
    return notebook


def companion_data(sources: Sources, results: dict[str, Any], sliders: dict[str, Any]) -> bytes:
    """Return what the pages read: profile, papers, claims, results without single values, costs of all profiles."""
    kept = {}
    judged = {}
    for name, result in results.items():
        # What the record has and a run of another size lacks: the page says so, and only what neither has is a fault.
        path = ROOT / "results" / RECORD / f"{name}.json"
        record = read_results(path)["numbers"] if path.exists() else {}
        lacking = dict.fromkeys(record, "(not measured here)")
        numbers = lacking | {key: value["text"] for key, value in result["numbers"].items()}
        kept[name] = {"numbers": numbers, "figures": result["figures"], "provenance": result["provenance"]}
        judged |= {key: claim | {"notebook": name} for key, claim in result["claims"].items()}
    entries = claims.load(ROOT / "claims.yaml")
    cards = {
        key: {"notebook": ""} | judged.get(key, claims.not_tested(entry, entry.get("reason", "not run")))
        for key, entry in entries.items()
    }
    data = {
        "profile": sources.profile,
        "papers": {name: page for page, name in paper_pages().items() if (ROOT / "book" / f"{page}.md").exists()},
        "sources": pages_data("papers.yaml"),
        "cards": cards,
        "claims": recorded(cards),
        "titles": pages_data("titles.yaml"),
        "results": kept,
        "sliders": sliders,
        "costs": costs(sources),
        "bench": {path.stem: read_results(path) for path in sorted((ROOT / "results" / "bench").glob("*.json"))},
    }
    return json.dumps(data, indent=1, ensure_ascii=False).encode()


def recorded(cards: dict[str, Any]) -> dict[str, Any]:
    """Return claims with the record's verdicts in the place of those of a run with its first replicates."""
    record = collect(ROOT / "results" / RECORD)
    return {
        key: record[key] | {"notebook": card["notebook"], "agrees": card["record"]["agrees"]}
        if "record" in card and card["checks"]
        else card
        for key, card in cards.items()
    }


def pages_data(name: str) -> dict[str, Any]:
    """Return a file beside the pages that says something of each claim or paper."""
    return yaml.safe_load((ROOT / "book" / name).read_text(encoding="utf-8"))


def costs(sources: Sources) -> dict[str, dict[str, Any]]:
    """Return profile -> notebook -> provenance and number of figures, wherever results exist.

    A run counts before the committed results of the same profile; `--committed` takes committed ones only.
    """
    table: dict[str, dict[str, Any]] = {}
    for profile in PROFILES:
        folders = [ROOT / "results" / profile, *([] if sources.committed else [ROOT / "runs" / profile / "results"])]
        files = {path.stem: path for folder in folders for path in sorted(folder.glob("[0-9]*.json"))}
        for name, path in sorted(files.items()):
            result = read_results(path)
            table.setdefault(profile, {})[name] = {**result["provenance"], "figures": len(result["figures"])}
    return table


if __name__ == "__main__":
    sys.exit(main())
