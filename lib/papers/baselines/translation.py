"""Image translation with diffusion models: SDEdit, ILVR, DDIB and CycleDiffusion (EGSDE: `lib.papers.baselines.egsde`).

SDEdit (Meng et al. 2022) and ILVR (Choi et al. 2021) need a model of the target domain only; DDIB (Su et al. 2023) and
CycleDiffusion (Wu and De la Torre 2023) need one of the source domain too. A model is any
callable ``eps = model(x_t, t)`` with ``t`` of shape (B,); samples have shape (B, ...), images (B, c, h, w) in [-1, 1].

All take the steps of `lib.ground.diffusion.ddim_timesteps`: 40 steps of T = 1000 are t = 0, 25, ..., 975, and a start
time is one of them. One step is that of DDIM (Song et al. 2021, Eq. 12): `eta` 1 is ancestral sampling with the
posterior variance (DDPM, "fixed small"), 0 is deterministic. Defaults are those of the authors' codes. Noise comes from
one generator, on its device, the whole batch at a time: two models that get generators of one seed see the same noise.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from lib.ground.diffusion import (
    Model,
    Schedule,
    alpha_bar_at,
    batch_of,
    ddim_sigma,
    draw_like,
    invert_ddim,
    sample_ddim,
    trajectory,
)
from lib.record.files import UserError

LowPass = Callable[[Tensor], Tensor]  # linear, (B, ...) -> (B, ...)
Level = tuple[int, int]  # timestep and the next less noisy one; -1 is the clean sample

LEFT = 8  # ILVR and EGSDE shrink 256 pixels 32 times: this many a side are left


def low_pass(images: Tensor, factor: int | None = None) -> Tensor:
    """Return images shrunk and enlarged again by `factor`: phi_N of ILVR and EGSDE, bicubic and antialiased.

    Parameters
    ----------
    images
        (B, c, h, w).
    factor
        N; by default the one that leaves 8 pixels a side, as the authors' 32 does at 256 (2 at 16 pixels).

    Raises
    ------
    UserError
        The images have another number of axes, or `factor` does not divide their height and width.
    """
    if images.ndim != 4:
        raise UserError(f"images: shape {tuple(images.shape)} given; it should be (B, c, h, w), or pass your own phi")
    size = images.shape[-2:]
    n = max(min(size) // LEFT, 1) if factor is None else factor
    if n < 1 or size[0] % n or size[1] % n:
        raise UserError(f"factor: {n} given; it should divide the image's {size[0]} x {size[1]} pixels")
    small = F.interpolate(images, size=(size[0] // n, size[1] // n), mode="bicubic", antialias=True)
    return F.interpolate(small, size=size, mode="bicubic", antialias=True)


@torch.no_grad()
def sdedit(
    model: Model,
    schedule: Schedule,
    x0: Tensor,
    generator: torch.Generator,
    start: int = 500,
    steps: int = 1000,
    eta: float = 1.0,
    repeats: int = 1,
    clip: bool = False,
) -> Tensor:
    """SDEdit: add noise up to timestep `start`, then sample from there (Meng et al. 2022, Alg. 2).

    Parameters
    ----------
    model
        Noise prediction of the target domain.
    x0
        Inputs, (B, ...).
    generator
        Draws, in this order, the noise of the start and that of each step.
    start
        Noise level of the start, one of ``ddim_timesteps(T, steps)``; 0 is no noise, and returns the input.
    steps
        Steps of the whole trajectory; those at or below `start` are taken.
    eta
        1 for ancestral sampling, 0 for deterministic DDIM.
    repeats
        How often; each pass starts from the last one's result (the code's default is 3, image translation uses 1).
    clip
        Clamp every estimate of x0 to [-1, 1].

    Raises
    ------
    UserError
        `steps`, `start`, `eta` or `repeats` out of range.
    """
    levels = trajectory(schedule, steps, start)
    if repeats < 1:
        raise UserError(f"repeats: {repeats} given; it should be 1 or larger")
    x = x0
    for _ in range(repeats if start > 0 else 0):
        x_t = schedule.add_noise(x, draw_like(x, generator), start)
        x = descend(model, schedule, x_t, levels, generator, eta, clip)
    return x


@torch.no_grad()
def ilvr(
    model: Model,
    schedule: Schedule,
    x0: Tensor,
    generator: torch.Generator,
    range_t: int = 200,
    steps: int = 100,
    phi: LowPass | None = None,
    eta: float = 1.0,
    clip: bool = False,
) -> Tensor:
    """ILVR: sample from pure noise with the low frequencies of the noised reference (Choi et al. 2021, Alg. 1).

    After each step to a level t - 1: ``x = x' - phi(x') + phi(y_{t-1})``, where ``y_{t-1}`` is the reference with fresh
    noise of that level (Eq. 8; the authors' code takes the level t).

    Parameters
    ----------
    model
        Noise prediction of the target domain.
    x0
        References, (B, ...).
    generator
        Draws the start, then at each step the step's noise and the reference's.
    range_t
        The reference guides the samples down to this timestep, below it sampling is free; 0 guides all but the last
        step. The authors' command has 20 of 100 steps, which is 200 of 1000 timesteps.
    steps, eta, clip
        As in :func:`sdedit`. The authors advise against deterministic sampling.
    phi
        Linear low-pass; :func:`low_pass` by default.

    Raises
    ------
    UserError
        `steps`, `range_t` or `eta` out of range, or the low-pass does not fit the images.
    """
    if not 0 <= range_t < schedule.T:
        raise UserError(f"range_t: {range_t} given; it should be a timestep from 0 to {schedule.T - 1}")
    levels = trajectory(schedule, steps)
    phi = phi or low_pass

    def refine(x: Tensor, previous: int) -> Tensor:
        y = schedule.add_noise(x0, draw_like(x0, generator), previous)  # y_{t-1} ~ q(. | reference)
        return x - phi(x) + phi(y)

    guided = [level for level in levels if level[1] >= range_t]
    x = descend(model, schedule, draw_like(x0, generator), guided, generator, eta, clip, after=refine)
    return descend(model, schedule, x, levels[len(guided) :], generator, eta, clip)


@torch.no_grad()
def ddib(
    source: Model,
    target: Model,
    schedule: Schedule,
    x0: Tensor,
    steps: int = 1000,
    stop: int | None = None,
    iterations: int = 1,
    clip: bool = False,
) -> Tensor:
    """DDIB: DDIM backwards to noise with the source's model, then forwards with the target's (Su et al. 2023, Alg. 1).

    It draws no noise.

    Parameters
    ----------
    source, target
        Noise predictions of the two domains.
    x0
        Inputs, (B, ...).
    steps, iterations
        As in `lib.ground.diffusion.invert_ddim`.
    stop
        Timestep at which the way turns, one of ``ddim_timesteps(T, steps)``; the noisiest of them by default.
    clip
        Clamp the estimates of x0 to [-1, 1] on the way back; the authors do not.

    Raises
    ------
    UserError
        `steps` or `stop` out of range.
    """
    noise = invert_ddim(source, schedule, x0, steps, iterations, stop)
    return sample_ddim(target, schedule, noise, steps, start=stop, clip=clip)


@torch.no_grad()
def cycle_diffusion(
    source: Model,
    target: Model,
    schedule: Schedule,
    x0: Tensor,
    generator: torch.Generator,
    start: int = 850,
    steps: int = 1000,
    eta: float = 0.1,
    refine: int = 100,
    clip: bool = False,
) -> Tensor:
    """CycleDiffusion: the noises with which the source's model makes x0, given to the target's (Wu and De la Torre).

    From ``x_start ~ q(. | x0)`` down, ``x_s ~ q_eta(x_s | x_t, x0)`` has the residual ``sigma_t eps_t = x_s - mu(x_t)``
    from the source's mean (DPM-Encoder, Alg. 1), and the target's path is ``mu(x_t) + sigma_t eps_t``. The last
    step, where sigma is 0, is treated alike, so that equal models return x0; the authors' code drops its residual.

    Parameters
    ----------
    source, target
        Noise predictions of the two domains.
    x0
        Inputs, (B, ...).
    generator
        Draws the noise of the start, of each step, and of the refinement.
    start
        Noise level of the start, one of ``ddim_timesteps(T, steps)``; 0 is no noise, and returns the input.
    steps, clip
        As in :func:`sdedit`.
    eta
        Randomness of the path, from 0 to 1; the authors' 0.1 is for cats to dogs.
    refine
        Start of a last pass of :func:`sdedit` by the target's model, eta 1; 0 for none.

    Raises
    ------
    UserError
        `steps`, `start`, `refine` or `eta` out of range.
    """
    levels = trajectory(schedule, steps, start)
    trajectory(schedule, steps, refine)  # refused before the work, not after
    if start == 0:
        return x0
    x_t = schedule.add_noise(x0, draw_like(x0, generator), start)
    y_t = x_t
    for t, previous in levels:
        of_source, of_target = (_x0(m, schedule, z, t, clip) for m, z in ((source, x_t), (target, y_t)))
        mean, sigma = _posterior(schedule, x_t, x0, t, previous, eta)
        x_s = mean + (sigma * draw_like(x_t, generator) if sigma > 0 else 0)  # x_s ~ q_eta(x_s | x_t, x0)
        residual = x_s - _posterior(schedule, x_t, of_source, t, previous, eta)[0]  # sigma_t eps_t
        x_t, y_t = x_s, _posterior(schedule, y_t, of_target, t, previous, eta)[0] + residual
    return sdedit(target, schedule, y_t, generator, refine, steps, clip=clip)


def descend(
    model: Model,
    schedule: Schedule,
    x: Tensor,
    levels: list[Level],
    generator: torch.Generator,
    eta: float,
    clip: bool,
    shift: Callable[[Tensor, int, int], Tensor] | None = None,
    after: Callable[[Tensor, int], Tensor] | None = None,
) -> Tensor:
    """Take the steps `levels` from x (B, ...).

    Parameters
    ----------
    shift
        ``shift(x_t, t, previous)`` is added to the mean of each step.
    after
        ``after(x, previous)`` replaces the sample after each step.

    Raises
    ------
    UserError
        `eta` is out of range.
    """
    for t, previous in levels:
        mean, sigma = _posterior(schedule, x, _x0(model, schedule, x, t, clip), t, previous, eta)
        if shift is not None:
            mean = mean + shift(x, t, previous)
        x = mean + sigma * draw_like(x, generator) if sigma > 0 else mean
        if after is not None:
            x = after(x, previous)
    return x


def _posterior(schedule: Schedule, x_t: Tensor, x0: Tensor, t: int, previous: int, eta: float) -> tuple[Tensor, float]:
    """Mean (B, ...) and standard deviation of q_eta(x_previous | x_t, x0) (Song et al. 2021, Eq. 7 and 16).

    At eta 1 it is the posterior of Ho et al. 2020, Eq. 7, for any x0, clamped or not.
    """
    if not 0 <= eta <= 1:
        raise UserError(f"eta: {eta} given; it should lie between 0 (deterministic) and 1 (ancestral)")
    a, a_prev = alpha_bar_at(schedule, t), alpha_bar_at(schedule, previous)
    sigma = ddim_sigma(a, a_prev, eta)
    eps = schedule.eps_from_x0(x_t, x0, t)
    return math.sqrt(a_prev) * x0 + math.sqrt(max(1 - a_prev - sigma**2, 0)) * eps, sigma


def _x0(model: Model, schedule: Schedule, x_t: Tensor, t: int, clip: bool) -> Tensor:
    x0 = schedule.x0_from_eps(x_t, model(x_t, batch_of(t, x_t)), t)
    return x0.clamp(-1, 1) if clip else x0
