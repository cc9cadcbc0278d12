"""Zero-shot edits of images with Stable Diffusion by DDS (Hertz et al., ICCV 2023), and by SDEdit for comparison.

`edit` does one job: image and two prompts in; edited image, trajectory and both saliency maps out.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
import yaml
from PIL import Image
from torch import Tensor
from torchvision.transforms.functional import to_pil_image

from lib.ground import diffusion, folder
from lib.ground.batching import enough_memory
from lib.ground.pictures import Picture, picture
from lib.jobs.stable_diffusion.model import StableDiffusion
from lib.measures import clip as clips, perceptual
from lib.papers.baselines import translation
from lib.papers.dds import fast, method as dds
from lib.record.files import UserError, expanded, listed
from lib.record.parameters import nearest

Job = tuple[Tensor, str, list[str]]  # photograph (3, h, w), source prompt, target prompts
LESS = "or load with dtype float16 or bfloat16"


class Prompts(NamedTuple):
    """A pair of prompts that the paper shows; the supplement takes 200 iterations unless it says otherwise."""

    source: str
    target: str
    iterations: int
    where: str


PROMPTS = tuple(Prompts(*row) for row in yaml.safe_load(Path(__file__).with_name("prompts.yaml").read_text("utf-8")))


class ImageEdit(NamedTuple):
    """What `edit` returns: one image, one pair of prompts."""

    image: Image.Image  # the edited image
    images: Tensor  # (k, 3, h, w) in [-1, 1], on the CPU: decoded from the first latent to the last
    iterations: list[int]  # after which they were taken
    input: Tensor  # (3, h, w): the image as it was encoded
    edit: dds.Edit  # latents and both saliency maps of every iteration, b = 1

    def maps(self, iteration: int) -> Tensor:
        """Return both saliency maps after an iteration (from 1) at the image's size, (2, h, w) on the CPU."""
        maps = torch.stack([self.edit.update[iteration - 1], self.edit.accumulated[iteration - 1]])  # (2, 1, h', w')
        return F.interpolate(maps.cpu(), self.images.shape[-2:], mode="nearest")[:, 0]


def edit(sd: StableDiffusion, image: Picture, prompt: str, source_prompt: str = "", **options: Any) -> ImageEdit:
    """Edit an image from a source prompt to a prompt by DDS, without a mask and without training.

    `image` is anything that `lib.ground.folder.picture` reads. (The authors' notebook drops alpha and resizes by
    bicubic.) An empty source prompt is the paper's choice for
    edits of the whole picture, and the cheaper one. The options are those of `edit_many`.
    """
    return edit_many(sd, image, [prompt], source_prompt, **options)[0]


def edit_many(
    sd: StableDiffusion,
    image: Picture,
    prompts: Sequence[str],
    source_prompt: str = "",
    *,
    size: int | None = None,
    frames: int = 6,
    batch: int = 8,
    **options: Any,
) -> list[ImageEdit]:
    """Edit one image to each of several prompts: it is encoded, and its branch evaluated, once for all of them.

    Parameters
    ----------
    size
        Side of the square in pixels; the model's own by default (512 for Stable Diffusion 1.5).
    frames
        Latents of each trajectory to decode, in equal steps, first and last among them.
    batch
        Largest number of latents in a call for the shared branch.
    options
        Of `lib.papers.dds.method.Options`: omega, iterations, eta, optimizer, method, lambda_id, t_range, seed.
    """
    if not prompts or isinstance(prompts, str):
        raise UserError(f"prompts: {prompts!r} given; give a list with at least one text")
    for text in (source_prompt, *prompts):
        if not isinstance(text, str):
            raise UserError(f"prompt: {text!r} given; give a text, '' for the empty prompt")
    if unknown := options.keys() - dds.Options.__dataclass_fields__:
        raise UserError(f"{min(unknown)}: no such option; {nearest(min(unknown), dds.Options.__dataclass_fields__)}")
    o = dds.Options(**options)
    if frames < 2:
        raise UserError(f"frames: {frames} given; 2 (first and last) or more")
    x = picture(image, sd.checked_size(size))
    y_hat, null, *targets = (sd.embed(text) for text in (source_prompt, "", *prompts))
    with enough_memory(f"size, frames or batch, {LESS}"):
        z_hat, shared = sd.encode(x[None]), None
        if len(prompts) > 1 and o.method == "dds":
            shared = fast.reference(sd.model, sd.schedule, z_hat, y_hat, null, batch, **options)
        shown = sorted(set(torch.linspace(0, o.iterations, frames).round().int().tolist()))
        edits = []
        for y in targets:
            done = fast.edit(sd.model, sd.schedule, z_hat, y, y_hat, null, shared, **options)
            images = sd.decode(done.trajectory[shown, 0]).cpu()  # (k, 3, size, size)
            edits.append(ImageEdit(to_picture(images[-1]), images, shown, x, done))
    return edits


def sdedit(
    sd: StableDiffusion,
    image: Picture,
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

    Strengths are start times as shares of the schedule, above 0 and up to 1; `steps` are those of the whole trajectory,
    and `eta` is its randomness (0: DDIM). The edits are (len(strengths), 3, h, w) in [-1, 1], on the CPU.
    """
    if wrong := [strength for strength in strengths if not 0 < strength <= 1]:
        raise UserError(f"strengths: {wrong[0]} given; each lies above 0 and up to 1")
    sampler = translation.Sampler(sd.schedule, steps, eta)
    grid = diffusion.ddim_timesteps(sd.schedule.T, steps).tolist()
    x, model = picture(image, sd.checked_size(size)), sd.guided(prompt, omega)
    with enough_memory(f"size, {LESS}"):
        z, ends = sd.encode(x[None]), []
        for strength in strengths:
            start = grid[min(max(round(strength * steps), 1), steps - 1)]
            generator = torch.Generator().manual_seed(seed)
            ends.append(translation.sdedit(model, sampler, z, generator, start))
        return sd.decode(torch.cat(ends)).cpu()


def compare(
    done: ImageEdit, redrawn: Tensor, prompt: str, clip: clips.Clip, lpips: perceptual.Embedding
) -> dict[str, Tensor]:
    """Measure an edit, and what SDEdit made of the same image at growing strengths: `redrawn`, (k, 3, h, w)."""
    pictures = torch.cat([done.input[None].cpu(), done.images[-1:], redrawn])
    distance = perceptual.pairwise_lpips(lpips(pictures))[0].cpu()
    return matched(clips.similarity(clip, pictures, prompt).double(), distance)


def matched(clip: Tensor, lpips: Tensor) -> dict[str, Tensor]:
    """Compare DDS with SDEdit where the CLIP similarity of both is the same.

    SDEdit's line goes from the input through growing strengths; its LPIPS is taken where the line first reaches the
    CLIP similarity of DDS, or, if it never does, at the strength with the highest. `clip` (similarity to the target
    prompt, higher follows the text better) and `lpips` (to the input, lower keeps more of it) are (2 + k,): of the
    input, DDS and SDEdit at k strengths. Returned are both, whether the line `reached` DDS, `lpips_gap` (LPIPS, SDEdit
    minus DDS: above 0, DDS keeps more of the image), and `clip_gain` (CLIP similarity, DDS minus input).
    """
    line = [0, *range(2, len(clip))]
    reached = clip[line] >= clip[1]
    i = int(reached.int().argmax() if reached.any() else 1 + clip[2:].argmax())
    at = lpips[line][i]
    if reached.any() and i:
        (low, high), (start, end) = clip[line][i - 1 : i + 1], lpips[line][i - 1 : i + 1]
        at = start + (clip[1] - low) / (high - low) * (end - start)
    gaps = {"lpips_gap": at - lpips[1], "clip_gain": clip[1] - clip[0]}
    return {"clip": clip, "lpips": lpips, "reached": reached.any(), **gaps}


class Contest(NamedTuple):
    """One pair of prompts in `contest`."""

    source: str
    target: str
    done: ImageEdit
    redrawn: Tensor  # (strengths, 3, h, w), by SDEdit
    measured: dict[str, Tensor]  # by `compare`


def contest(
    seed: int, p: Any, sd: StableDiffusion, jobs: Sequence[Job], clip: clips.Clip, lpips: perceptual.Embedding
) -> list[Contest]:
    """Edit photographs, each from its source prompt to its targets, by DDS and by SDEdit, and measure both.

    Of `p` these count: iterations, omega, eta, strengths, sdedit_steps, sdedit_eta.
    """
    results = []
    for x, source, targets in jobs:
        same: dict[str, Any] = {"size": x.shape[-1], "seed": seed, "omega": p.omega}
        edits = edit_many(sd, x, targets, source, iterations=p.iterations, eta=p.eta, **same)
        for target, done in zip(targets, edits, strict=True):
            redrawn = sdedit(sd, x, target, p.strengths, steps=p.sdedit_steps, eta=p.sdedit_eta, **same)
            results.append(Contest(source, target, done, redrawn, compare(done, redrawn, target, clip, lpips)))
    return results


def photographs(images: str | Path) -> list[Path]:
    """Return the image files that a user names: one, or a folder of them; what is left out is printed."""
    place = expanded(images, "images")
    if not place.is_dir():
        if not place.is_file():
            raise UserError(f"images: {place} does not exist; name a photograph, or a folder of them")
        return [place]
    files, left_out = folder.files_in(place, parameter="images")
    if left_out:
        print(f"left out: {listed(left_out)}")
    return files


def to_picture(image: Tensor) -> Image.Image:
    """Return an image (3, h, w) in [-1, 1] as a picture of Pillow, rounded to 8 bits."""
    return to_pil_image(((image.detach().float().cpu().clamp(-1, 1) + 1) * 127.5).round().byte())
