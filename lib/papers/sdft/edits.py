"""What one replicate of S4 measures on emoji: dark skin, given to people by models whose target had none of it.

The target's people are all drawn in yellow, the source's also in five tones: so what the edit needs is in the source
only, as with the paper's expressions. The right answer is known: the same person's drawing in that tone.
"""

from functools import partial
from typing import Any

import torch
from torch import Tensor

from lib.ground import diffusion
from lib.ground.diffusion import Schedule
from lib.ground.nets import eps_model
from lib.measures import clip, neutral
from lib.papers.baselines import asyrp
from lib.papers.sdft import students as fine_tuned
from lib.papers.sdft.on_emoji import TWEMOJI, Measured, rng
from lib.papers.sdft.students import Students
from lib.worlds import emoji
from lib.worlds.emoji_judge import Judge
from lib.worlds.emoji_measures import Space

EDITED = ("success", "change", "realism")  # measures of `skin`
TONE = 5  # the darkest
SHOWN = 8  # pictures kept


def strengths(p: Any) -> list[float]:
    """Return the strengths of an edit; 0 and 1 are always among them."""
    return sorted({0.0, 1.0, *p.strengths})


def people(house: str, part: str) -> tuple[Tensor, Tensor]:
    """Return a house's people of one part that have tones: in yellow, and in the darkest tone; (n, 3, 32, 32) each."""
    drawn = emoji.drawings(house, part, lambda one: one.kind.startswith("person"))
    toned = torch.isin(drawn.emoji, drawn.emoji[drawn.tones == TONE])
    yellow, dark = (drawn.images[toned & (drawn.tones == tone)] for tone in (0, TONE))
    return yellow, dark


def skin(seed: int, p: Any, unet: Any, schedule: Schedule, judge: Judge, space: Space, students: Students) -> Measured:
    """S4: held-out people of the target edited by a learned, a random and the source's direction.

    "STUDENT DIRECTION" is (strengths, EDITED), "STUDENT images" (strengths, SHOWN, ...). *Success* is how far the
    pictures went from yellow to the right answer, where the two differ: 0 unchanged, 1 there. *Change* is the root mean
    square distance to the yellow drawing where they do not. "alike" is the cosine of the true change of each picture's
    features with the direction that the edits learn from.
    """
    yellow, dark = (images.to(unet.device) for images in people("twemoji", "test"))
    chosen = torch.randperm(len(yellow), generator=rng(seed))[: p.inputs]
    yellow, dark = yellow[chosen], dark[chosen]
    same = ((dark - yellow).abs().amax(1, keepdim=True) < 1 / 16).expand_as(yellow)
    levels = [level for level in diffusion.trajectory(schedule, p.steps, p.start) if level[0] >= p.t_edit]
    examples = people("noto", "source")
    known = [neutral.features(images) for images in examples]
    objective = clip.directional(neutral.seen, (known[1] - known[0]).mean(0).to(unet.device))
    targets = people("twemoji", "target")[0]

    def invert(net: Any, images: Tensor) -> Tensor:
        images = images.to(unet.device)
        return diffusion.invert_ddim(eps_model(net), schedule, images, p.steps, p.iterations, p.start)

    def learn(net: Any, images: Tensor) -> asyrp.DeltaBlock:
        rule, given = partial(torch.optim.Adam, lr=p.lr_delta), (images.to(unet.device), invert(net, images), objective)
        return asyrp.learn(net, schedule, *given, levels, p.lambda_l1, p.walks, p.batch, rule, seed)[0]

    def measure(images: Tensor) -> list[float]:
        images, wanted = images.clamp(-1, 1), (dark - yellow) * ~same
        success = ((images - yellow) * wanted).sum() / wanted.square().sum()
        change = ((images - yellow).square() * same).sum() / same.sum()
        real = (judge.judge(images).house == TWEMOJI).float()
        return [success.item(), change.sqrt().item(), real.mean().item()]

    of_source = learn(unet, _some(examples[0], p.shots, seed))
    found: Measured = {"truth": measure(dark), "input": measure(yellow)}
    change = neutral.features(dark) - neutral.features(yellow)
    found["alike"] = torch.cosine_similarity(change, (known[1] - known[0]).mean(0)[None]).mean()
    found |= {"input images": yellow[:SHOWN], "truth images": dark[:SHOWN]}
    for name in fine_tuned.ARMS[:2]:
        net = students[name][-1]
        noisy, learned = invert(net, yellow), learn(net, _some(targets, p.shots, seed))
        directions: dict[str, tuple[asyrp.Direction, list[float]]] = {
            "learned": (learned, strengths(p)),
            "random": (asyrp.random_like(learned, seed), [1.0]),
            "from the source": (of_source, strengths(p)),
        }
        for key, (direction, factors) in directions.items():
            edited = [asyrp.edit(net, schedule, noisy, direction, c, p.steps, p.start, p.t_edit) for c in factors]
            found[f"{name} {key}"] = [measure(images) for images in edited]
            if key != "random":
                found[f"{name} {key} images"] = torch.stack([images[:SHOWN] for images in edited])
    return found


def _some(images: Tensor, n: int, seed: int) -> Tensor:
    return images[torch.randperm(len(images), generator=rng(seed))[:n]]
