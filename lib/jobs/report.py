"""What a fine-tuning job shows: samples, a sheet of them, and metrics, each with its protocol or why it is missing."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from safetensors.torch import save
from torch import Tensor
from torchvision.transforms.functional import to_pil_image

from lib.ground.diffusion import Model, Schedule
from lib.ground.folder import Read
from lib.jobs import hub
from lib.jobs.hub import Source
from lib.jobs.methods import BATCH, sample
from lib.jobs.settings import Settings
from lib.measures import distances as image_metrics
from lib.measures import perceptual
from lib.record import figures
from lib.record.files import UserError, write_atomic
from lib.worlds import judge as metrics
from lib.worlds import sources as source

SHEET = "samples.safetensors"  # the images of the sheet
FEW = 50  # Intra-LPIPS has one cluster a training image; above this many there is nothing few-shot to measure
K = 3  # neighbours of precision and recall
CAP = 50  # members of a cluster that count, as in CDC's code


def write(
    s: Settings, out: Path, start: Source, model: Model, found: Read, device: torch.device, progress: bool
) -> dict[str, Any]:
    """Sample the student `model`, write ``samples/`` and ``samples.png``, and return the metrics.

    A metric that cannot be had is None, and ``missing`` says why.
    """
    shape, total = found.images.shape[1:], max(s.samples, s.shown)
    options: dict[str, Any] = {"sampler": s.sampler, "steps": s.sampling_steps, "seed": s.seed}
    drawn = sample(model, start.schedule, shape, total, device, progress=progress, **options)
    as_many = min(total, -(-s.shown // BATCH) * BATCH)  # in batches of the same size, so that the noise is the same
    of_source = sample(hub.mean_model(start.unet), start.schedule, shape, as_many, device, **options)[: s.shown]
    distance, index = nearest(drawn, found.images)
    rows = {"source": of_source, "student": drawn[: s.shown], "nearest": found.images[index[: s.shown]]}
    write_atomic(out / SHEET, save({name: images.contiguous() for name, images in rows.items()}))
    write_atomic(out / "samples.png", figures.render(partial(sheet, rows), "light", "png"))
    drawn, distance = drawn[: s.samples], distance[: s.samples]
    write_images(out / "samples", drawn)
    missing: dict[str, str] = {}
    steps, size = min(s.sampling_steps, start.schedule.T), " x ".join(map(str, shape))
    return {
        "protocol": f"{s.samples} samples of {size}, {s.sampler}, {steps} steps, x0 clamped, seed {s.seed}",
        "nearest_training_distance": {
            "mean": float(distance.mean()),
            "least": float(distance.min()),
            "among_training": _among(found.images),
            "protocol": f"root-mean-square pixel distance in [-1, 1] of {s.samples} samples to the nearest of "
            f"{len(found.images)} training images, and of these to the nearest other one",
        },
        "intra_lpips": _intra_lpips(s, drawn, found.images, device, missing),
        **_distances(s, out, drawn, device, missing),
        "missing": missing,
    }


def sheet(rows: dict[str, Tensor]) -> Figure:
    """Return three rows of images: source and student from equal noise, the training image nearest to the student's.

    Brightness is that of the files, also of grey images.

    Parameters
    ----------
    rows
        ``source``, ``student`` and ``nearest``, each (n, c, h, w), as a job leaves them in ``samples.safetensors``.
    """
    images = torch.cat([rows[name].expand(-1, 3, -1, -1) for name in ("source", "student", "nearest")])
    cell = min(max(0.7, images.shape[-1] / 128), 1.6)
    labels = ["source", "student", "nearest\ntraining"]
    return figures.image_grid(images, ncols=len(rows["source"]), row_labels=labels, cell=cell)


def nearest(images: Tensor, training: Tensor) -> tuple[Tensor, Tensor]:
    """Return what `lib.measures.distances.nearest` does, a few images at a time."""
    parts = [image_metrics.nearest(part, training) for part in images.split(BATCH)]
    return torch.cat([part[0] for part in parts]), torch.cat([part[1] for part in parts])


def write_images(place: Path, images: Tensor) -> None:
    """Write images (n, c, h, w) in [-1, 1] as numbered PNG files into a new folder."""
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir(parents=True)
    for i, image in enumerate(images):
        to_pil_image(((image + 1) * 127.5).round().to(torch.uint8)).save(place / f"{i:05d}.png")


def _among(training: Tensor) -> float | None:
    """Mean distance of the training images to the nearest other one."""
    if len(training) < 2:
        return None
    rest = [torch.cat([training[:i], training[i + 1 :]]) for i in range(min(len(training), FEW))]
    return sum(float(image_metrics.nearest(training[i : i + 1], other)[0]) for i, other in enumerate(rest)) / len(rest)


def _intra_lpips(
    s: Settings, drawn: Tensor, training: Tensor, device: torch.device, missing: dict[str, str]
) -> dict[str, Any] | None:
    if len(training) > FEW:
        missing["intra_lpips"] = f"made for few shots, up to {FEW}; there are {len(training)} training images"
        return None
    try:
        if s.judge:
            embedding = metrics.digit_features(source.load_classifier(s.judge, device))
        else:
            embedding = perceptual.lpips_features("vgg", 256, device)
        found = perceptual.intra_lpips_stream(embedding, drawn.split(BATCH), training, cap=CAP, seed=s.seed)
    except UserError as error:
        missing["intra_lpips"] = str(error)
        return None
    value = None if math.isnan(found.value) else found.value
    if value is None:
        missing["intra_lpips"] = "no training image is the nearest of two samples; ask for more samples"
    spread = None if value is None else found.spread
    return {"value": value, "spread": spread, "counts": list(found.counts), "protocol": found.protocol}


def scorer(
    s: Settings, out: Path, schedule: Schedule, model: Model, shape: torch.Size, device: torch.device
) -> Callable[[], float]:
    """Return a function that samples `model` and returns KID against the reference images, always from the same noise.

    Raises
    ------
    UserError
        The reference cannot be read, or Inception's weights are neither there nor can they be downloaded.
    """
    reference = _reference(s, out, shape)
    options: dict[str, Any] = {"sampler": s.sampler, "steps": s.sampling_steps, "seed": s.seed}
    place, network = out / "scored", image_metrics.inception(device)

    def features(images: Tensor) -> np.ndarray:  # (n, 2048)
        write_images(place, images)
        try:
            return image_metrics.folder_features(place, network, device)
        finally:
            shutil.rmtree(place, ignore_errors=True)

    of_reference = features(reference.images)

    def score() -> float:
        drawn = features(sample(model, schedule, shape, s.score_samples, device, **options))
        return image_metrics.kernel_distance(drawn, of_reference, seed=s.seed)

    return score


def _reference(s: Settings, out: Path, shape: torch.Size) -> Read:
    """Read the reference images at the model's size."""
    options: dict[str, Any] = {"damaged": s.damaged, "recursive": s.recursive, "split": s.split, "column": s.column}
    return hub.target(s.reference, shape[-1], shape[0], cache=out / "cache", parameter="reference", **options)


def _distances(s: Settings, out: Path, drawn: Tensor, device: torch.device, missing: dict[str, str]) -> dict[str, Any]:
    """FID, KID, precision and recall against the reference images, at the model's size."""
    names = ("fid", "kid", "precision", "recall")
    nothing: dict[str, Any] = dict.fromkeys(names)
    if not s.reference:
        missing.update(dict.fromkeys(names, "no reference images given (setting: reference)"))
        return nothing
    reference = _reference(s, out, drawn.shape[1:])
    place = out / "reference"
    write_images(place, reference.images)
    try:
        found = image_metrics.folder_distances(out / "samples", place, device, seed=s.seed)
    except UserError as error:
        missing.update(dict.fromkeys(names, str(error)))
        return nothing
    finally:
        shutil.rmtree(place, ignore_errors=True)
    features = [torch.from_numpy(rows) for rows in found.features]
    n = min(map(len, features))
    both: tuple[float | None, ...]
    if n <= K:
        missing.update(dict.fromkeys(names[2:], f"{n} images; {K} neighbours take more"))
        line, both = "", (None, None)
    else:
        both = tuple(image_metrics.precision_recall(features[0][:n], features[1][:n], k=K))
        sets = {"samples": n, "reference": n}
        line = image_metrics.protocol("precision and recall", sets, "Inception 2015-12-05, 2,048", "bicubic 299", k=K)
    values = (found.fid, found.kid, *both)
    lines = (found.protocol, found.protocol, line, line)
    pairs = zip(names, values, lines, strict=True)
    return {name: None if value is None else {"value": value, "protocol": line} for name, value, line in pairs}
