"""CLIP (Radford et al. 2021) by transformers: similarity of images and a prompt, and the directional loss of an edit.

Images are tensors (n, 3 or 1, h, w) in [-1, 1]; they are resized and normalised here, differentiably, so that the loss
reaches whatever made them.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from lib.ground import folder as folders
from lib.record.files import UserError

DEFAULT = "openai/clip-vit-base-patch16"
TEMPLATES = ("{}", *(f"a {kind} of a {{}}" for kind in ("photo", "picture", "drawing", "painting", "close-up")))


@dataclass(frozen=True)
class Clip:
    """A loaded CLIP; see `load`."""

    model: Any
    tokenizer: Any
    mean: Tensor  # (1, 3, 1, 1) of the pixel values in [0, 1]
    std: Tensor

    @property
    def size(self) -> int:
        """Side of the images that the network takes."""
        return self.model.config.vision_config.image_size

    def images(self, images: Tensor) -> Tensor:
        """Return unit features (n, d) of images (n, 3 or 1, h, w) in [-1, 1], with gradient if they have one."""
        parts = [self._features(part) for part in images.split(64)]
        return F.normalize(torch.cat(parts), dim=1)

    def _features(self, images: Tensor) -> Tensor:
        pixels = (images.to(self.mean).clamp(-1, 1) + 1) / 2
        if pixels.shape[-2:] != (self.size, self.size):
            pixels = F.interpolate(pixels, (self.size, self.size), mode="bicubic", antialias=True)
        pixels = (pixels.expand(-1, 3, -1, -1) - self.mean) / self.std  # (n, 3, size, size)
        return self.model.get_image_features(pixel_values=pixels).pooler_output

    @torch.no_grad()
    def text(self, prompt: str, templates: Sequence[str] = TEMPLATES) -> Tensor:
        """Return the unit feature (d,) of a prompt: the mean over templates, each with {} where the prompt goes."""
        if not prompt.strip():
            raise UserError("prompt: empty; give a few words, such as 'painting of a man without glasses'")
        texts = [template.format(prompt) for template in templates]
        limit = self.model.config.text_config.max_position_embeddings
        tokens = self.tokenizer(texts, padding=True, truncation=True, max_length=limit, return_tensors="pt")
        output = self.model.get_text_features(**tokens.to(self.mean.device))
        return F.normalize(F.normalize(output.pooler_output, dim=1).mean(0), dim=0)


def load(name_or_folder: str = DEFAULT, device: torch.device | str = "cpu") -> Clip:
    """Load CLIP from a local folder, or from the hub by its id; the weights are frozen."""
    from transformers import AutoTokenizer, CLIPImageProcessor, CLIPModel

    try:
        model: Any = CLIPModel.from_pretrained(name_or_folder).float()  # a folder may hold 16 bit
        tokenizer = AutoTokenizer.from_pretrained(name_or_folder)
        pixels: Any = CLIPImageProcessor.from_pretrained(name_or_folder)
    except (OSError, ValueError, KeyError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UserError(
            f"clip: cannot load '{name_or_folder}'; download {DEFAULT} from the Hugging Face hub (600 MB, MIT licence) "
            f"and name its folder or its id. ({reason})"
        ) from None
    mean, std = (torch.tensor(v, device=device).view(1, 3, 1, 1) for v in (pixels.image_mean, pixels.image_std))
    return Clip(model.requires_grad_(False).eval().to(device), tokenizer, mean, std)


@torch.no_grad()
def similarity(clip: Clip, images: Tensor, prompt: str) -> Tensor:
    """Return the cosine of each image (n, 3 or 1, h, w) in [-1, 1] with a prompt, shape (n,), on the CPU."""
    return (clip.images(images) @ clip.text(prompt, ("{}",))).cpu()


def score_folder(clip: Clip, folder: str | Path, prompt: str) -> tuple[list[Path], Tensor]:
    """Return the image files of a folder, most similar to the prompt first, and their cosines (n,).

    A few hundred images are in memory at a time, so that a large collection can be scored.
    """
    files, parts = [], []
    for some, images in folders.chunks(folder, clip.size):
        files += some
        parts.append(similarity(clip, images, prompt))
    scores, order = torch.cat(parts).sort(descending=True, stable=True)
    return [files[i] for i in order.tolist()], scores


def toward(clip: Clip, target: str, source: str) -> Callable[[Tensor, Tensor], Tensor]:
    """Return the objective of Asyrp (Kwon et al. 2023, Sec. 3): ``-log((2 - L_dir) / 2)``, mean over the images.

    ``L_dir = 1 - cos(change of the image feature, change of the text feature)`` is StyleGAN-NADA's loss (Gal et al.
    2022): 0 is exactly the wanted change, 1 no change, 2 its opposite, where the objective is clipped at 13.8. Called
    with images before and after, ``objective(edited, original)``; the gradient goes to `edited`.
    """
    if target == source:
        raise UserError(f"target: '{target}' is also the source text; give two different ones")
    return directional(clip.images, clip.text(target) - clip.text(source))


def directional(features: Callable[[Tensor], Tensor], direction: Tensor) -> Callable[[Tensor, Tensor], Tensor]:
    """Return the same for any features of images (n, d) and the wanted change of them (d,)."""

    def objective(edited: Tensor, original: Tensor) -> Tensor:
        with torch.no_grad():
            before = features(original)
        cosine = F.cosine_similarity(features(edited) - before, direction[None], dim=1)  # (n,)
        return -((1 + cosine) / 2).clamp(min=1e-6).log().mean()

    return objective
