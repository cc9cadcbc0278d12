"""Self-Distillation based Fine-Tuning (SDFT; Hur et al., WACV 2024): eqs. (3) and (5) and the weight w(t) of Fig. 2."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from lib.ground import finetune as finetuning
from lib.ground.diffusion import Model, Schedule
from lib.ground.nets import eps_model
from lib.ground.train import History
from lib.record.files import UserError
from lib.record.parameters import non_negative

NEGLIGIBLE = 1e-7  # float32's rounding of 1: a weight below it does not change the loss


def weight(schedule: Schedule, gamma: float) -> Tensor:
    """Return w_gamma(t) = (1 + SNR(t))^-gamma = (1 - alpha_bar_t)^gamma for every timestep (Supplement, Fig. 2).

    It is 1 for every t at gamma = 0, and tends to 1 at high noise and to 0 at low noise at any other gamma.

    Parameters
    ----------
    schedule
        Noise schedule of T timesteps.
    gamma
        Exponent, 0 or larger; the paper has 3 for the distillation and 50 for the auxiliary input.

    Returns
    -------
    Tensor
        Weights, shape (T,), float64, in [0, 1].

    Raises
    ------
    UserError
        If gamma is negative or not finite.
    """
    non_negative(gamma=gamma)
    return (1 - schedule.alpha_bar) ** gamma


def half_weight_timestep(schedule: Schedule, gamma: float) -> int:
    """Return the first timestep, counted from 0, at which w_gamma is at least 1/2 (0 at gamma = 0).

    Raises
    ------
    UserError
        If gamma is negative or not finite, or if the weight stays below 1/2 on the whole schedule.
    """
    reached = (weight(schedule, gamma) >= 0.5).nonzero()  # (n, 1)
    if len(reached) == 0:
        raise UserError(
            f"gamma: {gamma:g} keeps the weight below 1/2 on all {schedule.T} timesteps; take a smaller one"
        )
    return int(reached[0])


def loss(
    student: Model,
    source: Model,
    schedule: Schedule,
    x0: Tensor,
    t: Tensor,
    eps: Tensor,
    lambda_distill: float = 0.1,
    gamma_distill: float = 3.0,
    lambda_aux: float = 0.1,
    gamma_aux: float = 50.0,
    batched: bool = True,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Return the loss of SDFT and its three parts: denoising, eq. (3) distillation, eq. (5) auxiliary distillation.

    ``simple + lambda_distill * distill + lambda_aux * aux``, where ``distill`` and ``aux`` hold their w_gamma(t). The
    auxiliary input is ``eps`` itself, unscaled, at the same t. A term whose lambda is 0 is not computed.

    Parameters
    ----------
    student, source
        ``eps = model(x_t, t)``; the student is trained, the source is frozen (called without gradient).
    schedule
        Noise schedule of both.
    x0, eps
        Images of the target and standard normal noise, both (B, ...).
    t
        Timesteps, (B,), integers from 0 to T - 1.
    lambda_distill, lambda_aux
        Weights of the two added terms; both 0 is naive fine-tuning.
    gamma_distill, gamma_aux
        Exponents of w_gamma(t), see :func:`weight`.
    batched
        Send x_t and eps through the student in one call, and likewise through the source. The result is the same unless
        the net mixes the images of a batch (batch normalisation): then pass False. With dropout, the two inputs get
        independent masks either way, but not the same draws.

    Returns
    -------
    tuple
        The scalar loss, and the parts ``simple``, ``distill``, ``aux`` (those that were computed), detached.

    Raises
    ------
    UserError
        If a lambda or gamma is negative or not finite, or if shapes or timesteps do not fit.
    """
    non_negative(lambda_distill=lambda_distill, gamma_distill=gamma_distill, lambda_aux=lambda_aux, gamma_aux=gamma_aux)
    _check_batch(schedule, x0, t, eps)
    x_t = schedule.add_noise(x0, eps, t)  # (B, ...)
    all_terms = {"distill": (x_t, lambda_distill, gamma_distill), "aux": (eps, lambda_aux, gamma_aux)}
    terms = {name: term for name, term in all_terms.items() if term[1] > 0}
    inputs = {name: x for name, (x, _, _) in terms.items()}
    with torch.no_grad():
        targets = _outputs(source, inputs, t, batched)
    outputs = _outputs(student, {"distill": x_t} | inputs, t, batched)  # the pass on x_t also serves the plain loss

    total = (outputs["distill"] - eps).square().mean()
    parts = {"simple": total.detach()}
    for name, (_, lambda_, gamma) in terms.items():
        error = (targets[name] - outputs[name]).square().flatten(1).mean(1)  # (B,)
        w = weight(schedule, gamma).to(error)[t]
        w = w * (w > NEGLIGIBLE)  # else gradients are denormal numbers, on which CPUs are several times slower
        part = (w * error).mean()
        parts[name] = part.detach()
        total = total + lambda_ * part
    return total, parts


def finetune(
    source: nn.Module,
    schedule: Schedule,
    images: Tensor,
    steps: int,
    batch: int = 16,
    lr: float = 2e-5,
    seed: int = 0,
    on_step: Callable[[int, nn.Module], None] | None = None,
    progress: bool = True,
    **terms: Any,
) -> tuple[nn.Module, History]:
    """Fine-tune a copy of `source` on `images` with :func:`loss`, by AdamW at a constant rate as in the official code.

    Images, timesteps and noises come from `seed` alone: runs with other `terms` and the same seed see the same ones.

    Parameters
    ----------
    source
        U-Net that predicts the noise; it is frozen and left as it is.
    images
        Target images, (n, c, h, w) in [-1, 1], on the device of `source`.
    steps, batch, lr
        Length of the training, images a step (drawn with replacement), learning rate.
    on_step
        ``on_step(i, student)`` after step i = 1, ..., steps; the student is in evaluation mode inside it.
    **terms
        The lambdas and gammas of :func:`loss`.

    Returns
    -------
    tuple
        The student, in evaluation mode, and the history of its losses.
    """
    layout = torch.channels_last  # twice as fast on a CPU
    student = copy.deepcopy(source).to(memory_format=layout).requires_grad_(True).train()
    teacher = copy.deepcopy(source).to(memory_format=layout).requires_grad_(False).eval()
    models = eps_model(student), eps_model(teacher)

    def total(x0: Tensor, t: Tensor, eps: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        return loss(*models, schedule, x0, t, eps, **terms)

    after = None if on_step is None else lambda i: on_step(i, student)
    history = finetuning.finetune(
        student, schedule, images, total, steps, batch, lr, seed, on_step=after, progress=progress
    )
    return student, history


def _outputs(model: Model, inputs: dict[str, Tensor], t: Tensor, batched: bool) -> dict[str, Tensor]:
    """Return the model's output for every named input (B, ...), in one call if `batched`."""
    if len(inputs) < 2 or not batched:
        return {name: model(x, t) for name, x in inputs.items()}
    output = model(torch.cat(list(inputs.values())), t.repeat(len(inputs)))  # (inputs * B, ...)
    return dict(zip(inputs, output.chunk(len(inputs)), strict=True))


def _check_batch(schedule: Schedule, x0: Tensor, t: Tensor, eps: Tensor) -> None:
    if eps.shape != x0.shape:
        raise UserError(f"eps: shape {tuple(eps.shape)} given; it should be that of x0, {tuple(x0.shape)}")
    if t.shape != x0.shape[:1] or t.is_floating_point():
        raise UserError(f"t: {t.dtype} of shape {tuple(t.shape)} given; it should be integers of shape ({len(x0)},)")
    if t.min() < 0 or t.max() >= schedule.T:
        raise UserError(f"t: from {int(t.min())} to {int(t.max())} given; it should lie between 0 and {schedule.T - 1}")
