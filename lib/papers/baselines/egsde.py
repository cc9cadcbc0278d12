"""EGSDE: SDEdit guided by two energies, one of the domain's features, one of the low frequencies (Zhao et al. 2022)."""

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from lib.ground.diffusion import Model, alpha_bar_at, batch_of, draw_like, trajectory
from lib.papers.baselines.translation import LowPass, Sampler, low_pass

VALUES = 3 * 256 * 256  # numbers in an image of the authors' experiments


@torch.no_grad()
def egsde(
    model: Model,
    E: Model,
    sampler: Sampler,
    x0: Tensor,
    generator: Generator,
    start: int = 500,
    lambda_s: float = 500.0,
    lambda_i: float = 2.0,
    phi: LowPass = low_pass,
) -> Tensor:
    """EGSDE: SDEdit whose steps leave the source's domain features and keep its low frequencies (Zhao et al. 2022).

    Each step moves by ``-beta_t / sqrt(alpha_t)`` times :func:`energy_gradient` between the sample and the input noised
    to the same level, with the start's noise at every level. With fewer steps beta_t is that of the longer step (as in
    SDFT's code), so the pull of the second energy, about ``2 lambda_i beta_t / sqrt(alpha_t)`` of the difference, can
    overshoot: then take more steps or a smaller `lambda_i`.

    ``E(x_t, t)`` (B, channels, ...) are features of noisy samples, a domain classifier's. `lambda_s` is that of an
    image of 3 x 256 x 256 and shrinks with the number of values, over which a cosine's gradient is spread; `lambda_i`
    needs no such scaling. The rest is as in :func:`lib.papers.baselines.translation.sdedit`.
    """
    schedule, noise = sampler.schedule, draw_like(x0, generator)
    y = schedule.add_noise(x0, noise, start)
    scaled = lambda_s * x0[0].numel() / VALUES
    for t, previous in trajectory(schedule, sampler.steps, start):
        alpha = alpha_bar_at(schedule, t) / alpha_bar_at(schedule, previous)
        gradient = energy_gradient(E, y, schedule.add_noise(x0, noise, t), t, scaled, lambda_i, phi)
        y = sampler.step(model, y, (t, previous), generator) - (1 - alpha) / alpha**0.5 * gradient
    return y


def energy_gradient(
    E: Model, y: Tensor, x_t: Tensor, t: int, lambda_s: float, lambda_i: float, phi: LowPass = low_pass
) -> Tensor:
    """Return the gradient in y of ``lambda_s S(E(y, t), E(x_t, t)) + lambda_i |phi(y) - phi(x_t)|^2``, (B, ...).

    S is the cosine of the features along the channels, averaged over their positions; the square is summed over an
    image (Zhao et al. 2022, Sec. 3.3).
    """
    level = batch_of(t, y)  # (B,)
    with torch.no_grad():
        reference = E(x_t, level)  # (B, channels, ...)
    with torch.enable_grad():
        y = y.detach().requires_grad_()
        cosine = F.cosine_similarity(E(y, level), reference, dim=1)  # (B, ...)
        energy = lambda_s * cosine.reshape(len(y), -1).mean(1).sum() + lambda_i * (phi(y) - phi(x_t)).square().sum()
        return torch.autograd.grad(energy, y)[0]
