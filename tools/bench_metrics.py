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
from tools.bench_tools import Row, interleaved, options, ratio, row, seconds, table

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
    device: torch.device,
    net: str = "vgg",
    size: int = 32,
    sets: tuple = SETS,
    k: int = 10,
    pairs: int = 32,
    rounds: int = 3,
) -> list[Row]:
    """Return the rows of this section."""
    embedding = perceptual.lpips_features(net, size, device, random=True)
    model = perceptual.lpips_model(net, random=True).to(device)
    few, training = data(12, 3, size, device)
    ours, theirs = perceptual.intra_lpips(embedding(few), embedding(training)).value, naive(model, few, training)
    rows = [row("difference of the two values, relative (12 samples)", abs(ours / theirs - 1), most=1e-5)]
    for n, least in sets:
        samples, training = data(n, k, size, device)
        found: list[perceptual.IntraLPIPS] = []

        def embed(samples: Tensor = samples, training: Tensor = training, found: list = found) -> None:
            if size > 64:  # a thousand embeddings would take 32 GB at 256 pixels
                found.append(perceptual.intra_lpips_stream(embedding, samples.split(16), training))
            else:
                found.append(perceptual.intra_lpips(embedding(samples), embedding(training)))

        def one_by_one(samples: Tensor = samples) -> None:
            for i in range(pairs):
                model(samples[i : i + 1], samples[i + 1 : i + 2]).item()

        def at_once(samples: Tensor = samples) -> None:
            model(samples[:pairs], samples[1 : pairs + 1]).tolist()

        model(samples[:1], samples[1:2])  # warm up
        times = interleaved({"ours": embed, "one": one_by_one, "many": at_once}, rounds, device, warm_up=n < 500)
        total = evaluations(found[0].counts)
        how = f"loop extrapolated from {pairs} pairs a round to {total:,} pair evaluations; ours measured whole"
        faster = ratio(times["one"], times["ours"]) * total / pairs
        batched = ratio(times["many"], times["ours"]) * total / pairs
        rows.append(
            row(f"{n:,} samples, {k} training images: faster than one pair a call", faster, "x", least=least, note=how)
        )
        rows.append(row(f"{n:,} samples, {k} training images: faster than {pairs} pairs a call", batched, "x"))
        rows.append(row(f"{n:,} samples: seconds, ours", statistics.median(times["ours"]), "s"))
    z = embedding(samples[:100])
    share = seconds(lambda: perceptual.intra_lpips(z, z[:k]), device) / seconds(
        lambda: embedding(samples[:100]), device
    )
    rows.append(row("time of everything after the network, share of the network's", 100 * share, "%"))
    return rows


def main() -> None:
    """Print the table of this section."""
    chosen = options(__doc__)
    size = 256 if chosen.device.type == "cuda" else 32
    print(table(TITLE, measure(chosen.device, size=size, rounds=chosen.rounds or 3)))


if __name__ == "__main__":
    main()
