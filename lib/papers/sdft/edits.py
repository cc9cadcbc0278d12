"""What S4 needs first: can a model of emoji be edited in h-space at all? Dark skin, given to people drawn in yellow.

Noto's people come in five tones, so its own model knows them; the right answer is the same drawing in that tone.
"""

from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lib.ground import diffusion
from lib.ground.precision import quick_model
from lib.measures import clip, neutral
from lib.papers.baselines import asyrp
from lib.worlds import emoji, sources

TONE = 5  # the darkest
DIRECTIONS = ("learned", "mean difference", "random")


def people(part: str) -> tuple[Tensor, Tensor]:
    """Return Noto's people of one part that have tones: in yellow, and in the darkest tone; (n, 3, 32, 32) each."""
    drawn = emoji.drawings("noto", part, lambda one: one.kind.startswith("person"))
    toned = torch.isin(drawn.emoji, drawn.emoji[drawn.tones == TONE])
    yellow, dark = (drawn.images[toned & (drawn.tones == tone)] for tone in (0, TONE))
    return yellow, dark


def skin(seed: int, p: Any) -> dict[str, Any]:
    """Edit held-out people of the source by three directions; "DIRECTION" is (strengths, 2: success, change).

    Success is how far the pictures went from yellow to the right answer, where the two differ: 0 unchanged, 1 there.
    Change is the root mean square distance to the yellow drawing where they do not. "DIRECTION images" are
    (strengths, p.inputs, 3, 32, 32); "input images" and "truth images" are beside them. "learned" is Asyrp's, with the
    mean change of neutral features from yellow to dark in place of two texts.
    """
    unet, schedule = sources.load(p.source, p.device)
    generator = torch.Generator().manual_seed(seed)
    (yellow, dark), examples = (
        _some(people(part), n, generator, p.device) for part, n in (("test", p.inputs), ("source", p.examples))
    )
    same = ((dark - yellow).abs().amax(1, keepdim=True) < 1 / 16).expand_as(yellow)
    levels = [level for level in diffusion.trajectory(schedule, p.steps, p.start) if level[0] >= p.t_edit]

    def invert(images: Tensor) -> Tensor:
        return diffusion.invert_ddim(quick_model(unet), schedule, images, p.steps, p.iterations, p.start)

    def measure(images: Tensor) -> list[float]:
        images, wanted = images.clamp(-1, 1), (dark - yellow) * ~same
        success = ((images - yellow) * wanted).sum() / wanted.square().sum()
        return [success.item(), (((images - yellow).square() * same).sum() / same.sum()).sqrt().item()]

    plain, toned = map(invert, examples)
    change = torch.sub(*(neutral.features(images).mean(0) for images in examples[::-1])).to(unet.device)
    objective, rule = clip.directional(neutral.seen, change), partial(torch.optim.Adam, lr=p.lr_delta)
    given = (examples[0], plain, objective, levels, p.lambda_l1, p.walks, p.batch, rule, seed)
    has = torch.arange(2 * len(plain)) >= len(plain)
    learned = asyrp.learn(unet, schedule, *given)[0]
    mean = asyrp.mean_difference(unet, schedule, torch.cat([plain, toned]), has, levels)
    noisy, found = invert(yellow), {"truth": measure(dark), "input images": yellow, "truth images": dark}
    for name, direction in zip(DIRECTIONS, (learned, mean, asyrp.random_like(mean, seed)), strict=True):
        edited = [asyrp.edit(unet, schedule, noisy, direction, c, p.steps, p.start, p.t_edit) for c in p.strengths]  # type: ignore[arg-type]
        found |= {name: np.array([measure(images) for images in edited]), f"{name} images": torch.stack(edited)}
    return found


def _some(pairs: tuple[Tensor, Tensor], n: int, generator: torch.Generator, device: Any) -> list[Tensor]:
    chosen = torch.randperm(len(pairs[0]), generator=generator)[:n]
    return [images[chosen].to(device) for images in pairs]
