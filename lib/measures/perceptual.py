"""Perceptual distance as a squared Euclidean one: LPIPS (Zhang et al. 2018), Intra-LPIPS (Ojha et al. 2021).

LPIPS compares unit-normalised channels f^l of a network's layers: sum over l of the spatial mean of
sum over channels of w_c^l (f_c^l(x) - f_c^l(y))^2. All w are non-negative, so with
``z(x) = concatenation of sqrt(w^l / (h_l w_l)) f^l(x)`` it is ``|z(x) - z(y)|^2``: one pass an image instead of one a
pair, and the mean over all pairs of a set follows from n, the sum of z and the sum of |z|^2.
"""

import math
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from operator import itemgetter
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from lib.measures.weights import fetched
from lib.record.files import UserError

EPS = 1e-10  # as in the lpips package: a pixel without any activation stays 0
LICENCE = "torchvision is BSD-3-Clause; ImageNet is for non-commercial research"
BLOCK = 1 << 17  # numbers turned into float64 at a time: 1 MB stays in the cache
# ImageNet weights of torchvision
TRUNKS = {"vgg": "vgg16-397923af.pth", "alex": "alexnet-owt-7be5be79.pth", "squeeze": "squeezenet1_1-b8a52dc0.pth"}


@dataclass(frozen=True, eq=False)
class Embedding:
    """Images (n, c, h, w) in [-1, 1] -> z (n, D), float32, with |z(x) - z(y)|^2 = LPIPS(x, y).

    Attributes
    ----------
    name
        What to write beside every number: network and size of the images.
    layers
        Images -> activations of the layers that count, each (n, C_l, h_l, w_l).
    weights
        One tensor a layer, (C_l,) or a single number, none negative.
    device
        Where the network is; z lies there as well.
    """

    name: str
    layers: Callable[[Tensor], Sequence[Tensor]]
    weights: Sequence[Tensor]
    device: torch.device

    @torch.no_grad()
    def __call__(self, images: Tensor, batch: int = 64) -> Tensor:
        """Embed images in batches; values outside [-1, 1] are clamped, as in an image file."""
        return torch.cat([self._embed(part.to(self.device).clamp(-1, 1)) for part in images.split(batch)])

    def _embed(self, images: Tensor) -> Tensor:
        parts = []
        for f, w in zip(self.layers(images), self.weights, strict=True):  # f (b, C, h, w)
            unit = f / (f.square().sum(1, keepdim=True).sqrt() + EPS)
            scale = (w / f[0, 0].numel()).sqrt().view(1, -1, 1, 1)
            parts.append((unit * scale).flatten(1))
        return torch.cat(parts, dim=1)  # (b, D)


def lpips_of_pairs(embedding: Embedding, x: Tensor, y: Tensor) -> Tensor:
    """Return the LPIPS of pairs of images (n, c, h, w), (n,), with its gradient."""
    return (embedding._embed(x) - embedding._embed(y)).square().sum(1)


def lpips_features(net: str, size: int = 256, device: torch.device | str = "cpu", random: bool = False) -> Embedding:
    """Return the embedding of LPIPS itself, version 0.1: trunk and heads of the `lpips` package (BSD-2-Clause).

    The trunk is vgg (as Intra-LPIPS has it), alex or squeeze. Images of another size are resized (bilinear,
    antialiased); grey ones get three equal channels. A `random` trunk is for tests and timings, and measures nothing.
    """
    if net not in TRUNKS:
        raise UserError(f"net: '{net}' given; one of {', '.join(TRUNKS)}")
    model = lpips_model(net, random).to(device)
    heads = [lin.model[-1].weight.detach().flatten() for lin in model.lins]  # (C_l,)
    if min(float(w.min()) for w in heads) < 0:
        raise UserError(f"net '{net}': a head of the lpips package has a negative weight, so LPIPS is no distance")

    def layers(images: Tensor) -> Sequence[Tensor]:
        x = images.expand(-1, 3, -1, -1)
        if x.shape[-2:] != (size, size):
            x = F.interpolate(x, (size, size), mode="bilinear", antialias=True).clamp(-1, 1)
        return model.net(model.scaling_layer(x))

    name = f"LPIPS {net}{' with a random trunk' * random} {size} px"
    return Embedding(name, layers, heads, torch.device(device))


def lpips_model(net: str, random: bool = False) -> Any:
    """Return the `lpips` package's own module, see :func:`lpips_features`."""
    import lpips

    if not random:
        file = fetched(f"https://download.pytorch.org/models/{TRUNKS[net]}", TRUNKS[net], "LPIPS needs", LICENCE)
    try:
        # Ignored is that the package uses a former option of torchvision.
        with warnings.catch_warnings(action="ignore"), torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return lpips.LPIPS(net=net, pnet_rand=random, verbose=False).eval().requires_grad_(False)
    except (OSError, RuntimeError) as error:
        raise UserError(f"LPIPS: {file} cannot be read ({error}); delete it, and it is downloaded again") from None


def pairwise_lpips(z: Tensor, other: Tensor | None = None) -> Tensor:
    """Return LPIPS of all pairs from z (n, D) and other (m, D), by default z itself; (n, m), float64.

    It is |a|^2 + |b|^2 - 2 a.b in float64, where the distance of nearly equal images keeps its digits, a block of
    columns at a time.
    """
    others = z if other is None else other
    product = z.new_zeros(len(z), len(others), dtype=torch.float64)
    squares = [z.new_zeros(len(x), dtype=torch.float64) for x in (z, others)]
    columns = max(BLOCK // (len(z) + len(others)), 64)
    for parts in zip(z.split(columns, dim=1), others.split(columns, dim=1), strict=True):
        a, b = (part.double() for part in parts)
        product += a @ b.T
        squares[0] += a.square().sum(1)
        squares[1] += b.square().sum(1)
    distance = (squares[0][:, None] + squares[1] - 2 * product).clamp(min=0)  # (n, m)
    return distance.fill_diagonal_(0) if other is None else distance


class IntraLPIPS(NamedTuple):
    """Mean pairwise LPIPS inside the clusters around the training images; higher is more diverse.

    Read it beside a distance to the target: a model that was never adapted scores high, too.
    """

    value: float  # mean over clusters; NaN if none has a pair
    spread: float  # population standard deviation over clusters, not over runs
    counts: tuple[int, ...]  # samples of each training image's cluster, before the cap
    protocol: str  # what to write beside the number


def intra_lpips(
    embedding: Embedding, batches: Iterable[Tensor], training: Tensor, cap: int | None = None, seed: int = 0
) -> IntraLPIPS:
    """Return Intra-LPIPS (Ojha et al. 2021, Sec. 4.1) of images that come in batches.

    Each sample goes to the nearest training image, and clusters without a pair are left out, as in CDC's code. The mean
    over the pairs of a cluster of n is ``(n sum |z|^2 - |sum z|^2) / (n (n - 1) / 2)``: one sum of z a cluster is in
    memory, as a thousand embeddings of 32 MB (VGG, 256 px) do not fit.

    Parameters
    ----------
    batches
        Samples, each batch (b, c, h, w) in [-1, 1]; a batch is embedded as a whole.
    training
        Training images, (k, c, h, w) in [-1, 1].
    cap
        At most so many members of a cluster, drawn with `seed`, count (CDC's code: 50); their images are kept and
        embedded once more. None: all.
    """
    z_training = embedding(training)
    generator = np.random.default_rng(seed)
    k = len(z_training)
    sums, counts = _Sums(z_training), torch.zeros(k, dtype=torch.long)
    kept: list[list[tuple[float, Tensor]]] = [[] for _ in range(k)]  # per cluster: priority, image
    for images in batches:
        z = embedding(images, batch=max(len(images), 1))
        distance, cluster = pairwise_lpips(z, z_training).min(1)
        counts += cluster.bincount(minlength=k).cpu()
        if cap is None:
            sums.add(z, distance, cluster)
            continue
        for i, priority, image in zip(cluster.tolist(), generator.random(len(images)), images, strict=True):
            kept[i] = sorted([*kept[i], (priority, image)], key=itemgetter(0))[:cap]
    for i, members in enumerate(kept):
        for start in range(0, len(members), 8):
            z = embedding(torch.stack([image for _, image in members[start : start + 8]]))
            distance = pairwise_lpips(z, z_training[i : i + 1])[:, 0]
            sums.add(z, distance, torch.full((len(z),), i, device=z.device))
    means = sums.means()
    if not means.isfinite().all():
        raise UserError("embeddings hold a value that is not finite; look at the images they come from")
    counted = f"at most {cap} random members a cluster (seed {seed})" if cap else "all members of a cluster"
    protocol = (
        f"Intra-LPIPS, {embedding.name}: {counts.sum()} samples, {k} training images, {counted}, "
        f"{k - len(means)} of {k} clusters without a pair left out"
    )
    value, spread = (means.mean().item(), means.std(correction=0).item()) if len(means) else (math.nan, math.nan)
    return IntraLPIPS(value, spread, tuple(counts.tolist()), protocol)


class _Sums:
    """Per cluster: number, sum of z and sum of |z|^2, in float64, with z taken relative to the training image."""

    def __init__(self, z_training: Tensor) -> None:
        self.origin = z_training
        self.total = torch.zeros_like(z_training, dtype=torch.float64)  # (k, D)
        self.squares = self.total.new_zeros(len(z_training))
        self.n = self.total.new_zeros(len(z_training))

    def add(self, z: Tensor, distance: Tensor, cluster: Tensor) -> None:
        """Add embeddings (m, D) with their distances to the training image of their cluster, both (m,)."""
        member = (cluster == torch.arange(len(self.n), device=cluster.device)[:, None]).double()  # (k, m)
        n = member.sum(1)
        columns = max(BLOCK // (len(z) + len(n)), 64)
        for total, part, origin in zip(*(x.split(columns, dim=1) for x in (self.total, z, self.origin)), strict=True):
            total += member @ part.double() - n[:, None] * origin.double()
        self.squares += member @ distance
        self.n += n

    def means(self) -> Tensor:
        """Mean over the pairs of each cluster that has one."""
        pairs = self.n * (self.n - 1) / 2  # (k,)
        return ((self.n * self.squares - self.total.square().sum(1)) / pairs)[pairs > 0]
