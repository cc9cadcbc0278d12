"""Measure Intra-LPIPS by embeddings against a loop over pairs with the `lpips` package, on a random VGG trunk.

The loop calls the package once a pair, as published evaluation code does. Its time for all pairs is that of the
measured ones times the number of pairs, which the printed line says. A second, kinder loop sends 32 pairs at a time.
"""

from __future__ import annotations

import itertools
import statistics
from typing import Any

import torch
from torch import Tensor

from lib.measures import perceptual
from lib.record.timing import interleaved, ratio
from tools.bench_tools import Row, row

TITLE = "Intra-LPIPS: embeddings against a loop over pairs (lpips package, VGG trunk drawn at random)"
SETS = ((300, 30.0), (1000, 100.0))  # samples, least ratio


def data(n: int, k: int, size: int, device: torch.device, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Samples (n, 3, size, size) around k training images in turn, so that clusters are about equal; both sets."""
    generator = torch.Generator().manual_seed(seed)
    training = torch.rand(k, 3, size, size, generator=generator) * 2 - 1
    noise = torch.rand(n, 3, size, size, generator=generator) * 2 - 1
    return (0.5 * training[torch.arange(n) % k] + 0.5 * noise).to(device), training.to(device)


def evaluations(counts: tuple[int, ...]) -> int:
    """Pair evaluations of the loop: every sample with every training image, then all pairs of every cluster."""
    return sum(counts) * len(counts) + sum(n * (n - 1) // 2 for n in counts)


@torch.no_grad()
def naive(model: Any, samples: Tensor, training: Tensor) -> float:
    """Intra-LPIPS as it is defined, one pair a call; clusters without a pair are left out."""
    cluster = [min(range(len(training)), key=lambda i: model(x[None], training[i : i + 1]).item()) for x in samples]
    means = []
    for i in range(len(training)):
        members = [x[None] for x, found in zip(samples, cluster, strict=True) if found == i]
        if len(members) > 1:
            means.append(statistics.fmean(model(a, b).item() for a, b in itertools.combinations(members, 2)))
    return statistics.fmean(means)


@torch.no_grad()
def measure(
    device: torch.device, rounds: int = 2, net: str = "vgg", sets: tuple = SETS, k: int = 10, pairs: int = 32
) -> list[Row]:
    """Return the rows of this section."""
    size, batch = (256, 16) if device.type == "cuda" else (32, 64)
    embedding = perceptual.lpips_features(net, size, device, random=True)
    model = perceptual.lpips_model(net, random=True).to(device)
    few, training = data(12, 3, size, device)
    ours, theirs = perceptual.intra_lpips(embedding, [few], training).value, naive(model, few, training)
    rows = [row("difference of the two values, relative (12 samples)", abs(ours / theirs - 1), most=1e-5)]
    for n, least in sets:
        samples, training = data(n, k, size, device)
        a, b = samples[:pairs], samples[1 : pairs + 1]
        model(a[:1], b[:1])  # warm up
        runs = {
            "ours": lambda s=samples, g=training: perceptual.intra_lpips(embedding, s.split(batch), g),
            "one": lambda a=a, b=b: [model(x[None], y[None]).item() for x, y in zip(a, b, strict=True)],
            "many": lambda a=a, b=b: model(a, b).tolist(),
        }
        times = interleaved(runs, rounds, device, warm_up=n < 500)
        total = evaluations(runs["ours"]().counts)
        how = f"loop extrapolated from {pairs} pairs a round to {total:,} pair evaluations; ours measured whole"
        one, many = (ratio(times[name], times["ours"]) * total / pairs for name in ("one", "many"))
        words = f"{n:,} samples, {k} training images: faster than"
        rows += [
            row(f"{words} one pair a call", one, "x", least=least, note=how),
            row(f"{words} {pairs} pairs a call", many, "x"),
            row(f"{n:,} samples: seconds, ours", statistics.median(times["ours"]), "s"),
        ]
    return rows
