"""ANT on images (Wang et al., ICML 2024): what is trained, and the measures of claim A5."""

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lib.measures.distances import nearest
from lib.papers.ant.adaptor import Adaptor

TRANSFERRED = 0.8  # share of handwritten samples at which an arm counts as transferred


def student(source: nn.Module, adaptor: dict[str, int] | None = None, seed: int = 0) -> tuple[Any, nn.Module]:
    """Return a copy of a diffusers U-Net and the module to be trained: the copy itself, or an adaptor beside it.

    ``adaptor`` has the settings of :meth:`lib.papers.ant.adaptor.Adaptor.attach`, ``seed`` draws its first weights.
    """
    unet: Any = copy.deepcopy(source).to(memory_format=torch.channels_last).requires_grad_(True)  # faster on a CPU
    if adaptor is None:
        return unet, unet
    unet.eval()  # dropout, if there is any, belongs to the trained part
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return unet, Adaptor.attach(unet, **adaptor)


def first_handwritten(handwritten: Tensor, iterations: Sequence[int]) -> Tensor:
    """Return the first of k iterations at which each noise's sample is handwritten; (k, n), bool -> (n,), float64.

    A noise that has not transferred at the last one counts with twice that: one unit more on the scale of log2.
    """
    grid = torch.tensor([*iterations, 2 * iterations[-1]], dtype=torch.float64)
    never = torch.ones_like(handwritten[:1])  # (1, n)
    return grid[torch.cat([handwritten, never]).int().argmax(0)]  # argmax: the first of the largest


def copy_radius(shots: Tensor, real: Tensor, quantile: float = 0.01) -> float:
    """Return the distance to the nearest shot below which a sample counts as a copy, as 1 % of other real images do.

    Root mean square of the pixels; shots (k, c, h, w) are left out where they are among the real images (n, c, h, w).
    """
    is_shot = (real[:, None] == shots).flatten(2).all(2).any(1)  # (n,), by equal pixels: no distance is exactly 0
    distance, _ = nearest(real[~is_shot].double(), shots.double())
    return torch.quantile(distance, quantile).item()


def copies(samples: Tensor, shots: Tensor, radius: float) -> float:
    """Return the share of samples (n, c, h, w) that are nearer than `radius` to a training image (k, c, h, w)."""
    return (nearest(samples, shots)[0] < radius).float().mean().item()
