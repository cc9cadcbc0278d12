"""The one reader of pictures: files, pictures of Pillow, arrays and tensors, at the size a model wants.

One rule for all. Upright; centre-cropped to the shape; resized by Lanczos; transparent pixels on white; a colour
profile turned into sRGB; 16 bit whole numbers from 0 to 65535, floats from 0 to 1. Tensors are the library's own,
(c, h, w) in [-1, 1]. What is converted or doubtful is said.
"""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import IO, NamedTuple

import numpy as np
import torch
from PIL import Image, ImageCms, ImageOps, UnidentifiedImageError
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms.functional import center_crop, resize

from lib.record.files import UserError, expanded

Size = int | tuple[int, int]  # side, or height and width
Picture = str | Path | IO[bytes] | Image.Image | np.ndarray | Tensor
LONG = 1.5  # a longer side above this many shorter ones: the crop loses more than a third
BIG = 16_000_000  # pixels above which a picture is shrunk while it is decoded


def picture(image: Picture, size: Size, parameter: str = "image") -> Tensor:
    """Return one picture (3, h, w) in [-1, 1]; a line is printed for what `read` would list. Messages name `parameter`.

    A file (path or open), a picture of Pillow, an array (h, w), (h, w, 1), (h, w, 3) or (h, w, 4), or a tensor
    (1 or 3, h, w), of which floats are resized without rounding to 8 bits.
    """
    name = parameter
    if isinstance(image, Tensor) and image.is_floating_point():
        return _tensor(image, size, parameter)
    if isinstance(image, str | Path):
        image = expanded(image, parameter)
        name = image.name
        if not image.is_file():
            what = "is a folder" if image.is_dir() else "does not exist"
            raise UserError(f"{parameter}: {image} {what}; name an image file")
    elif not (isinstance(image, Image.Image | np.ndarray | Tensor) or hasattr(image, "read")):
        what = f"{type(image).__name__} given; give a file, a picture of Pillow, an array or a tensor"
        raise UserError(f"{parameter}: {what}")
    try:
        found = decode(image, size, 3)
    except Exception as error:  # decoders report a damaged file in many ways
        raise UserError(f"{parameter}: {name} ({reason(error)}); give another picture") from None
    for hint in surprises([(name, found)], size):
        print(hint)
    return found.array.float() / 127.5 - 1


class Pixels(NamedTuple):
    """A decoded picture."""

    array: Tensor  # (channels, h, w) uint8
    whole: tuple[int, int]  # width and height before
    doubts: list[str]


def decode(source: Picture, size: Size, channels: int) -> Pixels:
    """Decode one picture to a size, with what to say of it; raise what Pillow raises, or a ValueError."""
    h, w = (size, size) if isinstance(size, int) else size
    doubts: list[str] = []
    image, whole = _opened(source, 3 * max(h, w), doubts)
    if image.mode.startswith(("F", "I")):  # `convert` would cut at 255
        image = Image.fromarray(_bytes(np.asarray(image), doubts))
    rgba = image.convert("RGBA") if image.has_transparency_data else None
    image = _srgb(image, doubts)
    if rgba:
        alpha, image = rgba.getchannel("A"), (rgba if image.mode != "RGB" else image.convert("RGBA"))
        image.putalpha(alpha)
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    fitted = ImageOps.fit(image.convert("L" if channels == 1 else "RGB"), (w, h), Image.Resampling.LANCZOS)
    array = np.array(fitted, dtype=np.uint8).reshape(h, w, channels)
    return Pixels(torch.from_numpy(array).permute(2, 0, 1).contiguous(), whole, doubts)


def _opened(source: Picture, least: int, doubts: list[str]) -> tuple[Image.Image, tuple[int, int]]:
    """Return a picture, upright, and its width and height; a big one is shrunk, to `least` pixels a side or more."""
    if isinstance(source, np.ndarray | Tensor):
        image = _from_array(source, doubts)
        return image, image.size
    if isinstance(source, Image.Image):
        image = ImageOps.exif_transpose(source)
        return image, image.size
    with Image.open(source) as opened:
        whole, big = opened.size, opened.width * opened.height > BIG
        if big:
            opened.draft(None, (least, least))  # of a JPEG only a part is decoded
        opened.load()
        image = ImageOps.exif_transpose(opened)
    if (image.width > image.height) != (whole[0] > whole[1]):
        whole = whole[::-1]
    if big and min(image.size) >= 2 * least and image.mode in ("L", "RGB", "RGBA", "CMYK", "LA"):
        image = image.reduce(min(image.size) // least)
    return image, whole


def _from_array(values: np.ndarray | Tensor, doubts: list[str]) -> Image.Image:
    """Return an array (h, w[, c]), or a tensor of bytes (c, h, w), as a picture."""
    array = values.detach().cpu().numpy() if isinstance(values, Tensor) else values
    if isinstance(values, Tensor) and array.ndim == 3:
        array = array.transpose(1, 2, 0)
    if array.ndim not in (2, 3) or 0 in array.shape or array.shape[2:] not in ((), (1,), (3,), (4,)):
        raise ValueError(f"an array of shape {array.shape}; give (h, w), (h, w, 3) or (h, w, 4); a tensor (3, h, w)")
    if array.dtype.kind not in "bf" and array.dtype not in (np.uint8, np.uint16):
        raise ValueError(f"an array of {array.dtype}; give uint8, uint16, or floats from 0 to 1")
    return Image.fromarray(_bytes(array[:, :, 0] if array.shape[2:] == (1,) else array, doubts))


def _bytes(array: np.ndarray, doubts: list[str]) -> np.ndarray:
    """Return values of any depth as 8 bits: floats are from 0 to 1, other whole numbers from 0 to 65535."""
    if array.dtype == np.uint8:
        return array
    if array.dtype == bool:
        return array.astype(np.uint8) * 255
    low, high = array.min(), array.max()
    if array.dtype.kind == "f":
        if not (low >= 0 and high <= 1):  # not a number, too
            raise ValueError(f"floats from {low:.3g} to {high:.3g}; they should be from 0 to 1")
        return (array * 255).round().astype(np.uint8)
    if low < 0 or high > 65535:
        raise ValueError(f"whole numbers from {low} to {high}; they should be from 0 to 65535")
    if 0 < high < 8192:
        doubts.append(
            "of 16 bits that use the lowest 13 only and look dark: scale them to 0 ... 65535 if 12 were meant"
        )
    return (array / 257).round().astype(np.uint8)


def _srgb(image: Image.Image, doubts: list[str]) -> Image.Image:
    """Return a picture without alpha in sRGB, if it says what its colours are."""
    profile = image.info.get("icc_profile")
    if not profile:
        return image
    try:
        known = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        if "srgb" in ImageCms.getProfileDescription(known).lower():
            return image
        plain = image if image.mode in ("L", "RGB", "CMYK") else image.convert("RGB")
        srgb = ImageCms.profileToProfile(plain, known, ImageCms.createProfile("sRGB"), outputMode="RGB")
        doubts.append("had another colour profile and were converted to sRGB")
        return srgb or image
    except (ImageCms.PyCMSError, OSError):
        doubts.append("have a colour profile that cannot be read: taken for sRGB")
        return image


def _tensor(image: Tensor, size: Size, parameter: str) -> Tensor:
    """Return a tensor (1 or 3, h, w) in [-1, 1] as (3, h, w), cropped and resized."""
    h, w = (size, size) if isinstance(size, int) else size
    if image.ndim != 3 or image.shape[0] not in (1, 3) or 0 in image.shape or not image.isfinite().all():
        raise UserError(f"{parameter}: tensor {tuple(image.shape)}; give (3, h, w) or (1, h, w), finite, in [-1, 1]")
    low, high = float(image.min()), float(image.max())
    if low < -1.001 or high > 1.001:
        raise UserError(f"{parameter}: a tensor from {low:.3g} to {high:.3g}; it should be in [-1, 1]")
    if low >= 0 and high > low:
        print(f"{parameter}: no value is below 0; tensors are in [-1, 1], black at -1")
    scale = min(image.shape[1] / h, image.shape[2] / w)
    square = center_crop(image.float(), [round(scale * h), round(scale * w)]).expand(3, -1, -1)
    return resize(square, [h, w], InterpolationMode.BICUBIC).clamp(-1, 1)


def reason(error: Exception) -> str:
    """Return a few words on why a file cannot be read."""
    if isinstance(error, UnidentifiedImageError):
        return "no image"
    known = {"DecompressionBombError": "too many pixels", "FileNotFoundError": "a link that leads nowhere"}
    text = str(getattr(error, "strerror", "") or error)
    text = known.get(type(error).__name__, text.splitlines()[0] if text else type(error).__name__)
    return "truncated" if "truncated" in text.lower() else text[:100]


def surprises(read: Sequence[tuple[str, Pixels]], size: Size) -> list[str]:
    """Say which images were enlarged or converted, and which lose more than a third to the centre crop."""
    h, w = (size, size) if isinstance(size, int) else size
    lines, n = [], len(read)
    sizes = [(name, found.whole) for name, found in read]
    small = [(min(x / w, y / h), name, x, y) for name, (x, y) in sizes if x < w or y < h]
    if small:
        _, name, x, y = min(small)
        text = f"{len(small)} of {n} images are smaller than {w} x {h} and were enlarged"
        lines.append(f"{text} (the smallest: {name}, {x} x {y})")
    ratios = [(max(x * h / (y * w), y * w / (x * h)), name, x, y) for name, (x, y) in sizes]
    long = [found for found in ratios if found[0] > LONG]
    if long:
        _, name, x, y = max(long)
        text = f"{len(long)} of {n} images lose more than a third to the centre crop"
        lines.append(f"{text} (the longest: {name}, {x} x {y}); crop them yourself if the subject is off-centre")
    doubts = [doubt for _, found in read for doubt in found.doubts]
    return [*lines, *(f"{doubts.count(doubt)} of {n} images {doubt}" for doubt in dict.fromkeys(doubts))]
