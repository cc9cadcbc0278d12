"""Replicates of an experiment, one file each: what has ended is kept, what no longer holds is computed again.

A file holds the arrays of one replicate, the parameters that were read for it, and a digest of the code that computed
it. It holds for every run whose code has that digest and whose parameters agree in what was read. Pictures in [-1, 1],
which are only shown, are kept as bytes: arrays (..., c, h, w) whose name ends in "images" or "samples".
"""

import io
import json
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from tqdm.auto import tqdm

from lib.record.code import digest
from lib.record.files import room, write_atomic

ABOUT = "about"  # the entry of a file that says where it comes from
SETTINGS = {"artefacts", "device"}  # of a run; they are not among its parameters
Measured = dict[str, np.ndarray]


class Noted:
    """Parameters of a run that note which of them are read."""

    def __init__(self, parameters: Any) -> None:
        self._parameters, self._read = parameters, set[str]()

    def __getattr__(self, name: str) -> Any:
        """Return a parameter, and note its name."""
        value = getattr(self._parameters, name)
        self._read.add(name)
        return value

    def noted(self) -> dict[str, Any]:
        """Return what was read, as JSON gives it back."""
        return _plain(self._parameters, sorted(self._read - SETTINGS))


def collect(
    measure: Callable[..., Mapping[str, Any]],
    seeds: Sequence[int],
    parameters: Any,
    folders: Sequence[Path],
    world: Callable[[Any], Sequence[Any]] | None = None,
    own: Callable[[Any, int], Sequence[Any]] | None = None,
    block: int = 0,
    about: Mapping[str, Any] | None = None,
) -> tuple[Measured, list[float]]:
    """Return what ``measure(seed, parameters, *world(parameters))`` finds, stacked over the seeds, and seconds of each.

    `own` in the place of `world` opens, or trains, what is each replicate's own: ``own(parameters, seed)``.

    Finished replicates come from the first of `folders` that holds them; the others are computed, and each is written
    to the first folder as it ends. With a `block`, ``measure(seeds, ...)`` computes so many side by side, and what it
    returns has a leading axis for them. `about` goes into the files.
    """
    if own and block:
        raise ValueError("own, block: seeds that are measured together cannot have a world each")
    code = digest(*(one for one in (measure, world, own) if one))
    found = {seed: kept for seed in seeds if (kept := _kept(seed, folders, code, parameters))}
    missing = [seed for seed in seeds if seed not in found]
    if missing:
        noted = Noted(parameters)
        opened = world(noted) if world else ()
        size = block or 1
        for i in tqdm(range(0, len(missing), size), desc=measure.__name__):
            chunk = missing[i : i + size]
            if own:
                opened = own(noted, chunk[0])
            began = time.perf_counter()
            rows = _rows(measure(chunk if block else chunk[0], noted, *opened), len(chunk) if block else 0)
            words: dict[str, Any] = {"parameters": noted.noted(), "code": code, **(about or {})}
            words["seconds"] = seconds = round((time.perf_counter() - began) / len(chunk), 2)
            words["finished"] = datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
            for seed, row in zip(chunk, rows, strict=True):
                write(folders[0] / f"{seed}.npz", row, words)
                found[seed] = {name: _unpacked(_packed(name, value)) for name, value in row.items()}, seconds
    return stacked(found[seed][0] for seed in seeds), [found[seed][1] for seed in seeds]


def stacked(replicates: Any) -> dict[str, np.ndarray]:
    """Return each value of several replicates as one array (replicates, ...); one that some lack has fewer rows."""
    found: dict[str, list] = {}
    for replicate in replicates:
        for name, value in replicate.items():
            found.setdefault(name, []).append(_array(value))
    return {name: np.array(values) for name, values in found.items()}


def _plain(parameters: Any, names: Iterable[str]) -> dict[str, Any]:
    """Return some parameters as JSON gives them back; None for one that there is not."""
    return json.loads(json.dumps({name: getattr(parameters, name, None) for name in names}, default=str))


def _array(value: Any) -> np.ndarray:
    return np.asarray(value.detach().cpu() if hasattr(value, "detach") else value)  # tensors, without importing torch


def _rows(measured: Mapping[str, Any], block: int) -> Iterator[Measured]:
    """Yield the arrays of each replicate of a block, or of the one that was measured alone."""
    arrays = {name: _array(value) for name, value in measured.items()}
    if not block:
        yield arrays
    for i in range(block):
        yield {name: array[i] for name, array in arrays.items()}


def write(path: Path, row: Measured, about: Mapping[str, Any]) -> None:
    """Write the arrays of a replicate and where they come from, whole or not at all."""
    buffer, arrays = io.BytesIO(), {name: _packed(name, value) for name, value in row.items()}
    np.savez_compressed(buffer, allow_pickle=False, **arrays, **{ABOUT: np.array(json.dumps(about))})
    with room(path.parent):
        write_atomic(path, buffer.getvalue())


def read(path: Path) -> tuple[Measured, dict[str, Any]]:
    """Return the arrays of a file and where they come from; numpy's errors if it is damaged."""
    with np.load(path, allow_pickle=False) as file:
        arrays = {name: _unpacked(file[name]) for name in file.files}
    return arrays, json.loads(str(arrays.pop(ABOUT)))


def _packed(name: str, array: np.ndarray) -> np.ndarray:
    """Return pictures as bytes, a quarter of the size and much less when packed; anything else as it is."""
    if not name.endswith(("images", "samples")) or array.ndim < 4 or array.dtype == np.uint8:
        return array
    return ((array.clip(-1, 1) + 1) * 127.5).round().astype(np.uint8)


def _unpacked(array: np.ndarray) -> np.ndarray:
    return array.astype(np.float32) / 127.5 - 1 if array.dtype == np.uint8 else array


def changes(about: Mapping[str, Any], code: str, parameters: Any) -> list[str]:
    """Return what keeps a replicate from holding for a run: parameters that were read for it, else its code."""
    now = _plain(parameters, about["parameters"])
    changed = [name for name, value in about["parameters"].items() if now[name] != value]
    return changed or ["its code"] * (about["code"] != code)


def _kept(seed: int, folders: Sequence[Path], code: str, parameters: Any) -> tuple[Measured, float] | None:
    """Return a replicate from the disk, and its seconds, if one holds; say so if it is damaged or no longer does."""
    for path in (folder / f"{seed}.npz" for folder in folders):
        if not path.is_file():
            continue
        try:
            row, about = read(path)
        except Exception as error:
            print(f"{path}: damaged ({type(error).__name__}), computed again")
            continue
        if not (changed := changes(about, code, parameters)):
            return row, about["seconds"]
        print(f"{path.name} of {path.parent.name}: {', '.join(changed)} has changed, computed again")
    return None
