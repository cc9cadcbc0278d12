"""Measure what the training loop costs over a bare loop on the same network; prints a table.

Bare and full loops take short turns in one process; the overhead is the median over rounds of their ratio. Processor
time on one thread is counted, so that other programs on the machine disturb little. The row "with EMA" also holds the
work of averaging the weights, which the bare loop does not do. "Nothing" is a step that computes nothing: the cost of
the loop by itself, without noise from a network.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from lib.ground import diffusion, nets
from lib.ground.train import train

LIMIT = 5.0  # percent


def case(net: torch.nn.Module, model: Callable, shape: tuple[int, ...], schedule: diffusion.Schedule) -> dict[str, Any]:
    """One noise-prediction training job: its network, optimizer, `sample` and `step`."""
    optimizer = torch.optim.Adam(net.parameters(), 1e-4, fused=True)

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

    return {"net": net, "optimizer": optimizer, "sample": sample, "step": step}


def bare(job: dict[str, Any], steps: int) -> None:
    generator = torch.Generator().manual_seed(0)
    for _ in range(steps):
        job["step"](job["sample"](generator))


def full(job: dict[str, Any], steps: int, ema: dict[str, float] | None = None) -> None:
    train(job["step"], job["sample"], {"net": job["net"]}, {"net": job["optimizer"]}, steps, ema=ema)


def seconds(run: Callable[[], None]) -> float:
    began = time.process_time()
    run()
    return time.process_time() - began


def measure(name: str, job: dict[str, Any], steps: int, rounds: int) -> list[dict[str, Any]]:
    runs = {
        "bare": lambda: bare(job, steps),
        "loop": lambda: full(job, steps),
        "loop with EMA": lambda: full(job, steps, {"net": 0.999}),
    }
    times: dict[str, list[float]] = {kind: [] for kind in runs}
    bare(job, max(3, steps // 4))  # warm up
    for i in range(rounds):
        order = list(runs)
        for kind in order[i % 3 :] + order[: i % 3]:
            times[kind].append(seconds(runs[kind]) / steps)
    rows = []
    for kind, values in times.items():
        ratio = statistics.median(v / b for v, b in zip(values, times["bare"], strict=True))
        row = {"net": name, "loop": kind, "ms_per_step": 1e3 * statistics.median(values)}
        rows.append(row | {"overhead_percent": 100 * (ratio - 1)})
    return rows


def nothing() -> dict[str, Any]:
    """A job whose step only hands back a number."""
    job = case(net := nets.MLP(), net, (1, 2), diffusion.linear())
    return job | {"sample": lambda generator: None, "step": lambda batch: {"loss": 0.0}}


def table(rows: list[dict[str, Any]], rounds: int) -> str:
    lines = [
        f"{'network':24}{'loop':16}{'ms/step':>10}{'overhead':>12}   (limit {LIMIT:.0f} %, median of {rounds} rounds)"
    ]
    for row in rows:
        share = "" if row["net"] == "nothing" or row["loop"] == "bare" else f"{row['overhead_percent']:+10.2f} %"
        lines.append(f"{row['net']:24}{row['loop']:16}{row['ms_per_step']:10.4f}{share:>12}")
    return "\n".join(lines)


def run(rounds: int) -> list[dict[str, Any]]:
    """Measure all rows, with the loop's progress bars out of the way."""
    torch.manual_seed(0)
    schedule = diffusion.linear()
    unet, mlp = nets.small_unet(16), nets.MLP()
    image_job = case(unet, nets.eps_model(unet), (64, 1, 16, 16), schedule)
    with contextlib.redirect_stderr(io.StringIO()):
        rows = measure("U-Net 16x16, batch 64", image_job, 2, rounds)
        rows += measure("MLP 2-D, batch 512", case(mlp, mlp, (512, 2), schedule), 100, rounds)
        return rows + measure("nothing", nothing(), 2000, rounds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=21, help="bare and full loops each take this many turns")
    parser.add_argument("--json", type=Path, help="write the table there as well")
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows = run(options.rounds)
    print(table(rows, options.rounds))
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
