"""Self-Distillation based Fine-Tuning (SDFT; Hur et al., WACV 2024): eqs. (3) and (5) and the weight w(t) of Fig. 2."""

import copy
from collections.abc import Callable
from functools import lru_cache, partial
from typing import Any

import torch
from torch import Tensor, nn

from lib.ground import finetune as finetuning
from lib.ground.diffusion import Model, Schedule
from lib.ground.finetune import Options
from lib.ground.nets import eps_model, native_weight
from lib.ground.train import History
from lib.record.parameters import non_negative

OnStep = Callable[[int, nn.Module], None]
NEGLIGIBLE = 1e-7  # float32's rounding of 1: a weight below it does not change the loss


def weight(schedule: Schedule, gamma: float) -> Tensor:
    """Return w_gamma(t) = (1 + SNR(t))^-gamma = (1 - alpha_bar_t)^gamma, (T,), float64 (Supplement, Fig. 2).

    It tends to 1 at high noise and to 0 at low noise, the later the larger gamma is; at gamma = 0 it is 1.
    """
    non_negative(gamma=gamma)
    return (1 - schedule.alpha_bar) ** gamma


def half_weight_timestep(schedule: Schedule, gamma: float) -> int:
    """Return the first timestep, counted from 0, at which w_gamma is at least 1/2."""
    return int((weight(schedule, gamma) >= 0.5).nonzero()[0])


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
    native: Tensor | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Return the loss of SDFT and its parts by name, detached; a part whose lambda is 0 is neither computed nor named.

    Images and noise x0, eps (B, ...), timesteps t (B,). The auxiliary input is `eps` itself, unscaled, at the same t.
    All errors are weighted by `native` (T,), see `lib.ground.nets.native_weight`; None: by 1, the paper's.
    Each model gets both inputs in one call, so it must not mix the images of a batch (batch normalisation).
    """
    x_t = schedule.add_noise(x0, eps, t)  # (B, ...)
    for_distill, for_aux = ({"x_t": x_t} if lambda_distill else {}), ({"eps": eps} if lambda_aux else {})
    theta = _predict(student, {"x_t": x_t} | for_aux, t)
    with torch.no_grad():
        phi = _predict(source, for_distill | for_aux, t)

    own: Any = 1 if native is None else schedule.at(native, t, eps.flatten(1)[:, 0])  # (B,)
    parts = {"simple": _weighted_error(own, eps, theta["x_t"])}
    total = parts["simple"]
    if lambda_distill:
        w = _weights(schedule, gamma_distill, eps.device, eps.dtype)[t]
        parts["distill"] = _weighted_error(own * w, phi["x_t"], theta["x_t"])  # Eq. (3)
        total = total + lambda_distill * parts["distill"]
    if lambda_aux:
        w = _weights(schedule, gamma_aux, eps.device, eps.dtype)[t]
        parts["aux"] = _weighted_error(own * w, phi["eps"], theta["eps"])  # Eq. (5)
        total = total + lambda_aux * parts["aux"]
    return total, {name: part.detach() for name, part in parts.items()}


def finetune(
    source: nn.Module,
    schedule: Schedule,
    images: Tensor,
    steps: int,
    options: Options,
    on_step: OnStep,
    noise_of: Callable[[Any], Model] = eps_model,
    **terms: Any,
) -> tuple[nn.Module, History]:
    """Fine-tune a copy of the U-Net `source` on images (n, c, h, w) in [-1, 1]; `terms` are lambdas and gammas.

    ``on_step(i, student)`` comes after step i = 1, ..., steps. The source is left as it is. Runs with other `terms` and
    one ``options.seed`` see the same images, timesteps and noises. `noise_of` makes a U-Net the noise prediction.
    """
    layout: Any = {"memory_format": torch.channels_last}  # twice as fast on a CPU
    student = copy.deepcopy(source).to(**layout).requires_grad_(True)
    teacher = copy.deepcopy(source).to(**layout).requires_grad_(False).eval()
    terms["native"] = native_weight(source, schedule)
    total = partial(loss, noise_of(student), noise_of(teacher), schedule, **terms)
    return student, finetuning.finetune(
        student, schedule, images, total, steps, options, lambda i, _: on_step(i, student)
    )


def _predict(model: Model, inputs: dict[str, Tensor], t: Tensor) -> dict[str, Tensor]:
    """Return the model's output for every named input (B, ...), all in one call."""
    if not inputs:
        return {}
    output = model(torch.cat(list(inputs.values())), t.repeat(len(inputs)))  # (inputs * B, ...)
    return dict(zip(inputs, output.chunk(len(inputs)), strict=True))


def _weighted_error(w: Any, phi: Tensor, theta: Tensor) -> Tensor:
    """Return the mean over the batch of ``w |phi - theta|^2``, w (B,) or a number."""
    return (w * (phi - theta).square().flatten(1).mean(1)).mean()


@lru_cache(maxsize=8)
def _weights(schedule: Schedule, gamma: float, device: torch.device, dtype: torch.dtype) -> Tensor:
    """Return w_gamma(t), 0 where it is negligible: there gradients would be denormal numbers, which are slow."""
    w = weight(schedule, gamma).to(device, dtype)
    return w * (w > NEGLIGIBLE)
