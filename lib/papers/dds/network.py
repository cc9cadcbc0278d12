"""One image-to-image network trained by DDS for several edits (Hertz et al., ICCV 2023, Figs. 6 and 7; supplement, B).

The network maps a latent and the number of a task to the edited latent in one pass, f(z_hat, k) = z_hat + U-Net. The
paper states neither its architecture nor its initialisation. Ours is the teacher's U-Net (class-conditional, or Stable
Diffusion's, conditioned on the text of the instruction) with a zeroed last convolution, at the start the identity.
"""

import copy
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, NamedTuple

import torch
from diffusers import UNet2DConditionModel, UNet2DModel
from torch import Tensor, nn

from lib.ground.diffusion import Schedule
from lib.ground.train import History, train
from lib.papers.dds.method import T_RANGE, Model, dds_direction, sds_direction

UNETS = {"UNet2DModel": UNet2DModel, "UNet2DConditionModel": UNet2DConditionModel}


@dataclass(frozen=True)
class Settings:
    """How the network is trained; the defaults are the paper's (supplement, Sec. B)."""

    iterations: int = 125_000
    batch: int = 2
    lr: float = 1e-5  # of Adam
    lr_warmup: int = 10_000  # iterations in which it rises linearly to it
    omega: float = 25.0  # last guidance scale
    omega_warmup: int = 20_000  # iterations in which it rises from 1 by half a cosine; 0: no warm-up
    lambda_start: float = 3.0  # first and last weight of the identity term
    lambda_end: float = 0.1
    lambda_cooldown: int = 20_000  # iterations in which it falls by half a cosine
    method: str = "dds"  # or sds, for the comparison
    precision: str = "no"  # float32; or bf16: the student's passes in mixed precision, weights and Adam in float32

    def scaled(self, iterations: int, **changes: Any) -> "Settings":
        """Return settings for another number of iterations: each ramp keeps its share of them; then `changes`."""
        ramps = ("lr_warmup", "omega_warmup", "lambda_cooldown")
        lengths = {name: round(getattr(self, name) * iterations / self.iterations) for name in ramps}
        return replace(self, iterations=iterations, **(lengths | changes))


PAPER = Settings()


def rate_share(s: Settings, i: int) -> float:
    """Return the learning rate at iteration i = 0, 1, ... as a share of the full one; the first is not 0."""
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
    y_hat: Tensor  # (1, ...): what the inputs show
    null: Tensor  # (1, ...)


class DistilledNetwork(nn.Module):
    """f(z_hat, k) = z_hat + U-Net(z_hat; instruction k), at timestep 0 of the U-Net, with as many channels out as in.

    An instruction a task: class numbers (K,) for diffusers' UNet2DModel with class embedding, text embeddings
    (K, 77, d) for UNet2DConditionModel.
    """

    instructions: Tensor

    def __init__(self, unet: Any, instructions: Tensor) -> None:
        super().__init__()
        self.unet = unet
        self.register_buffer("instructions", instructions)

    def forward(self, z_hat: Tensor, k: Tensor) -> Tensor:
        """Return the edited latents (b, c, h, w) of latents z_hat under tasks k (b,)."""
        instruction = "class_labels" if isinstance(self.unet, UNet2DModel) else "encoder_hidden_states"
        return z_hat + self.unet(z_hat, 0, **{instruction: self.instructions[k]}).sample.to(z_hat.dtype)


def student_of(unet: Any, instructions: Tensor) -> DistilledNetwork:
    """Return a student that starts as the identity, from a copy of a teacher's U-Net in float32 (our proposal).

    Its last convolution is zero, so its output is its input bit for bit; everything before it knows the images.
    """
    student = DistilledNetwork(copy.deepcopy(unet).float(), instructions.detach().clone())
    nn.init.zeros_(student.unet.conv_out.weight)
    nn.init.zeros_(student.unet.conv_out.bias)
    return student.requires_grad_(True).to(unet.device)


def train_network(
    student: nn.Module,
    model: Model,
    schedule: Schedule,
    z_hat: Tensor,
    tasks: Tasks,
    settings: Settings = PAPER,
    seed: int = 0,
    parameters: Mapping[str, Any] | None = None,
    **options: Any,
) -> History:
    """Train the network in place (supplement, Sec. B) on latents z_hat (n, c, h, w), with a frozen teacher `model`.

    Every image of a batch has its own task, timestep and noise; a network with another method or ramp sees the same
    ones. The loss of the backward pass is the inner product <z, g> with the fixed direction g, summed over channels and
    pixels, averaged over the batch: its gradient is g times the network's Jacobian. The exact form of the paper's
    identity loss is not stated; ours is lambda_i / 2 |z - z_hat|^2, that of the supplement's regularised SDS.

    Recorded are the root mean squares of g and of z - z_hat, as the loss itself says nothing. `parameters` and the
    options folder, save_every and on_step are those of :func:`lib.ground.train.train`. The student is in evaluation
    mode throughout: no dropout.
    """
    s = settings
    device = next(student.parameters()).device
    y, y_hat, null = (prompts.to(device) for prompts in tasks)
    optimizer = torch.optim.Adam(student.eval().parameters(), lr=s.lr)
    warmup = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda i: rate_share(s, i))

    def sample(generator: torch.Generator) -> list[Tensor]:
        x = z_hat[torch.randint(len(z_hat), (s.batch,), generator=generator).to(z_hat.device)]
        k = torch.randint(len(y), (s.batch,), generator=generator)
        t = torch.randint(T_RANGE[0], T_RANGE[1] + 1, (s.batch,), generator=generator)
        return [part.to(device) for part in (x, k, t, torch.randn(x.shape, generator=generator))]

    def step(drawn: list[Tensor]) -> dict[str, Tensor]:
        x, k, t, eps = drawn
        i = warmup.last_epoch  # updates done so far, also those before a resume
        with torch.autocast(device.type, torch.bfloat16, enabled=s.precision == "bf16"):
            z = student(x, k)
        with torch.no_grad():
            z_t, x_t = (schedule.add_noise(latent, eps, t) for latent in (z, x))
            if s.method == "sds":
                g = sds_direction(model, z_t, y[k], null, guidance(s, i), t, eps)
            else:
                g = dds_direction(model, z_t, x_t, y[k], y_hat, null, guidance(s, i), t)
            g = g + identity_weight(s, i) * (z - x)
        optimizer.zero_grad()
        ((z * g).sum() / len(z)).backward()
        optimizer.step()
        warmup.step()
        return {"direction": g.square().mean().sqrt(), "change": (z.detach() - x).square().mean().sqrt()}

    same = {k: v for k, v in asdict(s).items() if k != "iterations"} | {"images": z_hat.shape, **(parameters or {})}
    optimizers = {"adam": optimizer, "warmup": warmup}
    return train(step, sample, {"student": student}, optimizers, s.iterations, seed, parameters=same, **options)


@torch.no_grad()
def apply(student: nn.Module, z_hat: Tensor, k: int, batch: int = 64) -> Tensor:
    """Return the student's outputs for task k, (n, c, h, w), on the device of z_hat: one pass an image.

    `batch` latents go together; for Stable Diffusion at 512 x 512 in 32 bit, few of them fit into the memory of a GPU.
    """
    device = next(student.parameters()).device
    parts = [x.to(device) for x in z_hat.split(batch)]
    return torch.cat([student(x, torch.full((len(x),), k, device=device)) for x in parts]).to(z_hat.device)
