"""Measure what the training loop costs over a bare loop on the same network.

The overhead is the median over rounds of their ratio. The row "with EMA" also holds the work of averaging the weights,
which the bare loop does not do. "Nothing" is a step that computes nothing: the cost of the loop by itself, without
noise from a network.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from typing import Any, NamedTuple

import torch

from lib.ground import diffusion, nets
from lib.ground.train import train
from lib.record.timing import interleaved, ratio
from tools.bench_tools import Row, row

TITLE = "Training loop: what it adds to a bare loop on the same network"
LIMIT = 5.0  # percent


class Job(NamedTuple):
    """One training job."""

    net: torch.nn.Module
    optimizer: torch.optim.Optimizer
    sample: Callable[[torch.Generator], Any]
    step: Callable[[Any], dict[str, Any]]


def job(net: torch.nn.Module, shape: tuple[int, ...]) -> Job:
    """Return the training of a network to predict noise."""
    optimizer = torch.optim.Adam(net.parameters(), 1e-4, fused=True)
    model, schedule = net if isinstance(net, nets.MLP) else nets.eps_model(net), diffusion.linear()

    def sample(generator: torch.Generator) -> tuple[torch.Tensor, ...]:
        x0, eps = torch.randn(2, *shape, generator=generator)
        return x0, eps, torch.randint(schedule.T, shape[:1], generator=generator)

    def step(batch: tuple[torch.Tensor, ...]) -> dict[str, torch.Tensor]:
        x0, eps, t = batch
        loss = (model(schedule.add_noise(x0, eps, t), t) - eps).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return {"loss": loss.detach()}

    return Job(net, optimizer, sample, step)


def bare(job: Job, steps: int) -> None:
    """Train without the loop."""
    generator = torch.Generator().manual_seed(0)
    for _ in range(steps):
        job.step(job.sample(generator))


def full(job: Job, steps: int, ema: dict[str, float] | None = None) -> None:
    """Train with the loop."""
    train(job.step, job.sample, {"net": job.net}, {"net": job.optimizer}, steps, ema=ema)


def measure(device: torch.device, rounds: int = 11) -> list[Row]:
    """Return the rows of this section."""
    torch.manual_seed(0)
    image, plane = job(nets.small_unet(16), (64, 1, 16, 16)), job(nets.MLP(), (512, 2))
    nothing = plane._replace(sample=lambda generator: None, step=lambda batch: {"loss": 0.0})
    rows = []
    for words, one, steps in (
        ("U-Net 16x16, batch 64", image, 2),
        ("MLP 2-D, batch 512", plane, 100),
        ("nothing", nothing, 2000),
    ):
        runs = {
            "bare": lambda one=one, steps=steps: bare(one, steps),
            "loop": lambda one=one, steps=steps: full(one, steps),
            "loop with EMA": lambda one=one, steps=steps: full(one, steps, {"net": 0.999}),
        }
        times = interleaved(runs, rounds, device)
        for kind in ("loop", "loop with EMA"):
            if words == "nothing":
                each = 1e6 * statistics.median(times[kind]) / steps
                rows.append(row(f"nothing, {kind}: time of a step", each, "microseconds"))
            else:
                limit = LIMIT if kind == "loop" else None  # averaging is work that the bare loop does not do
                rows.append(row(f"{words}, {kind}", 100 * (ratio(times[kind], times["bare"]) - 1), "%", limit))
    return rows
