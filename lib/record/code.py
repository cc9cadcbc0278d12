"""The code behind a number: which functions, classes and constants of `lib` compute it, and a digest of what they say.

Imports nothing heavy.
"""

import ast
import hashlib
import sys
from collections.abc import Callable, Iterable, Iterator
from functools import cache
from inspect import getsourcefile
from pathlib import Path
from typing import Any, NamedTuple

from lib.record.files import ROOT

DATA = {".yaml", ".csv", ".png", ".mplstyle", ".html", ".txt"}  # endings of files that modules of `lib` read
WHOLE = ""  # in the place of a name: everything in a module
BINDING = ast.FunctionDef | ast.ClassDef | ast.Import | ast.ImportFrom | ast.Assign | ast.AnnAssign


class Place(NamedTuple):
    """Where something is defined: a file, and its name there."""

    path: Path
    name: str


def digest(*functions: Callable[..., Any]) -> str:
    """Return a digest of the code of functions: of their definitions and of all in `lib` that these use, and so on.

    Comments, docstrings and layout do not count, nor does `lib.record`: it keeps numbers and computes none.
    """
    return digest_of(tuple(Place(Path(getsourcefile(one) or ""), one.__qualname__) for one in functions))


@cache
def digest_of(places: tuple[Place, ...]) -> str:
    """Return the same of functions that are named by their places, without importing them."""
    total = hashlib.sha256(repr([name for _, name in places]).encode())
    for said in sorted({_meaning(*place) for place in places_of(places)}):
        total.update(said)
    return total.hexdigest()[:16]


def places_of(places: Iterable[Place]) -> set[Place]:
    """Return these places and those of all that they use, directly or through others."""
    found, queue = set(places), list(places)
    while queue:
        new = _used(queue.pop()) - found
        found |= new
        queue += new
    return found


def modules(path: Path) -> set[Path]:
    """Return the files of `lib` that a file imports, directly or through others, and the data files beside them."""
    found: set[Path] = set()
    queue = [path]
    while queue:
        new = {place.path for place in _module(queue.pop()).imported.values()} - found
        found |= new
        queue += new
    folders = {module.parent for module in found}
    return found | {data for folder in folders for data in folder.rglob("*") if data.suffix in DATA}


class _Module:
    """A file's statements by the names that they bind, and the modules and names of `lib` that it imports."""

    def __init__(self, path: Path) -> None:
        self.bound: dict[str, list[ast.stmt]] = {}
        self.imported: dict[str, Place] = {}
        self.always: list[ast.stmt] = []  # statements that do something on import
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for node in ast.walk(tree):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node, clean=False):
                node.body = node.body[1:]
        for statement in tree.body:
            names = list(_binds(statement))
            if not names or not isinstance(statement, BINDING):
                self.always.append(statement)
            for name in names:
                self.bound.setdefault(name, []).append(statement)
        for node in ast.walk(tree):
            self.imported |= dict(_from_lib(node))


@cache
def _module(path: Path) -> _Module:
    return _Module(path)


def _binds(statement: ast.stmt) -> Iterator[str]:
    """Yield the names that a statement binds in its module."""
    if isinstance(statement, ast.FunctionDef | ast.ClassDef):
        yield statement.name
        return
    for node in ast.walk(statement):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id
        elif isinstance(node, ast.alias):
            yield node.asname or node.name.split(".")[0]


def _from_lib(node: ast.AST) -> Iterator[tuple[str, Place]]:
    """Yield the names that an import gives to modules of `lib` and to what these define."""
    if isinstance(node, ast.ImportFrom) and node.module:
        for alias in node.names:
            if (file := _file(f"{node.module}.{alias.name}")) is not None:
                yield alias.asname or alias.name, Place(file, WHOLE)
            elif (file := _file(node.module)) is not None:
                yield alias.asname or alias.name, Place(file, alias.name)


def _file(module: str) -> Path | None:
    path = ROOT.joinpath(*module.split(".")).with_suffix(".py")
    return path if module.split(".")[0] == "lib" and path.exists() else None


def _statements(place: Place) -> list[ast.stmt]:
    """Return the statements that define a name of a module: its own, all if it is not known, and those that act."""
    module = _module(place.path)
    own = module.bound.get(place.name.split(".")[0])
    every = [statement for statements in module.bound.values() for statement in statements]
    return [*(every if own is None else own), *module.always]


@cache
def _used(place: Place) -> frozenset[Place]:
    """Return the places in `lib` that a definition uses."""
    module, found = _module(place.path), set[Place]()
    if place.name in module.imported:  # it only passes through here
        found.add(module.imported[place.name])
    for statement in _statements(place):
        taken = set()  # names of modules of which an attribute is used, not the whole
        for node in ast.walk(statement):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
                target = module.imported.get(node.value.id)
                if target and target.name == WHOLE:
                    taken.add(id(node.value))
                    found.add(Place(target.path, node.attr))
        for node in ast.walk(statement):
            if isinstance(node, ast.Name) and id(node) not in taken:
                if node.id in module.imported:
                    found.add(module.imported[node.id])
                elif node.id in module.bound:
                    found.add(Place(place.path, node.id))
    return frozenset(one for one in found if ROOT / "lib" / "record" not in one.path.parents)


@cache
def _meaning(path: Path, name: str) -> bytes:
    """Return what a definition says, and the data files beside its module if it looks there."""
    statements = [s for s in _statements(Place(path, name)) if not _is_import_of_lib(s)]
    # As Python 3.11 writes it: 3.13 leaves out empty fields, and from 3.12 on there are parameters of types.
    options: dict[str, Any] = {"show_empty": True} if sys.version_info >= (3, 13) else {}
    said = "".join(ast.dump(statement, **options) for statement in statements).replace(", type_params=[]", "").encode()
    if "id='__file__'" in said.decode():
        said += b"".join(data.read_bytes() for data in sorted(path.parent.rglob("*")) if data.suffix in DATA)
    return said


def _is_import_of_lib(statement: ast.stmt) -> bool:
    return isinstance(statement, ast.Import | ast.ImportFrom) and bool(dict(_from_lib(statement)))
