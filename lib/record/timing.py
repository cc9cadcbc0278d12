"""Fair timing: things that are compared run in turns in one process, and the clock counts their work alone."""

import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

import torch


def seconds(run: Callable[[], Any], device: torch.device) -> float:
    """Return the time that `run` takes: processor time on a CPU, wall time until a GPU is done."""
    if device.type == "cpu":
        began = time.process_time()
        run()
        return time.process_time() - began
    torch.cuda.synchronize(device)
    wall = time.perf_counter()
    run()
    torch.cuda.synchronize(device)
    return time.perf_counter() - wall


def interleaved(
    runs: Mapping[str, Callable[[], Any]], rounds: int, device: torch.device, warm_up: bool = True
) -> dict[str, list[float]]:
    """Return the seconds of every run in every round; each round begins with another one."""
    names = list(runs)
    if warm_up:
        for name in names:
            runs[name]()
    times: dict[str, list[float]] = {name: [] for name in names}
    for i in range(rounds):
        start = i % len(names)
        for name in names[start:] + names[:start]:
            times[name].append(seconds(runs[name], device))
    return times


def ratio(above: list[float], below: list[float]) -> float:
    """Return the median over rounds of the quotient within a round."""
    return statistics.median(a / b for a, b in zip(above, below, strict=True))


def matrix_products(
    device: torch.device, side: int, repeats: int, dtype: torch.dtype = torch.float32
) -> tuple[Callable[[], Any], int]:
    """Return `repeats` products of side x side matrices to be timed, and the operations in them.

    Their rate is what a network that was one large matrix product would reach.
    """
    a, b = torch.randn(2, side, side, generator=torch.Generator().manual_seed(0)).to(device, dtype)
    return lambda: [a @ b for _ in range(repeats)], repeats * 2 * side**3
