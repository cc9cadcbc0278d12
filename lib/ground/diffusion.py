"""Noise schedules and samplers: DDPM (Ho et al. 2020) and DDIM (Song et al. 2021).

One noise algebra for everything: a clean ``x0`` becomes ``x_t = sqrt(alpha_bar_t) x0 + sqrt(1 - alpha_bar_t) eps``
(variance preserving), or, divided by ``sqrt(alpha_bar_t)``, ``x0 + sigma_t eps`` (variance exploding).

Timesteps are 0-based: ``t = 0`` is the least noisy level, ``t = T - 1`` the noisiest. Samplers with fewer steps
use "leading" spacing without offset, diffusers' default: 40 steps of T = 1000 are t = 0, 25, ..., 975. The last
step always ends at ``alpha_bar = 1`` (diffusers' ``set_alpha_to_one=True``). A model is any callable
``eps = model(x_t, t)`` with ``t`` of shape (B,).
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Any

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary
from tqdm.auto import tqdm

from lib.record.files import UserError

Model = Callable[[Tensor, Tensor], Tensor]
_TABLES = WeakTensorKeyDictionary()  # of `Schedule.at`: values -> their copies by device and type


@dataclass(frozen=True, eq=False)
class Schedule:
    """The noise levels of a diffusion process and all conversions between its quantities.

    `alpha_bar` (T,), float64, is the share of the signal's variance left at each timestep, falling from about 1 to
    about 0.
    """

    alpha_bar: Tensor

    @property
    def T(self) -> int:
        """Number of timesteps."""
        return len(self.alpha_bar)

    @cached_property
    def signal(self) -> Tensor:
        """Factor of x0 in x_t, ``sqrt(alpha_bar)``, shape (T,)."""
        return self.alpha_bar.sqrt()

    @cached_property
    def noise(self) -> Tensor:
        """Factor of eps in x_t, ``sqrt(1 - alpha_bar)``, shape (T,)."""
        return (1 - self.alpha_bar).sqrt()

    @cached_property
    def snr(self) -> Tensor:
        """Signal-to-noise ratio ``alpha_bar / (1 - alpha_bar)``, shape (T,)."""
        return self.alpha_bar / (1 - self.alpha_bar)

    @cached_property
    def sigma(self) -> Tensor:
        """Noise level of the variance-exploding form, ``sqrt((1 - alpha_bar) / alpha_bar)``, shape (T,)."""
        return self.noise / self.signal

    def at(self, values: Tensor, t: Tensor | int, x: Tensor) -> Tensor:
        """Entries ``values[t]`` in the type and on the device of `x`, shaped to multiply a batch like `x`."""
        tables, kind = _TABLES.setdefault(values, {}), (x.device, x.dtype)
        if kind not in tables:  # a copy at every call would stop a GPU at every step
            tables[kind] = values.to(*kind)
        picked = tables[kind][torch.as_tensor(t, device=x.device)]
        return picked.reshape(picked.shape + (1,) * (x.ndim - picked.ndim))  # (B,) -> (B, 1, ...)

    def add_noise(self, x0: Tensor, eps: Tensor, t: Tensor | int) -> Tensor:
        """Noisy sample x_t (Ho et al. 2020, Eq. 4)."""
        return self.at(self.signal, t, x0) * x0 + self.at(self.noise, t, x0) * eps

    def x0_from_eps(self, x_t: Tensor, eps: Tensor, t: Tensor | int) -> Tensor:
        """Clean sample that x_t and its noise imply (Ho et al. 2020, Eq. 15)."""
        return (x_t - self.at(self.noise, t, x_t) * eps) / self.at(self.signal, t, x_t)

    def eps_from_x0(self, x_t: Tensor, x0: Tensor, t: Tensor | int) -> Tensor:
        """Noise that x_t and its clean sample imply."""
        return (x_t - self.at(self.signal, t, x_t) * x0) / self.at(self.noise, t, x_t)

    def v_from_eps(self, x0: Tensor, eps: Tensor, t: Tensor | int) -> Tensor:
        """Velocity ``sqrt(alpha_bar) eps - sqrt(1 - alpha_bar) x0`` (Salimans and Ho 2022)."""
        return self.at(self.signal, t, x0) * eps - self.at(self.noise, t, x0) * x0

    def eps_from_v(self, x_t: Tensor, v: Tensor, t: Tensor | int) -> Tensor:
        """Noise that x_t and its velocity imply."""
        return self.at(self.signal, t, x_t) * v + self.at(self.noise, t, x_t) * x_t


def linear(T: int = 1000, beta_start: float = 1e-4, beta_end: float = 0.02) -> Schedule:
    """Schedule with beta linear in t (Ho et al. 2020, Sec. 4)."""
    return Schedule((1 - torch.linspace(beta_start, beta_end, T, dtype=torch.float64)).cumprod(0))


def scaled_linear(T: int = 1000, beta_start: float = 0.00085, beta_end: float = 0.012) -> Schedule:
    """Schedule with sqrt(beta) linear in t, the one of latent diffusion (Rombach et al. 2022)."""
    return Schedule((1 - torch.linspace(beta_start**0.5, beta_end**0.5, T, dtype=torch.float64) ** 2).cumprod(0))


def cosine(T: int = 1000) -> Schedule:
    """Cosine schedule with beta at most 0.999 (Nichol and Dhariwal 2021, Eq. 17)."""
    time = torch.linspace(0, 1, T + 1, dtype=torch.float64)
    curve = torch.cos((time + 0.008) / 1.008 * math.pi / 2) ** 2
    return Schedule((1 - (1 - curve[1:] / curve[:-1]).clamp(max=0.999)).cumprod(0))


def from_diffusers(scheduler: Any) -> Schedule:
    """Schedule of a diffusers scheduler (any that has ``alphas_cumprod``), so that a hub model brings its own."""
    return Schedule(scheduler.alphas_cumprod.detach().cpu().double())


def denoiser(model: Model, schedule: Schedule) -> Model:
    """Return ``D(x_sigma, sigma)``, the clean sample that a noise prediction sees in ``x_sigma = x0 + sigma eps``.

    The change of variables is exact at the schedule's own levels ``schedule.sigma``; to another sigma (B,) the model is
    asked at the nearest of them.
    """
    logs = schedule.sigma.log()

    @cache  # a copy at every call would stop a GPU
    def limits(device: torch.device, dtype: torch.dtype) -> Tensor:
        return ((logs[1:] + logs[:-1]) / 2).to(device, dtype)

    def D(x: Tensor, sigma: Tensor) -> Tensor:
        levels = sigma.reshape(-1, *[1] * (x.ndim - 1))
        t = torch.bucketize(sigma.log(), limits(sigma.device, sigma.dtype))
        return x - levels * model(x / (1 + levels**2).sqrt(), t)

    return D


def ddim_timesteps(T: int, steps: int) -> Tensor:
    """Increasing timesteps of a sampler: 0, T // steps, 2 (T // steps), ... ("leading", no offset)."""
    if not 1 <= steps <= T:
        raise UserError(f"steps={steps}: give a whole number from 1 to the schedule's {T} timesteps")
    return torch.arange(steps) * (T // steps)


@torch.no_grad()
def sample_ddpm(
    model: Model, schedule: Schedule, x_T: Tensor, steps: int, generator: torch.Generator, clip: bool = False
) -> Tensor:
    """Ancestral sampling from x_T (B, ...) with the posterior variance "fixed small" (Ho et al. 2020, Alg. 2, Eq. 7).

    `clip` clamps every estimate of x0 to [-1, 1].
    """
    x = x_T
    for t, previous in trajectory(schedule, steps):
        x0 = _estimate(model, schedule, x, t, clip)[0]
        a, a_prev = alpha_bar_at(schedule, t), alpha_bar_at(schedule, previous)
        beta = 1 - a / a_prev
        x = (a_prev**0.5 * beta * x0 + (1 - beta) ** 0.5 * (1 - a_prev) * x) / (1 - a)
        if previous >= 0:
            x = x + (beta * (1 - a_prev) / (1 - a)) ** 0.5 * draw_like(x, generator)
    return x


@torch.no_grad()
def sample_ddim(
    model: Model, schedule: Schedule, x_T: Tensor, steps: int = 40, start: int | None = None, clip: bool = False
) -> Tensor:
    """DDIM sampling, deterministic (Song et al. 2021, Eq. 12 with sigma = 0).

    Parameters
    ----------
    x_T
        Standard normal start (B, ...), or a sample of noise level `start`.
    steps
        Steps of the whole trajectory; with `start`, a timestep of it, only those at or below are taken.
    clip
        Clamp every estimate of x0 to [-1, 1] and derive the noise from it again, as the official code of SDFT does
        (diffusers' ``use_clipped_model_output``).
    """
    x = x_T
    for t, previous in trajectory(schedule, steps, start):
        x0, eps = _estimate(model, schedule, x, t, clip)
        a_prev = alpha_bar_at(schedule, previous)
        x = a_prev**0.5 * x0 + (1 - a_prev) ** 0.5 * eps
    return x


def sample(
    model: Model,
    schedule: Schedule,
    noise: Tensor,
    steps: int = 40,
    generator: torch.Generator | None = None,
    batch: int = 250,
    device: torch.device | str = "cpu",
) -> Tensor:
    """Images (n, c, h, w) in [-1, 1], on the CPU, from their noise, in batches; x0 is clamped at every step.

    With a generator: ancestral sampling, with fresh noise at every step. Without one: deterministic DDIM.
    """

    def draw(x_T: Tensor) -> Tensor:
        if generator is None:
            return sample_ddim(model, schedule, x_T, steps, clip=True)
        return sample_ddpm(model, schedule, x_T, steps, generator, clip=True)

    parts = tqdm(noise.split(batch), desc="sampling", leave=False)
    return torch.cat([draw(x_T.to(device)).clamp(-1, 1).cpu() for x_T in parts])


@torch.no_grad()
def invert_ddim(
    model: Model, schedule: Schedule, x0: Tensor, steps: int = 40, iterations: int = 1, stop: int | None = None
) -> Tensor:
    """DDIM backwards, from clean samples (B, ...) to the noise that DDIM sampling turns into them.

    One iteration is the usual approximation: the noise of the next level is predicted from the present sample
    (diffusers' ``DDIMInverseScheduler``). More iterations solve each step's implicit equation by fixed point, so that
    sampling gives `x0` back to rounding error. With `stop`, a timestep of the trajectory, the walk ends there.
    """
    x = x0
    for t, previous in reversed(trajectory(schedule, steps, stop)):
        a, a_prev = alpha_bar_at(schedule, t), alpha_bar_at(schedule, previous)
        target = x
        for _ in range(iterations):
            eps = model(target, batch_of(t, x))
            target = (a / a_prev) ** 0.5 * (x - (1 - a_prev) ** 0.5 * eps) + (1 - a) ** 0.5 * eps
        x = target
    return x


def karras_sigmas(n: int, sigma_min: float = 0.002, sigma_max: float = 80.0, rho: float = 7.0) -> Tensor:
    """Falling noise levels of EDM with a final zero, shape (n + 1,), float64 (Karras et al. 2022, Eq. 5)."""
    ramp = torch.linspace(0, 1, n, dtype=torch.float64)
    sigmas = (sigma_max ** (1 / rho) + ramp * (sigma_min ** (1 / rho) - sigma_max ** (1 / rho))) ** rho
    return torch.cat([sigmas, sigmas.new_zeros(1)])


def trajectory(schedule: Schedule, steps: int, start: int | None = None) -> list[tuple[int, int]]:
    """Return the steps of a walk from `start` (default: the noisiest) down: pairs (timestep, next less noisy one).

    The last pair ends at -1, the clean sample.
    """
    grid = ddim_timesteps(schedule.T, steps).tolist()
    if start is not None and start not in grid:
        some = ", ".join(map(str, [*grid[:3], "...", grid[-1]] if len(grid) > 4 else grid))
        raise UserError(f"start: timestep {start} given; {steps} steps have {some}: give one of these")
    levels = [t for t in reversed(grid) if start is None or t <= start]
    return list(zip(levels, [*levels[1:], -1], strict=True))


def _estimate(model: Model, schedule: Schedule, x: Tensor, t: int, clip: bool) -> tuple[Tensor, Tensor]:
    eps = model(x, batch_of(t, x))
    x0 = schedule.x0_from_eps(x, eps, t)
    if clip:
        x0 = x0.clamp(-1, 1)
        eps = schedule.eps_from_x0(x, x0, t)
    return x0, eps


def alpha_bar_at(schedule: Schedule, t: int) -> float:
    """Return alpha_bar_t; 1 at t = -1, the clean sample."""
    return float(schedule.alpha_bar[t]) if t >= 0 else 1.0


def batch_of(t: int, x: Tensor) -> Tensor:
    """Return timestep t for every sample of x, (B,)."""
    return torch.full((len(x),), t, device=x.device)


def draw_like(x: Tensor, generator: torch.Generator) -> Tensor:
    """Return standard normal noise like x, drawn on the generator's device."""
    return torch.randn(x.shape, generator=generator, device=generator.device, dtype=x.dtype).to(x.device)
