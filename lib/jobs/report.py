"""What a fine-tuning job shows: samples, a sheet of them, and metrics, each with its protocol or why it is missing."""

from __future__ import annotations

import math
import tempfile
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

from lib.ground.diffusion import Model
from lib.ground.folder import Read
from lib.ground.nets import eps_model
from lib.jobs import methods
from lib.jobs.hub import Source
from lib.jobs.methods import BATCH
from lib.jobs.settings import Settings
from lib.measures import distances, perceptual
from lib.record import figures
from lib.record.files import UserError, replacing, write_atomic
from lib.worlds import judge, sources

SHEET = "samples.safetensors"  # the images of the sheet
FEW = 50  # Intra-LPIPS has one cluster a training image; above this many there is nothing few-shot to measure
K = 3  # neighbours of precision and recall
CAP = 50  # members of a cluster that count, as in CDC's code

Missing = dict[str, str]  # a metric that cannot be had, and why


def write(s: Settings, out: Path, source: Source, model: Model, found: Read, device: torch.device) -> dict[str, Any]:
    """Sample the student `model`, write ``samples/`` and ``samples.png``, and return the metrics.

    A metric that cannot be had is None, and ``missing`` says why.
    """
    shape, total = found.images.shape[1:], max(s.samples, s.shown)
    noise, generator = methods.noise(s, shape, total)
    drawn = methods.sample(s, model, source.schedule, (noise, generator), device)
    begin = noise[: math.ceil(s.shown / BATCH) * BATCH], generator  # in batches of the same size, for the same noise
    of_source = methods.sample(s, eps_model(source.unet), source.schedule, begin, device)[: s.shown]
    parts = [distances.nearest(part, found.images) for part in drawn.split(BATCH)]
    distance, index = (torch.cat(values) for values in zip(*parts, strict=True))
    rows = {"source": of_source, "student": drawn[: s.shown], "nearest": found.images[index[: s.shown]]}
    write_atomic(out / SHEET, save({name: images.contiguous() for name, images in rows.items()}))
    write_atomic(out / "samples.png", figures.render(partial(sheet, rows), "light", "png"))
    drawn, distance = drawn[: s.samples], distance[: s.samples]
    write_images(out / "samples", drawn)
    missing: Missing = {}
    steps, size = min(s.sampling_steps, source.schedule.T), " x ".join(map(str, shape))
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
        **_distances(s, out, source, device, missing),
        "missing": missing,
    }


def sheet(rows: dict[str, Tensor]) -> Figure:
    """Return three rows of images: source and student from equal noise, the training image nearest to the student's.

    `rows` are ``source``, ``student`` and ``nearest``, each (n, c, h, w), as a job leaves them in
    ``samples.safetensors``. Brightness is that of the files, also of grey images.
    """
    images = torch.cat([rows[name].expand(-1, 3, -1, -1) for name in ("source", "student", "nearest")])
    cell = min(max(0.7, images.shape[-1] / 128), 1.6)
    labels = ["source", "student", "nearest\ntraining"]
    return figures.image_grid(images, ncols=len(rows["source"]), row_labels=labels, cell=cell)


def write_images(place: Path, images: Tensor) -> None:
    """Write images (n, c, h, w) in [-1, 1] as numbered PNG files into a new folder."""
    with replacing(place) as draft:
        for i, image in enumerate(images):
            to_pil_image(((image + 1) * 127.5).round().to(torch.uint8)).save(draft / f"{i:05d}.png")


def scorer(
    s: Settings, out: Path, source: Source, model: Model, shape: torch.Size, device: torch.device
) -> Callable[[], float]:
    """Return a function that samples `model` and returns KID against the reference images, always from the same noise.

    Raises
    ------
    UserError
        The reference cannot be read, or Inception's weights are neither there nor can they be downloaded.
    """
    network = distances.inception(device)

    def features(images: Tensor) -> np.ndarray:  # (n, 2048)
        with tempfile.TemporaryDirectory(dir=out) as place:
            write_images(Path(place), images)
            return distances.folder_features(place, network, device)

    of_reference = features(methods.images(s, source, "reference").images)
    begin = methods.noise(s, shape, s.score_samples)

    def score() -> float:
        drawn = features(methods.sample(s, model, source.schedule, begin, device))
        return distances.kernel_distance(drawn, of_reference, seed=s.seed)

    return score


def _among(training: Tensor) -> float | None:
    """Mean distance of the training images, at most `FEW` of them, to the nearest other one."""
    if len(training) < 2:
        return None
    rest = [torch.cat([training[:i], training[i + 1 :]]) for i in range(min(len(training), FEW))]
    return sum(float(distances.nearest(training[i : i + 1], other)[0]) for i, other in enumerate(rest)) / len(rest)


def _intra_lpips(
    s: Settings, drawn: Tensor, training: Tensor, device: torch.device, missing: Missing
) -> dict[str, Any] | None:
    try:
        if len(training) > FEW:
            raise UserError(f"made for few shots, up to {FEW}; there are {len(training)} training images")
        if s.judge:
            embedding = judge.digit_features(sources.load_classifier(s.judge, device))
        else:
            embedding = perceptual.lpips_features("vgg", 256, device)
        found = perceptual.intra_lpips(embedding, drawn.split(BATCH), training, CAP, s.seed)
        if math.isnan(found.value):
            raise UserError("no training image is the nearest of two samples; ask for more samples")
    except UserError as error:
        missing["intra_lpips"] = str(error)
        return None
    return {"value": found.value, "spread": found.spread, "counts": list(found.counts), "protocol": found.protocol}


def _distances(s: Settings, out: Path, source: Source, device: torch.device, missing: Missing) -> dict[str, Any]:
    """FID, KID, precision and recall of ``samples/`` against the reference images, at the model's size."""
    names = ("fid", "kid", "precision", "recall")
    nothing: dict[str, Any] = dict.fromkeys(names)
    try:
        if not s.reference:
            raise UserError("no reference images given (setting: reference)")
        with tempfile.TemporaryDirectory(dir=out) as place:
            write_images(Path(place), methods.images(s, source, "reference").images)
            found = distances.folder_distances(out / "samples", place, device, seed=s.seed)
    except UserError as error:
        missing.update(dict.fromkeys(names, str(error)))
        return nothing
    values: Any = {name: {"value": getattr(found, name), "protocol": found.protocol} for name in names[:2]}
    features = [torch.from_numpy(rows) for rows in found.features]
    n = min(map(len, features))
    if n <= K:
        missing.update(dict.fromkeys(names[2:], f"{n} images; {K} neighbours take more"))
        return nothing | values
    sets = {"samples": n, "reference": n}
    line = distances.protocol("precision and recall", sets, "Inception 2015-12-05, 2,048", "bicubic 299", k=K)
    both = zip(names[2:], distances.precision_recall(features[0][:n], features[1][:n], k=K), strict=True)
    return values | {name: {"value": value, "protocol": line} for name, value in both}
