"""What a job will cost, before it starts: network passes, floating-point operations, files, hours on this machine."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import torch
from diffusers.models.unets.unet_2d import UNet2DModel
from torch.utils.flop_counter import FlopCounterMode

from lib.ground.finetune import finetune
from lib.ground.nets import parameter_count
from lib.jobs import hub, methods
from lib.jobs.hub import Source
from lib.jobs.settings import Settings

WARMUP, TIMED = 1, 3  # steps before and while the clock runs
PATIENCE = {"cpu": 10.0, "cuda": 120.0}  # seconds a step; above that, one pass is timed instead of steps


@dataclass(frozen=True)
class Cost:
    """Cost of a job; printing it gives a line for each part.

    Attributes
    ----------
    parameters, trained
        Of the network that samples, and those that change.
    images_seen
        Steps times batch.
    forwards, backwards
        Passes of one image through the network in all steps; a classifier's count by their share of operations.
    flops
        Floating-point operations of the training, a backward pass counted as two forward ones.
    sampling_flops
        Of the samples.
    model_bytes, checkpoint_bytes
        On disk: the result, and one checkpoint (weights, two moments of AdamW, the average if there is one).
    seconds_per_step
        On this machine, from a few steps, or where these would take too long from one pass; None if not measured.
    hours, sampling_hours
        Of the training, and of the samples by their operations; None if nothing was measured.
    how
        What the seconds come from.
    """

    parameters: int
    trained: int
    images_seen: int
    forwards: float
    backwards: float
    flops: float
    sampling_flops: float
    model_bytes: int
    checkpoint_bytes: int
    seconds_per_step: float | None = None
    hours: float | None = None
    sampling_hours: float | None = None
    how: str = ""

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


def estimate(s: Settings, source: Source | None = None, measure: bool = True, device: str = "") -> Cost:
    """Count what a job costs and, if asked, measure a few steps of it on one process of this machine.

    Parameters
    ----------
    source
        The job's source, if it is loaded already.
    measure
        Time `TIMED` steps of a process's share of the batch on noise instead of images. Several processes are taken to
        be as fast side by side as one alone.
    device
        Where to measure; by default CUDA if there is any and the job does not say otherwise.

    Raises
    ------
    UserError
        The source cannot be loaded.
    """
    usual = "cuda" if torch.cuda.is_available() and s.device != "cpu" else "cpu"
    where = device or usual
    source = source or hub.source(s.source, where)
    forwards, backwards, classifier_share = passes(s)
    one, extra = flops_forward(source.unet.config), 0.0
    if classifier_share:
        extra = classifier_share * classifier_flops(source.unet.config) / one
    images = s.steps * s.batch
    pupil = methods.student(s, source)
    trained = parameter_count(pupil.trained, trainable=True)
    base = parameter_count(source.unet)
    added = trained if pupil.trained is not pupil.unet else 0
    total = images * (forwards + 2 * backwards + 3 * extra) * one
    sampling = (s.samples + s.shown) * s.sampling_steps * one
    cost: dict[str, Any] = {
        "parameters": base + added,
        "trained": trained,
        "images_seen": images,
        "forwards": images * (forwards + extra),
        "backwards": images * (backwards + extra),
        "flops": total,
        "sampling_flops": sampling,
        "model_bytes": 4 * (base + added),
        "checkpoint_bytes": 4 * trained * (3 + (s.ema > 0)),
    }
    if measure:
        share = max(1, s.batch // s.processes)
        guess = _seconds_forward(source) * share * (forwards + 2 * backwards + 3 * extra)
        patient = guess < PATIENCE[source.unet.device.type]
        seconds = _seconds_per_step(s, source, pupil) if patient else guess
        cost["how"] = "measured" if patient else "from one forward pass"
        hours = s.steps * seconds / 3600
        # One process samples; the others have done their share of the training by then.
        cost |= {"seconds_per_step": seconds, "hours": hours}
        cost["sampling_hours"] = hours * sampling / total * s.processes
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


def flops_forward(config: Any) -> float:
    """Return the operations of one image's forward pass, counted by torch on the meta device: nothing is computed."""
    with torch.device("meta"):
        unet = UNet2DModel.from_config(config)
        return _count(lambda x, t: unet(x, t), config)


def classifier_flops(config: Any) -> float:
    """Return the operations of one image's forward pass through ANT's classifier."""
    with torch.device("meta"):
        classifier = methods.NoisedClassifier(UNet2DModel.from_config(config))
        return _count(classifier, config)


def _image_shape(config: Any) -> tuple[int, ...]:
    """Return the shape (c, h, w) of an image of a U-Net."""
    size = config["sample_size"]
    return config["in_channels"], *(size if isinstance(size, list | tuple) else (size, size))


def _count(network: Any, config: Any) -> float:
    with FlopCounterMode(display=False) as counter:
        network(torch.empty(1, *_image_shape(config)), torch.zeros(1, dtype=torch.long))
    return float(counter.get_total_flops())


def _seconds_forward(source: Source) -> float:
    """Time one forward pass of one image, the second of two."""
    device = source.unet.device
    x, t = torch.zeros(1, *_image_shape(source.unet.config), device=device), torch.zeros(1, device=device).long()
    seconds = 0.0
    for _ in range(2):
        began = time.perf_counter()
        with torch.no_grad():
            float(hub.mean_model(source.unet)(x, t).sum())  # waits for the GPU
        seconds = time.perf_counter() - began
    return seconds


def _seconds_per_step(s: Settings, source: Source, pupil: methods.Student) -> float:
    """Run a few steps on noise; the student is thrown away afterwards."""
    noise = torch.randn(4, *_image_shape(source.unet.config), generator=torch.Generator().manual_seed(0)).clamp(-1, 1)
    times: list[float] = []

    def clock(i: int) -> None:
        if source.unet.device.type == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter())

    finetune(
        pupil.trained,
        source.schedule,
        noise,
        pupil.loss,
        WARMUP + TIMED,
        max(1, s.batch // (s.processes * s.accumulate)),
        lr=1e-8,
        on_step=clock,
        progress=False,
        accumulate=s.accumulate,
        accelerator=methods.accelerator(s, source.unet.device),
        ema=s.ema or None,
    )
    steps = sorted(b - a for a, b in zip(times[WARMUP - 1 :], times[WARMUP:], strict=False))
    return steps[len(steps) // 2]


def _time(hours: float) -> str:
    """Return a time in seconds, minutes or hours."""
    seconds = 3600 * hours
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{hours:.1f} h"
