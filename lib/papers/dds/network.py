"""One image-to-image network trained by DDS for several edits (Hertz et al., ICCV 2023, Figs. 6 and 7; supplement, B).

The network maps a latent and the number of a task to the edited latent in one pass, f(z_hat, k) = z_hat + U-Net. The
paper states neither its architecture nor its initialisation. Ours is the teacher's U-Net (class-conditional, or Stable
Diffusion's, conditioned on the text of the instruction) with a zeroed last convolution, at the start the identity.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from diffusers import UNet2DConditionModel
from diffusers.models.unets.unet_2d import UNet2DModel
from torch import Tensor, nn

from lib.ground.diffusion import Schedule
from lib.ground.train import History, train
from lib.papers.dds.method import METHODS, T_RANGE, Model, check_t_range, dds_direction, sds_direction
from lib.record.files import UserError
from lib.record.parameters import non_negative

UNETS = {"UNet2DModel": UNet2DModel, "UNet2DConditionModel": UNet2DConditionModel}


@dataclass(frozen=True)
class Settings:
    """How the network is trained; the defaults are the paper's (supplement, Sec. B).

    Attributes
    ----------
    iterations, batch
        Updates, and images in each.
    lr, lr_warmup
        Learning rate of Adam, and the iterations in which it rises linearly to it.
    omega, omega_warmup
        Last guidance scale, and the iterations in which it rises from 1 by half a cosine (0: no warm-up).
    lambda_start, lambda_end, lambda_cooldown
        First and last weight of the identity term, and the iterations in which it falls by half a cosine.
    method
        `dds`, or `sds` for the comparison.
    t_range
        Smallest and largest timestep; the official notebook's, as the supplement has none for networks.
    precision
        `no` (float32), or `bf16`: the student's passes in mixed precision, weights and optimizer in float32.
    """

    iterations: int = 125_000
    batch: int = 2
    lr: float = 1e-5
    lr_warmup: int = 10_000
    omega: float = 25.0
    omega_warmup: int = 20_000
    lambda_start: float = 3.0
    lambda_end: float = 0.1
    lambda_cooldown: int = 20_000
    method: str = "dds"
    t_range: tuple[int, int] = T_RANGE
    precision: str = "no"

    def __post_init__(self) -> None:
        """Refuse values out of range, by name."""
        non_negative(lr=self.lr, omega=self.omega, lambda_start=self.lambda_start, lambda_end=self.lambda_end)
        non_negative(lr_warmup=self.lr_warmup, omega_warmup=self.omega_warmup, lambda_cooldown=self.lambda_cooldown)
        for name, least in (("iterations", 1), ("batch", 1)):
            if getattr(self, name) < least:
                raise UserError(f"{name}: {getattr(self, name)} given; it should be {least} or larger")
        for name, known in (("method", METHODS), ("precision", ("no", "bf16"))):
            if getattr(self, name) not in known:
                raise UserError(f"{name}: '{getattr(self, name)}' given; one of {', '.join(known)}")

    def scaled(self, iterations: int, **changes: Any) -> Settings:
        """Return settings for another number of iterations: each ramp keeps its share of them; then `changes`."""
        ramps = ("lr_warmup", "omega_warmup", "lambda_cooldown")
        lengths = {name: round(getattr(self, name) * iterations / self.iterations) for name in ramps}
        return replace(self, iterations=iterations, **(lengths | changes))


PAPER = Settings()


def rate_share(s: Settings, i: int) -> float:
    """Return the learning rate at iteration i = 0, 1, ... as a share of the full one: linear warm-up."""
    return min(1.0, (i + 1) / max(s.lr_warmup, 1))


def guidance(s: Settings, i: int) -> float:
    """Return omega_i at iteration i = 0, 1, ...: exactly 1 at first, `omega` from iteration `omega_warmup` on."""
    return s.omega + (1.0 - s.omega) * _falling(i, s.omega_warmup)


def identity_weight(s: Settings, i: int) -> float:
    """Return lambda_i at iteration i = 0, 1, ...: `lambda_start` at first, `lambda_end` from `lambda_cooldown` on."""
    return s.lambda_end + (s.lambda_start - s.lambda_end) * _falling(i, s.lambda_cooldown)


def _falling(i: int, n: int) -> float:
    """Half a cosine from 1 at i = 0 to 0 at i = n; 0 everywhere if n is 0."""
    return (1 + math.cos(math.pi * min(i / n, 1.0))) / 2 if n else 0.0


class Tasks(NamedTuple):
    """Prompts of K tasks: class numbers (K,) or text embeddings (K, 77, d)."""

    y: Tensor  # (K, ...): targets
    y_hat: Tensor  # (1, ...) or (K, ...): what the inputs show
    null: Tensor  # (1, ...)

    def of(self, k: Tensor) -> tuple[Tensor, Tensor]:
        """Return target and source prompts of task numbers k (b,), each (b, ...)."""
        return self.y[k], self.y_hat.expand(len(self.y), *self.y_hat.shape[1:])[k]

    def to(self, device: torch.device | str) -> Tasks:
        """Return the prompts on another device."""
        return Tasks(*(prompt.to(device) for prompt in self))


@torch.no_grad()
def direction(
    model: Model,
    schedule: Schedule,
    z: Tensor,
    z_hat: Tensor,
    y: Tensor,
    y_hat: Tensor,
    null: Tensor,
    omega: float,
    lambda_id: float,
    t: Tensor,
    eps: Tensor,
    method: str = "dds",
) -> Tensor:
    """Return the gradient with respect to the network's output z, (b, c, h, w), in one call of the teacher.

    eps^omega(z_t, y) - eps^omega(z_hat_t, y_hat) + lambda_id (z - z_hat); with `sds` the noise is subtracted instead of
    the reference. The exact form of the paper's identity loss is not stated; ours is lambda_id / 2 |z - z_hat|^2, that
    of the supplement's regularised SDS. The teacher sees 4 images for one of the batch, 2 with SDS, and half as many at
    omega = 1, where the null prompt cancels.
    """
    z = z.detach()
    if omega != 1 and method == "dds":
        g = dds_direction(model, schedule, z, z_hat, y, y_hat, null, omega, t, eps)
    elif omega != 1:
        g = sds_direction(model, schedule, z, y, null, omega, t, eps)
    elif method == "dds":
        noisy = torch.cat([schedule.add_noise(x, eps, t) for x in (z_hat, z)])  # (2 b, c, h, w)
        y_hat, y = (prompt.expand(len(z), *prompt.shape[1:]) for prompt in (y_hat, y))
        reference, edited = model(noisy, torch.cat([t, t]), torch.cat([y_hat, y])).to(z).chunk(2)
        g = edited - reference
    else:
        g = model(schedule.add_noise(z, eps, t), t, y.expand(len(z), *y.shape[1:])).to(z) - eps
    return g + lambda_id * (z - z_hat)


class DistilledNetwork(nn.Module):
    """f(z_hat, k) = z_hat + U-Net(z_hat; instruction k), at timestep 0 of the U-Net.

    Parameters
    ----------
    unet
        diffusers' UNet2DModel with class embedding, or UNet2DConditionModel, with as many channels out as in.
    instructions
        One a task: class numbers (K,) for the first, text embeddings (K, 77, d) for the second.

    Raises
    ------
    UserError
        The U-Net is of another kind, or its channels differ.
    """

    instructions: Tensor

    def __init__(self, unet: Any, instructions: Tensor) -> None:
        super().__init__()
        if type(unet).__name__ not in UNETS:
            raise UserError(f"unet: {type(unet).__name__} given; one of {', '.join(UNETS)}")
        if unet.config["in_channels"] != unet.config["out_channels"]:
            text = f"{unet.config['in_channels']} channels in, {unet.config['out_channels']} out"
            raise UserError(f"unet: {text}; an image-to-image network needs as many out as in")
        self.unet = unet
        self.register_buffer("instructions", instructions)

    def forward(self, z_hat: Tensor, k: Tensor) -> Tensor:
        """Return the edited latents (b, c, h, w) of latents z_hat under tasks k (b,)."""
        instruction = self.instructions[k]
        by_class = isinstance(self.unet, UNet2DModel)
        condition = {"class_labels" if by_class else "encoder_hidden_states": instruction}
        return z_hat + self.unet(z_hat, 0, **condition).sample.to(z_hat.dtype)


def student_of(unet: Any, instructions: Tensor) -> DistilledNetwork:
    """Return a student that starts as the identity, from a copy of a teacher's U-Net in float32 (our proposal).

    Its last convolution is zero, so its output is its input bit for bit; everything before it knows the images.
    """
    student = DistilledNetwork(copy.deepcopy(unet).float(), instructions.detach().clone())
    nn.init.zeros_(student.unet.conv_out.weight)
    nn.init.zeros_(student.unet.conv_out.bias)
    return student.requires_grad_(True).to(unet.device)


def train_network(
    student: DistilledNetwork,
    model: Model,
    schedule: Schedule,
    z_hat: Tensor,
    tasks: Tasks,
    settings: Settings = PAPER,
    seed: int = 0,
    folder: str | Path | None = None,
    save_every: int = 0,
    progress: bool = True,
    on_step: Callable[[int], None] | None = None,
    resume: bool = True,
    parameters: Mapping[str, Any] | None = None,
) -> History:
    """Train the network in place (supplement, Sec. B); one with another method or ramp sees the same batches.

    Every image of a batch has its own task, timestep and noise. The loss of the backward pass is the inner product
    <z, g> with the fixed direction g, summed over channels and pixels, averaged over the batch: its gradient is g times
    the network's Jacobian. Its value says nothing; what is recorded is the root mean square of g and of z - z_hat.

    Parameters
    ----------
    student
        As from `student_of`; in evaluation mode afterwards.
    model, schedule
        The frozen teacher, `eps = model(z_t, t, y)`, and its noise levels.
    z_hat
        Training latents, (n, c, h, w), on any device.
    tasks
        Their source prompt and the K targets.
    settings
        `PAPER`, or `PAPER.scaled(iterations, ...)`.
    seed
        Of batches, timesteps and noise.
    folder, save_every, progress, resume, parameters
        Checkpoints, progress, and what a resumed run must share with its checkpoint beside `settings`, as in
        :func:`lib.ground.train.train`.
    on_step
        ``on_step(i)`` after update i = 1, ..., iterations; the student is in evaluation mode inside it.

    Raises
    ------
    UserError
        Latents or prompts of another shape, timesteps outside the schedule, and what :func:`lib.ground.train.train`
        raises.
    """
    s = settings
    _check(student, schedule, z_hat, tasks, s)
    device = next(student.parameters()).device
    tasks = tasks.to(device)
    optimizer = torch.optim.Adam([p for p in student.parameters() if p.requires_grad], lr=s.lr)
    warmup = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda i: rate_share(s, i))

    def sample(generator: torch.Generator) -> list[Tensor]:
        x = z_hat[torch.randint(len(z_hat), (s.batch,), generator=generator).to(z_hat.device)]
        k = torch.randint(len(tasks.y), (s.batch,), generator=generator)
        t = torch.randint(s.t_range[0], s.t_range[1] + 1, (s.batch,), generator=generator)
        return [part.to(device) for part in (x, k, t, torch.randn(x.shape, generator=generator))]

    def step(drawn: list[Tensor]) -> dict[str, Tensor]:
        x, k, t, eps = drawn
        i = warmup.last_epoch  # updates done so far, also those before a resume
        with torch.autocast(device.type, torch.bfloat16) if s.precision == "bf16" else nullcontext():
            z = student(x, k)
        weights = guidance(s, i), identity_weight(s, i)
        g = direction(model, schedule, z, x, *tasks.of(k), tasks.null, *weights, t, eps, s.method)
        optimizer.zero_grad()
        ((z * g).sum() / len(z)).backward()
        optimizer.step()
        warmup.step()
        return {"direction": g.square().mean().sqrt(), "change": (z.detach() - x).square().mean().sqrt()}

    def after(i: int, values: dict[str, float]) -> None:
        if on_step:
            student.eval()
            on_step(i)
            student.train()

    same = {k: v for k, v in asdict(s).items() if k != "iterations"} | {"images": z_hat.shape, **(parameters or {})}
    student.train()
    try:
        return train(
            step,
            sample,
            {"student": student},
            {"adam": optimizer, "warmup": warmup},
            s.iterations,
            seed,
            folder=folder,
            save_every=save_every,
            resume=resume,
            progress=progress,
            on_step=after,
            parameters=same,
        )
    finally:
        student.eval()


def _check(student: DistilledNetwork, schedule: Schedule, z_hat: Tensor, tasks: Tasks, s: Settings) -> None:
    channels = student.unet.config["in_channels"]
    if z_hat.ndim != 4 or z_hat.shape[1] != channels or not len(z_hat):
        raise UserError(f"z_hat: shape {tuple(z_hat.shape)}; this student takes latents (n, {channels}, h, w), n >= 1")
    if len(tasks.y) != len(student.instructions):
        raise UserError(f"tasks: {len(tasks.y)} targets for {len(student.instructions)} instructions; give one each")
    for name, prompt, known in (("y_hat", tasks.y_hat, (1, len(tasks.y))), ("null", tasks.null, (1,))):
        if prompt.shape[1:] != tasks.y.shape[1:] or len(prompt) not in known:
            text = f"shape {tuple(prompt.shape)} beside targets of {tuple(tasks.y.shape)}"
            raise UserError(f"{name}: {text}; prompts of one shape are needed, {' or '.join(map(str, known))} of them")
    check_t_range(schedule, s.t_range)


@torch.no_grad()
def apply(student: DistilledNetwork, z_hat: Tensor, k: int, batch: int = 64) -> Tensor:
    """Return the student's outputs for task k, (n, c, h, w), on the device of z_hat: one pass an image.

    `batch` latents go together; for Stable Diffusion at 512 x 512 in 32 bit, few of them fit into the memory of a GPU.
    """
    device = next(student.parameters()).device
    parts = [x.to(device) for x in z_hat.split(batch)]
    return torch.cat([student(x, torch.full((len(x),), k, device=device)) for x in parts]).to(z_hat.device)
