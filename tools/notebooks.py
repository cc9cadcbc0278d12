"""Facts about the notebooks that the DAG, the book and the tests need, read from the notebooks themselves.

A notebook says in its metadata, under `companion`, which others it needs; its folder says to which chapter it belongs.
"""

from __future__ import annotations

import ast
import functools
import hashlib
import json
import re
from pathlib import Path
from typing import Any

import jupytext
import yaml

from lib.record.files import ROOT

DATA = {".yaml", ".mplstyle", ".html", ".txt"}  # endings of files that modules of `lib` read


@functools.cache
def paths() -> dict[str, Path]:
    """Return name -> `.py` file of all notebooks, in reading order."""
    found = sorted((ROOT / "notebooks").glob("*/[0-9]*.py"), key=lambda path: path.stem)
    return {path.stem: path for path in found}


def names() -> list[str]:
    """Return the names of all notebooks, in reading order."""
    return list(paths())


def folders() -> dict[str, list[str]]:
    """Return folder -> names of its notebooks: a folder is a chapter."""
    found: dict[str, list[str]] = {}
    for name, path in paths().items():
        found.setdefault(path.parent.name, []).append(name)
    return found


@functools.cache
def needs(name: str) -> list[str]:
    """Return the notebooks whose models a notebook loads."""
    return jupytext.read(paths()[name]).metadata.get("companion", {}).get("needs", [])


def recorded(name: str, profile: str) -> dict[str, Any]:
    """Return the provenance of a notebook's committed results: seconds, memory; empty if there are none."""
    path = ROOT / "results" / profile / f"{name}.json"
    return json.loads(path.read_text(encoding="utf-8"))["provenance"] if path.exists() else {}


def profile_file(name: str, profile: str) -> Path | None:
    """Return the file with a profile's parameters; None if they are the defaults."""
    path = paths()[name].with_suffix(f".{profile}.yaml")
    return path if path.exists() else None


def parameters(name: str, profile: str) -> dict[str, Any]:
    """Return the parameters of a notebook in a profile."""
    path = profile_file(name, profile)
    return {"profile": profile, **(yaml.safe_load(path.read_text(encoding="utf-8")) if path else {})}


def lib_modules(name: str) -> list[str]:
    """Return the files of `lib` that a notebook imports, directly or through others, and the data files beside them."""
    found: set[Path] = set()
    queue = [paths()[name]]
    while queue:
        new = _lib_files(queue.pop()) - found
        found |= new
        queue += new
    data = {path for module in found for path in module.parent.rglob("*") if path.suffix in DATA}
    return sorted(str(path.relative_to(ROOT)) for path in found | data)


@functools.cache
def _lib_files(path: Path) -> set[Path]:
    modules = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module:
            modules |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
        elif isinstance(node, ast.Import):
            modules |= {alias.name for alias in node.names}
    files = (ROOT.joinpath(*m.split(".")).with_suffix(".py") for m in modules if m.split(".")[0] == "lib")
    return {file for file in files if file.exists()}


def claims_of(name: str) -> dict:
    """Return the entries of claims.yaml that a notebook judges."""
    return {key: entry for key, entry in _claims().items() if entry.get("notebook") == name}


@functools.cache
def _claims() -> dict[str, Any]:
    return yaml.safe_load((ROOT / "claims.yaml").read_text(encoding="utf-8"))


def claims_digest(name: str) -> str:
    """Return a digest of a notebook's claims: the DAG runs it again when one of them changes."""
    return hashlib.sha256(json.dumps(claims_of(name), sort_keys=True).encode()).hexdigest()[:16]


def drop_progress_bars(notebook: dict[str, Any]) -> None:
    """Drop the progress bars that a run left in a notebook, and the stored state of their widgets."""
    view = "application/vnd.jupyter.widget-view+json"
    stored = notebook["metadata"].get("widgets", {}).get("application/vnd.jupyter.widget-state+json", {})
    state = stored.get("state", {})

    def family(key: str) -> set[str]:
        return {key}.union(*map(family, re.findall(r"IPY_MODEL_(\w+)", json.dumps(state.get(key)))))

    kinds = {key: {state[one]["model_name"] for one in family(key) if one in state} for key in state}
    bars = {key for key, found in kinds.items() if "FloatProgressModel" in found}
    for key in set().union(*map(family, bars)):
        state.pop(key, None)
    if not state:
        notebook["metadata"].pop("widgets", None)
    for cell in notebook["cells"]:
        if "outputs" in cell:
            shown = [(output, output.get("data", {}).get(view, {}).get("model_id")) for output in cell["outputs"]]
            cell["outputs"] = [output for output, model in shown if model not in bars]
