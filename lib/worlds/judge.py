"""What the image experiments measure: a digit-and-domain classifier, Frechet and kernel distances in its features.

Distances are clean-fid's own functions (Parmar et al. 2022) of the Frechet distance (Heusel et al. 2017) and the kernel
distance (Binkowski et al. 2018); only the features differ, 64 of a network trained on these digits instead of 2,048 of
Inception, so values compare runs of this companion and nothing else.
"""

import json
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from lib.ground.nets import seeded
from lib.ground.train import train
from lib.measures.perceptual import Embedding
from lib.record.files import UserError, reading
from lib.worlds import digits as data

PRINTED, HANDWRITTEN = 0, 1  # domain labels
FILE = "model.safetensors"
BATCH = 32  # training images of each domain
NOISE = 0.15  # largest standard deviation of the noise on training images: generated images are never quite clean


class Classifier(nn.Module):
    """Small convolutional network with two heads, which digit and which domain, for images of side `size`."""

    def __init__(self, size: int = 16) -> None:
        super().__init__()
        self.size = size
        self.body = nn.Sequential(
            nn.Conv2d(1, 16, 3, padding=1), nn.SiLU(),
            nn.Conv2d(16, 32, 3, padding=1, stride=2), nn.GroupNorm(4, 32), nn.SiLU(),
            nn.Conv2d(32, 64, 3, padding=1, stride=2), nn.GroupNorm(4, 64), nn.SiLU(),
            nn.Flatten(), nn.Linear(64 * (size // 4) ** 2, 64), nn.SiLU(),
        )  # fmt: skip
        self.digit, self.domain = nn.Linear(64, 10), nn.Linear(64, 2)

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


def train_classifier(size: int, steps: int, seed: int, device: torch.device | str, folder: Path | None) -> Classifier:
    """Train a classifier on the training parts of both domains, with noise and shifts of up to one pixel."""
    classifier = seeded(seed, lambda: Classifier(size)).to(device)
    parts = [data.split(source(size))[0] for source in (data.printed, data.handwritten)]
    domains = torch.tensor([PRINTED, HANDWRITTEN]).repeat_interleave(BATCH)
    optimizer = torch.optim.AdamW(classifier.parameters(), lr=3e-3)
    decay = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=max(steps, 1), eta_min=1e-4)

    def sample(generator: torch.Generator) -> list[Tensor]:
        chosen = [torch.randint(len(part.labels), (BATCH,), generator=generator) for part in parts]
        drawn = [data.select(part, index) for part, index in zip(parts, chosen, strict=True)]
        images, digits = (torch.cat(tensors) for tensors in zip(*drawn, strict=True))
        return [part.to(device) for part in (_augmented(images, generator), digits, domains)]

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
    shift = torch.randint(-1, 2, (2,), generator=generator).tolist()
    level = NOISE * torch.rand(len(images), 1, 1, 1, generator=generator)
    return images.roll(shift, dims=(2, 3)) + level * torch.randn(images.shape, generator=generator)


def save_classifier(classifier: Classifier, folder: Path) -> None:
    """Write the weights into a folder, as one safetensors file with the size in its header."""
    folder.mkdir(parents=True, exist_ok=True)
    save_file(classifier.state_dict(), folder / FILE, {"classifier": json.dumps({"size": classifier.size})})


def load_classifier(folder: Path | str, device: torch.device | str = "cpu") -> Classifier:
    """Read the classifier that `save_classifier` left in a folder."""
    path = Path(folder) / FILE
    with reading(path, "delete it and run the notebook 50_source, or name another folder"):
        with safe_open(path, framework="pt") as file:
            classifier = Classifier(json.loads(file.metadata()["classifier"])["size"])
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


def histogram(verdicts: Verdicts) -> Tensor:
    """Return the share of each of the ten digits, shape (10,)."""
    return torch.bincount(verdicts.digit, minlength=10) / len(verdicts.digit)


def digit_features(judge: Classifier) -> Embedding:
    """Return the embedding by the digit classifier's three convolutional layers: LPIPS in form, not in features.

    Nobody has compared its distances with human eyes; the layers weigh the same. Label numbers "digit features".
    """

    def layers(images: Tensor) -> list[Tensor]:
        if images.shape[1:] != (1, judge.size, judge.size):
            found, wanted = " x ".join(map(str, images.shape[1:])), f"1 x {judge.size} x {judge.size}"
            raise UserError(f"images of {found} given; the classifier behind the digit features takes {wanted}")
        activations = []
        for layer in judge.body[:-3]:  # those before the images become rows
            images = layer(images)
            activations += [images] if isinstance(layer, nn.SiLU) else []
        return activations

    device = next(judge.parameters()).device
    return Embedding(f"digit features {judge.size} px", layers, [torch.ones(1, device=device)] * 3, device)
