"""A diffusion model of digits with prompts, in the place of a text-to-image model (for DDS, Hertz et al., ICCV 2023).

A prompt is a class number: which digit, and whether it is printed or handwritten. One more class is the null prompt,
learned by putting it in place of a share of the prompts (classifier-free guidance, Ho and Salimans 2021).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers.models.unets.unet_2d import UNet2DModel
from torch import Tensor

from lib.ground.diffusion import Schedule
from lib.ground.nets import small_unet
from lib.record.files import UserError
from lib.worlds import digits as data
from lib.worlds import judge as metrics
from lib.worlds.sources import Device, Draw, denoiser, judge_for
from lib.worlds.sources import load as load_denoiser

DIGITS = 10
NULL = 2 * DIGITS  # the class number of the null prompt, after ten printed and ten handwritten digits
STEPS, BATCH = 1600, 32


def prompt(digit: int, domain: int) -> Tensor:
    """Return the prompt of a digit, 0 to 9, in a domain, `metrics.PRINTED` or `metrics.HANDWRITTEN`: (1,) long."""
    if digit not in range(DIGITS):
        raise UserError(f"digit: {digit} given; one of 0 to {DIGITS - 1}")
    if domain not in (metrics.PRINTED, metrics.HANDWRITTEN):
        raise UserError(f"domain: {domain} given; {metrics.PRINTED} (printed) or {metrics.HANDWRITTEN} (handwritten)")
    return torch.tensor([digit + DIGITS * domain])


def null() -> Tensor:
    """Return the null prompt, (1,) long."""
    return torch.tensor([NULL])


def prompt_model(unet: Any) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """Return the noise prediction ``model(z_t, t, y) -> eps`` of a U-Net with classes; y (b,) long, on any device."""
    return lambda z_t, t, y: unet(z_t, t, y.to(z_t.device)).sample


def class_model(
    folder: Path,
    size: int = 16,
    channels: Sequence[int] = (16, 32, 64),
    steps: int = STEPS,
    batch: int = BATCH,
    lr: float = 2e-3,
    ema: float = 0.995,
    drop: float = 0.15,
    seed: int = 0,
    device: Device = "cpu",
) -> tuple[UNet2DModel, Schedule]:
    """Load the model with prompts in `folder`, or train it there, as `lib.worlds.sources.source_model` does.

    Trained on the training parts (`lib.worlds.digits.split`) of the printed and the handwritten digits together; a
    share `drop` of the prompts is replaced by the null prompt.
    """
    if not 0 <= drop <= 1:
        raise UserError(f"drop: {drop} given; a share of the prompts, from 0 to 1")
    settings = {"size": size, "channels": list(channels), "steps": steps, "batch": batch, "lr": lr, "ema": ema}
    settings |= {"drop": drop, "seed": seed}

    def prepare() -> tuple[UNet2DModel, Draw]:
        images, prompts = training_set(size)

        def draw(generator: torch.Generator) -> list[Tensor]:
            index = torch.randint(len(images), (batch,), generator=generator)
            return [images[index], dropped(prompts[index], drop, generator)]

        return with_prompts(small_unet(size, channels)), draw

    denoiser(folder, settings, prepare, device)
    return load(folder, device)


def with_prompts(unet: UNet2DModel) -> UNet2DModel:
    """Return an untrained U-Net of the same shape that takes prompts, the null prompt included."""
    config = {name: value for name, value in unet.config.items() if not name.startswith("_")}
    return UNet2DModel(**config | {"num_class_embeds": NULL + 1})


def training_set(size: int = 16) -> tuple[Tensor, Tensor]:
    """Return the images (n, 1, size, size) that `class_model` is trained on, and their prompts (n,)."""
    printed, handwritten = (data.split(digits(size))[0] for digits in (data.printed, data.handwritten))
    prompts = [printed.labels + DIGITS * metrics.PRINTED, handwritten.labels + DIGITS * metrics.HANDWRITTEN]
    return torch.cat([printed.images, handwritten.images]), torch.cat(prompts)


def dropped(prompts: Tensor, share: float, generator: torch.Generator) -> Tensor:
    """Return prompts (n,), each replaced by the null prompt with probability `share`."""
    return torch.where(torch.rand(len(prompts), generator=generator) < share, NULL, prompts)


def load(folder: Path | str, device: Device = "cpu") -> tuple[UNet2DModel, Schedule]:
    """Load a model with prompts and its noise schedule from a folder that `class_model` made."""
    unet, schedule = load_denoiser(folder, device, what="model with prompts", notebook="41_dds_digits")
    classes = unet.config["num_class_embeds"]
    if classes != NULL + 1:
        text = f"{classes or 'no'} classes; {NULL + 1} are needed, ten digits of two domains and the null prompt"
        raise UserError(f"model with prompts {folder}: {text}; name a folder made by 41_dds_digits")
    return unet, schedule


def shared(
    artefacts: Path,
    source: Path | str = "",
    steps: int = STEPS,
    judge_steps: int = 400,
    device: Device = "cpu",
) -> tuple[UNet2DModel, Schedule, metrics.Classifier]:
    """Return what notebooks with prompts start from: model, noise schedule, judge; as `lib.worlds.sources.shared`."""
    folder = Path(source or artefacts / "prompts")
    found = source or folder.exists()
    unet, schedule = load(folder, device) if found else class_model(folder, steps=steps, device=device)
    return unet, schedule, judge_for(unet, artefacts, judge_steps, device)


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
    read = (verdicts.digit.view(images.shape[:-3]) == torch.as_tensor(digit)).flatten()
    return (read & (verdicts.domain == domain)).view(images.shape[:-3])
