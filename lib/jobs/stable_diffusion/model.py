"""Stable Diffusion 1 and 2 as a model for DDS: ``eps = model(z_t, t, y)`` on latents, and the ways to and from images.

Latents z are (n, 4, h / 8, w / 8) float32, images (n, 3, h, w) in [-1, 1]. As in the authors' notebook of DDS (Hertz et
al., ICCV 2023), latents are the mean of the autoencoder's posterior times its scaling factor, prompts the last hidden
state of the text encoder, 77 tokens long, and the null prompt is the empty text.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from torch import Tensor

from lib.ground import diffusion, pretrained
from lib.ground.batching import enough_memory
from lib.ground.diffusion import Schedule
from lib.jobs import hub
from lib.jobs.stable_diffusion import fast_unet
from lib.papers.dds import method as dds
from lib.record.files import UserError, reading
from lib.record.parameters import usable

SD_15 = "stable-diffusion-v1-5/stable-diffusion-v1-5"
FILES = (  # what a repository must give, of 40 GB in many forms, beside the weights
    *("model_index.json", "tokenizer/tokenizer_config.json", "scheduler/scheduler_config.json"),
    *("text_encoder/config.json", "unet/config.json", "vae/config.json"),
)
PATTERNS = ["*.json", "tokenizer/*", "text_encoder/model.safetensors", "*/diffusion_pytorch_model.safetensors"]
VOCABULARY = ("tokenizer/vocab.json", "tokenizer/merges.txt")  # or both in tokenizer.json
DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
PREDICTS = ("epsilon", "v_prediction")


@dataclass(frozen=True, eq=False)
class StableDiffusion:
    """A loaded Stable Diffusion; see `load`."""

    pipeline: Any  # of diffusers, for its autoencoder and text encoder
    unet: Any  # of `lib.jobs.stable_diffusion.fast_unet.prepare`
    schedule: Schedule
    prediction_type: str  # epsilon or v_prediction
    known: dict[str, Tensor] = field(default_factory=dict, repr=False)  # embedded prompts

    @property
    def device(self) -> torch.device:
        """Where it is."""
        return self.pipeline.vae.device

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
        return lambda z_t, t: dds.predict(self.model, t, null, (z_t, y, omega))[0]

    @torch.no_grad()
    def embed(self, prompt: str) -> Tensor:
        """Return a prompt's embedding (1, L, d) float32, computed once; one that diffusers would cut is refused."""
        if prompt not in self.known:
            tokenizer = self.pipeline.tokenizer
            used, limit = len(tokenizer(prompt, verbose=False).input_ids), tokenizer.model_max_length
            if used > limit:
                text = f"{used} tokens, of which two mark start and end, but the text encoder takes {limit}"
                raise UserError(f"prompt: '{prompt[:40]}...' has {text}; shorten it")
            self.known[prompt] = self.pipeline.encode_prompt(prompt, self.device, 1, False)[0].float()
        return self.known[prompt]

    @torch.no_grad()
    def encode(self, images: Tensor, batch: int = 4) -> Tensor:
        """Return latents of images (n, 3, h, w) in [-1, 1]: posterior mean times the scaling factor, float32."""
        vae = self.pipeline.vae
        parts = [vae.encode(x.to(self.device, torch.float32)).latent_dist.mean for x in images.split(batch)]
        return torch.cat(parts) * vae.config.scaling_factor

    @torch.no_grad()
    def decode(self, z: Tensor, batch: int = 4) -> Tensor:
        """Return images (n, 3, h, w), clamped to [-1, 1], of latents."""
        vae = self.pipeline.vae
        scaled = z.to(self.device, torch.float32) / vae.config.scaling_factor
        return torch.cat([vae.decode(part).sample for part in scaled.split(batch)]).clamp(-1, 1)

    def checked_size(self, size: int | None) -> int:
        """Return a side in pixels, the model's own for None; refuse one that the network cannot halve often enough."""
        factor, config = self.pipeline.vae_scale_factor, self.pipeline.unet.config
        if size is None:
            return config.sample_size * factor
        multiple = factor * 2 ** (len(config.block_out_channels) - 1)
        if size < multiple or size % multiple:
            low = max(size // multiple, 1) * multiple
            near = f"{low} or {low + multiple}"
            raise UserError(f"size: {size} given; this model takes multiples of {multiple} pixels, such as {near}")
        return size


def load(
    name: str | Path, device: torch.device | str = "cpu", dtype: str | None = None, mode: str = "plain"
) -> StableDiffusion:
    """Load Stable Diffusion 1 or 2 from a folder in diffusers' layout, or by its id on the hub through the cache.

    Weights are in safetensors. `dtype` is that of the U-Net: float32 (default on a CPU), float16 (default on a GPU) or
    bfloat16; latents, autoencoder and text encoder are float32. `mode` says how the U-Net is run, see
    `lib.jobs.stable_diffusion.fast_unet.prepare`.
    """
    from transformers import CLIPTextModel

    if dtype is not None and dtype not in DTYPES:
        raise UserError(f"dtype: '{dtype}' given; one of {', '.join(DTYPES)}")
    fast_unet.check_mode(mode, usable(device))  # before gigabytes are read
    place = hub.place_of(str(name), "weights", PATTERNS, lambda found: not _missing(found), part=True)
    if (place / "text_encoder_2").is_dir():
        raise UserError(f"weights: {name} has two text encoders; name Stable Diffusion 1 or 2")
    if missing := _missing(place):
        text = "expected Stable Diffusion in diffusers' layout, weights in safetensors"
        raise UserError(f"weights: {place} has no {', '.join(missing)}; {text}")
    levels = pretrained.read_json(place / "scheduler" / "scheduler_config.json", "weights")
    predicts = levels.get("prediction_type", "epsilon") if "beta_schedule" in levels else levels.get("_class_name", "?")
    if predicts not in PREDICTS:
        raise UserError(f"weights: {name} predicts '{predicts}'; name a model with {' or '.join(PREDICTS)}")
    schedule = diffusion.from_diffusers(DDIMScheduler.from_config(levels))
    parts: dict[str, Any] = {"safety_checker": None, "feature_extractor": None}
    parts |= {"unet": pretrained.network(UNet2DConditionModel, place / "unet", "weights")}
    parts |= {"vae": pretrained.network(AutoencoderKL, place / "vae", "weights")}
    with reading(place, f"weights: {pretrained.AGAIN}"):
        variant = _text_encoder(place)[0].name.removeprefix("model").removesuffix("safetensors").strip(".") or None
        options: dict[str, Any] = {"output_loading_info": True, "variant": variant}
        loaded: Any = CLIPTextModel.from_pretrained(place / "text_encoder", **options)
        parts["text_encoder"], info = loaded
        if wrong := [*info["missing_keys"], *info["mismatched_keys"]]:
            raise UserError(f"weights: {place / 'text_encoder'} lacks {len(wrong)} of the weights; {pretrained.AGAIN}")
        pipeline: Any = StableDiffusionPipeline.from_pretrained(place, **parts)
    config = pipeline.unet.config
    channels, latent = config.in_channels, pipeline.vae.config.latent_channels
    if channels != latent or config.class_embed_type or config.addition_embed_type:
        text = f"a U-Net of {channels} channels for latents of {latent}, or conditions besides a prompt"
        raise UserError(f"weights: {name} has {text}; name Stable Diffusion 1 or 2, text to image")
    with enough_memory("dtype (float16 or bfloat16)"):
        for part in (pipeline.vae, pipeline.text_encoder, pipeline.unet):
            torch.nn.Module.float(part)  # a folder may hold 16 bit
            part.requires_grad_(False).eval().to(device)
        unet = fast_unet.prepare(pipeline.unet, DTYPES.get(dtype or ""), mode)
    # The noise levels go where they are used at every call.
    return StableDiffusion(pipeline, unet, Schedule(schedule.alpha_bar.to(device)), predicts)


def _missing(place: Path) -> list[str]:
    """Return the files that a folder lacks; without a vocabulary the tokenizer would load, and know no words."""
    needed = FILES if (place / "tokenizer" / "tokenizer.json").is_file() else (*FILES, *VOCABULARY)
    lacking = [file for file in needed if not (place / file).is_file()]
    found = {"unet": pretrained.weights, "vae": pretrained.weights, "text_encoder": lambda _: _text_encoder(place)}
    return lacking + [f"{part}/*.safetensors" for part, weights in found.items() if not weights(place / part)]


def _text_encoder(place: Path) -> list[Path]:
    """Return the files with the text encoder's weights, that of full precision first."""
    return sorted((place / "text_encoder").glob("model*.safetensors"), key=lambda file: len(file.name))
