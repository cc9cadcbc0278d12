"""What an edit did to an image: how far it went, where its updates fell, what is left of variety and of detail."""

import torch
import torch.nn.functional as F
from torch import Tensor

STROKE = 0.4  # difference of two classes' mean images that makes a stroke: a fifth of the way from paper to ink


def completed(z: Tensor, z_hat: Tensor, target: Tensor, region: Tensor) -> Tensor:
    """Return 1 - |z - target| / |z_hat - target| over a region (h, w): 0 at the start, 1 at the target."""
    remaining = ((z - target) * region).flatten(-3).norm(dim=-1)
    return 1 - remaining / ((z_hat - target) * region).flatten(-3).norm(dim=-1)


def energy_share(update: Tensor, region: Tensor) -> Tensor:
    """Return the share of the squared updates (n, b, h, w) that falls inside a region (h, w), for each image: (b,)."""
    energy = update.square().sum(dim=0)  # (b, h, w)
    return (energy * region).sum(dim=(1, 2)) / energy.sum(dim=(1, 2))


def gini(values: Tensor) -> float:
    """Return the Gini coefficient of non-negative values: 0 when all are equal, near 1 when one holds everything."""
    x = values.flatten().double().sort().values
    rank = torch.arange(1, len(x) + 1, dtype=x.dtype, device=x.device)
    return float((2 * rank - len(x) - 1) @ x / (len(x) * x.sum()))


def strokes(source: Tensor, target: Tensor) -> Tensor:
    """Return the region that an edit concerns, (h, w) of 0 and 1: where mean images (1, h, w) of the prompts differ."""
    return ((target - source)[0].abs() > STROKE).float()


def first_read(read: Tensor) -> Tensor:
    """Return the first row of read (n + 1, b) that is true, for each image (b,); n if there is none."""
    return torch.where(read.any(0), read.int().argmax(0), len(read) - 1)


def change_outside(images: Tensor, inputs: Tensor, region: Tensor) -> Tensor:
    """Return the root-mean-square change of each picture (b, 1, h, w) outside a region (h, w): (b,)."""
    difference = (images.clamp(-1, 1) - inputs)[..., region == 0]  # (b, 1, pixels)
    return difference.square().mean((1, 2)).sqrt()


def kept_spread(images: Tensor, inputs: Tensor) -> float:
    """Return the spread of pictures around their mean over that of the inputs: 1 all variety is left, 0 none."""
    spreads = [x.clamp(-1, 1).var(0).mean().sqrt() for x in (images, inputs)]
    return (spreads[0] / spreads[1]).item()


def kept_detail(images: Tensor, inputs: Tensor) -> float:
    """Return the energy of the pictures (b, 1, h, w) in what half the resolution cannot show, over the inputs'."""
    pictures = (x.clamp(-1, 1) for x in (images, inputs))
    fine = [x - F.interpolate(F.avg_pool2d(x, 2), scale_factor=2, mode="bilinear") for x in pictures]
    return (fine[0].square().mean() / fine[1].square().mean()).item()
