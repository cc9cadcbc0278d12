"""The emoji's own judge: which house drew a picture, and of which category; small, trained here, never the only one."""

import itertools
from typing import NamedTuple

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

from lib.ground.nets import seeded
from lib.ground.train import train
from lib.record.files import reading
from lib.worlds import emoji
from lib.worlds.sources import MODELS

FILE = MODELS / "judge" / "model.safetensors"
BATCH, LR, NOISE = 64, 2e-3, 0.1  # pictures a step, learning rate, largest noise on them: no sample is quite clean


class Verdicts(NamedTuple):
    """What the judge says of n pictures."""

    house: Tensor  # (n,) number in `emoji.HOUSES`
    category: Tensor  # (n,) number in `emoji.CATEGORIES`


class Judge(nn.Module):
    """Convolutional network with two heads for pictures (n, 3, 32, 32) in [-1, 1]."""

    def __init__(self) -> None:
        super().__init__()
        widths, layers = (3, 32, 64, 128, 128), []
        for of, to in itertools.pairwise(widths):
            layers += [nn.Conv2d(of, to, 3, padding=1, stride=1 if of == 3 else 2), nn.GroupNorm(8, to), nn.SiLU()]
        self.body = nn.Sequential(*layers)
        self.house, self.category = (
            nn.Linear(widths[-1], len(emoji.HOUSES)),
            nn.Linear(widths[-1], len(emoji.CATEGORIES)),
        )

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return logits of the house (n, 2) and of the category (n, 4)."""
        features = self.body(images).mean((2, 3))
        return self.house(features), self.category(features)

    @torch.no_grad()
    def judge(self, images: Tensor) -> Verdicts:
        """Judge pictures on any device; the answers lie on the CPU."""
        parts = [self(part.clamp(-1, 1)) for part in images.to(self.house.weight.device).split(500)]
        return Verdicts(*(torch.cat(logits).argmax(1).cpu() for logits in zip(*parts, strict=True)))

    def like_twemoji(self, images: Tensor) -> Tensor:
        """Return which pictures are drawn like Twemoji, (n,)."""
        return self.judge(images).house == emoji.HOUSES.index("twemoji")


def load() -> Judge:
    """Return the judge in models/, which `tools.sources` trained."""
    judge = Judge()
    with reading(FILE, "get it again, or train it with `python -m tools.sources judge`"):
        judge.load_state_dict(load_file(FILE))
    return judge.requires_grad_(False).eval()


def categories(drawn: emoji.Drawings) -> Tensor:
    """Return the number of each drawing's category, (n,)."""
    return torch.tensor([emoji.CATEGORIES.index(one.category) for one in emoji.table()])[drawn.emoji]


def train_judge(steps: int = 4000, seed: int = 0) -> Judge:
    """Train a judge on both houses' drawings of the source and the target part; the test part is held out.

    Pictures are mirrored, shifted by up to two pixels and noised at random; every emoji comes alike often.
    """
    judge = seeded(seed, Judge)
    seen = [emoji.drawings(house, which=lambda one: one.part != "test") for house in emoji.HOUSES]
    weights, labels = emoji.balanced(seen[0]), categories(seen[0])
    houses = torch.arange(2).repeat_interleave(BATCH // 2)
    optimizer = torch.optim.AdamW(judge.parameters(), lr=LR, weight_decay=0.01)
    decay = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=steps)

    def sample(generator: torch.Generator) -> list[Tensor]:
        index = [weights.multinomial(BATCH // 2, replacement=True, generator=generator) for _ in seen]
        images = torch.cat([drawn.images[i] for drawn, i in zip(seen, index, strict=True)])
        mirrored = torch.rand(BATCH, 1, 1, 1, generator=generator) < 0.5
        shift = torch.randint(-2, 3, (2,), generator=generator).tolist()
        level = NOISE * torch.rand(BATCH, 1, 1, 1, generator=generator)
        images = images.flip(-1).where(mirrored, images).roll(shift, (2, 3))
        return [images + level * torch.randn(images.shape, generator=generator), labels[torch.cat(index)]]

    def step(drawn: list[Tensor]) -> dict[str, Tensor]:
        images, category = drawn
        logits = judge(images)
        losses = {"house": F.cross_entropy(logits[0], houses), "category": F.cross_entropy(logits[1], category)}
        optimizer.zero_grad()
        (losses["house"] + losses["category"]).backward()
        optimizer.step()
        decay.step()
        return {name: loss.detach() for name, loss in losses.items()}

    train(step, sample, {"judge": judge}, {"judge": optimizer, "decay": decay}, steps, seed=seed)
    return judge.requires_grad_(False).eval()
