"""Delta Denoising Score (Hertz, Aberman, Cohen-Or, ICCV 2023): Eq. 4, Sec. 3, and Secs. B and C of the supplement.

Latents are (b, c, h, w), t is (b,). A prompt is a tensor (1, ...) or (b, ...): an embedding, or the number of a prompt
in a `GaussianWorld`. A model is any callable `eps = model(z_t, t, y)`; nothing here needs its gradient.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from lib.diffusion import Schedule
from lib.parameters import UserError

Model = Callable[[Tensor, Tensor, Tensor], Tensor]

METHODS = ("dds", "sds")
OPTIMIZERS = ("sgd", "adam")
T_RANGE = (50, 948)  # timesteps of the official notebook, both ends included, of a schedule of 1000


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


class Edit(NamedTuple):
    """What `edit` returns, for n iterations; the two maps are those of the supplement's Fig. 3."""

    z: Tensor  # (b, c, h, w): the edited latent
    trajectory: Tensor  # (n + 1, b, c, h, w): the latent before the first and after every iteration
    update: Tensor  # (n, b, h, w), left map: norm over the channels of each update
    accumulated: Tensor  # (n, b, h, w), right map: norm over the channels of the difference to the input so far


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


def draw(schedule: Schedule, z: Tensor, iterations: int, t_range: tuple[int, int], seed: int) -> tuple[Tensor, Tensor]:
    """Draw all timesteps, (n, b), and noises, (n, b, c, h, w); image i of the batch has seed `seed` + i.

    Drawn on the CPU: an image sees the same numbers on every device and in every batch.

    Raises
    ------
    UserError
        `t_range` is empty or leaves the schedule.
    """
    low, high = t_range
    if not 0 <= low <= high < schedule.T:
        raise UserError(f"t_range: ({low}, {high}) is not a range inside the schedule's timesteps 0..{schedule.T - 1}")
    generators = [torch.Generator().manual_seed(seed + i) for i in range(len(z))]
    t = torch.stack([torch.randint(low, high + 1, (iterations,), generator=g) for g in generators], dim=1)  # (n, b)
    eps = torch.stack([torch.randn(iterations, *z.shape[1:], generator=g) for g in generators], dim=1)
    return t.to(z.device), eps.to(z)


def guided(null_eps: Tensor, eps: Tensor, omega: float) -> Tensor:
    """Return the prediction under classifier-free guidance, in the form of the official notebook."""
    return null_eps + omega * (eps - null_eps)


def sds_direction(
    model: Model, schedule: Schedule, z: Tensor, y: Tensor, null: Tensor, omega: float, t: Tensor, eps: Tensor
) -> Tensor:
    """Return the SDS direction (paper, Eq. 4): guided prediction minus the noise, (b, c, h, w), in one model call."""
    z_t = schedule.add_noise(z, eps, t)
    null_eps, y_eps = model(torch.cat([z_t, z_t]), torch.cat([t, t]), _prompts([null, y], len(z))).to(z).chunk(2)
    return guided(null_eps, y_eps, omega) - eps


def dds_direction(
    model: Model,
    schedule: Schedule,
    z: Tensor,
    z_hat: Tensor,
    y: Tensor,
    y_hat: Tensor,
    null: Tensor,
    omega: float,
    t: Tensor,
    eps: Tensor,
) -> Tensor:
    """Return the DDS direction (paper, Sec. 3), (b, c, h, w): SDS of (z, y) minus SDS of (z_hat, y_hat).

    One model call. Timestep and noise are shared, so the noise itself cancels and is never subtracted.
    """
    z_t, z_hat_t = schedule.add_noise(z, eps, t), schedule.add_noise(z_hat, eps, t)
    noisy = torch.cat([z_hat_t, z_t, z_hat_t, z_t])  # (4 b, c, h, w)
    prompts = _prompts([null, null, y_hat, y], len(z))  # (4 b, ...)
    null_hat, null_eps, y_hat_eps, y_eps = model(noisy, torch.cat([t] * 4), prompts).to(z).chunk(4)
    return guided(null_eps, y_eps, omega) - guided(null_hat, y_hat_eps, omega)


@torch.no_grad()
def edit(
    model: Model,
    schedule: Schedule,
    z_hat: Tensor,
    y: Tensor,
    y_hat: Tensor,
    null: Tensor,
    *,
    method: str = "dds",
    omega: float = 7.5,
    lambda_id: float = 0.0,
    iterations: int = 200,
    optimizer: str = "sgd",
    eta: str | float = "notebook",
    t_range: tuple[int, int] = T_RANGE,
    seed: int = 0,
) -> Edit:
    """Edit latents from prompt `y_hat` to prompt `y` (paper, Sec. 3; supplement, Secs. B and C).

    Parameters
    ----------
    model
        `eps = model(z_t, t, y)`, called once an iteration on a batch of 4 b (DDS) or 2 b (SDS).
    schedule
        Noise schedule of the model.
    z_hat
        Input latents, (b, c, h, w); also the starting point.
    y, y_hat, null
        Target, source and null prompt, (1, ...) or (b, ...).
    method
        `dds` or `sds`.
    omega
        Guidance scale of both branches.
    lambda_id
        Weight of (z - z_hat), added to the raw direction: with `sds`, the regularised SDS of the supplement.
    iterations
        Number of updates.
    optimizer
        `sgd` (no momentum) or `adam` (torch's default betas).
    eta
        Step size: a preset (`notebook`, `supplement`, `literal`), or a number; for Adam a number.
    t_range
        Smallest and largest timestep drawn.
    seed
        Seed of timesteps and noise: image i of the batch has seed + i.

    Raises
    ------
    UserError
        A parameter is unknown, out of range or unstable; or the latent became infinite.
    """
    _check(method, optimizer, iterations, z_hat, y=y, y_hat=y_hat, null=null)
    etas = _stable_step_sizes(optimizer, eta, lambda_id, iterations)
    t, eps = draw(schedule, z_hat, iterations, t_range, seed)
    z, moments = z_hat, (torch.zeros_like(z_hat), torch.zeros_like(z_hat))
    trajectory = [z_hat]
    for k in range(iterations):
        if method == "dds":
            g = dds_direction(model, schedule, z, z_hat, y, y_hat, null, omega, t[k], eps[k])
        else:
            g = sds_direction(model, schedule, z, y, null, omega, t[k], eps[k])
        g = g + lambda_id * (z - z_hat) if lambda_id else g
        eta_k = float(etas[k])
        z = z.add(g, alpha=-eta_k) if optimizer == "sgd" else _adam(z, g, eta_k, k + 1, moments)
        trajectory.append(z)
    if not torch.isfinite(z).all():
        raise UserError(
            f"edit: the latent is not finite after {iterations} iterations; lower eta ({eta}) or omega ({omega})"
        )
    path = torch.stack(trajectory)  # (n + 1, b, c, h, w)
    return Edit(path[-1], path, path.diff(dim=0).norm(dim=2), (path[1:] - z_hat).norm(dim=2))


def _adam(z: Tensor, g: Tensor, eta: float, step: int, moments: tuple[Tensor, Tensor]) -> Tensor:
    """Return one update of Adam (Kingma and Ba 2015), operation for operation torch's; `moments` change in place."""
    m, v = moments
    m.lerp_(g, 1 - 0.9)
    v.mul_(0.999).addcmul_(g, g, value=1 - 0.999)
    scale = (v.sqrt() / (1 - 0.999**step) ** 0.5).add_(1e-8)
    return z.addcdiv(m, scale, value=-eta / (1 - 0.9**step))


def _prompts(prompts: list[Tensor], b: int) -> Tensor:
    """Repeat each prompt for the whole batch and stack them, (len(prompts) b, ...)."""
    return torch.cat([prompt.expand(b, *prompt.shape[1:]) for prompt in prompts])


def _check(method: str, optimizer: str, iterations: int, z_hat: Tensor, **prompts: Tensor) -> None:
    """Refuse wrong arguments of `edit` by name."""
    for name, value, known in (("method", method, METHODS), ("optimizer", optimizer, OPTIMIZERS)):
        if value not in known:
            raise UserError(f"{name}: unknown '{value}'; one of {', '.join(known)}")
    if iterations < 1:
        raise UserError(f"iterations: {iterations}; give at least 1")
    if z_hat.ndim != 4:
        raise UserError(f"z_hat: shape {tuple(z_hat.shape)}; latents are (b, c, h, w)")
    for name, prompt in prompts.items():
        if prompt.ndim < 1 or len(prompt) not in (1, len(z_hat)):
            raise UserError(f"{name}: shape {tuple(prompt.shape)}; a prompt is (1, ...) or ({len(z_hat)}, ...)")


def _stable_step_sizes(optimizer: str, eta: str | float, lambda_id: float, iterations: int) -> Tensor:
    """Return the step sizes, (n,); refuse a regularisation that they would overshoot ever further."""
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


@dataclass(frozen=True)
class GaussianWorld:
    """Denoiser of p(z | y) = N(mean[y], variance[y]), pixels independent: exact, without weights.

    Attributes
    ----------
    mean, variance
        (prompts, c, h, w). Prompt 0 is the null prompt.
    schedule
        Noise schedule.
    """

    mean: Tensor
    variance: Tensor
    schedule: Schedule

    def __call__(self, z_t: Tensor, t: Tensor, y: Tensor) -> Tensor:
        """Return E[eps | z_t, y] = sigma (z_t - alpha mean) / (alpha^2 variance + sigma^2); y is (b,) long."""
        alpha, sigma = (self.schedule.at(values, t, z_t) for values in (self.schedule.signal, self.schedule.noise))
        return sigma * (z_t - alpha * self.mean[y]) / (alpha**2 * self.variance[y] + sigma**2)

    def to(self, device: torch.device) -> GaussianWorld:
        """Return the world on another device."""
        return GaussianWorld(self.mean.to(device), self.variance.to(device), self.schedule)

    def sample(self, y: int, n: int, generator: torch.Generator) -> Tensor:
        """Draw n images of prompt y, (n, c, h, w)."""
        eps = torch.randn(n, *self.mean.shape[1:], generator=generator).to(self.mean)
        return self.mean[y] + self.variance[y].sqrt() * eps

    def drift(self, y: int, omega: float, t_range: tuple[int, int] = T_RANGE) -> tuple[Tensor, Tensor]:
        """Return (rate, pull), each (c, h, w): averaged over t and noise, the guided prediction is rate z - pull."""
        a2 = self.schedule.alpha_bar[t_range[0] : t_range[1] + 1].to(self.mean).reshape(-1, 1, 1, 1)
        m_0, m_y = (((a2 * (1 - a2)).sqrt() / (a2 * self.variance[k] + 1 - a2)).mean(dim=0) for k in (0, y))
        return (1 - omega) * m_0 + omega * m_y, (1 - omega) * m_0 * self.mean[0] + omega * m_y * self.mean[y]

    def end_point(
        self,
        z_hat: Tensor,
        y: int,
        y_hat: int,
        omega: float,
        method: str = "dds",
        lambda_id: float = 0.0,
        t_range: tuple[int, int] = T_RANGE,
    ) -> Tensor:
        """Return where SGD ends on average, like z_hat: the zero of the expected direction.

        With equal variances: DDS at z_hat + omega (mean[y] - mean[y_hat]), SDS at mean[0] + omega (mean[y] - mean[0]),
        regularised SDS on the segment from there (lambda_id = 0) to z_hat.
        """
        rate, pull = self.drift(y, omega, t_range)
        rate_hat, pull_hat = self.drift(y_hat, omega, t_range)
        reference = rate_hat * z_hat - pull_hat if method == "dds" else 0.0
        return (pull + reference + lambda_id * z_hat) / (rate + lambda_id)


def expected_share(rate: Tensor | float, etas: Tensor) -> Tensor:
    """Return the share of the way to the end point that SGD has gone after each step, on average, (n, *rate.shape)."""
    rate = torch.as_tensor(rate, dtype=torch.float64)
    return 1 - (1 - etas.reshape(-1, *[1] * rate.ndim) * rate).cumprod(dim=0)


def disc_world(
    schedule: Schedule,
    size: int = 16,
    edit_size: float = 2.0,
    omega: float = 7.5,
    variance: tuple[float, float] = (1.0, 1.0),
) -> tuple[GaussianWorld, Tensor]:
    """Return a world of three-channel pictures, and the region (size, size) of 0 and 1 that its prompts differ in.

    Prompts 0 (null) and 1 (source) are N(0, 1). Prompt 2 (target) adds a disc: its mean there is `edit_size` / `omega`,
    so that the guided edit is `edit_size` standard deviations of a channel; `variance` is its own, in it and around.
    """
    x = (torch.arange(size) + 0.5) / size
    region = ((x[:, None] - 0.55).square() + (x - 0.45).square() < 0.25**2).float()  # (h, w)
    colour = torch.tensor([1.0, -1.0, -1.0])[:, None, None]
    mean, spread = torch.zeros(3, 3, size, size), torch.ones(3, 3, size, size)
    mean[2] = edit_size / omega * colour * region
    spread[2] = torch.where(region > 0, *variance)
    return GaussianWorld(mean, spread, schedule), region


def texture(size: int, generator: torch.Generator) -> Tensor:
    """Return a soft texture with mean 0 and variance 1 in every channel, (1, 3, size, size): details one can see."""
    coarse = torch.randn(1, 3, 6, 6, generator=generator)
    soft = F.interpolate(coarse, size=(size, size), mode="bicubic")  # (1, 3, size, size)
    return (soft - soft.mean(dim=(2, 3), keepdim=True)) / soft.std(dim=(2, 3), keepdim=True)
