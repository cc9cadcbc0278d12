"""A folder of pictures as a tensor: which files count, what is left out and why, a copy that is found again."""

import hashlib
import io
import itertools
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache as once, partial
from pathlib import Path
from typing import IO, Any, NamedTuple

import torch
from PIL import Image
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from lib.ground.pictures import Picture, Pixels, Size, decode, reason, surprises
from lib.record.files import MARK, OURS, SYSTEM, UserError, expanded, listed, shown, write_atomic

Place = str | Path
DAMAGED = ("refuse", "skip")
STUBS = {"EPS", "WMF", "MPEG", "HDF5", "GRIB", "BUFR", "PDF"}  # formats that Pillow knows by name only, or by a program
# By their first bytes some of these would be taken for a TIFF, and their small preview for the picture.
OTHERS = dict.fromkeys((".heic", ".heif"), "HEIF") | dict.fromkeys((".nef", ".cr2", ".arw", ".dng", ".orf"), "raw")
CHUNK = 256  # files opened at a time
BUDGET = 64_000_000  # pixels in the memory of all threads
FORMAT = 2  # of the kept copies


class Read(NamedTuple):
    """What was read.

    Attributes
    ----------
    images
        (n, channels, height, width) float32 in [-1, 1].
    names
        Their n file names (below the folder), or row numbers of a data set.
    skipped
        Files that could not be read, with the reason.
    hints
        What changed images more than one may expect, and what may be meant otherwise.
    left_out
        Files and folders that were not opened, with the reason.
    kept
        Where `keep` writes a copy; None if there is one, or if it would not hold.
    """

    images: Tensor
    names: list[str]
    skipped: list[str]
    hints: list[str]
    left_out: Sequence[str] = ()
    kept: Path | None = None

    def notes(self) -> list[str]:
        """Return all that a reader should know of it, a line each."""
        lists = {"skipped": self.skipped, "left out": self.left_out}
        return [*self.hints, *(f"{what}: {listed(names)}" for what, names in lists.items() if names)]


def images(folder: Place, size: Size, **options: Any) -> Tensor:
    """Read every image of a folder as `read` does: (n, channels, h, w) in [-1, 1]; prints what is to be known."""
    found = read(folder, size, **options)
    for note in found.notes():
        print(f"{shown(folder)}: {note}")
    return found.images


def read(
    folder: Place, size: Size, channels: int = 3, damaged: str = "refuse", recursive: bool = False, cache: Place = "",
    parameter: str = "",
) -> Read:  # fmt: skip
    """Read every image of a folder.

    Parameters
    ----------
    size
        Side of a square, or height and width.
    channels
        1 (grey) or 3 (RGB). Of an animation the first picture counts.
    damaged
        What to do about files that cannot be read: ``refuse`` all, or ``skip`` them and say which.
    recursive
        Read sub-folders, too, but none that is hidden, of the system, or made by a run.
    cache
        Folder with the copies that `keep` wrote; one is taken as long as names, sizes and times of the image files
        stay. Empty: none.
    parameter
        What messages call the folder.
    """
    place, where = _place(folder, parameter)
    files, left_out = files_in(folder, recursive, parameter)
    named = [(path.relative_to(place).as_posix(), path) for path in files]
    marks = [[name, *_mark(path)] for name, path in named]
    return collect(named, size, channels, damaged, where, cache, marks)._replace(left_out=left_out)


def chunks(folder: Place, size: int, count: int = CHUNK) -> Iterator[tuple[list[Path], Tensor]]:
    """Yield the image files of a folder and their RGB images, as `read` gives them, `count` at a time."""
    (_, where), (files, _) = _place(folder), files_in(folder)
    for start in range(0, len(files), count):
        part = files[start : start + count]
        named = [(file.name, file) for file in part]
        yield part, collect(named, size, 3, "refuse", where).images


def image_files(folder: Path, recursive: bool = False) -> list[Path]:
    """Return the image files of a folder in the order of their names."""
    return _listing(folder, recursive)[0]


def collect(
    files: Iterable[tuple[str, Path | IO[bytes]]],
    size: Size,
    channels: int,
    damaged: str,
    where: str,
    cache: Place = "",
    marks: Any = None,
) -> Read:
    """Decode image files side by side, or take the copy kept in `cache`; see `read`.

    `where` is what messages call the place, `marks` (JSON) what must be unchanged for the kept copy to hold.
    """
    if damaged not in DAMAGED:
        raise UserError(f"damaged: '{damaged}' given; one of {', '.join(DAMAGED)}")
    if channels not in (1, 3):
        raise UserError(f"images of {channels} channels asked for; there are images of 1 (grey) and 3 (RGB)")
    key = hashlib.sha256(json.dumps([FORMAT, size, channels, marks]).encode()).hexdigest()[:16]
    kept = Path(cache).expanduser() / f"images-{key}.safetensors" if cache and marks else None
    found = _load(kept) if kept else None
    if found is None:
        found, lasting = _decoded(files, size, channels)
        found = found._replace(kept=kept if found.names and lasting else None)
    if not found.names and not found.skipped:
        raise UserError(f"{where} holds no image")
    if found.skipped and (damaged == "refuse" or not found.names):
        n = len(found.skipped) + len(found.names)
        what = f"{where}: {len(found.skipped)} of {n} files cannot be read: {listed(found.skipped)}"
        raise UserError(f"{what}; repair or remove them" + (", or set damaged to skip" if found.names else ""))
    return found._replace(images=found.images.float() / 127.5 - 1)


def keep(found: Read) -> None:
    """Write the copy of what was read that the next reading takes, if one is wanted."""
    if found.kept:
        header = {"read": json.dumps([found.names, found.skipped, found.hints])}
        as_bytes = ((found.images + 1) * 127.5).round().byte()
        write_atomic(found.kept, save({"images": as_bytes}, metadata=header))


# ------------------------------------------------------------------------------------------------- what is in a folder


def files_in(folder: Place, recursive: bool = False, parameter: str = "") -> tuple[list[Path], list[str]]:
    """Return the image files of a folder by name, and what is left out; refuse a folder without any."""
    place, where = _place(folder, parameter)
    if not place.is_dir():
        what = f"{where.replace('folder', 'path')} is a file" if place.is_file() else f"{where} does not exist"
        raise UserError(f"{what}; name a folder with image files")
    files, left_out = _listing(place, recursive)
    if not files:
        deeper = "" if recursive or not _listing(place, True)[0] else " (its sub-folders do: set recursive)"
        rest = f"; left out: {listed(left_out)}" if left_out else ""
        raise UserError(f"{where} holds no image{deeper}; expected files such as .png or .jpg{rest}")
    return files, left_out


def _place(folder: Place, parameter: str = "") -> tuple[Path, str]:
    """Return a folder's path, and what messages call it."""
    place = expanded(folder, parameter or "image folder")
    return place, f"{parameter}: folder {place}" if parameter else f"image folder {place}"


def _listing(place: Path, recursive: bool) -> tuple[list[Path], list[str]]:
    """Return image files in the order of their names, and what is left out, with the reason."""
    files: list[Path] = []
    left_out: list[str] = []
    seen = set()  # folders, by what links lead to

    def look(folder: Path) -> None:
        seen.add(folder.resolve())
        try:
            entries = sorted(folder.iterdir())
        except OSError as error:
            return left_out.append(f"{folder.relative_to(place).as_posix()}/ ({error.strerror})")
        for path in entries:
            if path.is_file() and (path.name in SYSTEM or path.name.startswith(OURS)):
                continue
            reason = _reason_to_leave(path, recursive)
            if not reason and path.is_dir():
                if path.resolve() not in seen:
                    look(path)
                    continue
                reason = "a link to where it was read already"
            if reason:
                left_out.append(f"{path.relative_to(place).as_posix()}{'/' * path.is_dir()} ({reason})")
            else:
                files.append(path)
        return None

    look(place)
    return sorted(files), left_out


def _reason_to_leave(path: Path, recursive: bool) -> str:
    """Say why a file or folder is not read; empty: it is."""
    if path.name.startswith(".") or path.name in SYSTEM:
        return "hidden" if path.name.startswith(".") else "of the system"
    if path.is_dir():
        if (path / MARK).is_file():
            return "made by a run"
        return "" if recursive else "a folder: set recursive"
    suffix = path.suffix.lower()
    if path.exists() and not path.is_file():  # a pipe or a device
        return "no file"
    if suffix in OTHERS:
        return f"{OTHERS[suffix]}, which cannot be read here; convert it to PNG"
    if suffix in _suffixes() or not path.exists():  # a link that leads nowhere counts as damaged
        return ""
    try:
        with Image.open(path) as opened:
            return "no image" if opened.format in STUBS else ""
    except Exception as error:  # as many as there are formats
        return error.strerror if isinstance(error, OSError) and error.strerror else "no image"


@once
def _suffixes() -> set[str]:
    known = Image.registered_extensions().items()
    return {suffix for suffix, kind in known if kind in Image.OPEN and kind not in STUBS}


def _mark(path: Path) -> tuple[int, int]:
    """Return what changes when a file does; zeros for a link that leads nowhere."""
    try:
        return path.stat().st_size, path.stat().st_mtime_ns
    except OSError:
        return 0, 0


# --------------------------------------------------------------------------------------------------- decoding


def _decoded(files: Iterable[tuple[str, Picture]], size: Size, channels: int) -> tuple[Read, bool]:
    """Read all files; images stay bytes. Say, too, whether what was skipped is so for good."""
    results: list[tuple[str, Pixels | str]] = []
    queue, lasting = iter(files), True
    one = partial(_one, size=size, channels=channels)
    while part := list(itertools.islice(queue, CHUNK)):
        threads = max(1, min(len(part), os.cpu_count() or 1, BUDGET // max(map(_area, part))))
        with ThreadPoolExecutor(threads) as pool:  # Pillow decodes and resizes outside Python's lock
            for name, pixels, for_good in pool.map(one, part):
                results.append((shown(name), pixels))
                lasting &= for_good
    good = [(name, found) for name, found in results if isinstance(found, Pixels)]
    skipped = [f"{name} ({why})" for name, why in results if isinstance(why, str)]
    stacked = torch.stack([found.array for _, found in good]) if good else torch.empty(0)
    return Read(stacked, [name for name, _ in good], skipped, surprises(good, size)), lasting


def _area(item: tuple[str, Picture]) -> int:
    """Return the pixels of a picture, from its first bytes; 1 if they do not say."""
    try:
        if isinstance(item[1], Path | io.BytesIO):
            with Image.open(item[1]) as opened:
                return opened.width * opened.height
    except Exception:
        pass  # said when it is read
    return 1


def _one(item: tuple[str, Picture], size: Size, channels: int) -> tuple[str, Pixels | str, bool]:
    """Return a name, its pixels or why there are none, and whether that will be so tomorrow."""
    name, source = item
    try:
        return name, decode(source, size, channels), True
    except MemoryError:
        raise UserError(f"{name}: out of memory; make the picture smaller") from None
    except Exception as error:  # decoders report a damaged file in many ways
        return name, reason(error), getattr(error, "errno", None) is None


def _load(path: Path) -> Read | None:
    """Return what is kept in `path`; None if there is nothing, or nothing that can be read."""
    try:
        with safe_open(str(path), framework="pt") as file:
            names, skipped, hints = json.loads((file.metadata() or {})["read"])
            return Read(file.get_tensor("images"), names, skipped, hints)
    except (OSError, SafetensorError, KeyError, ValueError):
        return None
