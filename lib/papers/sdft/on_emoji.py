"""What one replicate of S2, S3 and S5 measures on emoji, from one seed and `p`, the parameters of its notebook.

Noto is the source and Twemoji the target. Pictures are compared in the features of a network that nobody here trained.
"""

from collections.abc import Callable, Sequence
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
from lib.worlds.emoji_measures import World
from lib.worlds.sources import samples

Measured = dict[str, Any]  # numbers and arrays by name
SAMPLED = ("realism", "agreement", "coverage", "variety", "frechet", "quality")  # measures of `limited_data`
GUIDED = ("SDEdit", "ILVR", "EGSDE")  # translators with a start time
DRIFT = (500, 750, 950)  # timesteps at which it is measured how far a student has moved
AXES = 32  # of the distance to the few target pictures that were not seen
SHOWN = 10  # pictures kept


def rng(seed: int) -> torch.Generator:
    """Return a fresh generator: what gets one of the same seed sees the same noise."""
    return torch.Generator().manual_seed(seed)


def matched(ours: np.ndarray, naive: np.ndarray) -> np.ndarray:
    """Return the gain at equal realism, one value a seed, of curves (seeds, points, 2: realism, agreement)."""
    pairs = zip(torch.tensor(ours), torch.tensor(naive), strict=True)
    return np.array([distances.gain_at_equal_realism(*pair) for pair in pairs])


def limited_data(seed: int, p: Any, world: World, students: Students) -> Measured:
    """S2: samples of every student from the noises of the source's samples; SAMPLED at each checkpoint.

    An arm's array is (checkpoints, measures), the source's (measures,); "ARM images" are (SHOWN, 3, 32, 32), and "ARM
    drift" (checkpoints, 2) that of :func:`drift`. The arm "averaged" is half-way from the source to the naive student.
    "real" and "real kinds" are what real drawings score: of all of Twemoji, and of the target's kinds only.
    """
    unet, schedule, judge, space = world
    drawn, features = emoji.drawings("twemoji"), space.features["twemoji"]
    _, left = fine_tuned.target(p, seed)
    pictures = torch.cat([left, emoji.limited("test").images])
    unseen = neutral.features(pictures)
    each = emoji.one_of_each(drawn, seed)
    everything = features[each]

    def measure(images: Tensor, seen: Tensor, of_source: Tensor) -> list[float]:
        real, spread = judge.like_twemoji(images), torch.cdist(seen, seen).square()
        covered = real & emoji_measures.toned(images.cpu())
        return [
            real.float().mean().item(),
            emoji_measures.found(seen, of_source, torch.arange(len(seen))),
            covered.float().mean().item(),
            (spread.sum() / (len(seen) * (len(seen) - 1))).item(),
            space.frechet(seen, everything),
            space.frechet(seen, unseen, AXES),
        ]

    start = samples(unet, schedule, p.samples, seed, p.sampling_steps)
    of_source = neutral.features(start)
    found: Measured = {"source": measure(start, of_source, of_source), "source images": start[:SHOWN]}
    some = each[torch.randperm(len(each), generator=rng(seed))[: p.samples]]
    found["real"] = measure(drawn.images[some], features[some], of_source[: len(some)])
    found["real kinds"] = measure(pictures[: p.samples], unseen[: p.samples], of_source[: len(pictures)])
    nets = students | {fine_tuned.WEAK: fine_tuned.finetuned(p, seed, fine_tuned.WEAK, unet, schedule)}
    nets["averaged"] = [fine_tuned.averaged(unet, net) for net in students["naive"]]
    for arm, at in nets.items():
        drawn_by = [samples(net, schedule, p.samples, seed, p.sampling_steps) for net in at]
        found[arm] = [measure(images, neutral.features(images), of_source) for images in drawn_by]
        found[f"{arm} images"] = drawn_by[-1][:SHOWN]
        found[f"{arm} drift"] = [drift(unet, net, schedule, seed) for net in at]
    return found


@torch.no_grad()
def drift(unet: Any, net: Any, schedule: Schedule, seed: int) -> tuple[float, float]:
    """Return the mean squared difference of two networks' clean images, on noised Noto drawings and on pure noise.

    Relative to what the drawings' own are; the mean over the timesteps `DRIFT`.
    """
    x0 = emoji.drawings("noto", "test", lambda one: not one.kind.startswith("person")).images[:48].to(net.device)
    eps = torch.randn(x0.shape, generator=rng(seed)).to(net.device)
    found = []
    for t in DRIFT:
        inputs = torch.cat([schedule.add_noise(x0, eps, t), eps])
        old, new = (
            schedule.x0_from_eps(inputs, quick_model(one)(inputs, diffusion.batch_of(t, inputs)), t)
            for one in (unet, net)
        )
        found.append([part.square().mean().item() for part in (new - old).chunk(2)])
    on_drawings, on_noise = np.mean(found, axis=0) / x0.square().mean().item()
    return on_drawings, on_noise


def starts(p: Any) -> list[float]:
    """Return the start times of :func:`translations`, as shares of T; the paper's two are always among them."""
    return sorted({0.5, 0.625, *p.starts})


def translations(seed: int, p: Any, world: World, students: Students) -> Measured:
    """S3 and S5: held-out Noto drawings translated by five methods, and pairs of source and student from one noise.

    "METHOD STUDENT" is (starts, TRANSLATED), "METHOD STUDENT images" (starts, SHOWN, ...); of DDIB and CycleDiffusion
    there is one. "pairs STUDENT" is (checkpoints, 2: realism, agreement). "truth", "input", "filtered" and "other" are
    TRANSLATED of the partner itself, of the input, of what the low-pass leaves of it and of another drawing of the
    target: ceilings and floors.
    """
    unet, schedule, judge, _ = world
    inputs = emoji_measures.Inputs(p.inputs, seed, world)
    x, truth = inputs.x, inputs.truth
    source, last = quick_model(unet), {arm: quick_model(nets[-1]) for arm, nets in students.items()}

    def measure(images: Tensor) -> list[float]:
        return inputs.measure(images, neutral.features(images))

    phi = partial(translation.low_pass, left=p.left)
    known = {"truth": truth, "input": x, "filtered": phi(x), "other": truth.roll(1, 0)}
    found: Measured = {name: measure(images) for name, images in known.items()}
    found |= {f"{name} images": known[name][:SHOWN] for name in ("input", "filtered", "truth")}

    E, found["told"] = domains(seed, p, unet, schedule)
    walk = translation.Sampler(schedule, p.steps, p.eta, clip=True)
    cycle = [_level(share, p.steps) for share in (p.cycle_start, 0.1)]
    methods: dict[str, Callable[[Any, int], Tensor]] = {
        "SDEdit": lambda model, t: translation.sdedit(model, walk, x, rng(seed), t),
        "ILVR": lambda model, t: translation.ilvr(model, walk, x, rng(seed), t, phi),
        "EGSDE": lambda model, t: egsde(model, E, walk, x, rng(seed), t, lambda_i=p.lambda_i, phi=phi),
        "CycleDiffusion": lambda model, _: translation.cycle_diffusion(
            source, model, replace(walk, eta=0.1), x, rng(seed), *cycle
        ),
    }
    for method, translate in methods.items():
        times = starts(p) if method in GUIDED else [0.0]
        for arm in last if method == "SDEdit" else fine_tuned.ARMS[:2]:
            outputs = [translate(last[arm], _level(start, p.steps)) for start in times]
            found[f"{method} {arm}"] = [measure(y) for y in outputs]
            found[f"{method} {arm} images"] = torch.stack([y[:SHOWN].cpu() for y in outputs])

    noise = torch.randn(p.pairs, 3, emoji.SIZE, emoji.SIZE, generator=rng(seed))
    inverted = diffusion.invert_ddim(source, schedule, x, p.steps, p.iterations)
    seen = diffusion.sample(source, schedule, noise, p.steps, device=unet.device)
    described, found["pairs images"] = neutral.features(seen), seen[:SHOWN]
    for arm, nets in students.items():
        decoded = [diffusion.sample(quick_model(net), schedule, noise, p.steps, device=unet.device) for net in nets]
        found[f"pairs {arm}"] = [
            [
                judge.like_twemoji(images).float().mean().item(),
                emoji_measures.found(neutral.features(images), described, torch.arange(p.pairs)),
            ]
            for images in decoded
        ]
        output = diffusion.sample_ddim(last[arm], schedule, inverted, p.steps, clip=True)
        found[f"DDIB {arm}"] = [measure(output)]
        found |= {f"pairs {arm} images": decoded[-1][:SHOWN], f"DDIB {arm} images": output[None, :SHOWN]}
    back = diffusion.sample_ddim(source, schedule, inverted, p.steps)
    return found | {"round trip": (back - x).square().mean().sqrt()}


def domains(seed: int, p: Any, unet: Any, schedule: Schedule) -> tuple[Any, Sequence[float]]:
    """Return the features of a noised classifier of the two houses (EGSDE's E), and the shares that it tells of each.

    It sees the target's kinds only, of both houses, so that it learns the house; it is judged on the test part.
    """
    classifier, seen = NoisedClassifier(unet), fine_tuned.target(p, seed)[0]
    options = {"batch": p.classifier_batch, "lr": p.classifier_lr, "seed": seed}
    noto = emoji.limited("source", "noto").images
    train_noised(classifier, schedule, noto, seen, p.classifier_steps, **options)
    of_noto, of_twemoji = (emoji.limited("test", house).images for house in emoji.HOUSES)
    return classifier.features, accuracy(classifier, schedule, of_noto, of_twemoji, round(p.told_at * schedule.T), seed)


def _level(share: float, steps: int, T: int = 1000) -> int:
    """Return the timestep of a trajectory of `steps` steps at a share of T."""
    return round(share * steps) * (T // steps)
