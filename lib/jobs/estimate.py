"""What a job will cost, before it starts: network passes, floating-point operations, files, hours on this machine."""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass
from typing import Any

import torch
from diffusers.models.unets.unet_2d import UNet2DModel
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from lib.ground.finetune import Options, finetune
from lib.ground.nets import parameter_count
from lib.ground.noised_classifier import NoisedClassifier
from lib.jobs import hub, methods
from lib.jobs.hub import Source
from lib.jobs.settings import Settings

WARMUP, TIMED = 1, 3  # steps before and while the clock runs
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
    model_bytes: int  # on disk: the result
    checkpoint_bytes: int  # weights, two moments of AdamW, the average if there is one
    seconds_per_step: float | None = None  # on this machine
    hours: float | None = None  # of the training
    sampling_hours: float | None = None  # of the samples, by their operations
    how: str = ""  # what the seconds come from

    def __str__(self) -> str:
        """Return the lines."""
        lines = [
            f"parameters   {self.parameters / 1e6:.2f} M, trained {self.trained / 1e6:.2f} M",
            f"training     {self.images_seen:,} images; passes of one image: {self.forwards:,.0f} forward, "
            f"{self.backwards:,.0f} backward; {self.flops:.2e} operations",
            f"sampling     {self.sampling_flops:.2e} operations",
            f"on disk      model {self.model_bytes / 1e6:,.1f} MB, checkpoint {self.checkpoint_bytes / 1e6:,.1f} MB",
        ]
        if self.hours is not None and self.sampling_hours is not None:
            each = f"{self.seconds_per_step:.3g} s a step, {self.how} here on one process"
            lines.append(f"time         {_time(self.hours)} training, {_time(self.sampling_hours)} sampling ({each})")
        return "\n".join(lines)


def estimate(s: Settings, source: Source | None = None, measure: bool = True) -> Cost:
    """Count what a job costs and, if asked, time a few steps of it on one process of this machine.

    They are a process's share of the batch, on noise instead of images; several processes are taken to be as fast side
    by side as one alone. Where steps would take too long, one pass is timed. `source` is the job's, if it is loaded.
    """
    usual = "cuda" if torch.cuda.is_available() and s.device != "cpu" else "cpu"
    source = source or hub.source(s.source, usual)
    forwards, backwards, classifier = passes(s)
    x, t = _one(source.unet.config, "meta"), torch.zeros(1, dtype=torch.long, device="meta")
    with torch.device("meta"):
        unet: Any = UNet2DModel.from_config(source.unet.config)
        one = operations(unet, x, t)
        extra = operations(NoisedClassifier(unet), x, t) / one if classifier else 0.0
    pupil = methods.student(s, source)
    trained, base = parameter_count(pupil.trained, trainable=True), parameter_count(source.unet)
    whole = base + (trained if pupil.trained is not pupil.unet else 0)
    images, work = s.steps * s.batch, forwards + 2 * backwards + 3 * extra
    sampling = (s.samples + s.shown) * s.sampling_steps
    cost: dict[str, Any] = {"parameters": whole, "trained": trained, "images_seen": images}
    cost |= {"forwards": images * (forwards + extra), "backwards": images * (backwards + extra)}
    cost |= {"flops": images * work * one, "sampling_flops": sampling * one}
    cost |= {"model_bytes": 4 * whole, "checkpoint_bytes": 4 * trained * (3 + (s.ema > 0))}
    if measure:
        guess = _seconds_forward(source) * max(1, s.batch // s.processes) * work
        patient = guess < PATIENCE[source.unet.device.type]
        each = _seconds_per_step(s, source, pupil) if patient else guess
        cost |= {"how": "measured" if patient else "from one forward pass", "seconds_per_step": each}
        # One process samples; the others have done their share of the training by then.
        hours = s.steps * each / 3600
        cost |= {"hours": hours, "sampling_hours": hours * sampling / (images * work) * s.processes}
    return Cost(**cost)


def passes(s: Settings) -> tuple[float, float, int]:
    """Return forward and backward passes of the network for an image and step, and those of a classifier (each way).

    SDFT: the student sees x_t and, with the auxiliary term, the noise; the source sees what it is compared on. ANT: J
    steps of ascent on the noise, forward and backward each, before the step on the weights.
    """
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


def _one(config: Any, device: torch.device | str) -> Tensor:
    """Return one empty image (1, c, h, w) of a U-Net."""
    size = config["sample_size"]
    return torch.zeros(1, config["in_channels"], *(size if isinstance(size, list | tuple) else (size, size))).to(device)


def _seconds_forward(source: Source) -> float:
    """Time one forward pass of one image, the second of two."""
    x, taken = _one(source.unet.config, source.unet.device), 0.0
    for _ in range(2):
        began = time.perf_counter()
        with torch.no_grad():
            float(source.unet(x, torch.zeros(1, device=x.device).long()).sample.sum())  # waits for the GPU
        taken = time.perf_counter() - began
    return taken


def _seconds_per_step(s: Settings, source: Source, pupil: methods.Student) -> float:
    """Run a few steps on noise; the student is thrown away afterwards."""
    device, times = source.unet.device, []
    images = torch.randn(4, *_one(source.unet.config, "cpu").shape[1:], generator=torch.Generator().manual_seed(0))
    batch = max(1, s.batch // (s.processes * s.accumulate))
    options = Options(batch, lr=1e-8, accumulate=s.accumulate, ema=s.ema)

    def clock(i: int, history: Any) -> None:
        if device.type == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter())

    steps, accelerator = WARMUP + TIMED, methods.accelerator(s, device)
    finetune(pupil.trained, source.schedule, images.clamp(-1, 1), pupil.loss, steps, options, clock, accelerator)
    return statistics.median(b - a for a, b in zip(times[WARMUP - 1 :], times[WARMUP:], strict=False))


def _time(hours: float) -> str:
    """Return a time in seconds, minutes or hours."""
    if hours < 1 / 30:
        return f"{3600 * hours:.0f} s"
    return f"{60 * hours:.0f} min" if hours < 2 else f"{hours:.1f} h"
