"""Image translation with diffusion models: SDEdit, ILVR, DDIB and CycleDiffusion (EGSDE: `lib.papers.baselines.egsde`).

SDEdit (Meng et al. 2022) and ILVR (Choi et al. 2021) need a model of the target domain only; DDIB (Su et al. 2023) and
CycleDiffusion (Wu and De la Torre 2023) need one of the source domain too. A model is any ``eps = model(x_t, t)`` with
t (B,); samples are (B, ...), images (B, c, h, w) in [-1, 1].

All take their steps from a `Sampler`, down to timesteps of its trajectory. Defaults are those of the
authors' codes, the `Sampler`'s those of SDEdit and EGSDE; ILVR's authors take 100 steps, CycleDiffusion's eta 0.1.
Noise comes from one generator, the whole batch at a time: two models that get generators of one seed see the same one.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from lib.ground import diffusion
from lib.ground.diffusion import Model, Schedule, alpha_bar_at, batch_of, draw_like, trajectory

LowPass = Callable[[Tensor], Tensor]  # linear, (B, ...) -> (B, ...)
Level = tuple[int, int]  # timestep and the next less noisy one; -1 is the clean sample


@dataclass(frozen=True, eq=False)
class Sampler:
    """The steps of `lib.ground.diffusion.trajectory` with a model: 40 of T = 1000 are at t = 975, ..., 25, 0."""

    schedule: Schedule
    steps: int = 1000
    eta: float = 1.0  # 1: ancestral, 0: deterministic, or between
    clip: bool = False  # clamp every estimate of x0 to [-1, 1]

    def step(self, model: Model, x_t: Tensor, level: Level, generator: Generator) -> Tensor:
        """Sample x_previous ~ q_eta(. | x_t, x0), with x0 as the model sees it in x_t."""
        mean, sigma = self.reverse(model, x_t, level)
        return mean + sigma * draw_like(x_t, generator) if sigma > 0 else mean

    def reverse(self, model: Model, x_t: Tensor, level: Level) -> tuple[Tensor, float]:
        """Return mean and standard deviation of q_eta(x_previous | x_t, x0), with x0 as the model sees it in x_t."""
        x0 = self.schedule.x0_from_eps(x_t, model(x_t, batch_of(level[0], x_t)), level[0])
        return self.posterior(x_t, x0.clamp(-1, 1) if self.clip else x0, level)

    def posterior(self, x_t: Tensor, x0: Tensor, level: Level) -> tuple[Tensor, float]:
        """Return mean and standard deviation of q_eta(x_previous | x_t, x0) (Song et al. 2021, Eq. 7).

        At eta 1 it is the posterior of Ho et al. 2020, Eq. 7, for any x0, clamped or not.
        """
        return ddim_mean(self.schedule, x0, self.schedule.eps_from_x0(x_t, x0, level[0]), level, self.eta)


def low_pass(images: Tensor, left: int = 8) -> Tensor:
    """Return images (B, c, h, w) shrunk to `left` pixels a side and enlarged again: phi_N of ILVR and EGSDE.

    The authors' N = 32 leaves 8 of 256 pixels.
    """
    small = F.interpolate(images, size=(left, left), mode="bicubic", antialias=True)
    return F.interpolate(small, size=images.shape[-2:], mode="bicubic", antialias=True)


@torch.no_grad()
def sdedit(model: Model, sampler: Sampler, x0: Tensor, generator: Generator, start: int = 500) -> Tensor:
    """SDEdit: noise the inputs up to timestep `start`, sample from there (Meng et al. 2022, Alg. 2); 0 keeps them."""
    if start == 0:
        return x0
    levels = trajectory(sampler.schedule, sampler.steps, start)
    x = sampler.schedule.add_noise(x0, draw_like(x0, generator), start)
    for level in levels:
        x = sampler.step(model, x, level, generator)
    return x


@torch.no_grad()
def ilvr(
    model: Model, sampler: Sampler, x0: Tensor, generator: Generator, range_t: int = 200, phi: LowPass = low_pass
) -> Tensor:
    """ILVR: sample from pure noise with the low frequencies of the noised reference (Choi et al. 2021, Alg. 1, Eq. 8).

    The reference guides the samples down to timestep `range_t` (the authors' command has 20 of 100 steps, which is 200
    of 1000); below it sampling is free. Their code noises the reference to t where the paper, and this, has t - 1.
    """
    x = draw_like(x0, generator)
    for t, previous in trajectory(sampler.schedule, sampler.steps):
        x = sampler.step(model, x, (t, previous), generator)
        if previous >= range_t:
            y = sampler.schedule.add_noise(x0, draw_like(x0, generator), previous)  # y_{t-1} ~ q(. | reference)
            x = x - phi(x) + phi(y)
    return x


@torch.no_grad()
def ddib(
    source: Model, target: Model, sampler: Sampler, x0: Tensor, stop: int | None = None, iterations: int = 1
) -> Tensor:
    """DDIB: DDIM backwards to noise with the source's model, then forwards with the target's (Su et al. 2023, Alg. 1).

    The way turns at timestep `stop`, by default the noisiest; `iterations` as in `lib.ground.diffusion.invert_ddim`.
    It is deterministic: the sampler's eta does not count.
    """
    schedule, steps = sampler.schedule, sampler.steps
    noise = diffusion.invert_ddim(source, schedule, x0, steps, iterations, stop)
    return diffusion.sample_ddim(target, schedule, noise, steps, start=stop, clip=sampler.clip)


@torch.no_grad()
def cycle_diffusion(
    source: Model,
    target: Model,
    sampler: Sampler,
    x0: Tensor,
    generator: Generator,
    start: int = 850,
    refine: int = 100,
) -> Tensor:
    """CycleDiffusion: the noises with which the source's model makes x0, given to the target's (Wu and De la Torre).

    From ``x_start ~ q(. | x0)`` down, ``x_s ~ q_eta(x_s | x_t, x0)`` has the residual ``sigma_t eps_t = x_s - mu(x_t)``
    from the source's mean (DPM-Encoder, Alg. 1), and the target's path is ``mu(x_t) + sigma_t eps_t``. The last
    step, where sigma is 0, is treated alike, so that equal models return x0; the authors' code drops its residual.
    A last, ancestral pass of :func:`sdedit` starts from `refine`; the authors take eta = 0.1 for cats to dogs.
    """
    x_t = y_t = sampler.schedule.add_noise(x0, draw_like(x0, generator), start)
    for level in trajectory(sampler.schedule, sampler.steps, start):
        mean, sigma = sampler.posterior(x_t, x0, level)
        x_s = mean + (sigma * draw_like(x_t, generator) if sigma > 0 else 0)  # x_s ~ q_eta(x_s | x_t, x0)
        mu_x, _ = sampler.reverse(source, x_t, level)
        mu_y, _ = sampler.reverse(target, y_t, level)
        x_t, y_t = x_s, mu_y + (x_s - mu_x)  # the residual is sigma_t eps_t
    return sdedit(target, replace(sampler, eta=1.0), y_t, generator, refine)


def ddim_mean(schedule: Schedule, x0: Tensor, eps: Tensor, level: Level, eta: float = 0.0) -> tuple[Tensor, float]:
    """Return mean and standard deviation of a step of DDIM from t to `previous` (Song et al. 2021, Eq. 12 and 16)."""
    a, a_prev = (alpha_bar_at(schedule, t) for t in level)
    sigma = eta * ((1 - a_prev) / (1 - a) * (1 - a / a_prev)) ** 0.5
    return math.sqrt(a_prev) * x0 + math.sqrt(1 - a_prev - sigma**2) * eps, sigma
