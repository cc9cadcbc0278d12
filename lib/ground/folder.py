"""A folder of one's own images as a tensor, whatever their size and mode; a copy at the model's size is kept."""

import hashlib
import itertools
import json
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
import torch
from PIL import Image, ImageOps
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from lib.record.files import UserError, write_atomic

Place = str | Path
SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff"}
DAMAGED = ("refuse", "skip")
LONG = 1.5  # a longer side above this many shorter ones: the centre crop loses more than a third
NAMED = 20  # names shown of a longer list
CHUNK = 256  # files opened at a time
FORMAT = 1  # of the kept copies


class Read(NamedTuple):
    """What was read.

    Attributes
    ----------
    images
        (n, channels, size, size) float32 in [-1, 1].
    names
        Their n file names (below the folder), or row numbers of a data set.
    skipped
        Files that could not be read, with the reason.
    hints
        What changed images more than one may expect: enlarged, much cropped.
    """

    images: torch.Tensor
    names: list[str]
    skipped: list[str]
    hints: list[str]


def images(folder: str | Path, size: int, **options: Any) -> torch.Tensor:
    """Read every image of a folder as `read` does: (n, channels, size, size) in [-1, 1]; prints what was skipped."""
    found = read(folder, size, **options)
    if found.skipped:
        print(f"{folder}: skipped {listed(found.skipped)}")
    return found.images


def read(
    folder: Place, size: int, channels: int = 3, damaged: str = "refuse", recursive: bool = False, cache: Place = ""
) -> Read:
    """Read every image of a folder: upright, centre-cropped to a square, resized to `size` pixels.

    Parameters
    ----------
    channels
        1 (grey) or 3 (RGB). Transparent pixels are laid on white; of an animation the first picture counts.
    damaged
        What to do about files that cannot be read: ``refuse`` all, or ``skip`` them and say which.
    recursive
        Read sub-folders, too.
    cache
        Folder in which a copy at this size is kept as one file and found again as long as names, sizes and times of
        the image files stay; empty: no copy.
    """
    place, files = _found(folder, recursive)
    names = [path.relative_to(place).as_posix() for path in files]
    marks = [[name, s.st_size, s.st_mtime_ns] for name, s in zip(names, map(Path.stat, files), strict=True)]
    items = zip(names, files, strict=True)
    return collect(items, size, channels, damaged, f"image folder {place}", cache, marks)


def chunks(folder: Place, size: int, count: int = CHUNK) -> Iterator[tuple[list[Path], torch.Tensor]]:
    """Yield the image files of a folder and their RGB images, as `read` gives them, `count` at a time."""
    place, files = _found(folder, recursive=False)
    for start in range(0, len(files), count):
        part = files[start : start + count]
        named = [(file.name, file) for file in part]
        yield part, collect(named, size, 3, "refuse", f"image folder {place}").images


def _found(folder: Place, recursive: bool) -> tuple[Path, list[Path]]:
    """Return a folder and its image files; refuse one that has none."""
    place = Path(folder).expanduser()
    if not place.is_dir():
        raise UserError(f"image folder {place} does not exist; name a folder with image files")
    files = image_files(place, recursive)
    if not files:
        deeper = "" if recursive or not image_files(place, True) else " (its sub-folders do: set recursive)"
        ends = ", ".join(sorted(SUFFIXES))
        raise UserError(f"image folder {place} holds no image{deeper}; expected files ending in {ends}")
    return place, files


def image_files(folder: Path, recursive: bool = False) -> list[Path]:
    """Return the image files of a folder in the order of their names; hidden files are left out."""
    found = folder.rglob("*") if recursive else folder.iterdir()
    return sorted(path for path in found if path.suffix.lower() in SUFFIXES and not path.name.startswith("."))


def collect(
    files: Iterable[tuple[str, Path | IO[bytes]]],
    size: int,
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
    kept = cache and marks and Path(cache).expanduser() / f"images-{key}.safetensors"
    found = _load(kept) if kept else None
    if found is None:
        found = _decoded(files, size, channels)
        if kept and found.names:
            header = {"read": json.dumps([found.names, found.skipped, found.hints])}
            write_atomic(kept, save({"images": found.images}, metadata=header))
    if not found.names and not found.skipped:
        raise UserError(f"{where} holds no image")
    if found.skipped and (damaged == "refuse" or not found.names):
        n = len(found.skipped) + len(found.names)
        what = f"{len(found.skipped)} of {n} files in {where} cannot be read: {listed(found.skipped)}"
        raise UserError(f"{what}; repair or remove them" + (", or set damaged to skip" if found.names else ""))
    return found._replace(images=found.images.float() / 127.5 - 1)


def listed(names: Sequence[str]) -> str:
    """Return up to `NAMED` names and how many more there are."""
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return ", ".join(names[:NAMED]) + more


def _decoded(files: Iterable[tuple[str, Path | IO[bytes]]], size: int, channels: int) -> Read:
    """Read all files; images stay bytes, (n, channels, size, size) uint8."""

    def one(item: tuple[str, Path | IO[bytes]]) -> tuple[str, tuple[torch.Tensor, tuple[int, int]] | str]:
        name, file = item
        try:
            return name, _pixels(file, size, channels)
        except Exception as error:  # decoders report a damaged file in many ways
            return name, _reason(error)

    results: list[tuple[str, tuple[torch.Tensor, tuple[int, int]] | str]] = []
    queue = iter(files)
    with ThreadPoolExecutor() as pool:  # Pillow decodes and resizes outside Python's lock
        while part := list(itertools.islice(queue, CHUNK)):
            results += pool.map(one, part)
    good = [(name, *read) for name, read in results if not isinstance(read, str)]
    skipped = [f"{name} ({reason})" for name, reason in results if isinstance(reason, str)]
    images = torch.stack([image for _, image, _ in good]) if good else torch.empty(0)
    return Read(images, [name for name, *_ in good], skipped, _hints([(name, whole) for name, _, whole in good], size))


def _pixels(file: Path | IO[bytes], size: int, channels: int) -> tuple[torch.Tensor, tuple[int, int]]:
    """Return one image (channels, size, size) as uint8, and the width and height it had, upright."""
    with Image.open(file) as opened:
        image = ImageOps.exif_transpose(opened)
        image.load()
    if image.mode == "F":
        raise ValueError("floating-point pixels")
    if image.mode.startswith("I"):  # 16 bits of grey, which `convert` would cut off at 255
        image = Image.fromarray((np.asarray(image).clip(0, 65535) / 257).round().astype(np.uint8))
    on_white = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image.convert("RGBA"))
    square = ImageOps.fit(on_white.convert("L" if channels == 1 else "RGB"), (size, size), Image.Resampling.LANCZOS)
    array = np.array(square, dtype=np.uint8).reshape(size, size, channels)
    return torch.from_numpy(array).permute(2, 0, 1).contiguous(), image.size  # (channels, size, size)


def _reason(error: Exception) -> str:
    """Return a few words on why a file cannot be read."""
    known = {"UnidentifiedImageError": "no image", "DecompressionBombError": "too many pixels"}
    text = known.get(type(error).__name__, str(error).splitlines()[0] if str(error) else type(error).__name__)
    return "truncated" if "truncated" in text.lower() else text[:60]


def _hints(sizes: Sequence[tuple[str, tuple[int, int]]], size: int) -> list[str]:
    """Say which images were enlarged, and which lose more than a third to the centre crop."""
    hints = []
    small = [(min(wh), name, wh) for name, wh in sizes if min(wh) < size]
    if small:
        _, name, (w, h) = min(small)
        text = f"{len(small)} of {len(sizes)} images are smaller than {size} x {size} and were enlarged"
        hints.append(f"{text} (the smallest: {name}, {w} x {h})")
    long = [(max(wh) / min(wh), name, wh) for name, wh in sizes if max(wh) > LONG * min(wh)]
    if long:
        _, name, (w, h) = max(long)
        text = f"{len(long)} of {len(sizes)} images lose more than a third to the centre crop"
        hints.append(f"{text} (the longest: {name}, {w} x {h}); crop them yourself if the subject is off-centre")
    return hints


def _load(path: Path) -> Read | None:
    """Return what is kept in `path`; None if there is nothing, or nothing that can be read."""
    try:
        with safe_open(str(path), framework="pt") as file:
            names, skipped, hints = json.loads((file.metadata() or {})["read"])
            return Read(file.get_tensor("images"), names, skipped, hints)
    except (OSError, SafetensorError, KeyError, ValueError):
        return None
