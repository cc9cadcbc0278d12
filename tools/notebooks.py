"""Facts about the notebooks that the DAG and the tests need: names, modules used, claims judged, order."""

from __future__ import annotations

import ast
import hashlib
import json
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOKS = ROOT / "notebooks"

# A notebook that loads what another one trained.
IMAGES = ("60_finetune", "62_ant", "63_translate", "64_asyrp", "66_ant_sensitivity", "67_own_images")
NEEDS = {name: ["50_source"] for name in ("00_start", "30_sdft_weights", "41_dds_digits", *IMAGES)}
NEEDS |= {name: ["41_dds_digits"] for name in ("42_dds_directions", "43_dds_network")}
# Minutes at `cpu`.
LONG = ("10_rdmd_2d", "43_dds_network", "60_finetune", "62_ant", "63_translate", "66_ant_sensitivity")


def names() -> list[str]:
    """Return the names of all notebooks, in reading order."""
    return sorted(path.stem for path in NOTEBOOKS.glob("[0-9]*.py"))


def lib_modules(name: str) -> list[str]:
    """Return the files of `lib` that a notebook imports, directly or through other modules of `lib`."""
    found: set[str] = set()
    queue = [NOTEBOOKS / f"{name}.py"]
    while queue:
        for module in _lib_imports(queue.pop()):
            path = ROOT / "lib" / f"{module}.py"
            if module not in found and path.exists():
                found.add(module)
                queue.append(path)
    return [f"lib/{module}.py" for module in sorted(found)]


def _lib_imports(path: Path) -> set[str]:
    modules = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module:
            parts = node.module.split(".")
            if parts[0] == "lib":
                modules |= {parts[1]} if len(parts) > 1 else {alias.name for alias in node.names}
        elif isinstance(node, ast.Import):
            modules |= {a.name.split(".")[1] for a in node.names if a.name.startswith("lib.")}
    return modules


def claims_of(name: str) -> dict:
    """Return the entries of claims.yaml that a notebook judges."""
    entries = yaml.safe_load((ROOT / "claims.yaml").read_text(encoding="utf-8"))
    return {key: entry for key, entry in entries.items() if entry.get("notebook") == name}


def claims_digest(name: str) -> str:
    """Return a digest of a notebook's claims: the DAG runs it again when one of them changes."""
    return hashlib.sha256(json.dumps(claims_of(name), sort_keys=True).encode()).hexdigest()[:16]
