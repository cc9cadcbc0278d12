"""Networks: an MLP denoiser for points, EDM preconditioning (Karras et al. 2022, Sec. 5), a small U-Net for images."""

import copy
import hashlib
import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any, Literal, Self

import torch
from diffusers.models.unets.unet_2d import UNet2DModel, UNet2DOutput
from torch import Tensor, nn

from lib.ground.diffusion import Schedule
from lib.record.files import UserError

HEAD = 32  # channels of an attention head
Level = float | Tensor  # timestep or sigma: a number, or one per sample with shape (B,) or (B, 1)


class MLP(nn.Module):
    """Fully connected denoiser of points (B, dim) with a sinusoidal embedding of the noise level.

    `level` says what the second argument of `forward` is: "t", a timestep below 1000 or so, or "sigma", a positive
    noise level (embedded as ``log(sigma) / 4``, Karras et al. 2022, Tab. 1).
    """

    rates: Tensor

    def __init__(
        self, dim: int = 2, width: int = 128, depth: int = 3, level: Literal["t", "sigma"] = "t", frequencies: int = 16
    ) -> None:
        super().__init__()
        self.level = level
        longest, shortest = (1e4, 2 * math.pi) if level == "t" else (4 * math.pi, 0.4)  # wavelengths of the embedding
        steps = torch.linspace(0, 1, frequencies)
        self.register_buffer("rates", 2 * math.pi / longest * (longest / shortest) ** steps, persistent=False)
        sizes = [dim + 2 * frequencies] + [width] * depth
        layers = [nn.Sequential(nn.Linear(a, b), nn.SiLU()) for a, b in itertools.pairwise(sizes)]
        self.net = nn.Sequential(*layers, nn.Linear(sizes[-1], dim))

    def embed(self, level: Level, x: Tensor) -> Tensor:
        """Sines and cosines of the noise level, shape (B, 2 * frequencies)."""
        value = torch.as_tensor(level, device=x.device).to(x.dtype).reshape(-1, 1).expand(len(x), 1)  # (B, 1)
        phase = (value if self.level == "t" else value.log() / 4) * self.rates.to(x.dtype)  # (B, frequencies)
        return torch.cat([phase.sin(), phase.cos()], dim=1)

    def forward(self, x: Tensor, level: Level) -> Tensor:
        """Output of shape (B, dim) for points x (B, dim) at one noise level or one per point."""
        return self.net(torch.cat([x, self.embed(level, x)], dim=1))


class EDM(nn.Module):
    """Denoiser ``D(x, sigma) = c_skip x + c_out F(c_in x, sigma)`` around a network F (Karras et al. 2022, Eq. 7)."""

    def __init__(self, net: nn.Module, sigma_data: float = 1.0) -> None:
        super().__init__()
        self.net = net
        self.sigma_data = sigma_data

    def forward(self, x: Tensor, sigma: Level) -> Tensor:
        """Estimate of the clean sample for x = x0 + sigma eps, same shape as x (B, ...)."""
        level = torch.as_tensor(sigma, device=x.device).to(x.dtype)
        s = level.reshape(-1, *[1] * (x.ndim - 1))  # (B, 1, ...) or (1, 1, ...)
        total = s**2 + self.sigma_data**2
        c_skip, c_out, c_in = self.sigma_data**2 / total, s * self.sigma_data / total.sqrt(), 1 / total.sqrt()
        return c_skip * x + c_out * self.net(c_in * x, level)


class Stack(nn.Module):
    """Networks of one architecture side by side: x (n, B, d), level (n, B) -> (n, B, out).

    One optimizer step on the sum of their losses trains each of the n as if it were alone.
    """

    def __init__(self, members: Sequence[nn.Module]) -> None:
        super().__init__()
        weights, buffers = torch.func.stack_module_state(list(members))
        self.names, self.buffer_names = list(weights), list(buffers)
        self.members = nn.ParameterList([value.detach().clone() for value in weights.values()])  # each (n, ...)
        for name, value in buffers.items():
            self.register_buffer(name.replace(".", "_"), value, persistent=False)
        self.architecture = (copy.deepcopy(members[0]).to("meta"),)  # in a tuple: not a module of its own

    def __len__(self) -> int:
        """Return n."""
        return len(self.members[0])

    def forward(self, x: Tensor, level: Tensor) -> Tensor:
        """Send block i through network i."""
        state = dict(zip(self.names, self.members, strict=True))
        state |= {name: getattr(self, name.replace(".", "_")) for name in self.buffer_names}
        call = torch.vmap(lambda s, *inputs: torch.func.functional_call(self.architecture[0], s, inputs))
        return call(state, x, level)

    def rows(self, x: Tensor, level: Tensor) -> Tensor:
        """Do the same for rows x (n B, d) and level (n B,), the form that samplers and losses want."""
        blocks = (value.unflatten(0, (len(self), -1)) for value in (x, level))
        return self(*blocks).flatten(0, 1)  # (n B, out)

    def select(self, index: Sequence[int]) -> Self:
        """Return a stack of trainable copies of the members at `index`, which may repeat."""
        chosen, index = copy.deepcopy(self), list(index)
        chosen.members = nn.ParameterList([value.detach()[index].clone() for value in self.members])
        for name in self.buffer_names:
            setattr(chosen, name.replace(".", "_"), getattr(self, name.replace(".", "_"))[index])
        return chosen


def small_unet(
    size: int = 16, channels: Sequence[int] = (16, 32, 64), layers: int = 1, groups: int = 8, image_channels: int = 1
) -> UNet2DModel:
    """U-Net that predicts noise, attention at the lowest resolution only (Ho et al. 2020, App. B, much smaller).

    `size` is a multiple of ``2 ** (len(channels) - 1)``; `channels` go from the full resolution to the lowest, with
    `layers` residual blocks each.
    """
    plain = len(channels) - 1
    if plain < 0 or size % 2**plain or any(c % groups for c in channels) or channels[-1] % HEAD:
        text = f"give multiples of {groups}, the last one of {HEAD}, not more of them than the size can be halved"
        raise UserError(f"channels = {tuple(channels)} at size = {size}: {text}")
    return UNet2DModel(
        sample_size=size,
        in_channels=image_channels,
        out_channels=image_channels,
        layers_per_block=layers,
        block_out_channels=tuple(channels),
        down_block_types=("DownBlock2D",) * plain + ("AttnDownBlock2D",),
        up_block_types=("AttnUpBlock2D",) + ("UpBlock2D",) * plain,
        attention_head_dim=HEAD,
        norm_num_groups=groups,
    )


def eps_model(unet: Any) -> Callable[[Tensor, Tensor], Tensor]:
    """Noise prediction ``model(x_t, t) -> eps`` of a diffusers U-Net, without the variance that some predict."""
    channels = unet.config["in_channels"]
    return lambda x_t, t: unet(x_t, t).sample[:, :channels].to(x_t.dtype)


def noise_from_velocity(unet: Any, schedule: Schedule) -> None:
    """Make a U-Net that predicts the velocity (Salimans and Ho 2022) return the noise that follows; weights stay.

    A hook does it, so copies do it, too. At the highest noise the velocity is the clean image, which a prediction of
    the noise would have to find in its last digits: without it DDIM needs a much longer training.
    """

    def convert(_: nn.Module, given: tuple[Tensor, Tensor | int], out: UNet2DOutput) -> UNet2DOutput:
        x_t, t = given
        return UNet2DOutput(schedule.eps_from_v(x_t, out.sample[:, : x_t.shape[1]], t))

    unet.register_forward_hook(convert)
    unet.velocity = True


def native_weight(unet: Any, schedule: Schedule) -> Tensor | None:
    """Return the weight (T,) that makes an error of the noise one of what the network predicts; None if that is noise.

    An error of the velocity is ``1 / sqrt(alpha_bar)`` times that of the noise. Without the weight such a network would
    hardly learn at high noise, where one that predicts noise learns as fast as elsewhere.
    """
    return 1 / schedule.alpha_bar if getattr(unet, "velocity", False) else None


def seeded(seed: int, make: Callable[[], Any]) -> Any:
    """Return ``make()``, its random weights from `seed`; torch's global random numbers are left alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return make()


def fingerprint(module: nn.Module) -> str:
    """Return a digest of the first 64 weights of every tensor: which network it is, at next to no cost."""
    firsts = [value.detach().flatten()[:64].float().cpu().numpy().tobytes() for value in module.parameters()]
    return hashlib.sha256(b"".join(firsts)).hexdigest()[:16]


def parameter_count(module: nn.Module, trainable: bool = False) -> int:
    """Number of parameters, all or only those that are trained."""
    return sum(p.numel() for p in module.parameters() if p.requires_grad or not trainable)
