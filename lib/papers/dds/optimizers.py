"""Step sizes of DDS (Hertz et al., ICCV 2023; supplement, Secs. B and C), on the raw direction."""

from typing import NamedTuple

import torch
from torch import Tensor

from lib.record.files import UserError

OPTIMIZERS = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam}


class StepSize(NamedTuple):
    """Step on the raw direction: `eta`, multiplied by `decay` after every `every` iterations."""

    eta: float
    decay: float = 1.0
    every: int = 20


PRESETS = {
    "notebook": StepSize(0.1 * 2000 / 64**2),  # learning rate times loss scale over the 64 x 64 positions of the latent
    "supplement": StepSize(0.1 * 2000 / 64**2, decay=0.9),  # its decay; its scale is not stated, so the same first step
    "literal": StepSize(2.0, decay=0.9),  # "learning rate of 2" read as the step on the raw direction
}


def step_sizes(eta: str | float, iterations: int) -> Tensor:
    """Return the step size of every iteration, (n,) float64, from a preset's name or a positive number."""
    if isinstance(eta, str) and eta in PRESETS:
        first, decay, every = PRESETS[eta]
        return first * decay ** (torch.arange(iterations, dtype=torch.float64) // every)
    if isinstance(eta, str) or not eta > 0:
        raise UserError(f"eta: {eta!r} is not a step size; give a positive number or one of {', '.join(PRESETS)}")
    return torch.full((iterations,), float(eta), dtype=torch.float64)
