"""The edit of `lib.papers.dds.method` without the evaluations whose result is known: the same up to rounding.

The direction is eps^omega(z_t, y) - eps^omega(z_hat_t, y_hat), where eps^omega is the prediction under guidance:

- an empty source prompt, y_hat = null: eps^omega(z_hat_t, null) = eps(z_hat_t, null) for every omega; 3 instead of 4
- the first step, z = z_hat: the null terms cancel; 2
- omega = 1: there are no null terms; 2
- nothing of z_hat depends on z: `reference` computes it once for many targets, optimizers or weights; 2
- y = y_hat: z = z_hat stays, exactly
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from lib.ground.batching import predict_in_batches
from lib.ground.diffusion import Schedule
from lib.papers.dds import method as dds
from lib.papers.dds.method import Edit, Model, guided
from lib.record.files import UserError


class Reference(NamedTuple):
    """Predictions for the noised input at every iteration, (n, b, c, h, w); see `reference`."""

    source: Tensor  # eps(z_hat_t, y_hat)
    null: Tensor  # eps(z_hat_t, null)


@torch.no_grad()
def reference(
    model: Model, schedule: Schedule, z_hat: Tensor, y_hat: Tensor, null: Tensor, batch: int = 64, **options: Any
) -> Reference:
    """Return what `edit` needs of the input: one such result serves every target, omega, optimizer and lambda_id.

    The options iterations, t_range and seed are those of the edits, which may have fewer iterations. No model call has
    more than `batch` latents; iterations go together, because none waits for another.
    """
    o = dds.Options(**options)
    y_hat, null = dds.checked(z_hat, y_hat=y_hat, null=null)
    t, eps = dds.draw(schedule, z_hat, o.iterations, o.t_range, o.seed)
    noisy = schedule.add_noise(z_hat.expand_as(eps), eps, t)  # (n, b, c, h, w)
    null_eps = predict_in_batches(model, noisy, t, null, batch)
    if _rows_equal(y_hat, null).all():
        return Reference(null_eps, null_eps)
    return Reference(predict_in_batches(model, noisy, t, y_hat, batch), null_eps)


@torch.no_grad()
def edit(
    model: Model,
    schedule: Schedule,
    z_hat: Tensor,
    y: Tensor,
    y_hat: Tensor,
    null: Tensor,
    reference: Reference | None = None,
    **options: Any,
) -> Edit:
    """Edit latents as `lib.papers.dds.method.edit` does, with its options.

    `reference` is what `reference` returned for the same input, prompts, t_range and seed: not computed again, and not
    counted among the evaluations.
    """
    o = dds.Options(**options)
    y, y_hat, null = dds.checked(z_hat, y=y, y_hat=y_hat, null=null)
    if reference and (reference.source.shape[1:] != z_hat.shape or len(reference.source) < o.iterations):
        have, want = tuple(reference.source.shape), (o.iterations, *z_hat.shape)
        raise UserError(f"reference: shape {have} given; this edit takes {want}: compute it for this input")
    same = _rows_equal(y, y_hat).reshape(-1, 1, 1, 1)
    no_target, no_source = (bool(_rows_equal(prompt, null).all()) for prompt in (y, y_hat))

    def direction(model: Model, k: int, z_t: Tensor, z_hat_t: Tensor, t: Tensor, eps: Tensor) -> Tensor:
        if o.method == "sds":
            return dds.sds_direction(model, z_t, y, null, 1.0 if no_target else o.omega, t, eps)
        first = k == 0  # z = z_hat
        w, w_hat = (1.0 if first or known else o.omega for known in (no_target, no_source))
        if reference is None:
            source, target = dds.predict(model, t, null, (z_hat_t, y_hat, w_hat), (z_t, y, w))
        else:
            source = reference.source[k] if first else guided(reference.null[k], reference.source[k], o.omega)
            target = dds.predict(model, t, null, (z_t, y, w))[0]
        g = (o.omega if first else 1) * (target - source)
        return g.masked_fill(same, 0)  # exact, in whatever batches both were predicted

    return dds.descend(model, schedule, z_hat, direction, o)


def _rows_equal(first: Tensor, second: Tensor) -> Tensor:
    """Return for each image whether two prompts are the same, (1,) or (b,)."""
    return (first == second).reshape(max(len(first), len(second)), -1).all(dim=1)
