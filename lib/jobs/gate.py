"""The gate: all that a job will read is opened, counted and checked before anything is written or computed."""

import json
import os
import shutil
from pathlib import Path
from typing import Any, NamedTuple

import torch

from lib.ground.folder import Read
from lib.jobs import estimate, kinds
from lib.jobs.settings import Job
from lib.record.files import (
    MARK,
    ROOT,
    UserError,
    expanded,
    foreign,
    listed,
    reading,
    refuse_foreign,
    refuse_occupied,
    shown,
)
from lib.record.parameters import usable

SETTINGS = "job.json"


class Opened(NamedTuple):
    """What a job will read."""

    source: Any  # what it begins with: a `lib.jobs.hub.Source`, or networks
    reads: dict[str, Read]  # pictures by the setting that names them
    found: dict[str, str]  # for the reader: a setting, what was found

    def __str__(self) -> str:
        """Return a line for each setting, and one for each thing to be known of it."""
        model = "source" if "source" in self.found else "target_model"
        notes = {model: getattr(self.source, "notes", [])} | {name: read.notes() for name, read in self.reads.items()}
        width = max(map(len, self.found)) + 2
        lines = [f"{name:{width}}{what}".replace(f"{ROOT}{os.sep}", "") for name, what in self.found.items()]
        lines += [f"{'note':{width}}{name}: {note}" for name, some in notes.items() for note in some]
        return "\n".join(map(shown, lines))


def check(s: Job) -> Opened:
    """Open everything that a job reads, and look where it writes; nothing is written.

    Raises
    ------
    UserError
        The first fault: the setting, what was found, and what would be right.
    """
    inputs = ("images", "source", "reference", "judge", "source_images", "target_images", "target_model")
    apart(s.out, **{name: getattr(s, name) for name in inputs if hasattr(s, name)})
    begun, device = _output(s), device_of(s)
    where = device if "WORLD_SIZE" in os.environ or s.processes == 1 else torch.device("cpu")
    kind = kinds.of(s)
    source = kind.begin(s, where)
    reads, found = kind.open_inputs(s, source)
    needed, free = estimate.disk(s, source, reads), shutil.disk_usage(_nearest(s.out)).free
    if needed > free + _size(s.out):
        what = f"{s.out}: {free / 1e9:.2f} GB are free, and the job may need {needed / 1e9:.2f}"
        raise UserError(f"out: {what}; free some, or name a folder on another disk")
    found |= {
        "device": f"{device.type}, processes {s.processes}, precision {s.precision}",
        "out": f"{s.out}: {begun}; needs up to {needed / 1e9:.2f} GB of {free / 1e9:.2f} free",
    }
    return Opened(source, reads, found)


def apart(out: Path, **inputs: str | Path) -> None:
    """Refuse an output folder inside an input, and an input inside it; what is no path here is an id on the hub."""
    here = out.resolve()
    for name, given in inputs.items():
        there = expanded(given, name).resolve() if given else None
        if not there or not there.exists():
            continue
        if here == there or here in there.parents:
            raise UserError(f"out: {out} holds what is to be read ({name}: {given}); name another folder")
        if there in here.parents:
            raise UserError(f"out: {out} lies inside what is to be read ({name}: {given}); name another folder")


def device_of(s: Job) -> torch.device:
    """Return the device of this process of a job; a `UserError` if there are not as many GPUs as it asks for."""
    if s.device != "auto":
        usable(s.device)
    if s.device == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    if s.processes > torch.cuda.device_count():
        raise UserError(f"processes: {s.processes} given, but this machine has {torch.cuda.device_count()} GPUs")
    if s.precision == "bf16" and not torch.cuda.is_bf16_supported():
        raise UserError("precision: 'bf16' given, which this GPU does not know; use 'no'")
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))


def _output(s: Job) -> str:
    """Refuse a folder that is not this job's; say how far it is."""
    out, path = s.out, s.out / SETTINGS
    if shown(out) != str(out):
        raise UserError(f"out: {out} is no name in UTF-8, as TensorBoard wants; name another folder")
    if out.exists() and not out.is_dir():
        raise UserError(f"out: {out} is a file; name a folder")
    place = _nearest(out)
    if not (place.is_dir() and os.access(place, os.W_OK | os.X_OK)):
        raise UserError(f"out: {out}: {place} cannot be written to; name another folder")
    if not (out / MARK).is_file():
        if others := foreign(out):
            raise UserError(f"out: {out} holds files, and no job ({listed(others)}); name a new or an empty folder")
        return "new"
    if "WORLD_SIZE" not in os.environ:
        refuse_occupied(out)
    for name in kinds.of(s).results(s):
        refuse_foreign(out / name)
    if not path.is_file():
        return "new"
    with reading(path, f"delete {out}, or choose another out"):
        kept = json.loads(path.read_text(encoding="utf-8"))
    for name, value in s.fixed.items():
        if kept.get(name, value) != value:
            text = f"'{name}' is {value!r} now, but the job in {out} was started with {kept[name]!r}"
            raise UserError(f"{name}: {text}; use that value, or another out")
    return "begun"


def _nearest(folder: Path) -> Path:
    """Return a folder, or the one above it that exists."""
    return next(p for p in (folder, *folder.absolute().parents) if p.exists())


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
