"""Delta Denoising Score (Hertz, Aberman, Cohen-Or, ICCV 2023): Eq. 4, Sec. 3, and Secs. B and C of the supplement.

Latents are (b, c, h, w), t is (b,). A prompt is a tensor (1, ...) or (b, ...): an embedding of a text, or the number of
a class. A model is any callable `eps = model(z_t, t, y)`; nothing here needs its gradient. `lib.papers.dds.fast` gives
the same edits with fewer evaluations of the model.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lib.ground.diffusion import Schedule
from lib.papers.dds.optimizers import OPTIMIZERS, step_sizes
from lib.record.files import UserError

Model = Callable[[Tensor, Tensor, Tensor], Tensor]

METHODS = ("dds", "sds")
T_RANGE = (50, 948)  # timesteps of the official notebook, both ends included, of a schedule of 1000


@dataclass(frozen=True)
class Options:
    """How to edit; the defaults are those of the authors' notebook."""

    method: str = "dds"  # or sds
    omega: float = 7.5  # guidance scale of both branches
    lambda_id: float = 0.0  # weight of z - z_hat in the direction: with sds, the regularised SDS of the supplement
    iterations: int = 200  # updates
    optimizer: str = "sgd"  # without momentum; or adam, with torch's betas
    eta: str | float = "notebook"  # step size: one of `optimizers.PRESETS`, or a number; for adam a number
    t_range: tuple[int, int] = T_RANGE  # smallest and largest timestep drawn
    seed: int = 0  # of timesteps and noise: image i of the batch has seed + i

    def __post_init__(self) -> None:
        """Refuse what is unknown, out of range or unstable, by name."""
        for name, known in (("method", METHODS), ("optimizer", tuple(OPTIMIZERS))):
            if getattr(self, name) not in known:
                raise UserError(f"{name}: unknown '{getattr(self, name)}'; one of {', '.join(known)}")
        if self.iterations < 1:
            raise UserError(f"iterations: {self.iterations}; give at least 1")
        if self.optimizer == "adam" and isinstance(self.eta, str):
            raise UserError(f"eta: preset '{self.eta}' is a step size for sgd; give a number for adam, e.g. 0.02")
        first = step_sizes(self.eta, 1).item()
        limit = 2 / first if self.optimizer == "sgd" else float("inf")  # beyond it steps overshoot ever further
        if not 0 <= self.lambda_id < limit:
            raise UserError(f"lambda_id: {self.lambda_id} given; give a weight from 0 to below {limit:.3g}")


class Edit(NamedTuple):
    """What `edit` returns, for n iterations; the two maps are those of the supplement's Fig. 3."""

    z: Tensor  # (b, c, h, w): the edited latent
    trajectory: Tensor  # (n + 1, b, c, h, w): the latent before the first and after every iteration
    update: Tensor  # (n, b, h, w), left map: norm over the channels of each update
    accumulated: Tensor  # (n, b, h, w), right map: norm over the channels of the difference to the input so far
    evaluations: int  # of the model, in images


def draw(schedule: Schedule, z: Tensor, iterations: int, t_range: tuple[int, int], seed: int) -> tuple[Tensor, Tensor]:
    """Draw all timesteps, (n, b), and noises, (n, b, c, h, w); image i of the batch has seed `seed` + i.

    Drawn on the CPU: an image sees the same numbers on every device and in every batch, and those of a short edit are
    the first ones of a long edit.
    """
    low, high = t_range
    if not 0 <= low <= high < schedule.T:
        raise UserError(f"t_range: ({low}, {high}) is not a range inside the schedule's timesteps 0..{schedule.T - 1}")
    t = torch.empty(iterations, len(z), dtype=torch.long)
    eps = torch.empty(iterations, *z.shape, dtype=torch.float32)
    for i in range(len(z)):
        generator = torch.Generator().manual_seed(seed + i)
        for k in range(iterations):
            t[k, i] = torch.randint(low, high + 1, (), generator=generator)
            torch.randn(z.shape[1:], generator=generator, out=eps[k, i])
    return t.to(z.device), eps.to(z)


def guided(null_eps: Tensor, eps: Tensor, omega: float) -> Tensor:
    """Return eps^omega, the prediction under classifier-free guidance, in the form of the official notebook."""
    return null_eps + omega * (eps - null_eps)


def predict(model: Model, t: Tensor, null: Tensor, *asked: tuple[Tensor, Tensor, float]) -> list[Tensor]:
    """Return eps^omega for each noised latent (b, c, h, w), prompt and omega, all at t, in one model call.

    At omega = 1 the null prompt has no weight and is not asked for.
    """
    pairs = [(z_t, null) for z_t, _, omega in asked if omega != 1] + [(z_t, y) for z_t, y, _ in asked]
    noisy = torch.cat([z_t for z_t, _ in pairs])  # (len(pairs) b, c, h, w)
    prompts = torch.cat([y.expand(len(z_t), *y.shape[1:]) for z_t, y in pairs])  # (len(pairs) b, ...)
    eps = model(noisy, t.repeat(len(pairs)), prompts).to(noisy).chunk(len(pairs))
    of_null = iter(eps)
    of_prompt = zip(eps[len(pairs) - len(asked) :], asked, strict=True)
    return [e if omega == 1 else guided(next(of_null), e, omega) for e, (_, _, omega) in of_prompt]


def sds_direction(model: Model, z_t: Tensor, y: Tensor, null: Tensor, omega: float, t: Tensor, eps: Tensor) -> Tensor:
    """Return the SDS direction (paper, Eq. 4), eps^omega(z_t, y) - eps, (b, c, h, w), in one model call of 2 b."""
    return predict(model, t, null, (z_t, y, omega))[0] - eps


def dds_direction(
    model: Model, z_t: Tensor, z_hat_t: Tensor, y: Tensor, y_hat: Tensor, null: Tensor, omega: float, t: Tensor
) -> Tensor:
    """Return the DDS direction (paper, Sec. 3), eps^omega(z_t, y) - eps^omega(z_hat_t, y_hat), (b, c, h, w).

    SDS of (z, y) minus SDS of (z_hat, y_hat), in one model call of 4 b. Both latents have one timestep and one noise,
    so the noise itself cancels and is never subtracted.
    """
    source, target = predict(model, t, null, (z_hat_t, y_hat, omega), (z_t, y, omega))
    return target - source


@torch.no_grad()
def edit(
    model: Model, schedule: Schedule, z_hat: Tensor, y: Tensor, y_hat: Tensor, null: Tensor, **options: Any
) -> Edit:
    """Edit latents z_hat from prompt y_hat to prompt y (paper, Sec. 3; supplement, Secs. B and C).

    The options are those of `Options`. The model is called once an iteration, on 4 b latents (SDS: 2 b; half as many at
    omega = 1).
    """
    o = Options(**options)
    y, y_hat, null = checked(z_hat, y=y, y_hat=y_hat, null=null)

    def direction(model: Model, k: int, z_t: Tensor, z_hat_t: Tensor, t: Tensor, eps: Tensor) -> Tensor:
        if o.method == "sds":
            return sds_direction(model, z_t, y, null, o.omega, t, eps)
        return dds_direction(model, z_t, z_hat_t, y, y_hat, null, o.omega, t)

    return descend(model, schedule, z_hat, direction, o)


def descend(model: Model, schedule: Schedule, z_hat: Tensor, direction: Callable[..., Tensor], o: Options) -> Edit:
    """Step from z_hat against `direction(model, k, z_t, z_hat_t, t, eps)`, k = 0, 1, ..., n - 1, at one t and eps."""
    t, eps = draw(schedule, z_hat, o.iterations, o.t_range, o.seed)
    z, path, evaluations = z_hat.clone(), [z_hat], 0

    def counted(z_t: Tensor, *others: Tensor) -> Tensor:
        nonlocal evaluations
        evaluations += len(z_t)
        return model(z_t, *others)

    optimizer = OPTIMIZERS[o.optimizer]([z])
    for k, eta in enumerate(step_sizes(o.eta, o.iterations).tolist()):
        z_t, z_hat_t = (schedule.add_noise(x, eps[k], t[k]) for x in (z, z_hat))
        g = direction(counted, k, z_t, z_hat_t, t[k], eps[k])
        z.grad = g + o.lambda_id * (z - z_hat) if o.lambda_id else g
        optimizer.param_groups[0]["lr"] = eta
        optimizer.step()
        path.append(z.clone())
    trajectory = torch.stack(path)
    finite = trajectory.isfinite().flatten(1).all(dim=1)  # (n + 1,), looked at once: a GPU stops for every look
    if not finite.all():
        text = f"not finite from iteration {int(finite.long().argmin())} on (eta {o.eta}, omega {o.omega:g})"
        raise UserError(f"edit: the latent is {text}; lower eta or omega, or take a model with weights of 32 bit")
    update = trajectory.diff(dim=0).norm(dim=2)  # (n, b, h, w)
    return Edit(trajectory[-1], trajectory, update, (trajectory[1:] - z_hat).norm(dim=2), evaluations)


def checked(z_hat: Tensor, **prompts: Tensor) -> list[Tensor]:
    """Return the prompts on the device of the latents; refuse wrong shapes by name."""
    if z_hat.ndim != 4:
        raise UserError(f"z_hat: shape {tuple(z_hat.shape)}; latents are (b, c, h, w)")
    for name, prompt in prompts.items():
        if prompt.ndim < 1 or len(prompt) not in (1, len(z_hat)):
            raise UserError(f"{name}: shape {tuple(prompt.shape)}; a prompt is (1, ...) or ({len(z_hat)}, ...)")
    return [prompt.to(z_hat.device) for prompt in prompts.values()]
