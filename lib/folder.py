"""A folder of one's own images as a tensor, whatever their size and mode."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError

from lib.parameters import UserError

SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff"}


def images(folder: str | Path, size: int, channels: int = 3) -> torch.Tensor:
    """Read every image of a folder: upright, centre-cropped to a square, resized.

    Parameters
    ----------
    folder
        Folder with image files; sub-folders are not read.
    size
        Side in pixels.
    channels
        1 (grey) or 3 (RGB). Transparent pixels are laid on white.

    Returns
    -------
    torch.Tensor
        (n, channels, size, size) float32 in [-1, 1], in the order of the file names.

    Raises
    ------
    UserError
        The folder is missing or holds no image, or files are damaged (all of them are named).
    """
    folder = Path(folder).expanduser()
    if not folder.is_dir():
        raise UserError(f"image folder {folder} does not exist; name a folder with image files")
    files = sorted(path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES)
    if not files:
        raise UserError(f"image folder {folder} holds no image; expected files ending in {', '.join(sorted(SUFFIXES))}")
    tensors, damaged = [], []
    for path in files:
        try:
            tensors.append(_read(path, size, channels))
        except (OSError, UnidentifiedImageError, ValueError):
            damaged.append(path.name)
    if damaged:
        raise UserError(f"{len(damaged)} of {len(files)} files in {folder} cannot be read: {', '.join(damaged)}")
    return torch.stack(tensors)  # (n, channels, size, size)


def _read(path: Path, size: int, channels: int) -> torch.Tensor:
    with Image.open(path) as file:
        image = ImageOps.exif_transpose(file).convert("RGBA")
    image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert(
        "L" if channels == 1 else "RGB"
    )
    image = ImageOps.fit(image, (size, size), Image.Resampling.LANCZOS)
    array = np.asarray(image, dtype=np.float32).reshape(size, size, channels) / 127.5 - 1
    return torch.from_numpy(array).permute(2, 0, 1).contiguous()  # (channels, size, size)
