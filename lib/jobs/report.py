"""What a fine-tuning job shows: samples, a sheet of them, and metrics, each with its protocol or why it is missing."""

import math
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from safetensors.torch import save
from torch import Tensor
from torchvision.transforms.functional import to_pil_image

from lib.jobs import methods
from lib.jobs.hub import Source
from lib.jobs.methods import BATCH
from lib.jobs.settings import Settings
from lib.measures import distances, perceptual
from lib.record import figures
from lib.record.files import DRAFT, UserError, replacing, write_atomic
from lib.worlds import judge, sources

SHEET = "samples.safetensors"  # the images of the sheet
METRICS = ("intra_lpips", "fid", "kid", "precision", "recall")
FEW = 50  # Intra-LPIPS has one cluster a training image; above this many there is nothing few-shot to measure
K = 3  # neighbours of precision and recall
CAP = 50  # members of a cluster that count, as in CDC's code

Metric = tuple[str, dict[str, Any]]  # name; value and protocol


def write(s: Settings, source: Source, unet: Any, training: Tensor, reference: Tensor | None) -> dict[str, Any]:
    """Sample the student `unet`, write ``samples/`` and ``samples.png``, and return the metrics.

    A metric that cannot be had is None, and ``missing`` says why.
    """
    noise, generator = methods.noise(s, source, max(s.samples, s.shown))
    drawn = methods.sample(s, source, unet, (noise, generator))
    begin = noise[: math.ceil(s.shown / BATCH) * BATCH], generator  # in batches of the same size, for the same noise
    of_source = methods.sample(s, source, source.unet, begin)[: s.shown]
    parts = [distances.nearest(part, training) for part in drawn.split(BATCH)]
    distance, index = (torch.cat(values) for values in zip(*parts, strict=True))
    rows = {"source": of_source, "student": drawn[: s.shown], "nearest": training[index[: s.shown]]}
    write_atomic(s.out / SHEET, save({name: images.contiguous() for name, images in rows.items()}))
    write_atomic(s.out / "samples.png", figures.render(partial(sheet, rows), "light", "png"))
    drawn, distance = drawn[: s.samples], distance[: s.samples]
    write_images(s.out / "samples", drawn)
    found: dict[str, Any] = {}
    missing: dict[str, str] = {}
    for names, measure in (
        (METRICS[:1], _intra_lpips(s, source, drawn, training)),
        (METRICS[1:], _distances(s, source, reference)),
    ):
        try:
            found.update(measure)
        except UserError as error:
            missing |= {name: str(error) for name in names if name not in found}
    steps, size = min(s.sampling_steps, source.schedule.T), " x ".join(map(str, source.shape))
    return {
        "protocol": f"{s.samples} samples of {size}, {s.sampler}, {steps} steps, x0 clamped, seed {s.seed}",
        "nearest_training_distance": {
            "mean": float(distance.mean()),
            "least": float(distance.min()),
            "among_training": _among(training),
            "protocol": f"root-mean-square pixel distance in [-1, 1] of {s.samples} samples to the nearest of "
            f"{len(training)} training images, and of these to the nearest other one",
        },
        **dict.fromkeys(METRICS),
        **found,
        "missing": missing,
    }


def sheet(rows: dict[str, Tensor]) -> Figure:
    """Return three rows of images: source and student from equal noise, the training image nearest to the student's.

    `rows` are ``source``, ``student`` and ``nearest``, each (n, c, h, w), as a job leaves them in
    ``samples.safetensors``. Brightness is that of the files, also of grey images.
    """
    return grid({"source": rows["source"], "student": rows["student"], "nearest\ntraining": rows["nearest"]})


def grid(rows: dict[str, Tensor]) -> Figure:
    """Return rows of images, each (n, c, h, w), by their labels."""
    images = torch.cat([row.expand(-1, 3, -1, -1) for row in rows.values()])
    cell = min(max(0.7, images.shape[-1] / 128), 1.6)
    return figures.image_grid(images, ncols=len(images) // len(rows), row_labels=list(rows), cell=cell)


def write_images(place: Path, images: Tensor) -> None:
    """Write images (n, c, h, w) in [-1, 1] as numbered PNG files into a new folder."""
    with replacing(place) as draft:
        for i, image in enumerate(images):
            to_pil_image(((image + 1) * 127.5).round().to(torch.uint8)).save(draft / f"{i:05d}.png")


def scorer(s: Settings, source: Source, unet: Any, reference: Tensor) -> Callable[[], float]:
    """Return a function that samples `unet` and returns KID against the reference images, always from the same noise.

    Raises
    ------
    UserError
        Inception's weights are neither there nor can they be downloaded.
    """
    device = source.unet.device
    network = distances.inception(device)

    def features(images: Tensor) -> np.ndarray:  # (n, 2048)
        with tempfile.TemporaryDirectory(dir=s.out, prefix=DRAFT) as place:
            write_images(Path(place), images)
            return distances.folder_features(place, network, device)

    of_reference = features(reference)
    begin = methods.noise(s, source, s.score_samples)

    def score() -> float:
        drawn = features(methods.sample(s, source, unet, begin))
        return distances.kernel_distance(drawn, of_reference, seed=s.seed)

    return score


def _among(training: Tensor) -> float | None:
    """Mean distance of the training images, at most `FEW` of them, to the nearest other one."""
    flat = training.flatten(1)  # (n, d)
    apart = torch.cdist(flat[:FEW], flat).fill_diagonal_(math.inf)
    nearest = apart.min(1).values / flat.shape[1] ** 0.5
    return nearest.double().mean().item() if len(training) > 1 else None


def _intra_lpips(s: Settings, source: Source, drawn: Tensor, training: Tensor) -> Iterator[Metric]:
    if len(training) > FEW:
        raise UserError(f"made for few shots, up to {FEW}; there are {len(training)} training images")
    if s.judge:
        embedding = judge.digit_features(sources.load_classifier(s.judge, source.unet.device))
    else:
        embedding = perceptual.lpips_features("vgg", 256, source.unet.device)
    found = perceptual.intra_lpips(embedding, drawn.split(BATCH), training, CAP, s.seed)
    if math.isnan(found.value):
        raise UserError("no training image is the nearest of two samples; ask for more samples")
    shown = {"value": found.value, "spread": found.spread, "counts": list(found.counts), "protocol": found.protocol}
    yield "intra_lpips", shown


def _distances(s: Settings, source: Source, reference: Tensor | None) -> Iterator[Metric]:
    """FID, KID, precision and recall of ``samples/`` against the reference images, at the model's size."""
    if reference is None:
        raise UserError("no reference images given (setting: reference)")
    with tempfile.TemporaryDirectory(dir=s.out, prefix=DRAFT) as place:
        write_images(Path(place), reference)
        found = distances.folder_distances(s.out / "samples", place, source.unet.device, seed=s.seed)
    for name in ("fid", "kid"):
        yield name, {"value": getattr(found, name), "protocol": found.protocol}
    n = min(map(len, found.features))
    drawn, real = (torch.from_numpy(rows[:n]) for rows in found.features)
    sets = {"samples": n, "reference": n}
    line = distances.protocol("precision and recall", sets, "Inception 2015-12-05, 2,048", "bicubic 299", k=K)
    for name, value in distances.precision_recall(drawn, real, k=K)._asdict().items():
        yield name, {"value": value, "protocol": line}
