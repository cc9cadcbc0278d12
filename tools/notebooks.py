"""Facts about the notebooks that the DAG, the book and the tests need, read from the notebooks themselves.

A notebook says in its metadata, under `companion`, which others it needs; its folder says to which chapter it belongs.
"""

from __future__ import annotations

import ast
import contextlib
import functools
import hashlib
import json
import math
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import jupytext
import yaml

from lib.record import replicates
from lib.record.code import Place, digest_of, modules
from lib.record.files import RECORD, ROOT

# Of one thread a job: two threads beside another job are several times slower, and sums depend on their number.
ONE_THREAD = ("smoke", "cpu", RECORD)


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
    """Return the provenance of a notebook's committed results: seconds, memory; empty if there are none.

    `smoke` and `cpu` are the record with fewer steps or replicates.
    """
    path = ROOT / "results" / (RECORD if profile in ("smoke", "cpu") else profile) / f"{name}.json"
    return json.loads(path.read_text(encoding="utf-8"))["provenance"] if path.exists() else {}


def profile_file(name: str, profile: str) -> Path | None:
    """Return the file with a profile's parameters; None if they are the defaults."""
    path = paths()[name].with_suffix(f".{profile}.yaml")
    return path if path.exists() else None


def parameters(name: str, profile: str) -> dict[str, Any]:
    """Return the parameters of a notebook in a profile."""
    path = profile_file(name, profile)
    return {"profile": profile, **(yaml.safe_load(path.read_text(encoding="utf-8")) if path else {})}


@functools.cache
def lib_modules(name: str) -> list[str]:
    """Return the files of `lib` that a notebook imports, directly or through others, and the data files beside them."""
    return sorted(str(path.relative_to(ROOT)) for path in modules(paths()[name]))


class Block(NamedTuple):
    """Replicates that one job computes before their notebook runs: a function of a module, and its seeds."""

    notebook: str
    module: str
    function: str
    world: str  # the function that opens what it needs, `module:name`; empty: none
    own: str  # likewise, for what each seed has of its own
    block: int  # replicates side by side; 0: one after the other
    seeds: list[int]


@functools.cache
def blocks(name: str, profile: str) -> list[Block]:
    """Return the jobs of a notebook's replicates, read from its calls of `run.replicates`.

    By what the record took, a job has replicates for a minute or two; all, where they are small.
    """
    tree, given = _tree(name), _given(name, profile)
    seeds = list(range(given.get("seed", 0), given.get("seed", 0) + given.get("seeds", 0)))
    places = _places(tree)
    found = []
    for call in (
        node for node in ast.walk(tree) if isinstance(node, ast.Call) and _text(node.func) == "run.replicates"
    ):
        module, function = _place(call.args[0], places)
        keywords = {k.arg: k.value for k in call.keywords}
        world = ":".join(_place(call.args[1], places)) if len(call.args) > 1 else ""
        own = ":".join(_place(keywords["own"], places)) if "own" in keywords else ""
        block = ast.literal_eval(keywords["block"]) if "block" in keywords else 0
        took = recorded(name, profile).get("replicates", {}).get(function)
        many = 2 ** math.ceil(math.log2(60 / took)) if took and took < 60 else 1  # a timing read anew changes no job
        size = len(seeds) if profile == "smoke" else max(block, many)
        for i in range(0, len(seeds), size):
            found.append(Block(name, module, function, world, own, block, seeds[i : i + size]))
    return found


def to_compute(name: str, profile: str) -> list[Block]:
    """Return the jobs of `blocks` that are left: the committed results lack a replicate of theirs, or they ran here."""
    run = ROOT / "runs" / profile
    return [job for job in blocks(name, profile) if Path(done(job, str(run))).exists() or not _held(job, profile)]


@functools.cache
def _given(name: str, profile: str) -> dict[str, Any]:
    """Return the parameters of a notebook at a profile."""
    return {**_declared(_tree(name)), **parameters(name, profile)}


def _held(job: Block, profile: str) -> bool:
    """Whether all of a job's replicates are among the committed results, of today's code and parameters."""
    folder = ROOT / "results" / profile / "replicates" / job.notebook / job.function
    if not all((folder / f"{seed}.npz").exists() for seed in job.seeds):
        return False
    code = code_of(job)
    now = SimpleNamespace(**_given(job.notebook, profile))
    try:
        about = [replicates.read(folder / f"{seed}.npz")[1] for seed in job.seeds]
    except Exception:  # damaged: the job says so and computes it again
        return False
    return not any(replicates.changes(one, code, now) for one in about)


def code_of(job: Block) -> str:
    """Return the digest of the code of a job."""
    return digest_of(begins(job))


def begins(job: Block) -> tuple[Place, ...]:
    """Return where the code of a job begins: its experiment, and what opens its world."""
    names = (f"{job.module}:{job.function}", job.world, job.own)
    pairs = (name.split(":") for name in names if name)
    return tuple(Place(ROOT.joinpath(*m.split(".")).with_suffix(".py"), f) for m, f in pairs)


def done(job: Block, run: str) -> str:
    """Return the file that says that a job of replicates has ended."""
    return f"{run}/replicates/{job.notebook}/{job.function}/{job.seeds[0]}-{job.seeds[-1]}.done"


def models(profile: str) -> dict[str, tuple[str, str, int]]:
    """Return the jobs that train what several notebooks need, by the file that says that one has ended.

    A world of a seed's own is trained by a function `trained` of its module, called as the notebook that names it says;
    other functions of the module load it.
    """
    every = (job for name in names() for job in blocks(name, profile))
    by = {job.own.split(":")[0]: (job.notebook, job.own) for job in every if job.own.endswith(":trained")}
    jobs = (job for name in names() for job in to_compute(name, profile) if job.own)
    return {trained(job, seed, profile): (*by[job.own.split(":")[0]], seed) for job in jobs for seed in job.seeds}


def trained(job: Block, seed: int, profile: str) -> str:
    """Return the file that says that the world of a seed's own is there."""
    return f"runs/{profile}/models/{job.own.split(':')[0]}/{seed}.done"


def _tree(name: str) -> ast.Module:
    return ast.parse(paths()[name].read_text(encoding="utf-8"))


def _declared(tree: ast.Module) -> dict[str, Any]:
    """Return what the parameters cell declares."""
    found = {}
    for node in tree.body:
        if isinstance(node, ast.AnnAssign) and node.value:
            with contextlib.suppress(ValueError):  # not a parameter: those are literals
                found[_text(node.target)] = ast.literal_eval(node.value)
    return found


def _places(tree: ast.Module) -> dict[str, str]:
    """Return name -> where it was imported from, `package.module`."""
    imports = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    return {alias.asname or alias.name: f"{node.module}.{alias.name}" for node in imports for alias in node.names}


def _place(node: ast.expr, places: dict[str, str]) -> tuple[str, str]:
    """Return the module and name of a function that a notebook names: `module.function`, or one that it imported."""
    first, _, rest = _text(node).partition(".")
    module, _, name = f"{places[first]}.{rest}".strip(".").rpartition(".")
    return module, name


def _text(node: ast.expr) -> str:
    return ast.unparse(node)


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
