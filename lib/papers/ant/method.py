"""Adversarial noise-based transfer (ANT; Wang et al., ICML 2024): its eqs. (5), (7) and (8), and the toy of Fig. 2.

Every function takes samples of shape ``(B, ...)`` with timesteps ``(B,)``. Those used in 2-D also take ``(n, B, d)``
with ``(n, B)``: n transfers side by side, each with its own network (:class:`Stack`).
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lib.ground.diffusion import Schedule
from lib.ground.nets import stack
from lib.ground.toy2d import Mixture
from lib.record.files import UserError
from lib.record.parameters import non_negative

Model = Callable[[Tensor, Tensor], Tensor]  # eps = model(x_t, t)
Guidance = Callable[[Tensor, Tensor], Tensor]  # gradient of log p(y = target | x_t) in x_t, shaped like x_t

NORMS = ("sample", "batch", "all")


def sigma_hat(schedule: Schedule) -> Tensor:
    """Return sigma_hat_t = (1 - alpha_bar_{t-1}) sqrt(alpha_t / (1 - alpha_bar_t)), below eq. (5); shape (T,), float64.

    It is 0 at the first timestep, where alpha_bar_{t-1} = 1.
    """
    alpha_bar = schedule.alpha_bar
    previous = torch.cat([torch.ones_like(alpha_bar[:1]), alpha_bar[:-1]])  # (T,)
    return (1 - previous) * (alpha_bar / previous / (1 - alpha_bar)).sqrt()


def guided_noise(
    eps: Tensor, gradient: Tensor, schedule: Schedule, t: Tensor, gamma: float = 5.0, power: int = 2, sign: int = -1
) -> Tensor:
    """Return what eq. (5) asks the network to predict: eps - sigma_hat_t^2 gamma grad log p(y = target | x_t).

    Parameters
    ----------
    eps, gradient
        Noise and gradient of the classifier, both (B, ...).
    schedule, t
        Noise schedule and timesteps, (B,).
    gamma
        Strength of the guidance, 0 or larger.
    power
        Power of sigma_hat: 2 as printed; 1 as the derivation in the paper's appendix gives it; 0 for none.
    sign
        -1 as printed: the network learns to output guided noise. +1: the opposite direction.

    Raises
    ------
    UserError
        If gamma is negative or not finite, or power or sign is unknown.
    """
    non_negative(gamma=gamma)
    _one_of((0, 1, 2), power=power)
    _one_of((-1, 1), sign=sign)
    return eps + sign * gamma * schedule.at(sigma_hat(schedule) ** power, t, eps) * gradient


def similarity_guided_loss(
    model: Model,
    guidance: Guidance | None,
    schedule: Schedule,
    x0: Tensor,
    t: Tensor,
    eps: Tensor,
    gamma: float = 5.0,
    power: int = 2,
    sign: int = -1,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Return the similarity-guided loss, eq. (5), as a mean over all entries, and its parts.

    Parameters
    ----------
    model
        Network in training, ``eps = model(x_t, t)``.
    guidance
        Gradient of log p(y = target | x_t), e.g. from :func:`classifier_guidance`; None for plain fine-tuning.
    schedule, x0, t, eps
        Noise schedule; target samples and noise, both (B, ...); timesteps, (B,).
    gamma, power, sign
        See :func:`guided_noise`.

    The parts are ``plain``, the denoising loss, and ``shift``, the mean square of the guidance term, both detached.
    """
    x_t = schedule.add_noise(x0, eps, t)  # (B, ...)
    gradient = torch.zeros_like(eps) if guidance is None else guidance(x_t, t)
    target = guided_noise(eps, gradient, schedule, t, gamma, power, sign).detach()
    output = model(x_t, t)
    parts = {"plain": (output - eps).square().mean().detach(), "shift": (target - eps).square().mean()}
    return (output - target).square().mean(), parts


def normalise(noise: Tensor, norm: str = "sample") -> Tensor:
    """Return noise of mean 0 and (population) standard deviation 1: "Norm" of eq. (7), which the paper leaves open.

    Parameters
    ----------
    noise
        (B, ...), or for ``batch`` and ``all`` vectors (..., B, d).
    norm
        Over what: ``sample``, all entries of each sample (images); ``batch``, each coordinate over the batch (points,
        where two entries a sample would leave only (1, -1) and (-1, 1)); ``all``, batch and coordinates together.

    Raises
    ------
    UserError
        If norm is unknown.
    """
    _one_of(NORMS, norm=norm)
    axes = {"sample": tuple(range(1, noise.ndim)), "batch": (-2,), "all": (-2, -1)}[norm]
    centred = noise - noise.mean(axes, keepdim=True)
    return centred / centred.square().mean(axes, keepdim=True).sqrt()


def ascent_direction(model: Model, schedule: Schedule, x0: Tensor, t: Tensor, eps: Tensor) -> Tensor:
    """Return the gradient in eps of |eps - model(x_t, t)|^2, through x_t as well; shaped like eps.

    The square is summed over the entries of a sample, and each sample has its own gradient: it depends neither on the
    size of the batch nor on its other members.
    """
    with torch.enable_grad():
        eps = eps.detach().requires_grad_()
        error = (eps - model(schedule.add_noise(x0, eps, t), t)).square().sum()
        return torch.autograd.grad(error, eps)[0]


def adversarial_noise(
    model: Model,
    schedule: Schedule,
    x0: Tensor,
    t: Tensor,
    eps: Tensor,
    omega: float = 0.02,
    J: int = 10,
    norm: str = "sample",
) -> Tensor:
    """Return eps^J of eq. (7): J steps of gradient ascent on the denoising error, each followed by a normalisation.

    Parameters
    ----------
    model
        Network in training, ``eps = model(x_t, t)``; its weights get no gradient.
    schedule, x0, t, eps
        Noise schedule; target samples and first noise, both (B, ...); timesteps, (B,), the same in all J steps.
    omega
        Step size on the gradient of :func:`ascent_direction`.
    J
        Number of steps; 0 returns eps unchanged.
    norm
        See :func:`normalise`.

    Raises
    ------
    UserError
        If omega or J is negative, or norm is unknown.
    """
    non_negative(omega=omega, J=J)
    _one_of(NORMS, norm=norm)
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
    sign: int = -1,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Return the loss of ANT, eq. (8): the similarity-guided loss at adversarial noise (Algorithm 1, lines 3 to 9).

    With ``J=0`` it is ANT without adversarial noise; with ``guidance=None`` as well, plain fine-tuning. Parameters,
    parts and errors are those of :func:`adversarial_noise` and :func:`similarity_guided_loss`.
    """
    eps = adversarial_noise(model, schedule, x0, t, eps, omega, J, norm)
    return similarity_guided_loss(model, guidance, schedule, x0, t, eps, gamma, power, sign)


def classifier_guidance(classifier: Model) -> Guidance:
    """Return the gradient of log p(y = target | x_t) in x_t of a noised classifier with two logits (source, target)."""

    def gradient(x_t: Tensor, t: Tensor) -> Tensor:
        with torch.enable_grad():
            x_t = x_t.detach().requires_grad_()
            log_p = classifier(x_t, t).log_softmax(-1)[..., 1]  # (B,)
            return torch.autograd.grad(log_p.sum(), x_t)[0]

    return gradient


# The toy of Fig. 2: densities that are known, and n small networks side by side.


def exact_denoiser(schedule: Schedule, density: Mixture) -> Model:
    """Return the best possible network for a known density: eps(x_t, t) = -sqrt(1 - alpha_bar_t) grad log p_t(x_t)."""

    def model(x_t: Tensor, t: Tensor) -> Tensor:
        alpha_bar = schedule.at(schedule.alpha_bar, t, x_t)
        sigma = schedule.at(schedule.sigma, t, x_t)
        return -sigma * density.score(x_t / alpha_bar.sqrt(), sigma)

    return model


def exact_guidance(schedule: Schedule, source: Mixture, target: Mixture) -> Guidance:
    """Return grad log p(y = target | x_t) of the best possible classifier between two known densities, equal priors.

    Two Gaussians of variance 1: (1 - p(target | x_t)) sqrt(alpha_bar_t) (mu_T - mu_S), one direction everywhere.
    """

    def gradient(x_t: Tensor, t: Tensor) -> Tensor:
        root = schedule.at(schedule.alpha_bar, t, x_t).sqrt()
        x, sigma = x_t / root, schedule.at(schedule.sigma, t, x_t)
        p_source = torch.sigmoid(source.log_prob(x, sigma) - target.log_prob(x, sigma))[..., None]  # (B, 1)
        return p_source * (target.score(x, sigma) - source.score(x, sigma)) / root

    return gradient


class Stack(nn.Module):
    """Networks of one architecture as one module: x_t (n, B, d), t (n, B) -> (n, B, outputs).

    One optimizer step on the mean loss trains all of them, each as if it were alone.

    The networks are on one device; their parameters are copied.
    """

    def __init__(self, nets: Sequence[nn.Module]) -> None:
        super().__init__()
        stacked, _ = stack(nets)
        self._names = list(stacked)
        self._net = (copy.deepcopy(nets[0]).requires_grad_(False),)  # in a tuple: its parameters are not ours
        self.members = nn.ParameterList(list(stacked.values()))  # each (n, ...)

    def __len__(self) -> int:
        """Return n."""
        return len(self.members[0])

    def forward(self, x_t: Tensor, t: Tensor) -> Tensor:
        """Send block i through network i."""

        def one(parameters: dict[str, Tensor], x_t: Tensor, t: Tensor) -> Tensor:
            return torch.func.functional_call(self._net[0], parameters, (x_t, t))

        return torch.vmap(one)(dict(zip(self._names, self.members, strict=True)), x_t, t)

    def flat(self, x_t: Tensor, t: Tensor) -> Tensor:
        """Do the same for x_t (n B, d) and t (n B,): the form that samplers want."""
        n = len(self)
        return self(x_t.unflatten(0, (n, -1)), t.unflatten(0, (n, -1))).flatten(0, 1)  # (n B, outputs)

    def select(self, index: Sequence[int]) -> Stack:
        """Return a stack of copies of the members at ``index``, which may repeat."""
        chosen = copy.deepcopy(self)
        chosen.members = nn.ParameterList([value.detach()[list(index)].clone() for value in self.members])
        return chosen


def shots_batch(shots: Tensor, batch: int, T: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Draw x0 (n, batch, d) with replacement from shots (n, k, d), t (n, batch) uniform, and eps (n, batch, d)."""
    n, k, d = shots.shape
    index = torch.randint(k, (n, batch), generator=generator).to(shots.device)  # (n, batch)
    t = torch.randint(T, (n, batch), generator=generator).to(shots.device)
    eps = torch.randn(n, batch, d, generator=generator).to(shots)
    return shots.gather(1, index[..., None].expand(-1, -1, d)), t, eps


def output_gradients(
    model: Model,
    guidance: Guidance | None,
    schedule: Schedule,
    x0: Tensor,
    t: Tensor,
    eps: Tensor,
    weight: Tensor | None = None,
    **options: Any,
) -> dict[str, Tensor]:
    """Return the first gradient of :func:`loss` in the output layer (Fig. 2a) in two readings, n transfers at once.

    ``bias`` is the gradient in the output bias, (n, d); ``weight``, if the output layer's weight (n, d, h) is given,
    the gradient in it averaged over its h inputs, (n, d). The rest is as in :func:`loss`: x0, eps (n, B, d), t (n, B).
    """
    offset = torch.zeros_like(x0[:, :1]).requires_grad_()  # (n, 1, d), acts as a change of the output bias
    value, _ = loss(lambda x_t, t: model(x_t, t) + offset, guidance, schedule, x0, t, eps, **options)
    if weight is None:
        return {"bias": torch.autograd.grad(value, offset)[0].mean(1)}
    bias, matrix = torch.autograd.grad(value, (offset, weight))
    return {"bias": bias.mean(1), "weight": matrix.mean(-1)}


def angle(a: Tensor, b: Tensor) -> Tensor:
    """Return the angle between plane vectors (..., 2) in degrees, from 0 to 180, shape (...)."""
    cross = a[..., 0] * b[..., 1] - a[..., 1] * b[..., 0]
    return torch.atan2(cross.abs(), (a * b).sum(-1)) * (180 / math.pi)


def _one_of(allowed: Sequence[object], **values: object) -> None:
    for name, value in values.items():
        if value not in allowed:
            raise UserError(f"{name}: {value!r} given; one of {', '.join(map(repr, allowed))}")
