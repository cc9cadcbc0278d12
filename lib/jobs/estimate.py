"""What a job will cost, before it starts: network passes, floating-point operations, files, hours on this machine."""

import math
import statistics
import time
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch.utils.benchmark import Timer

from lib.ground.folder import Read
from lib.jobs import kinds
from lib.jobs.load import Load
from lib.jobs.settings import Job

STEPS = 4  # to be timed; the first one, which also warms up, does not count
PATIENCE = {"cpu": 10.0, "cuda": 120.0}  # seconds a step; above that, one pass is timed instead of steps


@dataclass(frozen=True)
class Cost:
    """Cost of a job; printing it gives a line for each part."""

    parameters: int  # of the network that is left
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
    memory: int = 0  # bytes of a process's device, if they were counted

    def __str__(self) -> str:
        """Return the lines."""
        return (
            f"parameters   {self.parameters / 1e6:.2f} M, trained {self.trained / 1e6:.2f} M\n"
            f"training     {self.images_seen:,} images; passes of one image: {self.forwards:,.0f} forward, "
            f"{self.backwards:,.0f} backward; {self.flops:.2e} operations\n"
            f"sampling     {self.sampling_flops:.2e} operations\n"
            f"on disk      model {4e-6 * self.parameters:,.1f} MB, checkpoint {1e-6 * self.checkpoint_bytes:,.1f} MB\n"
            + (f"memory       at least {1e-9 * self.memory:.1f} GB a process\n" if self.memory else "")
            + f"time         {_time(self.hours)} training, {_time(self.sampling_hours)} sampling "
            f"({self.seconds_per_step:.3g} s a step, {self.how} here on one process)"
        )


def estimate(s: Job, start: Any = None) -> Cost:
    """Count what a job costs, and time a few steps of it on one process of this machine.

    They are a process's share of the batch, on noise instead of images; several processes are taken to be as fast side
    by side as one alone. Where steps would take too long, one pass is timed. `start` is what the gate opened, if it was
    asked. Models that are trained first count as training, on one process.
    """
    kind = kinds.of(s)
    start = start or kind.begin(s, torch.device("cuda" if torch.cuda.is_available() and s.device != "cpu" else "cpu"))
    load, (_, device) = kind.count(s, start), kind.identity(start)
    one, operations = kind.one_pass(s, start)
    with torch.no_grad():
        seconds = Timer("one()", globals={"one": one}, num_threads=torch.get_num_threads()).timeit(1).median
    each, how = seconds / operations * load.flops * (s.batch // s.processes), "from one forward pass"
    if each < PATIENCE[device.type]:
        times: list[float] = []

        def clock(*_: Any) -> None:
            if device.type == "cuda":
                torch.cuda.synchronize()
            times.append(time.perf_counter())

        kind.some_steps(s, start, STEPS, clock)
        each, how = statistics.median(b - a for a, b in pairwise(times)), "measured"
    alone = each * s.processes / (s.batch * load.flops) / 3600  # hours of an operation on one process
    return Cost(
        parameters=load.parameters,
        trained=load.trained,
        images_seen=load.images + load.images_before,
        forwards=load.images * load.forwards + load.images_before,
        backwards=load.images * load.backwards + load.images_before,
        flops=load.images * load.flops + load.flops_before,
        sampling_flops=load.drawn,
        checkpoint_bytes=_checkpoint(s, load),
        seconds_per_step=each,
        how=how,
        hours=load.images / s.batch * each / 3600 + load.flops_before * alone,
        sampling_hours=load.drawn * alone,  # by the main process
        memory=load.memory,
    )


def disk(s: Job, start: Any, reads: dict[str, Read]) -> int:
    """Return the bytes that a job may take: models, checkpoints while one takes the other's place, images."""
    load = kinds.of(s).count(s, start)
    read = {name: one.images for name, one in reads.items() if name != "reference"}
    each = max(math.prod(images.shape[1:]) for images in read.values())
    copies = 2 * sum(map(len, read.values()))  # the cache, and files for FID
    return load.models + load.kept * _checkpoint(s, load) + each * (load.pictures + copies)


def passes(s: Any) -> tuple[float, float, int]:
    """Return forward and backward passes of the network for an image and step, and those of a classifier (each way)."""
    kind: Any = kinds.of(s)
    return kind.passes(s)


def _checkpoint(s: Job, load: Load) -> int:
    return 4 * (3 * load.trained + (s.ema > 0) * load.averaged)  # weights, two moments of AdamW, their average


def _time(hours: float) -> str:
    """Return a time in seconds, minutes or hours."""
    if hours < 1 / 30:
        return f"{3600 * hours:.0f} s"
    return f"{60 * hours:.0f} min" if hours < 2 else f"{hours:.1f} h"
