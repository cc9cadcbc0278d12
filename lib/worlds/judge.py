"""What the image experiments measure: a digit-and-domain classifier, Frechet and kernel distances in its features.

Distances are clean-fid's own functions (Parmar et al. 2022) of the Frechet distance (Heusel et al. 2017) and the kernel
distance (Binkowski et al. 2018); only the features differ, 64 of a network trained on these digits instead of 2,048 of
Inception, so values compare runs of this companion and nothing else.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import load_file, save
from torch import Tensor, nn

from lib.ground.train import train
from lib.measures.perceptual import Embedding
from lib.record.files import UserError, reading, write_atomic
from lib.worlds import digits as data

PRINTED, HANDWRITTEN = 0, 1  # domain labels
NOISE = 0.15  # largest standard deviation of the noise on training images: generated images are never quite clean


class Classifier(nn.Module):
    """Small convolutional network with two heads, which digit and which domain, for images of side `size`."""

    def __init__(self, size: int = 16, width: int = 16) -> None:
        super().__init__()
        self.size, self.width = size, width
        d = 4 * width
        self.body = nn.Sequential(
            nn.Conv2d(1, width, 3, padding=1), nn.SiLU(),
            nn.Conv2d(width, 2 * width, 3, padding=1, stride=2), nn.GroupNorm(4, 2 * width), nn.SiLU(),
            nn.Conv2d(2 * width, d, 3, padding=1, stride=2), nn.GroupNorm(4, d), nn.SiLU(),
            nn.Flatten(), nn.Linear(d * (size // 4) ** 2, d), nn.SiLU(),
        )  # fmt: skip
        self.digit, self.domain = nn.Linear(d, 10), nn.Linear(d, 2)

    def features(self, images: Tensor) -> Tensor:
        """Return features (n, d) of images (n, 1, size, size) in [-1, 1]."""
        return self.body(images)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return logits of the digit (n, 10) and of the domain (n, 2: printed, handwritten)."""
        features = self.features(images)
        return self.digit(features), self.domain(features)


class Verdicts(NamedTuple):
    """What the classifier says of n images."""

    digit: Tensor  # (n,) 0 to 9
    domain: Tensor  # (n,) 0 printed, 1 handwritten
    features: Tensor  # (n, d)


def train_classifier(
    size: int = 16,
    steps: int = 400,
    batch: int = 64,
    seed: int = 0,
    device: torch.device | str = "cpu",
    folder: Path | None = None,
) -> Classifier:
    """Train a classifier on the training parts of both domains, with noise and shifts of up to one pixel."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        classifier = Classifier(size).to(device)
    parts = [data.split(source(size))[0] for source in (data.printed, data.handwritten)]
    optimizer = torch.optim.AdamW(classifier.parameters(), lr=3e-3)
    decay = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=max(steps, 1), eta_min=1e-4)

    def sample(generator: torch.Generator) -> list[Tensor]:
        chosen = [torch.randint(len(part.labels), (batch // 2,), generator=generator) for part in parts]
        images = torch.cat([part.images[i] for part, i in zip(parts, chosen, strict=True)])  # (batch, 1, size, size)
        digits = torch.cat([part.labels[i] for part, i in zip(parts, chosen, strict=True)])
        domains = torch.arange(2).repeat_interleave(batch // 2)
        return [_augmented(images, generator).to(device), digits.to(device), domains.to(device)]

    def step(drawn: list[Tensor]) -> dict[str, Tensor]:
        images, digits, domains = drawn
        digit, domain = classifier(images)
        losses = {"digit": F.cross_entropy(digit, digits), "domain": F.cross_entropy(domain, domains)}
        optimizer.zero_grad()
        sum(losses.values()).backward()  # type: ignore[union-attr]
        optimizer.step()
        decay.step()
        return {name: loss.detach() for name, loss in losses.items()}

    optimizers = {"classifier": optimizer, "decay": decay}
    train(step, sample, {"classifier": classifier}, optimizers, steps, seed=seed, folder=folder)
    return classifier.eval()


def _augmented(images: Tensor, generator: torch.Generator) -> Tensor:
    """Shift each image by up to one pixel and add noise of a random strength."""
    n = len(images)
    shift = torch.randint(-1, 2, (2,), generator=generator).tolist()
    level = NOISE * torch.rand(n, 1, 1, 1, generator=generator)
    return images.roll(shift, dims=(2, 3)) + level * torch.randn(images.shape, generator=generator)


def save_classifier(classifier: Classifier, path: Path) -> None:
    """Write the weights as one safetensors file, atomically, with the size in its header."""
    tensors = {name: value.detach().cpu().contiguous() for name, value in classifier.state_dict().items()}
    meta = json.dumps({"size": classifier.size, "width": classifier.width})
    write_atomic(path, save(tensors, metadata={"classifier": meta}))


def load_classifier(path: Path, device: torch.device | str = "cpu") -> Classifier:
    """Read a classifier written by `save_classifier`."""
    with reading(path, "delete it and run the notebook 50_source, or name another folder"):
        with safe_open(str(path), framework="pt") as file:
            meta = json.loads((file.metadata() or {})["classifier"])
        classifier = Classifier(**meta)
        classifier.load_state_dict(load_file(path))
    return classifier.to(device).eval()


@torch.no_grad()
def judge(classifier: Classifier, images: Tensor, batch: int = 500) -> Verdicts:
    """Classify images (n, 1, size, size) in [-1, 1] in batches; the answers lie on the CPU."""
    device = next(classifier.parameters()).device
    parts = [classifier.features(part.to(device).clamp(-1, 1)) for part in images.split(batch)]
    features = torch.cat(parts)  # (n, d)
    digit, domain = classifier.digit(features).argmax(1), classifier.domain(features).argmax(1)
    return Verdicts(digit.cpu(), domain.cpu(), features.cpu())


def accuracy(classifier: Classifier, digits: data.Digits, domain: int) -> tuple[float, float]:
    """Return the shares of images whose digit and whose domain are recognised."""
    verdicts = judge(classifier, digits.images)
    return (verdicts.digit == digits.labels).float().mean().item(), realism(verdicts, domain)


def realism(verdicts: Verdicts, domain: int = HANDWRITTEN) -> float:
    """Return the share of images recognised as being of `domain`."""
    return (verdicts.domain == domain).float().mean().item()


def coverage(verdicts: Verdicts, digits: Sequence[int], domain: int = HANDWRITTEN) -> float:
    """Return the share of images that show one of `digits` and are of `domain`."""
    shown = torch.isin(verdicts.digit, torch.tensor(list(digits))) & (verdicts.domain == domain)
    return shown.float().mean().item()


def agreement(first: Verdicts, second: Verdicts) -> float:
    """Return the share of pairs (one image of each set, such as samples from equal noise) that show the same digit."""
    return (first.digit == second.digit).float().mean().item()


def histogram(verdicts: Verdicts) -> Tensor:
    """Return the share of each of the ten digits, shape (10,)."""
    return torch.bincount(verdicts.digit, minlength=10) / len(verdicts.digit)


def digit_features(judge: Classifier) -> Embedding:
    """Return the embedding by the digit classifier's three convolutional layers: LPIPS in form, not in features.

    Nobody has compared its distances with human eyes; the layers weigh the same. Label numbers "digit features".
    """
    device = next(judge.parameters()).device

    def layers(images: Tensor) -> list[Tensor]:
        if images.shape[1:] != (1, judge.size, judge.size):
            found, wanted = " x ".join(map(str, images.shape[1:])), f"1 x {judge.size} x {judge.size}"
            raise UserError(f"images of {found} given; the classifier behind the digit features takes {wanted}")
        return list(_activations(judge.body, images))

    equal = [torch.ones(1, device=device)] * 3
    return Embedding(f"digit features {judge.size} px", layers, equal, device)


def _activations(body: nn.Sequential, x: Tensor) -> Iterator[Tensor]:
    """Outputs of the activation functions that are still images."""
    for layer in body:
        x = layer(x)
        if x.ndim < 4:
            return
        if isinstance(layer, nn.SiLU):
            yield x
