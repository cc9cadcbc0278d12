"""What a job will cost, before it starts: network passes, floating-point operations, files, hours on this machine."""

import math
import statistics
import time
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import torch
from diffusers.models.unets.unet_2d import UNet2DModel
from torch import Tensor
from torch.utils.benchmark import Timer
from torch.utils.flop_counter import FlopCounterMode

from lib.ground.finetune import finetune
from lib.ground.folder import Read
from lib.ground.nets import parameter_count
from lib.ground.noised_classifier import NoisedClassifier
from lib.jobs import hub, methods, translation
from lib.jobs.hub import Source
from lib.jobs.settings import Job, Settings, Translation
from lib.papers.ant.adaptor import Adaptor

STEPS = 4  # to be timed; the first one, which also warms up, does not count
PATIENCE = {"cpu": 10.0, "cuda": 120.0}  # seconds a step; above that, one pass is timed instead of steps


@dataclass(frozen=True)
class Cost:
    """Cost of a job; printing it gives a line for each part."""

    parameters: int  # of the network that samples
    trained: int  # those that change
    images_seen: int  # steps times batch
    forwards: float  # passes of one image in all steps; a classifier's count by their share of operations
    backwards: float
    flops: float  # operations of the training, a backward pass counted as two forward ones
    sampling_flops: float
    checkpoint_bytes: int  # on disk: weights, two moments of AdamW, the average if there is one
    seconds_per_step: float  # on this machine
    how: str  # what these seconds come from
    hours: float  # of the training
    sampling_hours: float  # of the samples, by their operations

    def __str__(self) -> str:
        """Return the lines."""
        return (
            f"parameters   {self.parameters / 1e6:.2f} M, trained {self.trained / 1e6:.2f} M\n"
            f"training     {self.images_seen:,} images; passes of one image: {self.forwards:,.0f} forward, "
            f"{self.backwards:,.0f} backward; {self.flops:.2e} operations\n"
            f"sampling     {self.sampling_flops:.2e} operations\n"
            f"on disk      model {4e-6 * self.parameters:,.1f} MB, checkpoint {1e-6 * self.checkpoint_bytes:,.1f} MB\n"
            f"time         {_time(self.hours)} training, {_time(self.sampling_hours)} sampling "
            f"({self.seconds_per_step:.3g} s a step, {self.how} here on one process)"
        )


def estimate(s: Settings | Translation, source: Source | None = None) -> Cost:
    """Count what a job costs, and time a few steps of it on one process of this machine.

    They are a process's share of the batch, on noise instead of images; several processes are taken to be as fast side
    by side as one alone. Where steps would take too long, one pass is timed. `source` is the job's model, if it is
    loaded. A model of the target that is trained first counts as training, on one process.
    """
    source = source or _source(s, torch.device("cuda" if torch.cuda.is_available() and s.device != "cpu" else "cpu"))
    forwards, backwards, classifier = passes(s)
    with torch.device("meta"):
        unet: Any = UNet2DModel.from_config(source.unet.config)
        inputs = torch.zeros(1, *source.shape), torch.zeros(1, dtype=torch.long)
        one = operations(unet, *inputs)
        extra = operations(NoisedClassifier(unet), *inputs) / one if classifier else 0.0
    trained, whole = sizes(s, source)
    images, before = s.steps * s.batch, 0
    if isinstance(s, Translation):
        images, sampling = images * len(s.lambdas), s.translated * len(s.lambdas)
        before = 0 if s.target_model else s.model_steps * s.model_batch
    else:
        sampling = (s.samples + s.shown) * s.sampling_steps
    work = forwards + 2 * backwards + 3 * extra
    each, how = _seconds_forward(source) * (s.batch // s.processes) * work, "from one forward pass"
    if each < PATIENCE[source.unet.device.type]:
        each, how = _seconds_per_step(s, source), "measured"
    alone = each * s.processes / (s.batch * work) / 3600  # hours of a forward pass of one image on one process
    return Cost(
        parameters=whole,
        trained=trained,
        images_seen=images + before,
        forwards=images * (forwards + extra) + before,
        backwards=images * (backwards + extra) + before,
        flops=(images * work + before * 3) * one,
        sampling_flops=sampling * one,
        checkpoint_bytes=_checkpoint(s, trained),
        seconds_per_step=each,
        how=how,
        hours=images / s.batch * each / 3600 + before * 3 * alone,
        sampling_hours=sampling * alone,  # by the main process
    )


def _source(s: Settings | Translation, device: torch.device) -> Source:
    if isinstance(s, Settings):
        return hub.source(s.source, device)
    return hub.source(s.target_model, device, "target_model") if s.target_model else translation.untrained(s, device)


def sizes(s: Settings | Translation, source: Source) -> tuple[int, int]:
    """Return how many parameters a method trains, and how many its model has in all."""
    base = parameter_count(source.unet)
    if isinstance(s, Translation):
        return 2 * base, base  # generator and fake
    if s.method in ("naive", "SDFT"):
        return base, base
    with torch.device("meta"):
        adaptor = Adaptor.attach(UNet2DModel.from_config(source.unet.config), s.c, s.d, s.heads)
    return parameter_count(adaptor), base + parameter_count(adaptor)


def disk(s: Settings | Translation, source: Source, reads: dict[str, Read]) -> int:
    """Return the bytes that a job may take: models, checkpoints while one takes the other's place, images."""
    trained, whole = sizes(s, source)
    images = sum(len(read.names) for name, read in reads.items() if name != "reference")
    if isinstance(s, Translation):
        n, kept = len(s.lambdas), len(s.lambdas) + 1
        own = 0 if s.target_model else 4 * 6 * whole  # its checkpoints
        models, drawn = 4 * whole * n + own, (s.translated + 4 * s.shown) * n + len(reads["target_images"].names)
    else:
        models, kept = 4 * whole * (1 + (s.score_every > 0)) + 4 * trained * (s.score_every > 0), 2
        drawn = s.samples + 12 * s.shown + s.score_samples * (s.score_every > 0)
    return models + kept * _checkpoint(s, trained) + math.prod(source.shape) * (drawn + images)


def _checkpoint(s: Job, trained: int) -> int:
    averaged = trained // 2 if isinstance(s, Translation) else trained  # of RDMD the generator, not the fake
    return 4 * (3 * trained + (s.ema > 0) * averaged)  # weights, two moments of AdamW, their average


def passes(s: Settings | Translation) -> tuple[float, float, int]:
    """Return forward and backward passes of the network for an image and step, and those of a classifier (each way).

    SDFT: the student sees x_t and, with the auxiliary term, the noise; the source sees what it is compared on. ANT: J
    steps of ascent on the noise, forward and backward each, before the step on the weights. RDMD: the generator, the
    fake's own updates, and fake and teacher where they are compared.
    """
    if isinstance(s, Translation):
        return s.fake_updates + 3, s.fake_updates + 1, 0
    if s.method == "SDFT":
        student, teacher = 1 + (s.lambda_aux > 0), (s.lambda_distill > 0) + (s.lambda_aux > 0)
        return student + teacher, student, 0
    ascent = s.J if s.method == "ANT" else 0
    return 1 + ascent, 1 + ascent, int(s.method in methods.GUIDED)


@torch.no_grad()
def operations(network: Any, *inputs: Tensor) -> float:
    """Return the floating-point operations of one forward pass; on the meta device nothing is computed."""
    with FlopCounterMode(display=False) as counter:
        network(*inputs)
    return float(counter.get_total_flops())


@torch.no_grad()
def _seconds_forward(source: Source) -> float:
    """Time one forward pass of one image, after a warm-up."""
    x, t = torch.zeros(1, *source.shape), torch.zeros(1, dtype=torch.long)
    names = {"unet": source.unet, "x": x.to(source.unet.device), "t": t.to(source.unet.device)}
    return Timer("unet(x, t)", globals=names, num_threads=torch.get_num_threads()).timeit(1).median


def _seconds_per_step(s: Settings | Translation, source: Source) -> float:
    """Run a few steps on noise; what they train is thrown away."""
    device, times = source.unet.device, []
    images = methods.noise(s, source, 4)[0].clamp(-1, 1)

    def clock(*_: Any) -> None:
        if device.type == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter())

    options, accelerator = replace(methods.options(s), lr=1e-8), methods.accelerator(s, device)
    if isinstance(s, Translation):
        translation.train(s, source, images, s.lambdas[0], STEPS, options, clock, accelerator)
    else:
        pupil = methods.student(s, source)
        finetune(pupil.trained, source.schedule, images, pupil.loss, STEPS, options, clock, accelerator)
    return statistics.median(b - a for a, b in pairwise(times))


def _time(hours: float) -> str:
    """Return a time in seconds, minutes or hours."""
    if hours < 1 / 30:
        return f"{3600 * hours:.0f} s"
    return f"{60 * hours:.0f} min" if hours < 2 else f"{hours:.1f} h"
