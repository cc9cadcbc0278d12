"""Adversarial noise-based transfer (ANT; Wang et al., ICML 2024): its eqs. (5), (7) and (8).

Every function takes samples of shape ``(B, ...)`` with timesteps ``(B,)``. Those used in 2-D also take ``(n, B, d)``
with ``(n, B)``: n transfers side by side, each with its own network.
"""

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from lib.ground.diffusion import Schedule
from lib.ground.toy2d import Mixture

Model = Callable[[Tensor, Tensor], Tensor]  # eps = model(x_t, t)
Guidance = Callable[[Tensor, Tensor], Tensor]  # gradient of log p(y = target | x_t) in x_t, shaped like x_t


@lru_cache(maxsize=8)
def sigma_hat(schedule: Schedule, power: int = 1) -> Tensor:
    """sigma_hat_t = (1 - alpha_bar_{t-1}) sqrt(alpha_t / (1 - alpha_bar_t)), below eq. (5), to a power; (T,), float64.

    It is 0 at the first timestep, where alpha_bar_{t-1} = 1.
    """
    alpha_bar = schedule.alpha_bar
    previous = torch.cat([torch.ones_like(alpha_bar[:1]), alpha_bar[:-1]])  # (T,)
    return ((1 - previous) * (alpha_bar / previous / (1 - alpha_bar)).sqrt()) ** power


def guided_noise(
    eps: Tensor, gradient: Tensor, schedule: Schedule, t: Tensor, gamma: float = 5.0, power: int = 2
) -> Tensor:
    """What eq. (5) asks the network to predict: eps - sigma_hat_t^2 gamma grad log p(y = target | x_t).

    `power` of sigma_hat is 2 as printed, 1 as the derivation in the paper's appendix gives it. With the printed minus
    the network learns to output guided noise; a negative `gamma` is the opposite direction.
    """
    return eps - gamma * schedule.at(sigma_hat(schedule, power), t, eps) * gradient


def similarity_guided_loss(
    model: Model,
    guidance: Guidance | None,
    schedule: Schedule,
    x0: Tensor,
    t: Tensor,
    eps: Tensor,
    native: Tensor | None = None,
    **options: Any,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Similarity-guided loss, eq. (5), as a mean over all entries; without guidance it is plain fine-tuning.

    Errors are weighted by `native` (T,), see `lib.ground.nets.native_weight`; None: by 1, the paper's. Options are
    `gamma` and `power` of `guided_noise`. Its parts are ``plain``, the denoising loss, and ``shift``, the mean square
    of the guidance term, both detached.
    """
    x_t = schedule.add_noise(x0, eps, t)  # (B, ...)
    gradient = torch.zeros_like(eps) if guidance is None else guidance(x_t, t)
    target = guided_noise(eps, gradient, schedule, t, **options).detach()
    output = model(x_t, t)
    w = 1 if native is None else schedule.at(native, t, eps)
    parts = {"plain": (w * (output - eps).square()).mean().detach(), "shift": (w * (target - eps).square()).mean()}
    return (w * (output - target).square()).mean(), parts


def normalise(noise: Tensor, norm: str = "sample") -> Tensor:
    """Noise of mean 0 and (population) standard deviation 1: "Norm" of eq. (7), which the paper leaves open.

    Over what, `norm` says: ``sample``, all entries of each sample (images); for vectors (..., B, d) also ``batch``,
    each coordinate over the batch (points, where two entries a sample would leave only (1, -1) and (-1, 1)), and
    ``all``, batch and coordinates together.
    """
    axes = {"sample": tuple(range(1, noise.ndim)), "batch": (-2,), "all": (-2, -1)}[norm]
    centred = noise - noise.mean(axes, keepdim=True)
    return centred / centred.square().mean(axes, keepdim=True).sqrt()


def ascent_direction(model: Model, schedule: Schedule, x0: Tensor, t: Tensor, eps: Tensor) -> Tensor:
    """Gradient in eps of |eps - model(x_t, t)|^2, through x_t as well; shaped like eps.

    The square is summed over the entries of a sample, and each sample has its own gradient: it depends neither on the
    size of the batch nor on its other members.
    """
    with torch.enable_grad():
        eps = eps.detach().requires_grad_()
        error = (eps - model(schedule.add_noise(x0, eps, t), t)).square().sum()
        return torch.autograd.grad(error, eps)[0]


def adversarial_noise(
    model: Model, schedule: Schedule, x0: Tensor, t: Tensor, eps: Tensor, omega: float, J: int, norm: str = "sample"
) -> Tensor:
    """eps^J of eq. (7): J steps of gradient ascent on the denoising error at one t, each followed by `normalise`."""
    for _ in range(J):
        eps = normalise(eps + omega * ascent_direction(model, schedule, x0, t, eps), norm)
    return eps.detach()


def loss(
    model: Model,
    guidance: Guidance | None,
    schedule: Schedule,
    x0: Tensor,
    t: Tensor,
    eps: Tensor,
    gamma: float = 5.0,
    omega: float = 0.02,
    J: int = 10,
    norm: str = "sample",
    power: int = 2,
    native: Tensor | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Loss of ANT, eq. (8): the similarity-guided loss at adversarial noise (Algorithm 1, lines 3 to 9).

    With ``J=0`` it is ANT without adversarial noise; with ``guidance=None`` as well, plain fine-tuning. `omega`, `J`
    and `norm` are those of `adversarial_noise`; the rest and the parts those of `similarity_guided_loss`.
    """
    eps = adversarial_noise(model, schedule, x0, t, eps, omega, J, norm)
    return similarity_guided_loss(model, guidance, schedule, x0, t, eps, native, gamma=gamma, power=power)


def classifier_guidance(classifier: Model) -> Guidance:
    """Gradient of log p(y = target | x_t) in x_t of a noised classifier with two logits (source, target)."""

    def gradient(x_t: Tensor, t: Tensor) -> Tensor:
        with torch.enable_grad():
            x_t = x_t.detach().requires_grad_()
            log_p = classifier(x_t, t).log_softmax(-1)[..., 1]  # (B,)
            return torch.autograd.grad(log_p.sum(), x_t)[0]

    return gradient


def exact_guidance(schedule: Schedule, source: Mixture, target: Mixture) -> Guidance:
    """grad log p(y = target | x_t) of the best possible classifier between two known densities, equal priors.

    Two Gaussians of variance 1: (1 - p(target | x_t)) sqrt(alpha_bar_t) (mu_T - mu_S), one direction everywhere.
    """

    def gradient(x_t: Tensor, t: Tensor) -> Tensor:
        root = schedule.at(schedule.alpha_bar, t, x_t).sqrt()
        x, sigma = x_t / root, schedule.at(schedule.sigma, t, x_t)
        p_source = torch.sigmoid(source.log_prob(x, sigma) - target.log_prob(x, sigma))[..., None]  # (B, 1)
        return p_source * (target.score(x, sigma) - source.score(x, sigma)) / root

    return gradient
