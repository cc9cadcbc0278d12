"""The gate: all that a job will read is opened, counted and checked before anything is written or computed."""

import json
import os
import shutil
from pathlib import Path
from typing import NamedTuple

import torch

from lib.ground.folder import Read
from lib.ground.nets import parameter_count
from lib.jobs import estimate, hub, translation
from lib.jobs.hub import Source
from lib.jobs.report import K
from lib.jobs.settings import Job, Settings, Translation
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
from lib.worlds import judge

SETTINGS = "job.json"
FEWEST = 100  # pictures that a model can be trained on from nothing


class Opened(NamedTuple):
    """What a job will read."""

    source: Source  # the model that it starts from
    reads: dict[str, Read]  # pictures by the setting that names them
    found: dict[str, str]  # for the reader: a setting, what was found

    def __str__(self) -> str:
        """Return a line for each setting, and one for each thing to be known of it."""
        model = "source" if "source" in self.found else "target_model"
        notes = {model: self.source.notes} | {name: read.notes() for name, read in self.reads.items()}
        width = max(map(len, self.found)) + 2
        lines = [f"{name:{width}}{what}".replace(f"{ROOT}{os.sep}", "") for name, what in self.found.items()]
        lines += [f"{'note':{width}}{name}: {note}" for name, some in notes.items() for note in some]
        return "\n".join(map(shown, lines))


def check(s: Settings | Translation) -> Opened:
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
    source, reads, found = _translation(s, where) if isinstance(s, Translation) else _finetuning(s, where)
    needed, free = estimate.disk(s, source, reads), shutil.disk_usage(_nearest(s.out)).free
    if needed > free + _size(s.out):
        what = f"{s.out}: {free / 1e9:.2f} GB are free, and the job may need {needed / 1e9:.2f}"
        raise UserError(f"out: {what}; free some, or name a folder on another disk")
    found |= {
        "device": f"{device.type}, processes {s.processes}, precision {s.precision}",
        "out": f"{s.out}: {begun}; needs up to {needed / 1e9:.2f} GB of {free / 1e9:.2f} free",
    }
    return Opened(source, reads, found)


def _finetuning(s: Settings, device: torch.device) -> tuple[Source, dict[str, Read], dict[str, str]]:
    """Open the source, and the images at its size."""
    source = hub.source(s.source, device)
    if source.adaptor:
        raise UserError(f"source: {s.source} holds an adaptor; give the model that it was trained beside")
    if s.judge:
        judge.load_classifier(s.judge)
    reads = {name: hub.target(s, source.shape, name) for name in ("images", "reference") if getattr(s, name)}
    n = {name: len(read.names) for name, read in reads.items()}
    if n.get("reference") == 1:
        raise UserError(f"reference: 1 image in {s.reference}; distances of sets need 2, and better 2,048 or more")
    few = f" (precision and recall need more than {K})" if n.get("reference", K + 1) <= K else ""
    found = {"source": _described(s.source, source), "images": f"{s.images}: {n['images']}"}
    return source, reads, found | {"reference": f"{s.reference}: {n['reference']}{few}" if s.reference else "none"}


def _translation(s: Translation, device: torch.device) -> tuple[Source, dict[str, Read], dict[str, str]]:
    """Open the target's model, or make the one that will be trained, and both folders at its size."""
    if s.target_model:
        source = hub.source(s.target_model, device, "target_model")
        name, least = s.target_model, 2
        if source.adaptor:
            raise UserError(f"target_model: {name} holds an adaptor; give a model that was trained whole")
        if s.size and source.shape[1:] != (s.size, s.size):
            what = f"{s.size} given, but {name} has pictures of {' x '.join(map(str, source.shape[1:]))}"
            raise UserError(f"size: {what}; leave it out")
    else:
        source, name, least = translation.untrained(s, device), "to be trained on target_images", FEWEST
    reads = {key: hub.target(s, source.shape, key) for key in ("source_images", "target_images")}
    for key, read in reads.items():
        n, needed = len(read.names), least if key == "target_images" else 2
        if n < needed:
            more = "" if s.target_model else ", or name a target_model"
            raise UserError(f"{key}: {n} pictures in {getattr(s, key)}; give {needed} or more{more}")
    found = {key: f"{getattr(s, key)}: {len(read.names)}" for key, read in reads.items()}
    return source, reads, found | {"target_model": _described(name, source)}


def _described(name: str, source: Source) -> str:
    shape, millions = " x ".join(map(str, source.shape)), parameter_count(source.unet) / 1e6
    return f"{name}: {shape}, {millions:.2f} M parameters, {source.schedule.T} noise levels"


def results(s: Settings | Translation) -> list[str]:
    """Return the folders of a job that a later run makes anew; the first is there when the job is done."""
    if isinstance(s, Translation):
        return [f"{kind}/{lambda_:g}" for lambda_ in s.lambdas for kind in ("translators", "translated")]
    return ["model", "best", "samples"]


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


def _output(s: Settings | Translation) -> str:
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
    for name in results(s):
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
