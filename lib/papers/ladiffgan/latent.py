"""What LaDiffGAN trains first, a domain at a time: an autoencoder and a conditional diffusion model of its latents.

The supplement names (Sec. A) an L1 loss (S2), a perceptual loss on four scales (S3) and the loss of Ho et al. 2020. The
networks, the size of the latents and the condition are ours.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, UNet2DModel
from torch import Tensor, nn

from lib.ground.diffusion import Schedule
from lib.ground.finetune import Options, finetune
from lib.ground.train import History
from lib.measures import neutral
from lib.measures.weights import fetched
from lib.papers.ladiffgan import method

Layers = Callable[[Tensor], Sequence[Tensor]]  # pictures (n, 3, h, w) in [-1, 1] to maps of a network's layers
SCALES = (1.0, 0.5, 0.25, 0.125)  # of the pictures whose features are compared
VGG = ("vgg19-dcbb9e9d.pth", (1, 6, 11, 20, 29))  # torchvision's weights; relu1_1, 2_1, 3_1, 4_1, 5_1
ENDS = (0, 2, 4)  # blocks of the neutral judge whose outputs stand for them
DROPPED = 0.1  # share of the conditions that the denoiser is trained without


def autoencoder(width: int = 32, channels: int = 4) -> Any:
    """Return an untrained autoencoder: pictures (n, 3, h, w) to latents (n, channels, h / 4, w / 4).

    It is that of latent diffusion (Rombach et al. 2022), used by its mode, so it is deterministic.
    """
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(width, 2 * width, 2 * width),
        layers_per_block=1,
        latent_channels=channels,
        norm_num_groups=8,
    )


def vgg19(device: torch.device) -> Layers:
    """Return the layers of VGG-19 that the loss compares, the paper's network; its weights are fetched once.

    Pictures have at least 128 pixels a side: at an eighth of that, the deepest layer is one position.
    """
    from torchvision.models import vgg19 as network
    from torchvision.transforms.functional import normalize

    name, ends = VGG
    file = fetched(f"https://download.pytorch.org/models/{name}", name, "the perceptual loss needs", "BSD-3-Clause")
    net = network()
    net.load_state_dict(torch.load(file, weights_only=True))
    features = net.features.to(device).eval().requires_grad_(False)

    def layers(images: Tensor) -> list[Tensor]:
        a, maps = normalize(images / 2 + 0.5, [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]), []
        for i, layer in enumerate(features[: ends[-1] + 1]):
            a = layer(a)
            if i in ends:
                maps.append(a)
        return maps

    return layers


def neutral_layers(images: Tensor) -> list[Tensor]:
    """Return early layers of the neutral judge, of enlarged pictures: they stand for VGG-19's without its weights."""
    net = neutral.network(images.device)
    a = F.interpolate(images, scale_factor=2, mode="bilinear")
    a, maps = net._swish(net._bn0(net._conv_stem(a))), []
    for i, block in enumerate(net._blocks[: ENDS[-1] + 1]):
        a = block(a)
        if i in ENDS:
            maps.append(a)
    return maps


def perceptual(layers: Layers, x: Tensor, y: Tensor) -> Tensor:
    """Return S3: the sum over four scales and all layers of the mean absolute difference of features."""
    total = torch.zeros((), device=x.device)
    for scale in SCALES:
        if scale < 1:
            side = max(round(x.shape[-1] * scale), 1)
            x_j, y_j = (F.interpolate(part, size=side, mode="bilinear", antialias=True) for part in (x, y))
        else:
            x_j, y_j = x, y
        with torch.no_grad():
            wanted = layers(x_j)
        for f, f_wanted in zip(layers(y_j), wanted, strict=True):
            total = total + F.l1_loss(f, f_wanted)
    return total


def train_autoencoder(net: Any, images: Tensor, layers: Layers, steps: int, options: Options) -> History:
    """Train an autoencoder on pictures (n, 3, h, w) in [-1, 1] with L1 and perceptual loss, one to one."""

    def loss(x: Tensor, *_: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        y = net.decode(net.encode(x).latent_dist.mode()).sample
        parts = {"L1": F.l1_loss(y, x), "perceptual": perceptual(layers, x, y)}
        return parts["L1"] + parts["perceptual"], {name: part.detach() for name, part in parts.items()}

    return finetune(net, Schedule(torch.ones(1)), images, loss, steps, options)  # it draws timesteps that go unused


class Latents(nn.Module):
    """A trained autoencoder whose latents have mean 0 and variance 1 over the pictures it was trained on."""

    mean: Tensor
    std: Tensor

    def __init__(self, net: Any) -> None:
        super().__init__()
        self.net = net
        channels = net.config["latent_channels"]
        self.register_buffer("mean", torch.zeros(1, channels, 1, 1))
        self.register_buffer("std", torch.ones(1, channels, 1, 1))

    @torch.no_grad()
    def normalise(self, images: Tensor) -> None:
        """Set mean and variance, of each channel, by those of pictures."""
        z = torch.cat([self.net.encode(part).latent_dist.mode() for part in images.split(64)])
        self.mean, self.std = z.mean((0, 2, 3), keepdim=True), z.std((0, 2, 3), keepdim=True)

    def encode(self, images: Tensor) -> Tensor:
        """Return latents (n, channels, h / 4, w / 4), with their gradient."""
        return (self.net.encode(images).latent_dist.mode() - self.mean) / self.std

    def decode(self, z: Tensor) -> Tensor:
        """Return pictures (n, 3, h, w)."""
        return self.net.decode(z * self.std + self.mean).sample


def grey(images: Tensor) -> Tensor:
    """Return a condition: pictures without colour, a quarter of the side; (n, 1, h / 4, w / 4)."""
    return F.avg_pool2d(images.mean(1, keepdim=True), 4)


def small(images: Tensor) -> Tensor:
    """Return a condition: pictures of an eighth of the side, in colour, enlarged to a quarter; (n, 3, h / 4, w / 4)."""
    return F.interpolate(F.avg_pool2d(images, 8), scale_factor=2)


CONDITIONS = {"grey": (grey, 1), "small": (small, 3)}  # with their channels


def denoiser(size: int, channels: int, conditions: int, width: int = 64) -> Any:
    """Return an untrained U-Net for noised latents (n, channels, size, size) and the condition concatenated to them."""
    return UNet2DModel(
        sample_size=size,
        in_channels=channels + conditions,
        out_channels=channels,
        layers_per_block=2,
        block_out_channels=(width, 2 * width),
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=32,
        norm_num_groups=8,
    )


def noise_in(unet: Any) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """Return a U-Net as eps(z_t, t, c)."""
    return lambda z_t, t, c: unet(torch.cat([z_t, c], 1), t).sample


def train_denoiser(
    unet: Any, latents: Latents, schedule: Schedule, images: Tensor, condition: Callable[[Tensor], Tensor], steps: int,
    options: Options,
) -> History:  # fmt: skip
    """Train a U-Net on the latents of pictures, each with its own picture's condition, sometimes dropped."""
    with torch.no_grad():
        pairs = [torch.cat([latents.encode(part), condition(part)], 1) for part in images.split(64)]
    channels = latents.mean.shape[1]

    def loss(x0: Tensor, t: Tensor, eps: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        z, c = x0.split([channels, x0.shape[1] - channels], 1)
        c = c * (torch.rand(len(c), 1, 1, 1) >= DROPPED).to(c)
        found = method.conditional_denoising(noise_in(unet), z, c, t, eps[:, :channels], schedule)
        return found, {"loss": found.detach()}

    return finetune(unet, schedule, torch.cat(pairs), loss, steps, options)


def unconditional(unet: Any) -> Callable[[Tensor, Tensor], Tensor]:
    """Return a U-Net as eps(z_t, t), its condition dropped."""
    extra = unet.config["in_channels"] - unet.config["out_channels"]
    denoise = noise_in(unet)
    return lambda z_t, t: denoise(z_t, t, z_t.new_zeros(len(z_t), extra, *z_t.shape[2:]))


class LatentDiscriminator(nn.Module):
    """Critic of noised latents (n, channels, h, w), told the timestep; logits of patches, 1 means real."""

    rates: Tensor

    def __init__(self, channels: int = 4, width: int = 64) -> None:
        super().__init__()
        spectral = nn.utils.parametrizations.spectral_norm
        self.embed = nn.Sequential(nn.Linear(32, width), nn.SiLU(), nn.Linear(width, width))
        self.register_buffer("rates", 1000 ** -torch.linspace(0, 1, 16), persistent=False)
        self.first = spectral(nn.Conv2d(channels, width, 3, padding=1))
        self.rest = nn.Sequential(
            nn.LeakyReLU(0.2), spectral(nn.Conv2d(width, 2 * width, 4, stride=2, padding=1)),
            nn.LeakyReLU(0.2), spectral(nn.Conv2d(2 * width, 2 * width, 3, padding=1)),
            nn.LeakyReLU(0.2), spectral(nn.Conv2d(2 * width, 1, 3, padding=1)),
        )  # fmt: skip

    def forward(self, z_t: Tensor, t: Tensor) -> Tensor:
        """Return logits (n, 1, h / 2, w / 2)."""
        phase = t[:, None] * self.rates.to(z_t)
        told = self.embed(torch.cat([phase.sin(), phase.cos()], 1))
        return self.rest(self.first(z_t) + told[:, :, None, None])
