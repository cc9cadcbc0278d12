"""What one replicate of S2, S3 and S5 measures on emoji, from one seed and `p`, the parameters of its notebook.

Noto is the source and Twemoji the target. Pictures are compared in the features of a network that nobody here trained.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lib.ground import diffusion
from lib.ground.diffusion import Schedule
from lib.ground.noised_classifier import NoisedClassifier, accuracy, train_noised
from lib.ground.precision import quick_model
from lib.measures import distances, neutral
from lib.papers.baselines import translation
from lib.papers.baselines.egsde import egsde
from lib.papers.sdft import students as fine_tuned
from lib.papers.sdft.students import Students
from lib.worlds import emoji, emoji_measures
from lib.worlds.emoji_judge import Judge
from lib.worlds.emoji_measures import Space

Measured = dict[str, Any]  # numbers and arrays by name
TWEMOJI = emoji.HOUSES.index("twemoji")
MISSING = [emoji.CATEGORIES.index(name) for name in ("Animals & Nature", "Food & Drink")]
SAMPLED = ("realism", "agreement", "coverage", "variety", "frechet")  # measures of `limited_data`
TRANSLATED = ("realism", "partner", "partner5", "truth", "input")  # measures of `translations`
GUIDED = ("SDEdit", "ILVR", "EGSDE")  # translators with a start time
SHOWN = 10  # pictures kept


def rng(seed: int) -> torch.Generator:
    """Return a fresh generator: what gets one of the same seed sees the same noise."""
    return torch.Generator().manual_seed(seed)


def matched(ours: np.ndarray, naive: np.ndarray) -> np.ndarray:
    """Return the gain at equal realism, one value a seed, of curves (seeds, points, 2: realism, agreement)."""
    pairs = zip(torch.tensor(ours), torch.tensor(naive), strict=True)
    return np.array([distances.gain_at_equal_realism(*pair) for pair in pairs])


def limited_data(
    seed: int, p: Any, unet: Any, schedule: Schedule, judge: Judge, space: Space, students: Students
) -> Measured:
    """S2: samples of every student from the noises of the source's samples; SAMPLED at each checkpoint.

    An arm's array is (checkpoints, measures), the source's (measures,); "ARM images" are (SHOWN, 3, 32, 32).
    """
    noise = torch.randn(p.samples, 3, emoji.SIZE, emoji.SIZE, generator=rng(seed))
    full = space.features["twemoji"][emoji.drawings("twemoji").tones == 0]

    def draw(net: Any) -> Tensor:
        return diffusion.sample(quick_model(net), schedule, noise, p.sampling_steps, rng(seed), device=unet.device)

    def measure(images: Tensor, seen: Tensor) -> list[float]:
        said, spread = judge.judge(images), torch.cdist(seen, seen).square()
        real = said.house == TWEMOJI
        covered = real & torch.isin(said.category, torch.tensor(MISSING))
        return [
            real.float().mean().item(),
            emoji_measures.found(seen, of_source, torch.arange(len(seen))),
            covered.float().mean().item(),
            (spread.sum() / (len(seen) * (len(seen) - 1))).item(),
            space.frechet(seen, full),
        ]

    plain = draw(unet)
    of_source = neutral.features(plain)
    found: Measured = {"source": measure(plain, of_source), "source images": plain[:SHOWN]}
    for arm, nets in students.items():
        drawn = [draw(net) for net in nets]
        found[arm] = [measure(images, neutral.features(images)) for images in drawn]
        found[f"{arm} images"] = drawn[-1][:SHOWN]
    return found


def starts(p: Any) -> list[float]:
    """Return the start times of :func:`translations`, as shares of T; the paper's two are always among them."""
    return sorted({0.5, 0.625, *p.starts})


def translations(
    seed: int, p: Any, unet: Any, schedule: Schedule, judge: Judge, space: Space, students: Students
) -> Measured:
    """S3 and S5: held-out Noto drawings translated by five methods, and pairs of source and student from one noise.

    "METHOD STUDENT" is (starts, TRANSLATED), "METHOD STUDENT images" (starts, SHOWN, ...). "truth", "input",
    "filtered" and "other" are TRANSLATED of the partner itself, of the input, of what the low-pass leaves of it and of
    another drawing of the target: ceilings and floors. "pairs STUDENT" is (2: realism, agreement).
    """
    noto, twemoji = (emoji.drawings(house, "test") for house in emoji.HOUSES)
    plain = torch.nonzero(noto.tones == 0).flatten()
    chosen = torch.randperm(len(plain), generator=rng(seed))[: p.inputs]
    candidates = space.features["twemoji"][_rows("test")]  # in the order of `plain`
    x, truth = (drawn.images[plain[chosen]].to(unet.device) for drawn in (noto, twemoji))
    source, models = quick_model(unet), {arm: quick_model(nets[-1]) for arm, nets in students.items()}

    def measure(images: Tensor) -> list[float]:
        seen, images = neutral.features(images), images.clamp(-1, 1)
        ranks = emoji_measures.ranks(seen, candidates, chosen)
        real = judge.judge(images).house == TWEMOJI
        shares = [part.float().mean().item() for part in (real, ranks == 0, ranks < 5)]
        return [*shares, *((images - other).square().mean((1, 2, 3)).sqrt().mean().item() for other in (truth, x))]

    phi = partial(translation.low_pass, left=p.left)
    known = {"truth": truth, "input": x, "filtered": phi(x), "other": truth.roll(1, 0)}
    found: Measured = {name: measure(images) for name, images in known.items()}
    found |= {f"{name} images": known[name][:SHOWN] for name in ("input", "filtered", "truth")}

    classifier, noto_seen = NoisedClassifier(unet), emoji.drawings("noto", "source").images
    data = noto_seen.to(unet.device), fine_tuned.target(p, seed).to(unet.device)
    train_noised(classifier, schedule, *data, p.classifier_steps, p.classifier_batch, p.classifier_lr, seed)
    found["told"] = accuracy(classifier, schedule, x.cpu(), truth.cpu(), round(p.told_at * schedule.T), seed)
    walk = translation.Sampler(schedule, p.steps, p.eta, clip=True)
    paired = replace(walk, eta=0.1)  # of CycleDiffusion
    first = diffusion.ddim_timesteps(schedule.T, p.steps)[-1].item()
    cycle = [_level(share, p.steps) for share in (p.cycle_start, 0.1)]
    methods: dict[str, Callable[[Any, int], Tensor]] = {
        "SDEdit": lambda model, t: translation.sdedit(model, walk, x, rng(seed), t),
        "ILVR": lambda model, t: translation.ilvr(model, walk, x, rng(seed), t, phi),
        "EGSDE": lambda model, t: egsde(
            model, classifier.features, walk, x, rng(seed), t, lambda_i=p.lambda_i, phi=phi
        ),
        "DDIB": lambda model, _: translation.ddib(source, model, paired, x, int(first), p.iterations),
        "CycleDiffusion": lambda model, _: translation.cycle_diffusion(source, model, paired, x, rng(seed), *cycle),
    }
    for method, translate in methods.items():
        times = starts(p) if method in GUIDED else [0.0]  # the others have one setting
        for arm in models if method == "SDEdit" else fine_tuned.ARMS[:2]:
            outputs = [translate(models[arm], _level(start, p.steps)) for start in times]
            found[f"{method} {arm}"] = [measure(y) for y in outputs]
            found[f"{method} {arm} images"] = torch.stack([y[:SHOWN].cpu() for y in outputs])

    noise = torch.randn(p.pairs, 3, emoji.SIZE, emoji.SIZE, generator=rng(seed))
    seen = diffusion.sample(source, schedule, noise, p.steps, device=unet.device)
    described = neutral.features(seen)
    found["pairs images"] = seen[:SHOWN]
    for arm in fine_tuned.ARMS[:2]:
        images = diffusion.sample(models[arm], schedule, noise, p.steps, device=unet.device)
        agreed = emoji_measures.found(neutral.features(images), described, torch.arange(p.pairs))
        found[f"pairs {arm}"] = [(judge.judge(images).house == TWEMOJI).float().mean().item(), agreed]
        found[f"pairs {arm} images"] = images[:SHOWN]
    back = translation.ddib(source, source, paired, x, int(first), p.iterations)
    return found | {"round trip": (back - x).square().mean().sqrt()}


def _rows(part: str) -> Tensor:
    """Return which drawings of a house are the plain ones of a part, (2425,)."""
    drawn, table = emoji.drawings("twemoji"), emoji.table()
    return (drawn.tones == 0) & torch.tensor([one.part == part for one in table])[drawn.emoji]


def _level(share: float, steps: int, T: int = 1000) -> int:
    """Return the timestep of a trajectory of `steps` steps at a share of T."""
    return round(share * steps) * (T // steps)
