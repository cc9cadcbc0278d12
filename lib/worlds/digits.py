"""The embedded data: real handwritten digits and printed digits laid out like them (the two domains of all image runs).

SDFT (Hur et al. 2024), ANT (Wang et al. 2024) and SDEdit (Meng et al. 2022) suppose that two domains share their coarse
structure and differ in the fine one. `printed` is prepared so that this holds, and `coarse_gap` measures it.
"""

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import matplotlib as mpl
import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageChops, ImageDraw, ImageFont
from scipy.ndimage import distance_transform_edt
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor

from lib.record.files import UserError

# Fonts inside matplotlib whose ten digits are ordinary lining digits. Left out: cmmi10 (old-style figures), cmex10 and
# cmsy10 (symbols in the digits' places), the other STIX and Display files (no digits), LastResort (place holders).
FONTS = (
    *("DejaVuSans", "DejaVuSans-Bold", "DejaVuSans-Oblique", "DejaVuSans-BoldOblique"),
    *("DejaVuSansMono", "DejaVuSansMono-Bold", "DejaVuSansMono-Oblique", "DejaVuSansMono-BoldOblique"),
    *("DejaVuSerif", "DejaVuSerif-Bold", "DejaVuSerif-Italic", "DejaVuSerif-BoldItalic"),
    *("STIXGeneral", "STIXGeneralBol", "STIXGeneralItalic", "STIXGeneralBolIta"),
    *("cmb10", "cmr10", "cmss10", "cmti10", "cmtt10"),
)
KEPT = (0, 1, 2, 3, 4)  # classes of the biased target; the other five are missing
DRAWN, SLANT, PRINTED_SEED = 96, 0.25, 0  # side of a drawn glyph, extra slant, seed of the printed digits
THINNED = 1.0  # drawn pixels that thinning may take off a stroke's edge; more would break hairlines


class Digits(NamedTuple):
    """Images (n, 1, size, size), float32 in [-1, 1] with ink +1 and paper -1, and their labels (n,), 0 to 9."""

    images: Tensor
    labels: Tensor


class CoarseGap(NamedTuple):
    """How far two sets of images differ at 4x4 resolution, pixel values taken as [0, 1]."""

    mean: float  # largest difference of the 16 block means
    spread: float  # root-mean-square standard deviation of the blocks, second set over first, minus 1


def handwritten(size: int = 16) -> Digits:
    """Return the 1,797 handwritten digits of the UCI set in scikit-learn (8x8), enlarged bicubically if asked."""
    native, labels = _native()
    images = F.interpolate(native[:, None], size=_checked(size), mode="bicubic")  # (n, 1, size, size)
    return Digits(images.clamp(0, 1) * 2 - 1, labels)


def printed(size: int = 16, variants: int = 10) -> Digits:
    """Return printed digits laid out like the handwritten ones, `variants` of each of the 21 fonts and ten digits.

    Each image takes a random handwritten digit of its class as a template: the glyph is moved, scaled and slanted until
    its centre and second moments are the template's, and its strokes are widened or thinned until it has as much ink.
    """
    return Digits(*(part.clone() for part in _printed(_checked(size), variants)))


def plain(size: int = 16) -> Digits:
    """Return the 210 glyphs as a font draws them, centred and of one font size: the preparation that does not work."""
    glyphs = [_outline(font, digit) for digit in range(10) for font in FONTS]
    images = torch.tensor(np.stack(glyphs), dtype=torch.float32)[:, None]  # (210, 1, DRAWN, DRAWN)
    labels = torch.arange(10).repeat_interleave(len(FONTS))
    return Digits(F.interpolate(images, size=_checked(size), mode="area") * 2 - 1, labels)  # (210, 1, size, size)


def split(digits: Digits) -> tuple[Digits, Digits]:
    """Split at random, always alike, into training and held-out part, the latter a fifth of each class."""
    numbers, labels = np.arange(len(digits.labels)), digits.labels.numpy()
    kept, held = train_test_split(numbers, test_size=0.2, random_state=0, stratify=labels)
    return select(digits, torch.from_numpy(kept)), select(digits, torch.from_numpy(held))


def select(digits: Digits, index: Tensor) -> Digits:
    """Return the images and labels at `index` (numbers or a mask)."""
    return Digits(digits.images[index], digits.labels[index])


def limited(digits: Digits, n: int = 100, classes: Sequence[int] = KEPT, seed: int = 0) -> Digits:
    """Return the limited and biased target: `n` images of `classes` only, equally many of each (± 1)."""
    generator = torch.Generator().manual_seed(seed)
    chosen = []
    for rank, digit in enumerate(classes):
        pool = torch.nonzero(digits.labels == digit).flatten()
        wanted = n // len(classes) + (rank < n % len(classes))
        if len(pool) < wanted:
            raise UserError(f"n = {n}: class {digit} has {len(pool)} images, {wanted} are needed; ask for fewer")
        chosen.append(pool[torch.randperm(len(pool), generator=generator)[:wanted]])
    return select(digits, torch.cat(chosen))


def coarse_gap(first: Tensor, second: Tensor) -> CoarseGap:
    """Compare two sets of images (n, 1, size, size) in [-1, 1] at 4x4 resolution; `first` is the reference."""
    a, b = ((F.adaptive_avg_pool2d(images, 4).flatten(1) + 1) / 2 for images in (first, second))  # (n, 16)
    spread = b.std(0).square().mean().sqrt() / a.std(0).square().mean().sqrt() - 1
    return CoarseGap((a.mean(0) - b.mean(0)).abs().max().item(), spread.item())


def slant(images: Tensor) -> Tensor:
    """Return the horizontal shift of the ink for a unit of height, from second moments; positive leans right, (n,)."""
    ink = (images.clamp(-1, 1)[:, 0] + 1) / 2  # (n, size, size)
    axis = torch.arange(images.shape[-1], dtype=ink.dtype, device=ink.device)
    share = ink / ink.sum((1, 2), keepdim=True).clamp(min=1e-6)
    x, y = axis - (share * axis).sum((1, 2)).view(-1, 1, 1), axis - (share.sum(2) @ axis).view(-1, 1)
    covariance = (share * x * y[:, :, None]).sum((1, 2))
    return -covariance / (share.sum(2) * y**2).sum(1).clamp(min=1e-6)  # rows count downwards, hence the sign


def _checked(size: int) -> int:
    """Return `size` if the native 8x8 pixels divide it."""
    if size < 8 or size % 8:
        raise UserError(f"size = {size}: give a multiple of 8, such as 8 or 16")
    return size


def _native() -> tuple[Tensor, Tensor]:
    """Return the handwritten digits as (1797, 8, 8) in [0, 1] and their labels."""
    pixels, labels = load_digits(return_X_y=True)
    return torch.tensor(pixels / 16, dtype=torch.float32).view(-1, 8, 8), torch.from_numpy(labels)


@lru_cache(maxsize=4)
def _printed(size: int, variants: int) -> Digits:
    native, labels = _native()
    frames = _frames(native)  # (1797, 3, 3)
    generator = torch.Generator().manual_seed(PRINTED_SEED)
    images = []
    for digit in range(10):
        pool = torch.nonzero(labels == digit).flatten()
        for font in FONTS:
            template = pool[torch.randint(len(pool), (variants,), generator=generator)]
            slant = SLANT * (2 * torch.rand(variants, generator=generator) - 1)
            glyph = _outline(font, digit)
            images.append(_laid_out(glyph, frames[template], slant, native[template].mean((1, 2)), size))
    return Digits(torch.cat(images) * 2 - 1, torch.arange(10).repeat_interleave(variants * len(FONTS)))


def _outline(font: str, digit: int) -> np.ndarray:
    """Draw one glyph, bounding box centred, as a boolean picture (DRAWN, DRAWN)."""
    path = Path(mpl.get_data_path()) / "fonts" / "ttf" / f"{font}.ttf"
    if not path.is_file():  # Pillow would look for a font of that name elsewhere
        raise UserError(f"font file {path} is missing; install matplotlib with its fonts")
    face = ImageFont.truetype(str(path), int(0.8 * DRAWN))
    sheet = Image.new("L", (DRAWN, DRAWN))
    ImageDraw.Draw(sheet).text((DRAWN / 2, DRAWN / 2), str(digit), font=face, fill=255, anchor="mm")
    left, top, right, bottom = sheet.getbbox() or (0, 0, DRAWN, DRAWN)
    moved = ImageChops.offset(sheet, (DRAWN - left - right) // 2, (DRAWN - top - bottom) // 2)
    return np.asarray(moved) > 127


def _frames(images: Tensor) -> Tensor:
    """Return the affine maps (n, 3, 3) that give a unit blob the centre, size and slant of the ink of images (n, h, h).

    Coordinates run from -1 to 1 over the image, x to the right and y down; the maps are upper triangular, so that
    lines stay horizontal and only the uprights lean.
    """
    side = images.shape[-1]
    axis = (2 * torch.arange(side, dtype=torch.float64) + 1) / side - 1
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    weight = images.double() / images.double().sum((1, 2), keepdim=True)

    def mean(values: Tensor) -> Tensor:
        return (weight * values).sum((1, 2), keepdim=True)  # (n, 1, 1)

    cx, cy = mean(x), mean(y)
    height = mean((y - cy) ** 2).sqrt()
    lean = mean((x - cx) * (y - cy)) / height
    width = (mean((x - cx) ** 2) - lean**2).sqrt()
    zero, one = torch.zeros_like(cx), torch.ones_like(cx)
    rows = [[width, lean, cx], [zero, height, cy], [zero, zero, one]]
    return torch.cat([torch.cat(row, dim=2) for row in rows], dim=1)  # (n, 3, 3)


def _laid_out(glyph: np.ndarray, frames: Tensor, slant: Tensor, ink: Tensor, size: int) -> Tensor:
    """Place one glyph into frames (n, 3, 3) with the given share of ink (n,); returns (n, 1, size, size) in [0, 1].

    The glyph is resampled as its signed distance to the outline, so that moving the zero level widens or thins the
    strokes evenly and edges stay sharp.
    """
    n, side = len(frames), max(32, 2 * size)
    distance = distance_transform_edt(glyph) - distance_transform_edt(~glyph)
    leaning = torch.eye(3, dtype=torch.float64).repeat(n, 1, 1)
    leaning[:, 0, 1] = slant
    theta = _frames(torch.tensor(glyph)[None]) @ torch.linalg.inv(frames @ leaning)  # (n, 3, 3)
    grid = F.affine_grid(theta[:, :2].float(), [n, 1, side, side], align_corners=False)
    field = torch.tensor(distance, dtype=torch.float32).expand(n, 1, DRAWN, DRAWN)
    field = F.grid_sample(field, grid, padding_mode="border", align_corners=False)  # (n, 1, side, side)
    ranked = field.flatten(1).sort(dim=1, descending=True).values
    level = ranked[torch.arange(n), (ink * side**2).long()].clamp(max=THINNED)  # the share `ink` lies above it
    pixel = torch.linalg.det(theta[:, :2, :2]).sqrt() * DRAWN / side  # drawn pixels under one output pixel
    sharp = (field - level.view(-1, 1, 1, 1)) / pixel.float().view(-1, 1, 1, 1) + 0.5
    return F.avg_pool2d(sharp.clamp(0, 1), side // size)  # (n, 1, size, size)
