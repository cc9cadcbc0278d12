"""The methods of a fine-tuning job, one setting apart: what is trained, with which loss, and how it samples."""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import InitProcessGroupKwargs
from diffusers.models.resnet import ResnetBlock2D
from torch import Tensor, nn
from tqdm.auto import tqdm

from lib.ground import diffusion
from lib.ground.diffusion import Model, Schedule
from lib.ground.noised_classifier import NoisedClassifier
from lib.jobs import hub
from lib.jobs.hub import Source
from lib.jobs.settings import Settings
from lib.papers.ant import method as ant
from lib.papers.ant.adaptor import Adaptor
from lib.papers.sdft import method as sdft

BATCH = 32  # images sampled at a time
GUIDED = ("ANT without noise", "ANT")


@dataclass
class Student:
    """What a method trains.

    Attributes
    ----------
    unet
        The network that samples afterwards.
    trained
        Module with the parameters in training: the U-Net itself, or its adaptor.
    loss
        ``loss(x0, t, eps)`` of the method.
    classifier
        Of the guided methods.
    """

    unet: Any
    trained: nn.Module
    loss: Callable[[Tensor, Tensor, Tensor], tuple[Tensor, dict[str, Tensor]]]
    classifier: NoisedClassifier | None = None


def student(s: Settings, source: Source, classifier: NoisedClassifier | None = None) -> Student:
    """Return a copy of the source made ready for the method of `s`, with its loss; `source` stays as it is.

    Parameters
    ----------
    classifier
        Of the guided methods; made from the source, untrained, if None.
    """
    whole: Any = source.unet
    whole.to(memory_format=torch.channels_last)  # twice as fast on a CPU
    teacher = whole.requires_grad_(False).eval()
    unet = copy.deepcopy(teacher)
    if s.gradient_checkpointing:
        unet.enable_gradient_checkpointing()
    model = hub.mean_model(unet)
    if s.method in ("naive", "SDFT"):
        unet.requires_grad_(True)
        for block in unet.modules():
            if isinstance(block, ResnetBlock2D):  # nowhere else, as in the official code
                block.dropout.p = s.dropout
        weights = (s.lambda_distill, s.gamma_distill, s.lambda_aux, s.gamma_aux) if s.method == "SDFT" else (0, 0, 0, 0)

        def distilled(x0: Tensor, t: Tensor, eps: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
            return sdft.loss(model, hub.mean_model(teacher), source.schedule, x0, t, eps, *weights)

        return Student(unet, unet, distilled)
    adaptor = Adaptor.attach(unet, s.c, s.d, s.heads)
    guided = s.method in GUIDED
    if guided and classifier is None:
        classifier = NoisedClassifier(teacher)
    guidance = ant.classifier_guidance(classifier) if classifier and guided else None
    J = s.J if s.method == "ANT" else 0

    def adversarial(x0: Tensor, t: Tensor, eps: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        return ant.loss(model, guidance, source.schedule, x0, t, eps, s.gamma, s.omega, J)

    return Student(unet, adaptor, adversarial, classifier)


def sample(
    model: Model,
    schedule: Schedule,
    shape: Sequence[int],
    n: int,
    device: torch.device | str = "cpu",
    sampler: str = "ancestral",
    steps: int = 40,
    seed: int = 0,
    progress: bool = False,
) -> Tensor:
    """Draw n images (n, c, h, w) in [-1, 1], on the CPU; the same seed gives every model the same noise.

    Parameters
    ----------
    model
        ``eps = model(x_t, t)``, on `device`.
    shape
        Of one image, (c, h, w).
    sampler
        ``ddim`` (deterministic) or ``ancestral`` (fresh noise at every step); x0 is clamped in both.
    """
    options: dict[str, Any] = {"steps": min(steps, schedule.T), "clip": True}
    parts = []
    generator = torch.Generator().manual_seed(seed)
    for start in tqdm(range(0, n, BATCH), desc="sampling", disable=not progress):
        noise = torch.randn(min(BATCH, n - start), *shape, generator=generator).to(device)
        if sampler == "ddim":
            images = diffusion.sample_ddim(model, schedule, noise, **options)
        else:
            images = diffusion.sample_ddpm(model, schedule, noise, generator=generator, **options)
        parts.append(images.clamp(-1, 1).cpu())
    return torch.cat(parts)


def accelerator(s: Settings, device: torch.device) -> Accelerator:
    """Return accelerate's object for this process; jobs of different precision may follow each other in one kernel."""
    if "WORLD_SIZE" not in os.environ:
        AcceleratorState._reset_state(reset_partial_state=True)
    patience = InitProcessGroupKwargs(timeout=timedelta(hours=12))  # the main process samples while others wait
    return Accelerator(mixed_precision=s.precision, cpu=device.type == "cpu", kwargs_handlers=[patience])
