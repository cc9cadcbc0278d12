"""What is measured on emoji, in the features of a judge that nobody here trained (`lib.measures.neutral`)."""

from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save
from torch import Tensor

from lib.ground.diffusion import Schedule
from lib.measures import distances, neutral
from lib.record.files import write_atomic
from lib.worlds import emoji, emoji_judge, sources

SKIN = torch.tensor([[247, 222, 206], [243, 210, 162], [213, 171, 136], [175, 126, 87], [124, 83, 62]]) / 127.5 - 1
TRANSLATED = ("realism", "partner", "partner5", "truth", "input")  # measures of translated pictures
AXES = 64  # principal components in which Frechet and kernel distances are taken: there are a few hundred pictures


class Space(NamedTuple):
    """Neutral features of all drawings, house -> (2425, 1280), their mean and the first principal axes (1280, 64)."""

    features: dict[str, Tensor]
    mean: Tensor
    axes: Tensor

    def frechet(self, features: Tensor, reference: Tensor, axes: int = AXES) -> float:
        """Return the Frechet distance of two sets of features (n, 1280) along the first axes."""
        return distances.frechet_distance(*(self._along(part)[:, :axes] for part in (features, reference)))

    def kernel(self, features: Tensor, reference: Tensor) -> float:
        """Return the kernel distance along all axes."""
        return distances.kernel_distance(self._along(features), self._along(reference))

    def _along(self, features: Tensor) -> Tensor:
        return (features - self.mean) @ self.axes


@lru_cache(1)
def space(folder: Path) -> Space:
    """Return the features of all drawings, computed once (a minute) and kept in a folder."""
    path = folder / "emoji-features.safetensors"
    if not path.is_file():
        found = {house: neutral.features(emoji.drawings(house).images) for house in emoji.HOUSES}
        write_atomic(path, save(found))
    features = load_file(path)
    plain = emoji.drawings(emoji.HOUSES[0]).tones == 0
    both = torch.cat([features[house][plain] for house in emoji.HOUSES])
    mean = both.mean(0)
    return Space(features, mean, torch.linalg.svd(both - mean, full_matrices=False).Vh[:AXES].T)


class World(NamedTuple):
    """What every replicate starts from: a source model, its noise schedule, both judges."""

    unet: Any
    schedule: Schedule
    judge: emoji_judge.Judge
    space: Space


def world(p: Any) -> World:
    """Open the model that the parameters name, and the judges."""
    return World(*sources.load(p.source, p.device), emoji_judge.load(), space(p.artefacts))


class Inputs:
    """Held-out Noto drawings to be translated and Twemoji's drawings of the same, (n, 3, 32, 32), of different emoji.

    Plain ones, or each in a tone at random.
    """

    def __init__(self, n: int, seed: int, world: World, toned: bool = False) -> None:
        """Draw n with `seed`, to the device of the world's model."""
        (noto, twemoji), drawn = (emoji.drawings(house, "test") for house in emoji.HOUSES), emoji.drawings("twemoji")
        of_each = emoji.one_of_each(noto, seed) if toned else torch.nonzero(noto.tones == 0).flatten()
        self.chosen = torch.randperm(len(of_each), generator=torch.Generator().manual_seed(seed))[:n]
        self.x, self.truth = (house.images[of_each[self.chosen]].to(world.unet.device) for house in (noto, twemoji))
        held_out = torch.tensor([one.part == "test" for one in emoji.table()])[drawn.emoji]
        self._judge, self._candidates = world.judge, world.space.features["twemoji"][held_out][of_each]

    def measure(self, images: Tensor, seen: Tensor) -> list[float]:
        """Return TRANSLATED of the inputs' translations (n, 3, 32, 32), of which `seen` are the neutral features.

        Shares that are drawn like Twemoji, and whose partner is found first, and among the first five, of Twemoji's
        held-out drawings; the root mean square distances to the partner and to the input.
        """
        images, place = images.clamp(-1, 1), ranks(seen, self._candidates, self.chosen)
        shares = [part.float().mean().item() for part in (self._judge.like_twemoji(images), place == 0, place < 5)]
        apart = [(images - other).square().mean((1, 2, 3)).sqrt().mean().item() for other in (self.truth, self.x)]
        return shares + apart


def toned(images: Tensor) -> Tensor:
    """Return which images (n, 3, h, w) show one of Twemoji's five skin tones, (n,): on 3 % of their pixels or more.

    True of 83 % of the test part's drawings in a tone, and of 3 % of its other ones, among them brown animals.
    """
    apart = (images[:, None] - SKIN.to(images)[:, :, None, None]).square().mean(2).sqrt()  # (n, 5, h, w)
    return (apart.amin(1) < 0.06).float().mean((1, 2)) > 0.03


def ranks(features: Tensor, candidates: Tensor, partners: Tensor) -> Tensor:
    """Return how many candidates are more alike to each picture than its partner, (n,): 0 if it is found first.

    By the cosine of features (n, d) and (m, d), each set about its own mean, so that a style that all share is no
    likeness; `partners` (n,) are numbers of candidates.
    """
    a, b = (F.normalize(part - part.mean(0), dim=1) for part in (features, candidates))
    alike = a @ b.T
    return (alike > alike.gather(1, partners[:, None])).sum(1)


def found(features: Tensor, candidates: Tensor, partners: Tensor, first: int = 1) -> float:
    """Return the share of pictures whose partner is among the `first` most alike candidates; chance is first / m."""
    return (ranks(features, candidates, partners) < first).float().mean().item()
