"""EGSDE: SDEdit guided by two energies, one of the domain's features, one of the low frequencies (Zhao et al. 2022)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from lib.ground.diffusion import Model, Schedule, alpha_bar_at, batch_of, draw_like, trajectory
from lib.papers.baselines.translation import LowPass, descend, low_pass
from lib.record.parameters import non_negative

VALUES = 3 * 256 * 256  # numbers in an image of the authors' experiments


@torch.no_grad()
def egsde(
    model: Model,
    E: Model,
    schedule: Schedule,
    x0: Tensor,
    generator: torch.Generator,
    start: int = 500,
    steps: int = 1000,
    lambda_s: float | None = None,
    lambda_i: float = 2.0,
    phi: LowPass | None = None,
    eta: float = 1.0,
    clip: bool = False,
) -> Tensor:
    """EGSDE: SDEdit whose steps leave the source's domain features and keep its low frequencies (Zhao et al. 2022).

    The mean of each step is moved by ``-beta_t / sqrt(alpha_t)`` times :func:`energy_gradient` between the sample and
    the input noised to the same level, with the start's noise at every level. With fewer steps beta_t is that of the
    longer step (as in SDFT's code), so the pull of the second energy, about ``2 lambda_i beta_t / sqrt(alpha_t)`` of
    the difference, can overshoot: then take more steps or a smaller `lambda_i`.

    Parameters
    ----------
    model
        Noise prediction of the target domain.
    E
        Features of noisy samples, ``E(x_t, t)`` of shape (B, channels, ...): a domain classifier's.
    lambda_s
        Weight of the domain features; 0 or larger. By default the authors' 500, in proportion to the number of values
        of an image: a cosine's gradient is spread over all of them (500 at 3 x 256 x 256, 0.65 at 16 x 16).
    lambda_i
        Weight of the low frequencies; 0 or larger. It needs no such scaling: the square is summed over the pixels, and
        its gradient in one pixel is about twice the difference there.
    x0, generator, start, steps, eta, clip
        As in :func:`lib.papers.baselines.translation.sdedit`; both lambdas 0 give its result.
    phi
        Linear low-pass; :func:`lib.papers.baselines.translation.low_pass` by default.

    Raises
    ------
    UserError
        `steps`, `start` or `eta` out of range, a lambda is negative, or the low-pass does not fit the images.
    """
    lambda_s = 500 * x0[0].numel() / VALUES if lambda_s is None else lambda_s
    non_negative(lambda_s=lambda_s, lambda_i=lambda_i)
    levels = trajectory(schedule, steps, start)
    if start == 0:
        return x0
    noise = draw_like(x0, generator)

    def move(y: Tensor, t: int, previous: int) -> Tensor:
        alpha = alpha_bar_at(schedule, t) / alpha_bar_at(schedule, previous)
        x_t = schedule.add_noise(x0, noise, t)
        return -(1 - alpha) / alpha**0.5 * energy_gradient(E, y, x_t, t, lambda_s, lambda_i, phi)

    y = schedule.add_noise(x0, noise, start)
    return descend(model, schedule, y, levels, generator, eta, clip, shift=move)


def energy_gradient(
    E: Model,
    y: Tensor,
    x_t: Tensor,
    t: int,
    lambda_s: float = 500.0,
    lambda_i: float = 2.0,
    phi: LowPass | None = None,
) -> Tensor:
    """Return the gradient in y of ``lambda_s S(E(y, t), E(x_t, t)) + lambda_i |phi(y) - phi(x_t)|^2``, (B, ...).

    S is the cosine of the features along the channels, averaged over their positions; the square is summed over an
    image (Zhao et al. 2022, Sec. 3.3). An energy of weight 0 is not computed.
    """
    phi = phi or low_pass
    level = batch_of(t, y)  # (B,)
    with torch.enable_grad():
        y = y.detach().requires_grad_()
        energy = 0 * y.sum()
        if lambda_s > 0:
            with torch.no_grad():
                reference = E(x_t, level)  # (B, channels, ...)
            cosine = F.cosine_similarity(E(y, level), reference, dim=1)  # (B, ...)
            energy = energy + lambda_s * cosine.reshape(len(y), -1).mean(1).sum()
        if lambda_i > 0:
            energy = energy + lambda_i * (phi(y) - phi(x_t)).square().sum()
        return torch.autograd.grad(energy, y)[0]
