"""The methods of a fine-tuning job, one setting apart: what is trained, with which loss, and how it samples."""

import copy
import os
from collections.abc import Callable
from datetime import timedelta
from functools import partial
from typing import Any, NamedTuple

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import InitProcessGroupKwargs
from diffusers.models.resnet import ResnetBlock2D
from torch import Tensor, nn

from lib.ground import diffusion
from lib.ground.finetune import Loss, Options
from lib.ground.nets import eps_model, native_weight, seeded
from lib.ground.noised_classifier import NoisedClassifier
from lib.jobs.hub import Source
from lib.jobs.settings import Job, Settings
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


def student(s: Settings, source: Source, classifier: NoisedClassifier | None = None) -> Student:
    """Return a copy of the source made ready for the method of `s`, with its loss; `source` stays as it is.

    The classifier is that of the guided methods; made from the source, untrained, if None.
    """
    teacher: Any = source.unet
    teacher.requires_grad_(False).eval().to(memory_format=torch.channels_last)  # twice as fast on a CPU
    unet, native = copy.deepcopy(teacher), native_weight(teacher, source.schedule)
    if s.gradient_checkpointing:
        unet.enable_gradient_checkpointing()
    loss: Callable[..., Any]
    if s.method in ("naive", "SDFT"):
        unet.requires_grad_(True)
        for block in unet.modules():
            if isinstance(block, ResnetBlock2D):  # nowhere else, as in the official code
                block.dropout.p = s.dropout
        loss = partial(sdft.loss, eps_model(unet), eps_model(teacher), source.schedule)
        weights = dict.fromkeys(("lambda_distill", "lambda_aux"), 0.0)
        if s.method == "SDFT":
            weights = s.model_dump(include={"lambda_distill", "gamma_distill", "lambda_aux", "gamma_aux"})
        return Student(unet, unet, partial(loss, **weights, native=native))
    adaptor = seeded(s.seed, lambda: Adaptor.attach(unet, s.c, s.d, s.heads))
    guidance = None
    if s.method in GUIDED:
        guidance = ant.classifier_guidance(classifier or seeded(s.seed, lambda: NoisedClassifier(teacher)))
    loss = partial(ant.loss, eps_model(unet), guidance, source.schedule)
    J = s.J if s.method == "ANT" else 0
    return Student(unet, adaptor, partial(loss, gamma=s.gamma, omega=s.omega, J=J, native=native))


def options(s: Job, **more: Any) -> Options:
    """Return how each process of a job trains."""
    names = ("lr", "seed", "betas", "weight_decay", "warmup", "clip", "ema", "flip", "accumulate")
    return Options(s.batch // s.passes, **{name: getattr(s, name) for name in names if hasattr(s, name)}, **more)


def noise(s: Job, source: Source, n: int) -> Begin:
    """Draw the noises (n, c, h, w) that samples of every model begin with; the generator goes on with the steps'."""
    generator = torch.Generator().manual_seed(s.seed)
    return torch.randn(n, *source.shape, generator=generator), generator


def sample(s: Settings, source: Source, unet: Any, begin: Begin) -> Tensor:
    """Return images (n, c, h, w) in [-1, 1] on the CPU, by the sampler of `s`; the same of the same beginning.

    `unet` is the source's, or that of a student.
    """
    x_T, generator = begin
    fresh = generator.clone_state() if s.sampler == "ancestral" else None
    steps = min(s.sampling_steps, source.schedule.T)
    return diffusion.sample(eps_model(unet), source.schedule, x_T, steps, fresh, BATCH, unet.device)


def accelerator(s: Job, device: torch.device) -> Accelerator:
    """Return accelerate's object for this process; jobs of different precision may follow each other in one kernel."""
    if "WORLD_SIZE" not in os.environ:
        AcceleratorState._reset_state(reset_partial_state=True)
    patience = InitProcessGroupKwargs(timeout=timedelta(hours=12))  # the main process samples while others wait
    return Accelerator(mixed_precision=s.precision, cpu=device.type == "cpu", kwargs_handlers=[patience])
