"""Delta Denoising Score (Hertz, Aberman, Cohen-Or, ICCV 2023): Eq. 4, Sec. 3, and Secs. B and C of the supplement.

Latents are (b, c, h, w), t is (b,). A prompt is a tensor (1, ...) or (b, ...): an embedding of a text, or the number of
a class. A model is any callable `eps = model(z_t, t, y)`; nothing here needs its gradient.

`edit` leaves out the evaluations whose result is known, without changing the answer beyond rounding. The direction is
eps^omega(z_t, y) - eps^omega(z_hat_t, y_hat), where eps^omega is the prediction under guidance (`guided`):

- an empty source prompt, y_hat = null: eps^omega(z_hat_t, null) = eps(z_hat_t, null) for every omega; 3 instead of 4
- the first step, z = z_hat: the null terms cancel; 2
- omega = 1: there are no null terms; 2
- nothing of z_hat depends on z: `reference` computes it once for many targets, optimizers or weights; 2
- y = y_hat: z = z_hat stays, exactly
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from lib.ground.batching import predict_in_batches
from lib.ground.diffusion import Schedule
from lib.papers.dds.optimizers import OPTIMIZERS, adam, stable_step_sizes
from lib.record.files import UserError

Model = Callable[[Tensor, Tensor, Tensor], Tensor]

METHODS = ("dds", "sds")
T_RANGE = (50, 948)  # timesteps of the official notebook, both ends included, of a schedule of 1000


class State(NamedTuple):
    """Where an edit stands: enough to continue it bit for bit, together with the arguments of `edit`."""

    z: Tensor  # (b, c, h, w)
    step: int  # updates done
    m: Tensor  # Adam's two moments, like z; zeros with SGD
    v: Tensor


class Reference(NamedTuple):
    """Predictions for the noised input at every iteration, (n, b, c, h, w); see `reference`."""

    source: Tensor  # eps(z_hat_t, y_hat)
    null: Tensor  # eps(z_hat_t, null)


class Edit(NamedTuple):
    """What `edit` returns, for n iterations; the two maps are those of the supplement's Fig. 3."""

    z: Tensor  # (b, c, h, w): the edited latent
    trajectory: Tensor  # (n + 1, b, c, h, w): the latent before the first and after every iteration
    update: Tensor  # (n, b, h, w), left map: norm over the channels of each update
    accumulated: Tensor  # (n, b, h, w), right map: norm over the channels of the difference to the input so far
    state: State  # for continuing
    evaluations: int  # of the model, in images; those of a given `Reference` not counted


def draw(schedule: Schedule, z: Tensor, iterations: int, t_range: tuple[int, int], seed: int) -> tuple[Tensor, Tensor]:
    """Draw all timesteps, (n, b), and noises, (n, b, c, h, w); image i of the batch has seed `seed` + i.

    Drawn on the CPU: an image sees the same numbers on every device and in every batch, and those of a short edit are
    the first ones of a long edit.

    Raises
    ------
    UserError
        `t_range` is empty or leaves the schedule.
    """
    check_t_range(schedule, t_range)
    low, high = t_range
    generators = [torch.Generator().manual_seed(seed + i) for i in range(len(z))]
    t = torch.empty(iterations, len(z), dtype=torch.long)
    eps = torch.empty(iterations, *z.shape, dtype=torch.float32)
    for k in range(iterations):
        for i, generator in enumerate(generators):
            t[k, i] = torch.randint(low, high + 1, (), generator=generator)
            torch.randn(z.shape[1:], generator=generator, out=eps[k, i])
    return t.to(z.device), eps.to(z)


def check_t_range(schedule: Schedule, t_range: tuple[int, int]) -> None:
    """Refuse a range of timesteps, both ends included, that is empty or leaves the schedule.

    Raises
    ------
    UserError
        With the timesteps that there are.
    """
    low, high = t_range
    if not 0 <= low <= high < schedule.T:
        raise UserError(f"t_range: ({low}, {high}) is not a range inside the schedule's timesteps 0..{schedule.T - 1}")


def guided(null_eps: Tensor, eps: Tensor, omega: float) -> Tensor:
    """Return the prediction under classifier-free guidance, in the form of the official notebook."""
    return null_eps + omega * (eps - null_eps)


def sds_direction(
    model: Model, schedule: Schedule, z: Tensor, y: Tensor, null: Tensor, omega: float, t: Tensor, eps: Tensor
) -> Tensor:
    """Return the SDS direction (paper, Eq. 4): guided prediction minus the noise, (b, c, h, w), in one model call."""
    z_t = schedule.add_noise(z, eps, t)
    null_eps, y_eps = _predict(model, [(z_t, null), (z_t, y)], t)
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

    One model call of 4 b. Timestep and noise are shared, so the noise itself cancels and is never subtracted.
    """
    z_t, z_hat_t = schedule.add_noise(z, eps, t), schedule.add_noise(z_hat, eps, t)
    asked = [(z_hat_t, null), (z_t, null), (z_hat_t, y_hat), (z_t, y)]
    null_hat, null_eps, y_hat_eps, y_eps = _predict(model, asked, t)
    return guided(null_eps, y_eps, omega) - guided(null_hat, y_hat_eps, omega)


@torch.no_grad()
def reference(
    model: Model,
    schedule: Schedule,
    z_hat: Tensor,
    y_hat: Tensor,
    null: Tensor,
    *,
    iterations: int = 200,
    t_range: tuple[int, int] = T_RANGE,
    seed: int = 0,
    batch: int = 64,
) -> Reference:
    """Return what `edit` needs of the input: one such result serves every target, omega, optimizer and lambda_id.

    Parameters
    ----------
    iterations, t_range, seed
        Those of the edits; an edit may have fewer iterations.
    batch
        Largest number of latents in a model call: iterations go together, because none waits for another.

    Raises
    ------
    UserError
        As `edit`.
    """
    _check("dds", "sgd", iterations, z_hat, y_hat=y_hat, null=null)
    y_hat, null = (prompt.to(z_hat.device) for prompt in (y_hat, null))
    t, eps = draw(schedule, z_hat, iterations, t_range, seed)
    signal, noise = _levels(schedule, t, z_hat)
    noisy = signal * z_hat + noise * eps  # (n, b, c, h, w)
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
    *,
    method: str = "dds",
    omega: float = 7.5,
    lambda_id: float = 0.0,
    iterations: int = 200,
    optimizer: str = "sgd",
    eta: str | float = "notebook",
    t_range: tuple[int, int] = T_RANGE,
    seed: int = 0,
    reference: Reference | None = None,
    state: State | None = None,
    plain: bool = False,
) -> Edit:
    """Edit latents from prompt `y_hat` to prompt `y` (paper, Sec. 3; supplement, Secs. B and C).

    Parameters
    ----------
    model
        `eps = model(z_t, t, y)`, called once an iteration on a batch of at most 4 b (DDS) or 2 b (SDS).
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
    reference
        What `reference` returned for the same input, prompts, `t_range` and seed; it is not computed again then.
    state
        ``state`` of an edit with fewer iterations and otherwise the same arguments, which is continued. The trajectory
        and the maps then begin there.
    plain
        Make the four (SDS: two) evaluations of every iteration, also those whose result is known.

    Raises
    ------
    UserError
        A parameter is unknown, out of range or unstable; `reference` or `state` belongs to something else; or the
        latent became infinite.
    """
    _check(method, optimizer, iterations, z_hat, y=y, y_hat=y_hat, null=null)
    y, y_hat, null = (prompt.to(z_hat.device) for prompt in (y, y_hat, null))
    etas = stable_step_sizes(optimizer, eta, lambda_id, iterations).tolist()
    _check_given(z_hat, iterations, reference, state)
    t, eps = draw(schedule, z_hat, iterations, t_range, seed)
    signal, noise = _levels(schedule, t, z_hat)  # once, because fetching them would stop a GPU at every step
    counted, reference = _Counted(model), None if plain else reference
    same = _rows_equal(y, y_hat).reshape(-1, 1, 1, 1)
    still = method == "dds" and bool(same.any())
    known_null, known_source = bool(_rows_equal(y, null).all()), bool(_rows_equal(y_hat, null).all())

    def branch(z_t: Tensor, prompt: Tensor, is_null: bool) -> list[tuple[Tensor, Tensor]]:
        """Return what has to be predicted for eps^omega(z_t, prompt)."""
        one = (omega == 1 or is_null) and not plain
        return [(z_t, prompt)] if one else [(z_t, null), (z_t, prompt)]

    def direction(k: int, z: Tensor) -> Tensor:
        z_t, z_hat_t = signal[k] * z + noise[k] * eps[k], signal[k] * z_hat + noise[k] * eps[k]
        target = branch(z_t, y, known_null)
        if method == "sds":
            return _combined(_predict(counted, target, t[k]), omega) - eps[k]
        if k == 0 and not plain:  # z = z_hat
            asked = [(z_hat_t, y)] if reference else [(z_hat_t, y), (z_hat_t, y_hat)]
            found = _predict(counted, asked, t[k])
            return omega * (found[0] - (reference.source[k] if reference else found[1]))
        if reference:
            of_input = guided(reference.null[k], reference.source[k], omega)
            return _combined(_predict(counted, target, t[k]), omega) - of_input
        found = _predict(counted, [*target, *branch(z_hat_t, y_hat, known_source)], t[k])
        n = len(target)
        return _combined(found[:n], omega) - _combined(found[n:], omega)

    z, begin, m, v = state or State(z_hat, 0, torch.zeros_like(z_hat), torch.zeros_like(z_hat))
    m, v = m.clone(), v.clone()  # Adam changes them in place
    trajectory = [z]
    for k in range(begin, iterations):
        g = direction(k, z)
        g = g + lambda_id * (z - z_hat) if lambda_id else g
        g = g.masked_fill(same, 0) if still else g  # exact whatever batch the two branches were predicted in
        z = z.add(g, alpha=-etas[k]) if optimizer == "sgd" else adam(z, g, etas[k], k + 1, (m, v))
        trajectory.append(z)
    path = torch.stack(trajectory)  # (n + 1, b, c, h, w)
    _check_finite(path, begin, eta, omega)
    maps = path.diff(dim=0).norm(dim=2), (path[1:] - z_hat).norm(dim=2)  # (n, b, h, w)
    return Edit(path[-1], path, *maps, State(path[-1], iterations, m, v), counted.evaluations)


class _Counted:
    """A model that counts the images it is given."""

    def __init__(self, model: Model) -> None:
        self.model, self.evaluations = model, 0

    def __call__(self, z_t: Tensor, t: Tensor, y: Tensor) -> Tensor:
        self.evaluations += len(z_t)
        return self.model(z_t, t, y)


def _predict(model: Model, asked: list[tuple[Tensor, Tensor]], t: Tensor) -> list[Tensor]:
    """Return the prediction for each noised latent (b, c, h, w) with its prompt, all at t, in one model call."""
    noisy = torch.cat([z_t for z_t, _ in asked])  # (len(asked) b, c, h, w)
    prompts = torch.cat([y.expand(len(z_t), *y.shape[1:]) for z_t, y in asked])  # (len(asked) b, ...)
    return list(model(noisy, t.repeat(len(asked)), prompts).to(asked[0][0]).chunk(len(asked)))


def _combined(found: list[Tensor], omega: float) -> Tensor:
    """Return the guided prediction from that of the null prompt and the prompt, or from one that needs no other."""
    return found[0] if len(found) == 1 else guided(found[0], found[1], omega)


def _levels(schedule: Schedule, t: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
    """Return alpha and sigma at timesteps t (n, b), shaped (n, b, 1, 1, 1) to multiply latents."""
    signal, noise = (values.to(z)[t][..., None, None, None] for values in (schedule.signal, schedule.noise))
    return signal, noise


def _rows_equal(first: Tensor, second: Tensor) -> Tensor:
    """Return for each image whether two prompts are the same, (1,) or (b,)."""
    if first.shape[1:] != second.shape[1:]:
        return torch.zeros(1, dtype=torch.bool, device=first.device)
    return (first == second).reshape(max(len(first), len(second)), -1).all(dim=1)


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


def _check_given(z_hat: Tensor, iterations: int, reference: Reference | None, state: State | None) -> None:
    """Refuse a reference or a state of another edit."""
    if reference and (reference.source.shape[1:] != z_hat.shape or len(reference.source) < iterations):
        have, want = tuple(reference.source.shape), (iterations, *z_hat.shape)
        raise UserError(f"reference: shape {have} given; this edit takes {want}: compute it for this input")
    if state and (state.z.shape != z_hat.shape or not 0 < state.step < iterations):
        text = f"latent {tuple(state.z.shape)} after {state.step} steps given"
        raise UserError(f"state: {text}; this edit has latents {tuple(z_hat.shape)} and {iterations} iterations")


def _check_finite(path: Tensor, begin: int, eta: str | float, omega: float) -> None:
    """Refuse a trajectory that is not finite; looked at once, at the end, because a GPU stops for every look."""
    finite = path.isfinite().flatten(1).all(dim=1)  # (n + 1,)
    if not finite.all():
        k = begin + int(finite.long().argmin())
        text = "lower eta or omega, or take a model with weights of 32 bit"
        raise UserError(f"edit: the latent is not finite from iteration {k} on (eta {eta}, omega {omega:g}); {text}")
