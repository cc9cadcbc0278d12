"""A diffusion model of digits with prompts, in the place of a text-to-image model (for DDS, Hertz et al., ICCV 2023).

A prompt is a class number: which digit, and whether it is printed or handwritten. One more class is the null prompt,
learned by putting it in place of a share of the prompts (classifier-free guidance, Ho and Salimans 2021).
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers.models.unets.unet_2d import UNet2DModel
from torch import Tensor

from lib.ground.nets import small_unet
from lib.record.files import UserError
from lib.worlds import digits as data, judge as metrics, sources
from lib.worlds.sources import Device, Draw, Model, World

DIGITS = 10
NULL = 2 * DIGITS  # the class number of the null prompt, after ten printed and ten handwritten digits


def prompt(digit: int, domain: int) -> Tensor:
    """Return the prompt of a digit, 0 to 9, in a domain, `metrics.PRINTED` or `metrics.HANDWRITTEN`: (1,) long."""
    return torch.tensor([digit + DIGITS * domain])


def null() -> Tensor:
    """Return the null prompt, (1,) long."""
    return torch.tensor([NULL])


def prompt_model(unet: Any) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """Return the noise prediction ``model(z_t, t, y) -> eps`` of a U-Net with classes; y (b,) long, on any device."""
    return lambda z_t, t, y: unet(z_t, t, y.to(z_t.device)).sample


@dataclass(frozen=True)
class Training(sources.Training):
    """What the model with prompts is trained with."""

    drop: float = 0.15  # share of the prompts, from 0 to 1, that the null prompt replaces


def class_model(folder: Path, device: Device = "cpu", **settings: Any) -> Model:
    """Load the model with prompts in `folder`, or train it there, as `lib.worlds.sources.source_model` does.

    Trained on the training parts (`lib.worlds.digits.split`) of the printed and the handwritten digits together;
    `settings` are those of `Training` that differ from its defaults.
    """
    training = Training(**settings)

    def prepare() -> tuple[Any, Draw]:
        images, prompts = training_set(training.size)

        def draw(n: int, generator: torch.Generator) -> list[Tensor]:
            index = torch.randint(len(images), (n,), generator=generator)
            return [images[index], dropped(prompts[index], training.drop, generator)]

        return with_prompts(small_unet(training.size, training.channels)), draw

    sources.denoiser(folder, training, prepare, device)
    return load(folder, device)


def with_prompts(unet: UNet2DModel) -> UNet2DModel:
    """Return an untrained U-Net of the same shape that takes prompts, the null prompt included."""
    return UNet2DModel.from_config(unet.config, num_class_embeds=NULL + 1)


def training_set(size: int = 16) -> tuple[Tensor, Tensor]:
    """Return the images (n, 1, size, size) that `class_model` is trained on, and their prompts (n,)."""
    printed, handwritten = (data.split(digits(size))[0] for digits in (data.printed, data.handwritten))
    prompts = [printed.labels + DIGITS * metrics.PRINTED, handwritten.labels + DIGITS * metrics.HANDWRITTEN]
    return torch.cat([printed.images, handwritten.images]), torch.cat(prompts)


def dropped(prompts: Tensor, share: float, generator: torch.Generator) -> Tensor:
    """Return prompts (n,), each replaced by the null prompt with probability `share`."""
    return torch.where(torch.rand(len(prompts), generator=generator) < share, NULL, prompts)


def load(folder: Path | str, device: Device = "cpu") -> Model:
    """Load a model with prompts and its noise schedule from a folder that `class_model` made."""
    unet, schedule = sources.load(folder, device, what="model with prompts", notebook="41_dds_digits")
    classes = unet.config["num_class_embeds"]
    if classes != NULL + 1:
        text = f"{classes or 'no'} classes; {NULL + 1} are needed, ten digits of two domains and the null prompt"
        raise UserError(f"model with prompts {folder}: {text}; name a folder made by 41_dds_digits")
    return unet, schedule


def shared(p: Any, seed: int) -> World:
    """Return what a replicate starts from: model with prompts, noise schedule, judge, both trained from its own seed.

    `p` are a notebook's parameters. What the folder `artefacts`, which notebooks share, lacks is trained there, for
    `prompt_steps` and `judge_steps`. `source` is the folder of another model, then of all replicates.
    """
    folder = Path(p.source or p.artefacts / "prompts" / str(seed))
    there = sources.found(p, folder, "41_dds_digits")
    unet, schedule = load(folder, p.device) if there else class_model(folder, p.device, steps=p.prompt_steps, seed=seed)
    judge = p.artefacts / "judges" / str(seed)
    return unet, schedule, sources.judge_for(unet, judge, p.judge_steps, p.device, seed)


def trained(p: Any, seed: int) -> World:
    """Train the model with prompts as the parameters of 41_dds_digits say, if it is not there; return as `shared`."""
    if not p.source:
        settings = {"size": p.size, "channels": p.channels, "steps": p.prompt_steps, "batch": p.batch, "lr": p.lr}
        class_model(p.artefacts / "prompts" / str(seed), p.device, **settings, ema=p.ema, seed=seed)
        sources.classifier(p.artefacts / "judges" / str(seed), p.size, p.judge_steps, seed, p.device)
    return shared(p, seed)


def mean_images(domain: int, size: int = 16) -> Tensor:
    """Return the mean image of every digit of a domain, training part only: (10, 1, size, size)."""
    images, prompts = training_set(size)
    return torch.stack([images[prompts == prompt(digit, domain)].mean(0) for digit in range(DIGITS)])


def farthest_pair(domain: int, size: int = 16) -> tuple[int, int]:
    """Return the two digits whose mean images are farthest apart, the smaller one first."""
    flat = mean_images(domain, size).flatten(1)
    first, second = divmod(int(torch.cdist(flat, flat).argmax()), DIGITS)
    return min(first, second), max(first, second)


def reads(judge: metrics.Classifier, images: Tensor, digit: int | Tensor, domain: int) -> Tensor:
    """Return whether the judge reads images (..., 1, h, w) as a digit, or each as its own (...), of a domain: (...)."""
    verdicts = metrics.judge(judge, images.flatten(0, -4))
    read, of = (answer.view(images.shape[:-3]) for answer in (verdicts.digit, verdicts.domain))
    return (read == torch.as_tensor(digit)) & (of == domain)
