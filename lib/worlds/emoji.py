"""Emoji as two houses draw them, Noto and Twemoji, 32 x 32, in colour: two domains whose pictures have their truth.

The embedded sheets hold faces, people, animals, plants and food, each drawn by both, people and hands also in five skin
tones (`tools.emoji` makes them; licences beside them). An *emoji* is one meaning, a *drawing* one tile.
"""

import csv
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from lib.ground.nets import small_unet
from lib.record.files import UserError
from lib.worlds import sources
from lib.worlds.sources import Device, Model

FOLDER, SIZE, COLUMNS = Path(__file__).parent / "emoji_data", 32, 50
HOUSES = ("noto", "twemoji")
CATEGORIES = ("Smileys & Emotion", "People & Body", "Animals & Nature", "Food & Drink")
PARTS = ("source", "target", "test")  # a source model is trained on the first, a target's on the second
KINDS = {  # of ten pictures, in the manner of the few-shot papers' sunglasses and babies
    "faces": lambda one: one.kind.startswith("face-") and one.kind != "face-costume",
    "hearts": lambda one: one.kind == "heart",
    "plants": lambda one: one.kind.startswith("plant-"),
    "fruit": lambda one: one.kind in ("food-fruit", "food-vegetable"),
}


class Emoji(NamedTuple):
    """One emoji: its short name, code points, category and kind in the standard, and the part it belongs to."""

    name: str
    code: str
    category: str
    kind: str
    part: str


class Drawings(NamedTuple):
    """Images (n, 3, 32, 32), float32 in [-1, 1], and what they show: numbers in `table()` and skin tones, each (n,).

    Tone 0 is the plain drawing, 1 to 5 go from light to dark.
    """

    images: Tensor
    emoji: Tensor
    tones: Tensor


@lru_cache(1)
def table() -> tuple[Emoji, ...]:
    """Return the emoji in the order of the sheets."""
    return tuple(Emoji(*(row[key] for key in Emoji._fields)) for row in _rows())


def drawings(house: str, part: str = "", which: Callable[[Emoji], bool] = lambda one: True) -> Drawings:
    """Return a house's drawings of the emoji of one part (all, if it is empty) that `which` takes."""
    if house not in HOUSES or part not in ("", *PARTS):
        raise UserError(f"house = '{house}', part = '{part}': one of {', '.join(HOUSES)}, and of {', '.join(PARTS)}")
    whole, kept = _sheet(house), [part in ("", one.part) and which(one) for one in table()]
    return select(whole, torch.tensor(kept)[whole.emoji])


def plain(house: str, part: str = "", which: Callable[[Emoji], bool] = lambda one: True) -> Drawings:
    """Return the same of the plain drawings alone."""
    drawn = drawings(house, part, which)
    return select(drawn, drawn.tones == 0)


def select(drawn: Drawings, index: Tensor) -> Drawings:
    """Return the drawings at `index` (numbers or a mask)."""
    return Drawings(*(part[index] for part in drawn))


def limited(part: str = "target", house: str = "twemoji") -> Drawings:
    """Return the limited and biased target: a house's plain faces and people; animals, food, hands and tones lack."""
    return plain(house, part, lambda one: one.kind.startswith(("face-", "person")))


def ten(kind: str, seed: int) -> Drawings:
    """Return ten of Twemoji's plain drawings of one of `KINDS`, drawn from the target part with `seed`."""
    if kind not in KINDS:
        raise UserError(f"kind = '{kind}': one of {', '.join(KINDS)}")
    pool = drawings("twemoji", "target", KINDS[kind])
    order = torch.randperm(len(pool.emoji), generator=torch.Generator().manual_seed(seed))
    return select(pool, order[:10])


def one_of_each(drawn: Drawings, seed: int) -> Tensor:
    """Return numbers of drawings, one of each emoji in a tone drawn with `seed`, what `balanced` draws from."""
    order = torch.randperm(len(drawn.emoji), generator=torch.Generator().manual_seed(seed))
    _, first = np.unique(drawn.emoji[order].numpy(), return_index=True)
    return order[torch.from_numpy(first)]


def balanced(drawn: Drawings) -> Tensor:
    """Return weights (n,) by which every emoji is drawn alike, however many tones it has; they sum to 1."""
    _, at, counts = drawn.emoji.unique(return_inverse=True, return_counts=True)
    return 1 / (counts[at] * len(counts))


def source_model(folder: Path, house: str, device: Device = "cpu", **settings: Any) -> Model:
    """Load the model of a house's drawings in `folder`, or train it there, as `lib.worlds.sources.source_model` does.

    Noto's is trained on the source part, Twemoji's on the target part, so they never saw the two drawings of an emoji;
    mirrored at random, all tones of an emoji together as often as any other emoji. `settings` as there.
    """
    given: dict[str, Any] = {"size": SIZE, "channels": (32, 64, 128), "steps": 12_000, "lr": 5e-4, "ema": 0.999}
    training = sources.Training(**given | {"prediction": "v_prediction", "bf16": True} | settings)

    def prepare() -> tuple[Any, sources.Draw]:
        seen = drawings(house, PARTS[HOUSES.index(house)])
        weights = balanced(seen)

        def draw(n: int, generator: torch.Generator) -> list[Tensor]:
            images = seen.images[weights.multinomial(n, replacement=True, generator=generator)]
            mirrored = torch.rand(n, 1, 1, 1, generator=generator) < 0.5
            return [images.flip(-1).where(mirrored, images)]

        return small_unet(training.size, training.channels, image_channels=3), draw

    sources.denoiser(folder, training, prepare, device)
    return sources.load(folder, device)


def _rows() -> list[dict[str, str]]:
    with (FOLDER / "emoji.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


@lru_cache
def _sheet(house: str) -> Drawings:
    """Return all drawings of a house; the sheet has every emoji's tones behind its plain drawing."""
    which = [(number, int(tone)) for number, row in enumerate(_rows()) for tone in "0" + row["tones"]]
    with Image.open(FOLDER / f"{house}.png") as picture:
        pixels = np.asarray(picture.convert("RGB"))
    tiles = torch.from_numpy(pixels.copy()).unflatten(0, (-1, SIZE)).unflatten(2, (COLUMNS, SIZE))
    tiles = tiles.permute(0, 2, 4, 1, 3).flatten(0, 1)[: len(which)]  # (rows, 50, 3, 32, 32) to (n, 3, 32, 32)
    return Drawings(tiles.float() / 127.5 - 1, *torch.tensor(which).T)
