"""The latent models that supervise LaDiffGAN: trained once, a domain at a time, and kept in a folder."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save
from torch import Tensor

from lib.ground.diffusion import linear
from lib.ground.finetune import Options
from lib.ground.nets import seeded
from lib.papers.ladiffgan import latent
from lib.papers.ladiffgan.latent import Latents, Layers
from lib.papers.ladiffgan.method import Domain
from lib.record.files import write_atomic
from lib.worlds import sources


@dataclass(frozen=True)
class Recipe:
    """Sizes and training of a domain's autoencoder ("ae") and of the diffusion model of its latents ("ldm")."""

    size: int  # side of the pictures
    condition: str = "grey"  # of `latent.CONDITIONS`
    channels: int = 4  # of latents
    ae_width: int = 32
    ae_steps: int = 20_000
    ae_batch: int = 16
    ae_lr: float = 5e-4
    ldm_width: int = 64
    ldm_steps: int = 20_000
    ldm_batch: int = 32
    ldm_lr: float = 5e-4
    ema: float = 0.995  # of the diffusion model
    perceptual: str = "neutral"  # whose features the autoencoder's loss compares
    flip: bool = True  # mirror half of the pictures
    seed: int = 0

    def untrained(self) -> tuple[Latents, Any]:
        """Return latents and their denoiser as they begin."""
        _, extra = latent.CONDITIONS[self.condition]
        latents = Latents(latent.autoencoder(self.ae_width, self.channels))
        return latents, latent.denoiser(self.size // 4, self.channels, extra, self.ldm_width)


def trained(
    folder: Path, recipe: Recipe, pictures: Tensor, layers: Layers, device: torch.device | str
) -> tuple[Latents, Any]:
    """Return the latents of `folder` and their denoiser, frozen; trained there on pictures (n, 3, h, w) if need be."""
    r = recipe

    def make(checkpoints: Path, draft: Path) -> None:
        (latents, unet), x = seeded(r.seed, r.untrained), pictures.to(device)
        kept: dict[str, Any] = {"save_every": 500, "flip": r.flip}
        options = Options(r.ae_batch, r.ae_lr, r.seed, folder=checkpoints / "autoencoder", **kept)
        latent.train_autoencoder(latents.net.to(device), x, layers, r.ae_steps, options)
        latents.requires_grad_(False).to(device).normalise(x)
        kept |= {"warmup": 100, "clip": 1.0, "ema": r.ema, "folder": checkpoints / "denoiser", "flip": False}
        options, (condition, _) = Options(r.ldm_batch, r.ldm_lr, r.seed, **kept), latent.CONDITIONS[r.condition]
        both = torch.cat([x, x.flip(3)]) if r.flip else x  # latents cannot be mirrored
        history = latent.train_denoiser(unet.to(device), latents, linear(), both, condition, r.ldm_steps, options)
        unet.load_state_dict(history.ema["student"])
        for name, one in (("latents", latents), ("denoiser", unet)):
            weights = {key: value.cpu().contiguous() for key, value in one.state_dict().items()}
            write_atomic(draft / f"{name}.safetensors", save(weights))

    sources.artefact(folder, asdict(recipe), make)
    latents, unet = recipe.untrained()
    for name, one in (("latents", latents), ("denoiser", unet)):
        one.load_state_dict(load_file(folder / f"{name}.safetensors"))
        one.requires_grad_(False).eval().to(device)
    return latents, unet


def supervising(latents: Latents, unet: Any) -> Domain:
    """Return a domain's models as they supervise."""
    return Domain(latents.encode, latent.noise_in(unet))
