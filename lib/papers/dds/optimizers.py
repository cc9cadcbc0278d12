"""Step sizes and update rules of DDS (Hertz et al., ICCV 2023; supplement, Secs. B and C), on the raw direction."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from lib.record.files import UserError

OPTIMIZERS = ("sgd", "adam")


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
    """Return the step size of every iteration, (n,) float64, from a preset's name or a number.

    Raises
    ------
    UserError
        Unknown preset, or a number that is not positive.
    """
    if isinstance(eta, str):
        if eta not in PRESETS:
            raise UserError(f"eta: unknown preset '{eta}'; one of {', '.join(PRESETS)}, or a positive number")
        first, decay, every = PRESETS[eta]
        return first * decay ** (torch.arange(iterations, dtype=torch.float64) // every)
    if not eta > 0:
        raise UserError(f"eta: {eta} is not a step size; give a positive number or one of {', '.join(PRESETS)}")
    return torch.full((iterations,), float(eta), dtype=torch.float64)


def stable_step_sizes(optimizer: str, eta: str | float, lambda_id: float, iterations: int) -> Tensor:
    """Return the step sizes of an edit, (n,) float64.

    Raises
    ------
    UserError
        As `step_sizes`; a preset for Adam; or a regularisation that SGD would overshoot ever further.
    """
    if optimizer == "adam" and isinstance(eta, str):
        raise UserError(f"eta: preset '{eta}' is a step size for sgd; give a number for adam, e.g. 0.02")
    etas = step_sizes(eta, iterations)
    if lambda_id < 0:
        raise UserError(f"lambda_id: {lambda_id} is negative; give 0 or more")
    if optimizer == "sgd" and etas[0] * lambda_id >= 2:
        raise UserError(
            f"lambda_id: {lambda_id} is unstable with step size {etas[0]:.3g}; stay below {2 / etas[0]:.3g}"
        )
    return etas


def adam(z: Tensor, g: Tensor, eta: float, step: int, moments: tuple[Tensor, Tensor]) -> Tensor:
    """Return one update of Adam (Kingma and Ba 2015), operation for operation torch's; `moments` change in place."""
    m, v = moments
    m.lerp_(g, 1 - 0.9)
    v.mul_(0.999).addcmul_(g, g, value=1 - 0.999)
    scale = (v.sqrt() / (1 - 0.999**step) ** 0.5).add_(1e-8)
    return z.addcdiv(m, scale, value=-eta / (1 - 0.9**step))
