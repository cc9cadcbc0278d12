"""Measures on images themselves: PSNR, SSIM, precision and recall, FID and KID of folders.

None of these numbers means anything without its protocol: how many images of which sets, in which features, resized
how. :func:`protocol` writes it in one line.
"""

import math
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torchmetrics.functional.image import peak_signal_noise_ratio, structural_similarity_index_measure

from lib.measures.weights import fetched
from lib.record.files import UserError

with warnings.catch_warnings(action="ignore"):
    from cleanfid import downloads_helper, fid
    from cleanfid.inception_torchscript import InceptionV3W

Features = Tensor | np.ndarray
INCEPTION = "inception-2015-12-05.pt"
ROWS = 1000  # rows of a block of distances


def protocol(measure: str, sets: Mapping[str, int], features: str, resize: str = "none", **options: Any) -> str:
    """Return one line to print and record beside a number: the measure, the sizes of its sets in the order in which it
    takes them, the features compared, the resizing, and whatever else the number depends on.
    """
    counted = ", ".join(f"{n:,} {name}" for name, n in sets.items())
    more = "".join(f"; {name} = {value}" for name, value in options.items())
    return f"{measure}: {counted}; features: {features}; resize: {resize}{more}"


def psnr(images: Tensor, reference: Tensor) -> Tensor:
    """Return the peak signal-to-noise ratio of each pair in dB, (n,), by torchmetrics; infinite for equal images.

    Images (n, c, h, w) in [-1, 1] are clamped and mapped to [0, 1], so that the peak is 1. One mean square error an
    image, over all channels.
    """
    a, b = _pairs(images, reference)
    return peak_signal_noise_ratio(a, b, data_range=1.0, reduction="none", dim=(1, 2, 3)).to(images.dtype)


def ssim(images: Tensor, reference: Tensor) -> Tensor:
    """Return the structural similarity of each pair, (n,), 1 for equal images, by torchmetrics (Wang et al. 2004).

    Gaussian window of 11 x 11 pixels and standard deviation 1.5, on images mapped as in :func:`psnr`.
    """
    a, b = _pairs(images, reference)
    if min(a.shape[-2:]) < 11:
        raise UserError(f"images of {a.shape[-2]} x {a.shape[-1]} given; SSIM's window needs sides of 11 or more")
    found = structural_similarity_index_measure(a, b, data_range=1.0, reduction="none")
    assert isinstance(found, Tensor)
    return found.reshape(-1).to(images.dtype)


def _pairs(images: Tensor, reference: Tensor) -> tuple[Tensor, Tensor]:
    if images.shape != reference.shape or images.ndim != 4:
        shapes = f"{tuple(images.shape)} and {tuple(reference.shape)}"
        raise UserError(f"images of shapes {shapes} given; it should be two sets (n, c, h, w) of pairs")
    a, b = (x.double().clamp(-1, 1) for x in (images, reference))  # SSIM subtracts nearly equal squares
    return (a + 1) / 2, (b + 1) / 2


class PrecisionRecall(NamedTuple):
    """Fidelity and diversity of generated images, both from 0 to 1."""

    precision: float  # share of generated images inside the manifold of the real ones
    recall: float  # share of real images inside the manifold of the generated ones


def precision_recall(generated: Features, real: Features, k: int = 3) -> PrecisionRecall:
    """Return precision and recall (Kynkäänniemi et al. 2019, Alg. 1) in features (n, d) and (m, d).

    The manifold of a set is the union of balls around its members, each as large as the distance to the member's k-th
    nearest neighbour in the set. Take equally many images of both sets: more images, smaller balls.
    """
    if k < 1 or min(len(generated), len(real)) <= k:
        raise UserError(f"k: {k} given with {len(generated)} and {len(real)} images; each set needs more than k >= 1")
    a, b = (torch.from_numpy(x) for x in _checked(generated, real))
    return PrecisionRecall(_inside(a, b, k), _inside(b, a, k))


def _inside(points: Tensor, manifold: Tensor, k: int) -> float:
    """Share of points in at least one ball of the manifold."""
    blocks = [torch.cdist(part, manifold).kthvalue(k + 1, dim=1).values for part in manifold.split(ROWS)]
    radius = torch.cat(blocks)  # (m,), the nearest of all is the member itself
    inside = [(torch.cdist(part, manifold) <= radius).any(1) for part in points.split(ROWS)]
    return torch.cat(inside).double().mean().item()


class FolderDistances(NamedTuple):
    """FID and KID of two folders, with what to write beside them."""

    fid: float
    kid: float  # papers often print a thousand times this
    protocol: str
    features: tuple[np.ndarray, np.ndarray]  # of both folders, see `folder_features`


def folder_distances(
    generated: str | Path, reference: str | Path, device: torch.device | str = "cpu", seed: int = 0
) -> FolderDistances:
    """Return FID and KID of two folders of images by clean-fid with its own Inception, as its default mode has them.

    Every image is resized to 299 x 299 by Pillow's bicubic filter, which does not alias; features are computed once for
    both numbers. KID averages over 100 subsets of up to 1,000 images each, drawn with `seed`.
    """
    for folder in map(Path, (generated, reference)):
        found = sum(path.suffix.lower()[1:] in fid.EXTENSIONS for path in folder.rglob("*"))
        if found < 2:
            raise UserError(f"folder {folder}: {found} images found; FID and KID need two, and better 2,048 or more")
    model = inception(device)
    a, b = (folder_features(folder, model, device) for folder in (generated, reference))
    return distances_of(a, b, seed)


def distances_of(a: np.ndarray, b: np.ndarray, seed: int = 0) -> FolderDistances:
    """Return the same of the features of two folders, see `folder_features`."""
    with warnings.catch_warnings(action="ignore"):  # clean-fid passes scipy an argument that is deprecated
        frechet = float(fid.fid_from_feats(a, b))
    sets = {"generated": len(a), "reference": len(b)}
    subsets = f"100 subsets of up to {min(1000, len(a), len(b))}, seed {seed}"
    line = protocol("FID and KID by clean-fid", sets, "Inception 2015-12-05, 2,048", "bicubic 299", KID=subsets)
    return FolderDistances(frechet, kernel_distance(a, b, subsets=100, size=1000, seed=seed), line, (a, b))


def folder_features(folder: str | Path, model: Any, device: torch.device | str) -> np.ndarray:
    """Return clean-fid's features (n, 2048) of a folder's images, float64, by `model` from :func:`inception`."""
    options = {"num_workers": 0, "batch_size": 64, "device": torch.device(device), "verbose": False}
    return fid.get_folder_features(str(folder), model, mode="clean", **options).astype(np.float64)


def inception(device: torch.device | str = "cpu") -> Any:
    """Return clean-fid's Inception, images (n, 3, 299, 299) in [0, 255] -> features (n, 2048); fetched once."""
    licence = "Google's network of 2015, Apache-2.0, converted by NVIDIA"
    file = fetched(downloads_helper.inception_url, INCEPTION, "FID and KID need", licence)
    try:
        with warnings.catch_warnings(action="ignore"):  # the file is TorchScript, whose loader is deprecated
            return InceptionV3W(str(file.parent), download=False).to(device).eval()
    except (OSError, RuntimeError) as error:
        reason = str(error).strip().split("\n")[0]
        raise UserError(f"FID: {file} cannot be read ({reason}); delete it, and it is downloaded again") from None


def nearest(images: Tensor, reference: Tensor) -> tuple[Tensor, Tensor]:
    """Return the root-mean-square pixel distance of each image to its nearest reference image, and its index, (n,)."""
    a, b = images.flatten(1), reference.flatten(1)
    distance, index = torch.cdist(a, b).min(1)
    return distance / a.shape[1] ** 0.5, index


def frechet_distance(first: Features, second: Features) -> float:
    """Return the Frechet distance of Gaussians fitted to two sets of features (n, d), by clean-fid.

    A small multiple of the identity is added to both covariances, because features that are always equal (or fewer
    images than features) make them singular and the matrix square root inaccurate.
    """
    a, b = _checked(first, second)
    covariances = [np.cov(x, rowvar=False) for x in (a, b)]
    ridge = 1e-6 * max(np.trace(c) for c in covariances) / a.shape[1] + 1e-12
    covariances = [c + ridge * np.eye(len(c)) for c in covariances]
    with warnings.catch_warnings(action="ignore"):  # clean-fid passes scipy an argument that is deprecated
        distance = fid.frechet_distance(a.mean(0), covariances[0], b.mean(0), covariances[1])
    return max(float(distance), 0.0)


def kernel_distance(first: Features, second: Features, subsets: int = 50, size: int = 500, seed: int = 0) -> float:
    """Return the kernel distance (cubic polynomial kernel, unbiased, so it can be below 0) of features (n, d).

    The mean over `subsets` random subsets of up to `size` rows, drawn with `seed`.
    """
    a, b = _checked(first, second)
    state = np.random.get_state()
    np.random.seed(seed)  # clean-fid draws from numpy's global generator
    try:
        return fid.kernel_distance(a, b, num_subsets=subsets, max_subset_size=size)
    finally:
        np.random.set_state(state)


def _checked(first: Features, second: Features) -> tuple[np.ndarray, np.ndarray]:
    a, b = (np.asarray(x.detach().cpu() if isinstance(x, Tensor) else x, np.float64) for x in (first, second))
    if a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[1] or min(len(a), len(b)) < 2:
        raise UserError(f"features of shapes {a.shape} and {b.shape}: give two sets (n, d) with n >= 2 and equal d")
    if not (np.isfinite(a).all() and np.isfinite(b).all()):
        raise UserError("features hold a value that is not finite; look at the images they come from")
    return a, b


def gain_at_equal_realism(ours: Tensor, other: Tensor) -> float:
    """Return how much more agreement one trade-off curve has than another at the same realism.

    Curves are checkpoints (k, 2), realism and agreement, in any order, interpolated linearly; the difference is
    averaged over the realism that both reach. Not a number if that is less than a fifth of the wider curve's.
    """
    (x, y), (u, v) = (np.asarray(sorted(map(tuple, curve.tolist()))).T for curve in (ours, other))
    low, high = max(x[0], u[0]), min(x[-1], u[-1])
    if high - low < max(x[-1] - x[0], u[-1] - u[0]) / 5:
        return math.nan
    grid = np.linspace(low, high, 101)
    return float((np.interp(grid, x, y) - np.interp(grid, u, v)).mean())
