"""The code behind a number: which files of `lib` compute it, and a digest of what they say. Imports nothing heavy."""

import ast
import hashlib
import sys
from collections.abc import Callable
from functools import cache
from inspect import getsourcefile
from pathlib import Path
from typing import Any

from lib.record.files import ROOT

DATA = {".yaml", ".mplstyle", ".html", ".txt"}  # endings of files that modules of `lib` read


@cache
def digest(measure: Callable[..., Any]) -> str:
    """Return a digest of the code of a measure: its module and all it imports, without comments and docstrings.

    `lib.record` is left out: it keeps numbers and computes none.
    """
    return digest_of(Path(getsourcefile(measure) or ""), measure.__qualname__)


def digest_of(module: Path, name: str) -> str:
    """Return the same of a function that is named by its module's file, without importing it."""
    total = hashlib.sha256(name.encode())
    for path in sorted({module, *modules(module)}):
        if (ROOT / "lib" / "record") not in path.parents:
            total.update(_meaning(path))
    return total.hexdigest()[:16]


def modules(path: Path) -> set[Path]:
    """Return the files of `lib` that a file imports, directly or through others, and the data files beside them."""
    found: set[Path] = set()
    queue = [path]
    while queue:
        new = _imported(queue.pop()) - found
        found |= new
        queue += new
    folders = {module.parent for module in found}
    return found | {data for folder in folders for data in folder.rglob("*") if data.suffix in DATA}


@cache
def _imported(path: Path) -> frozenset[Path]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
        elif isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
    files = (ROOT.joinpath(*name.split(".")).with_suffix(".py") for name in names if name.split(".")[0] == "lib")
    return frozenset(file for file in files if file.exists())


@cache
def _meaning(path: Path) -> bytes:
    """Return what a file says, whatever its comments, docstrings and layout; of a data file, its bytes."""
    if path.suffix != ".py":
        return path.read_bytes()
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node, clean=False):
            node.body = node.body[1:]
    # As Python 3.11 writes it: 3.13 leaves out empty fields, and from 3.12 on there are parameters of types.
    options: dict[str, Any] = {"show_empty": True} if sys.version_info >= (3, 13) else {}
    return ast.dump(tree, **options).replace(", type_params=[]", "").encode()
