"""A notebook's run: checked parameters in, numbers, claims, figures and provenance out, in one JSON file."""

import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from IPython.display import display

from lib.record import claims, replicates, show
from lib.record.files import (
    RECORD,
    ROOT,
    SCHEMA,
    UserError,
    expanded,
    read_results,
    tell_of_another_lib,
    writable,
    write_atomic,
)
from lib.record.intervals import Shares
from lib.record.parameters import validate

try:
    import resource
except ImportError:  # Windows
    resource = None  # type: ignore[assignment]

PACKAGES = ("torch", "diffusers", "numpy", "scipy", "scikit-learn", "POT", "matplotlib", "papermill")


def start(notebook: str, namespace: dict[str, Any]) -> "Run":
    """Check the parameters in a notebook's `globals()` and begin its record; the first call of every notebook."""
    return Run(notebook, validate(namespace))


class Run:
    """One run of one notebook; see `start`.

    `folder` is where results go (`runs/PROFILE` or the parameter `out`), `artefacts` its folder of trained models that
    notebooks share, `device` the torch.device; `parameters` has the checked parameters and the last two.
    """

    def __init__(self, notebook: str, parameters: Any) -> None:
        self.notebook = notebook
        self.folder = expanded(parameters.out, "out") if parameters.out else ROOT / "runs" / parameters.profile
        self.artefacts = self.folder / "artefacts"
        large = parameters.profile in ("gpu", "paper") and torch.cuda.is_available()
        self.device = torch.device(("cuda" if large else "cpu") if parameters.device == "auto" else parameters.device)
        self.given = {name: value for name, value in vars(parameters).items() if name != "out"}
        self.parameters = SimpleNamespace(**{**vars(parameters), "artefacts": self.artefacts, "device": self.device})
        self.numbers: dict[str, Any] = {}
        self.tables: dict[str, Any] = {}
        self.notes: dict[str, str] = {}  # of tables
        self.claims: dict[str, Any] = {}
        self.figures: dict[str, Any] = {}
        self._began = time.perf_counter()
        self._took: dict[str, float] = {}  # seconds of a replicate, by experiment
        self._entries = claims.load(ROOT / "claims.yaml")
        writable(self.folder)
        tell_of_another_lib()
        torch.manual_seed(parameters.seed)
        np.random.seed(parameters.seed)
        shown = ", ".join(f"{name} = {value!r}" for name, value in vars(parameters).items())
        print(f"{notebook} on {self.device.type}: {shown}")

    @property
    def seed_list(self) -> list[int]:
        """Return the seeds of this run, `seeds` consecutive numbers from `seed`."""
        return list(range(self.parameters.seed, self.parameters.seed + self.parameters.seeds))

    def replicates(
        self,
        measure: Callable[..., Mapping[str, Any]],
        world: Callable[[Any], Sequence[Any]] | None = None,
        own: Callable[[Any, int], Sequence[Any]] | None = None,
        block: int = 0,
        seeds: Sequence[int] | None = None,
    ) -> dict[str, np.ndarray]:
        """Return what an experiment measures, stacked over the seeds: from disk what has ended, the rest computed.

        ``measure(seed, parameters, *world(parameters)) -> {name: number or array}`` is a function of a module of `lib`;
        ``own(parameters, seed)`` is a world for each seed; with a `block`, `measure` takes so many seeds at once. See
        `lib.record.replicates.collect`.
        """
        name = Path("replicates", self.notebook, measure.__name__)
        folders = [self.folder / name, ROOT / "results" / self.parameters.profile / name]
        about = {"commit": commit(), "hardware": self.hardware(), "torch": version("torch")}
        seeds, began = self.seed_list if seeds is None else seeds, time.perf_counter()
        found, took = replicates.collect(measure, seeds, self.parameters, folders, world, own, block, about)
        self._began += time.perf_counter() - began - sum(took)  # what they cost, here or in jobs of their own
        self._took[measure.__name__] = round(float(np.mean(took)), 2)
        return found

    def number(self, key: str, values: Any, unit: str = "", digits: int = 3) -> None:
        """Record a measured number, its values over seeds, or `Shares`; pages of the book quote it by `key`."""
        spread = claims.interval(values)
        array = np.asarray(values.values if isinstance(values, Shares) else values, dtype=float)
        kept = {"values": array.tolist()} if 1 < array.size <= claims.KEPT_VALUES and spread["mean"] is not None else {}
        self.numbers[key] = {**spread, "unit": unit, "text": claims.text(spread, unit, digits), **kept}

    def text(self, key: str) -> str:
        """Return a recorded number as pages quote it: mean and 95 % interval."""
        return self.numbers[key]["text"]

    def table(self, name: str, rows: list[dict[str, Any]], note: str = "") -> None:
        """Record a table (flat rows with equal keys) and show it, with the protocol of its numbers below as `note`."""
        if len({tuple(row) for row in rows}) > 1:
            raise ValueError(f"table '{name}': its rows have different columns, which would shift the cells")
        self.tables[name] = rows
        if note:
            self.notes[name] = note
        display(show.table(rows, note), raw=True)

    def claim(self, claim_id: str, **measured: Any) -> None:
        """Judge a claim by its checks in claims.yaml, each given as a number or values over seeds; show its card."""
        self._card(claim_id, claims.judge(claim_id, self._entry(claim_id), measured))

    def not_tested(self, claim_id: str, reason: str) -> None:
        """Show the card of a claim that this run could not test, with what it would need."""
        self._card(claim_id, claims.not_tested(self._entry(claim_id), reason))

    def _entry(self, claim_id: str) -> dict[str, Any]:
        if claim_id not in self._entries:
            raise UserError(f"claim '{claim_id}' is not in claims.yaml")
        return self._entries[claim_id]

    def _card(self, claim_id: str, judged: dict[str, Any]) -> None:
        path = ROOT / "results" / RECORD / f"{self.notebook}.json"
        if self.parameters.profile == "cpu" and path.is_file():
            then = read_results(path)["claims"].get(claim_id)
            if then and then["entry"] == json.loads(json.dumps(judged["entry"])):  # judged by the same rules
                judged |= {"record": claims.against(judged, then, _machines(path.parent).get(claim_id, {}))}
        self.claims[claim_id] = judged
        card, words = claims.card(claim_id, judged), claims.card_text(claim_id, judged)
        display({"text/html": card, "text/plain": words}, raw=True)

    def provenance(self) -> dict[str, Any]:
        """Return where the numbers come from: commit, versions, hardware, seed, seconds, memory."""
        gpu = torch.cuda.is_available() and self.device.type == "cuda"
        return {
            "profile": self.parameters.profile,
            "seed": self.parameters.seed,
            **commit(),
            "versions": {"python": platform.python_version(), **{name: version(name) for name in PACKAGES}},
            "hardware": self.hardware(),
            "seconds": round(time.perf_counter() - self._began, 1),
            "replicates": self._took,
            "peak_memory_gb": peak_memory(),
            "peak_gpu_memory_gb": round(torch.cuda.max_memory_allocated() / 1024**3, 2) if gpu else None,
            "finished": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        }

    def hardware(self) -> dict[str, Any]:
        """Return what this run computes on."""
        gpu = torch.cuda.get_device_name() if torch.cuda.is_available() and self.device.type == "cuda" else None
        kernels = torch.backends.cpu.get_cpu_capability()  # rounding goes by them
        threads = torch.get_num_threads()
        return {"cpu": processor(), "kernels": kernels, "cores": os.cpu_count(), "threads": threads, "gpu": gpu}

    def finish(self) -> None:
        """Write `FOLDER/results/NOTEBOOK.json` and print the provenance; the last call of every notebook."""
        provenance = self.provenance()
        results = {
            "schema": SCHEMA,
            "notebook": self.notebook,
            "parameters": self.given,
            "numbers": self.numbers,
            "tables": self.tables,
            "notes": self.notes,
            "claims": self.claims,
            "figures": self.figures,
            "provenance": provenance,
        }
        path = self.folder / "results" / f"{self.notebook}.json"
        write_atomic(path, json.dumps(results, indent=1, allow_nan=False, default=_plain) + "\n")
        where = provenance["hardware"]["gpu"] or provenance["hardware"]["cpu"]
        state = f"commit {provenance['commit'][:10]}{' with local changes' if provenance['dirty'] else ''}"
        print(f"{self.notebook}: {provenance['seconds']:.0f} s, {provenance['peak_memory_gb']} GB, {where}, {state}")


def _machines(record: Path) -> dict[str, dict[str, float]]:
    """Return claim -> check -> standard deviation between machines, where two have computed the same replicates."""
    path = record / "machines.json"
    return json.loads(path.read_text(encoding="utf-8"))["spread"] if path.is_file() else {}


def _plain(value: Any) -> Any:
    """Turn numpy and torch numbers into plain ones for JSON."""
    if hasattr(value, "tolist"):
        return value.tolist()
    raise TypeError(f"{type(value).__name__} cannot be recorded")


def commit() -> dict[str, Any]:
    """Return commit and state of the working tree; outside a git checkout the commit is unknown."""

    def git(*arguments: str) -> str:
        return subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()

    try:
        return {"commit": git("rev-parse", "HEAD"), "dirty": bool(git("status", "--porcelain", "-uno"))}
    except (OSError, subprocess.CalledProcessError):
        return {"commit": "unknown", "dirty": False}


def peak_memory() -> float | None:
    """Return the largest memory that this process had, in GB; None where the system does not say (Windows)."""
    if resource is None:
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return round(peak / (1024**3 if sys.platform == "darwin" else 1024**2), 2)


def processor() -> str:
    """Return the processor's name."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
