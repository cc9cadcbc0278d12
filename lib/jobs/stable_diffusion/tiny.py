"""Stable Diffusion and CLIP with a few thousand random weights, built without a download: for tests and examples.

They have the parts, shapes and files of the real ones and show that a code path works. Their pictures mean nothing.
"""

from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from lib.ground.nets import seeded

SIZE = 64  # side of the tiny pipeline's images; its latents have half of it
CLIP_SIZE = 32  # side of the images that the tiny CLIP takes
TEXT: dict[str, Any] = {"hidden_size": 8, "intermediate_size": 16, "num_attention_heads": 2, "num_hidden_layers": 2}
SMALL: dict[str, Any] = {"block_out_channels": (4, 8), "norm_num_groups": 2}
CROSS: dict[str, Any] = {
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
    **{"cross_attention_dim": TEXT["hidden_size"], "attention_head_dim": 2, "layers_per_block": 1},
}
PLAIN: dict[str, Any] = {"down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2}
LEVELS: dict[str, Any] = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}


def tiny_pipeline(prediction_type: str = "epsilon", seed: int = 0) -> StableDiffusionPipeline:
    """Return Stable Diffusion in small: U-Net 17 thousand, VAE 12 thousand, text encoder 6 thousand random weights.

    Images are 3 x 64 x 64, latents 4 x 32 x 32, prompts 77 x 8, noise levels those of Stable Diffusion 1.5, predictions
    `epsilon` (1.5) or `v_prediction` (2.1 at 768 pixels). torch's global generator is left as it was.
    """
    tokenizer = byte_tokenizer()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        unet: Any = UNet2DConditionModel(SIZE // 2, **SMALL, **CROSS)
        vae: Any = AutoencoderKL(sample_size=SIZE, **SMALL, **PLAIN)
        text = CLIPTextModel(CLIPTextConfig(**_text(tokenizer)))
    usual: dict[str, Any] = {"clip_sample": False, "set_alpha_to_one": False, "steps_offset": 1}
    scheduler = DDIMScheduler(prediction_type=prediction_type, **LEVELS, **usual)
    parts = (vae.eval(), text.eval(), tokenizer, unet.eval(), scheduler, None, None)  # no checker of safety
    pipeline: Any = StableDiffusionPipeline(*parts, requires_safety_checker=False)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def byte_tokenizer() -> CLIPTokenizer:
    """Return a CLIP tokenizer without merges: 256 bytes, the same at a word's end, start and end of text, 514 entries.

    A token is a letter, so 75 letters, without the spaces, are the longest prompt.
    """
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]  # bytes that stand for themselves in CLIP's table
    symbols = [chr(b) for b in plain] + [chr(256 + i) for i in range(256 - len(plain))]
    words = [*symbols, *(symbol + "</w>" for symbol in symbols), "<|startoftext|>", "<|endoftext|>"]
    return CLIPTokenizer({word: i for i, word in enumerate(words)}, [], model_max_length=77)


def write_tiny_clip(folder: str | Path) -> Path:
    """Save a CLIP of random weights in a folder that `lib.measures.clip.load` takes, and return the folder."""
    tokenizer = byte_tokenizer()
    vision = {**TEXT, "image_size": CLIP_SIZE, "patch_size": 8}
    config = CLIPConfig(text_config=_text(tokenizer), vision_config=vision, projection_dim=8)
    model: Any = seeded(0, lambda: CLIPModel(config))
    sizes: Any = {"crop_size": {"height": CLIP_SIZE, "width": CLIP_SIZE}, "size": {"shortest_edge": CLIP_SIZE}}
    for part in (tokenizer, CLIPImageProcessor(**sizes), model):
        part.save_pretrained(folder)
    return Path(folder)


def _text(tokenizer: CLIPTokenizer) -> dict[str, Any]:
    """Return the settings of a text encoder, with what it must know of its tokenizer."""
    special = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos", "pad")}
    return {**TEXT, "vocab_size": len(tokenizer), "max_position_embeddings": tokenizer.model_max_length, **special}
