"""What an edit did to an image: how far it went, where its updates fell, how evenly they are spread."""

from __future__ import annotations

import torch
from torch import Tensor


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
