"""The methods of a fine-tuning job, one setting apart: what is trained, with which loss, and how it samples."""

from __future__ import annotations

import copy
import os
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any, NamedTuple

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import InitProcessGroupKwargs
from diffusers.models.resnet import ResnetBlock2D
from torch import Tensor, nn

from lib.ground import diffusion
from lib.ground.diffusion import Model, Schedule
from lib.ground.finetune import Loss
from lib.ground.folder import Read
from lib.ground.nets import eps_model
from lib.ground.noised_classifier import NoisedClassifier
from lib.jobs import hub
from lib.jobs.hub import Source
from lib.jobs.settings import Settings
from lib.papers.ant import method as ant
from lib.papers.ant.adaptor import Adaptor
from lib.papers.sdft import method as sdft

BATCH = 32  # images sampled at a time
Begin = tuple[Tensor, torch.Generator]  # what samples begin with
GUIDED = ("ANT without noise", "ANT")


class Student(NamedTuple):
    """What a method trains."""

    unet: Any  # the network that samples afterwards
    trained: nn.Module  # with the parameters in training: the U-Net itself, or its adaptor
    loss: Loss


def images(s: Settings, source: Source, which: str = "images") -> Read:
    """Read the job's images, or its `reference`, at the source's size; a copy is kept in ``out/cache``."""
    size, channels = source.unet.config["sample_size"], source.unet.config["in_channels"]
    side = size if isinstance(size, int) else size[0]
    cache, how = Path(s.out).expanduser() / "cache", (s.damaged, s.recursive, s.split, s.column)
    return hub.target(getattr(s, which), side, channels, cache, *how, parameter=which)


def student(s: Settings, source: Source, classifier: NoisedClassifier | None = None) -> Student:
    """Return a copy of the source made ready for the method of `s`, with its loss; `source` stays as it is.

    The classifier is that of the guided methods; made from the source, untrained, if None.
    """
    whole: Any = source.unet
    whole.to(memory_format=torch.channels_last)  # twice as fast on a CPU
    teacher = whole.requires_grad_(False).eval()
    unet = copy.deepcopy(teacher)
    if s.gradient_checkpointing:
        unet.enable_gradient_checkpointing()
    model = eps_model(unet)
    if s.method in ("naive", "SDFT"):
        unet.requires_grad_(True)
        for block in unet.modules():
            if isinstance(block, ResnetBlock2D):  # nowhere else, as in the official code
                block.dropout.p = s.dropout
        weights = (s.lambda_distill, s.gamma_distill, s.lambda_aux, s.gamma_aux) if s.method == "SDFT" else (0, 0, 0, 0)

        def distilled(x0: Tensor, t: Tensor, eps: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
            return sdft.loss(model, eps_model(teacher), source.schedule, x0, t, eps, *weights)

        return Student(unet, unet, distilled)
    adaptor = Adaptor.attach(unet, s.c, s.d, s.heads)
    guidance = None
    if s.method in GUIDED:
        guidance = ant.classifier_guidance(classifier or NoisedClassifier(teacher))

    def adversarial(x0: Tensor, t: Tensor, eps: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        J = s.J if s.method == "ANT" else 0
        return ant.loss(model, guidance, source.schedule, x0, t, eps, s.gamma, s.omega, J)

    return Student(unet, adaptor, adversarial)


def noise(s: Settings, shape: Sequence[int], n: int) -> Begin:
    """Draw the noises (n, c, h, w) that samples of every model begin with; the generator goes on with the steps'."""
    generator = torch.Generator().manual_seed(s.seed)
    return torch.randn(n, *shape, generator=generator), generator


def sample(s: Settings, model: Model, schedule: Schedule, begin: Begin, device: torch.device) -> Tensor:
    """Return images (n, c, h, w) in [-1, 1] on the CPU, by the sampler of `s`; the same of the same beginning."""
    x_T, generator = begin
    fresh = generator.clone_state() if s.sampler == "ancestral" else None
    return diffusion.sample(model, schedule, x_T, min(s.sampling_steps, schedule.T), fresh, BATCH, device)


def accelerator(s: Settings, device: torch.device) -> Accelerator:
    """Return accelerate's object for this process; jobs of different precision may follow each other in one kernel."""
    if "WORLD_SIZE" not in os.environ:
        AcceleratorState._reset_state(reset_partial_state=True)
    patience = InitProcessGroupKwargs(timeout=timedelta(hours=12))  # the main process samples while others wait
    return Accelerator(mixed_precision=s.precision, cpu=device.type == "cpu", kwargs_handlers=[patience])
