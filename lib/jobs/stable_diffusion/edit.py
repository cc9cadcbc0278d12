"""Zero-shot edits of images with Stable Diffusion by DDS (Hertz et al., ICCV 2023), and by SDEdit for comparison.

`edit` does one job: image and two prompts in; edited image, trajectory and both saliency maps out.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from PIL import Image, ImageOps
from torch import Tensor

from lib.ground import diffusion, folder
from lib.jobs.stable_diffusion.model import StableDiffusion, enough_memory
from lib.measures import clip as clips
from lib.measures import perceptual
from lib.papers.baselines import translation
from lib.papers.dds import method as dds
from lib.record.files import UserError

Source = str | Path | Image.Image | Tensor


class Prompts(NamedTuple):
    """A pair of prompts that the paper shows; the supplement takes 200 iterations unless it says otherwise."""

    source: str
    target: str
    iterations: int
    where: str


ROLLER = "roller skating in the city."
FIG_2, FIG_5, FIG_6 = (f"supplement, Fig. {k}" for k in (2, 5, 6))
PROMPTS = (
    Prompts("a photo of a cat.", "a photo of a tiger.", 200, "authors' notebook"),
    Prompts(f"A flamingo {ROLLER}", f"A bronze statue of a flamingo {ROLLER}", 200, FIG_2),
    Prompts(f"A flamingo {ROLLER}", f"A giraffe {ROLLER}", 200, FIG_2),
    Prompts(f"A flamingo {ROLLER}", f"An elephant {ROLLER}", 400, FIG_2),
    Prompts("House.", "A house made of candies.", 200, FIG_5),
    Prompts("House.", "Igloo.", 200, FIG_5),
    Prompts("", "Snowing.", 200, FIG_5),
    Prompts("", "Sunset.", 200, FIG_5),
    Prompts("", "Rainbow at background", 200, FIG_5),
    Prompts("Waterfall", "Frozen waterfall.", 200, FIG_5),
    Prompts("Bicycle.", "Neon BMX bicycle.", 200, FIG_6),
    Prompts("Bicycle.", "Vespa.", 200, FIG_6),
    Prompts("Coffee.", "Matcha drink.", 200, FIG_6),
    Prompts("", "Drawing of dinosaur on the coffee.", 200, FIG_6),
    Prompts("", "Plates with sushi.", 200, FIG_6),
    Prompts("", "Plates with pizza.", 200, FIG_6),
)


class ImageEdit(NamedTuple):
    """What `edit` returns: one image, one pair of prompts."""

    image: Image.Image  # the edited image
    images: Tensor  # (k, 3, h, w) in [-1, 1], on the CPU: decoded from the first latent to the last
    iterations: list[int]  # after which they were taken
    input: Tensor  # (3, h, w): the image as it was encoded
    edit: dds.Edit  # latents and both saliency maps of every iteration, b = 1

    def maps(self, iteration: int) -> tuple[Tensor, Tensor]:
        """Return both saliency maps after an iteration (from 1) at the image's size, (h, w) on the CPU."""
        maps = torch.stack([self.edit.update[iteration - 1], self.edit.accumulated[iteration - 1]])  # (2, 1, h', w')
        update, accumulated = F.interpolate(maps.cpu(), self.images.shape[-2:], mode="nearest")[:, 0]
        return update, accumulated


def edit(
    sd: StableDiffusion,
    image: Source,
    prompt: str,
    source_prompt: str = "",
    *,
    omega: float = 7.5,
    iterations: int = 200,
    eta: str | float = "notebook",
    optimizer: str = "sgd",
    method: str = "dds",
    lambda_id: float = 0.0,
    t_range: tuple[int, int] = dds.T_RANGE,
    size: int | None = None,
    seed: int = 0,
    frames: int = 6,
    reference: dds.Reference | None = None,
) -> ImageEdit:
    """Edit an image from a source prompt to a prompt by DDS, without a mask and without training.

    Parameters
    ----------
    image
        File, picture or tensor, see `prepare_image`.
    prompt, source_prompt
        Texts. An empty source prompt is the paper's choice for edits of the whole picture, and the cheaper one.
    omega, iterations, eta, optimizer, method, lambda_id, t_range, seed
        As in `lib.papers.dds.method.edit`. The presets of `eta` are steps per element, the same at every image size.
    size
        Side of the square in pixels; the model's own by default (512 for Stable Diffusion 1.5).
    frames
        Latents of the trajectory to decode, in equal steps, first and last among them.
    reference
        What `lib.papers.dds.method.reference` returned for this image, source prompt, `t_range` and seed; see
        `edit_many`.

    Raises
    ------
    UserError
        A prompt is too long; the image or its size does not do; as `lib.papers.dds.method.edit`, which names omega, eta
        and the precision of the weights if the latent becomes infinite; not enough memory.
    """
    _check_frames(frames)
    x = prepare_image(image, sd.checked_size(size))
    with enough_memory("size, or load with dtype float16 or bfloat16"):
        z_hat = sd.encode(x[None])
    return _edit(
        *(sd, x, z_hat, prompt, source_prompt, frames),
        method=method,
        omega=omega,
        lambda_id=lambda_id,
        iterations=iterations,
        optimizer=optimizer,
        eta=eta,
        t_range=t_range,
        seed=seed,
        reference=reference,
    )


def _edit(
    sd: StableDiffusion,
    x: Tensor,
    z_hat: Tensor,
    prompt: str,
    source_prompt: str,
    frames: int,
    *,
    iterations: int,
    **options: Any,
) -> ImageEdit:
    """Edit an image x (3, h, w) with latent z_hat, with the options of `lib.papers.dds.method.edit`."""
    y, y_hat, null = (sd.embed(text) for text in (prompt, source_prompt, ""))
    with enough_memory("size or frames, or load with dtype float16 or bfloat16"):
        done = dds.edit(sd.model, sd.schedule, z_hat, y, y_hat, null, iterations=iterations, **options)
        shown = sorted(set(torch.linspace(0, iterations, frames).round().int().tolist()))
        images = sd.decode(done.trajectory[shown, 0]).cpu()  # (k, 3, size, size)
    return ImageEdit(to_picture(images[-1]), images, shown, x, done)


def edit_many(
    sd: StableDiffusion,
    image: Source,
    prompts: Sequence[str],
    source_prompt: str = "",
    *,
    iterations: int = 200,
    t_range: tuple[int, int] = dds.T_RANGE,
    size: int | None = None,
    seed: int = 0,
    frames: int = 6,
    batch: int = 8,
    **options: Any,
) -> list[ImageEdit]:
    """Edit one image to several prompts by DDS: it is encoded, and its branch evaluated, once for all of them.

    Parameters
    ----------
    prompts
        Target texts.
    batch
        Largest number of latents in a call for the shared branch.
    image, source_prompt, iterations, t_range, size, seed, frames, options
        As in `edit`.

    Raises
    ------
    UserError
        No prompt; as `edit`.
    """
    if not prompts or isinstance(prompts, str):
        raise UserError(f"prompts: {prompts!r} given; give a list with at least one text")
    _check_frames(frames)
    x = prepare_image(image, sd.checked_size(size))
    y_hat, null, _ = sd.embed(source_prompt), sd.embed(""), [sd.embed(prompt) for prompt in prompts]
    same: dict[str, Any] = {"iterations": iterations, "t_range": t_range, "seed": seed}
    shared = None
    with enough_memory("batch or size, or load with dtype float16 or bfloat16"):
        z_hat = sd.encode(x[None])
        if options.get("method", "dds") == "dds":
            shared = dds.reference(sd.model, sd.schedule, z_hat, y_hat, null, batch=batch, **same)
    options |= {"reference": shared, **same}
    return [_edit(sd, x, z_hat, prompt, source_prompt, frames, **options) for prompt in prompts]


def _check_frames(frames: int) -> None:
    """Refuse too few pictures of the way."""
    if frames < 2:
        raise UserError(f"frames: {frames} given; 2 (first and last) or more")


def sdedit(
    sd: StableDiffusion,
    image: Source,
    prompt: str,
    strengths: Sequence[float],
    *,
    omega: float = 7.5,
    steps: int = 50,
    eta: float = 0.0,
    size: int | None = None,
    seed: int = 0,
) -> Tensor:
    """Edit an image by SDEdit (Meng et al. 2022): noise its latent to each strength and denoise with the prompt.

    Parameters
    ----------
    strengths
        Start times as shares of the schedule, above 0 and up to 1.
    steps, eta
        Of the whole trajectory, and its randomness: 0 is DDIM.
    omega, size, seed
        As in `edit_many`.

    Returns
    -------
    Tensor
        (len(strengths), 3, h, w) in [-1, 1], on the CPU.

    Raises
    ------
    UserError
        A strength out of range; as `edit_many`.
    """
    for strength in strengths:
        if not 0 < strength <= 1:
            raise UserError(f"strengths: {strength} given; each lies above 0 and up to 1")
    grid = diffusion.ddim_timesteps(sd.schedule.T, steps).tolist()
    x, model = prepare_image(image, sd.checked_size(size)), sd.guided(prompt, omega)
    with enough_memory("size, or load with dtype float16 or bfloat16"):
        z, ends = sd.encode(x[None]), []
        for strength in strengths:
            start = grid[min(max(round(strength * steps), 1), steps - 1)]
            generator = torch.Generator().manual_seed(seed)
            ends.append(translation.sdedit(model, sd.schedule, z, generator, start, steps, eta))
        return sd.decode(torch.cat(ends)).cpu()


class Measured(NamedTuple):
    """Input, edit by DDS and edits by SDEdit, in this order, on the two axes of the paper's zero-shot evaluation."""

    clip: list[float]  # CLIP similarity to the target prompt, higher follows the text better
    lpips: list[float]  # LPIPS to the input, lower keeps more of it

    @property
    def reached(self) -> list[int]:
        """Places of the SDEdits whose CLIP similarity reaches that of DDS."""
        return [i for i in range(2, len(self.clip)) if self.clip[i] >= self.clip[1]]

    @property
    def matched(self) -> int:
        """Place of the first of them; if there is none, of the SDEdit with the highest CLIP similarity."""
        return self.reached[0] if self.reached else max(range(2, len(self.clip)), key=self.clip.__getitem__)

    @property
    def lpips_gap(self) -> float:
        """LPIPS of that SDEdit minus that of DDS: above 0, DDS keeps more of the image."""
        return self.lpips[self.matched] - self.lpips[1]

    @property
    def clip_gain(self) -> float:
        """CLIP similarity of DDS minus that of the input."""
        return self.clip[1] - self.clip[0]


def compare(done: ImageEdit, redrawn: Tensor, prompt: str, clip: clips.Clip, lpips: perceptual.Embedding) -> Measured:
    """Measure an edit, and what SDEdit made of the same image at growing strengths: `redrawn`, (k, 3, h, w)."""
    pictures = torch.cat([done.input[None].cpu(), done.images[-1:], redrawn])
    z = lpips(pictures)
    return Measured(clips.similarity(clip, pictures, prompt).tolist(), perceptual.pairwise_lpips(z)[0].tolist())


def prepare_image(image: Source, size: int = 512) -> Tensor:
    """Return an image as the model takes it: upright, centre-cropped to a square, resized, (3, size, size) in [-1, 1].

    Files and pictures are read by `lib.ground.folder`: any mode and depth, transparent pixels laid on white, Lanczos.
    (The authors' notebook drops the alpha channel, and resizes with Pillow's default, bicubic.) A line is printed if
    the image is enlarged or loses more than a third.

    Parameters
    ----------
    image
        A file, a picture of Pillow, or a tensor (3 or 1, h, w) in [-1, 1].
    size
        Side in pixels.

    Raises
    ------
    UserError
        The file is missing or damaged; a tensor of another shape, or not finite.
    """
    if isinstance(image, Tensor):
        return _square(image, size)
    files: list[tuple[str, Any]] = [("picture", io.BytesIO())]
    where = "image"
    if isinstance(image, Image.Image):
        upright = ImageOps.exif_transpose(image)
        plain = upright if upright.mode in ("1", "L", "LA", "P", "RGB", "RGBA", "I;16") else upright.convert("RGB")
        plain.save(files[0][1], "PNG", compress_level=1)
    else:
        path = Path(image).expanduser()
        if not path.is_file():
            raise UserError(f"image: file {path} does not exist; name an image file")
        files, where = [(path.name, path)], f"image folder {path.parent}"
    read = folder.collect(files, size, 3, "refuse", where, threads=1)
    for hint in read.hints:
        print(hint)
    return read.images[0]


def _square(image: Tensor, size: int) -> Tensor:
    """Crop a tensor to a square around its centre and resize it, (3, size, size)."""
    if image.ndim != 3 or image.shape[0] not in (1, 3) or 0 in image.shape or not image.isfinite().all():
        raise UserError(f"image: tensor {tuple(image.shape)}; give (3, h, w) or (1, h, w), finite, in [-1, 1]")
    h, w = image.shape[1:]
    side = min(h, w)
    top, left = (h - side) // 2, (w - side) // 2
    square = image.float()[:, top : top + side, left : left + side].expand(3, -1, -1)
    if side != size:
        square = F.interpolate(square[None], (size, size), mode="bicubic", antialias=True)[0]
    return square.clamp(-1, 1)


def to_picture(image: Tensor) -> Image.Image:
    """Return an image (3, h, w) in [-1, 1] as a picture of Pillow, rounded to 8 bits."""
    pixels = ((image.detach().float().cpu().clamp(-1, 1) + 1) * 127.5).round().byte()
    return Image.fromarray(pixels.permute(1, 2, 0).numpy())
