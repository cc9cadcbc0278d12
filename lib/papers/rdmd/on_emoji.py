"""RDMD on emoji as functions of one seed: claims R4 to R6. Noto is the source and Twemoji the target, unpaired.

Both models are pretrained, on different emoji, and all methods share them. Every method translates the same held-out
drawings, whose right answers are known and used for measuring alone.
"""

import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from safetensors.torch import load_file, save
from torch import Tensor

from lib.ground import diffusion
from lib.ground.diffusion import Schedule
from lib.ground.finetune import Options
from lib.ground.nets import fingerprint
from lib.ground.noised_classifier import NoisedClassifier, train_noised
from lib.ground.precision import quick_model
from lib.measures import distances, neutral
from lib.papers.baselines import translation
from lib.papers.baselines.egsde import egsde
from lib.papers.rdmd import images as rdmd
from lib.papers.rdmd.images import Translator
from lib.record.code import digest
from lib.record.files import write_atomic
from lib.worlds import emoji, emoji_measures, sources
from lib.worlds.emoji_measures import TRANSLATED, Inputs, World

MEASURES = (*TRANSLATED, "frechet", "kernel", "psnr", "ssim")
COST = MEASURES.index("input")
STARTED = ("SDEdit", "EGSDE", "CycleDiffusion")  # methods that start from the noised input
AXES = 32  # of Frechet distances: there are some hundred pictures
DRAWN = 4000  # pictures drawn from a house's law
SHOWN = 12  # pictures kept
Generators = dict[float, Translator]  # by their lambdas


def pictures(house: str, part: str, seed: int) -> Tensor:
    """Return DRAWN of a house's drawings of a part, each emoji alike often, in any of its tones."""
    drawn = emoji.drawings(house, part)
    generator = torch.Generator().manual_seed(seed)
    return drawn.images[emoji.balanced(drawn).multinomial(DRAWN, replacement=True, generator=generator)]


def lambdas(p: Any, seed: int) -> list[float]:
    """Return the lambdas of a seed: the judged one, and one of the others in turn."""
    return [p.lambda_judged, *([p.lambdas[(seed - p.seed) % len(p.lambdas)]] if p.lambdas else [])]


def held(p: Any, net: Any, schedule: Schedule) -> Translator:
    """Return a U-Net as a translator."""
    return Translator(net, partial(denoiser, schedule=schedule), p.sigma)


def denoiser(net: Any, schedule: Schedule) -> rdmd.Denoiser:
    """Return a U-Net as D(x, sigma)."""
    return diffusion.denoiser(quick_model(net), schedule)


def translator(p: Any, seed: int, lambda_: float, unet: Any, schedule: Schedule) -> Translator:
    """Return the translator of a seed and a lambda: from models/, from the folder that runs share, or trained now."""

    def make(checkpoints: Any, draft: Any) -> None:
        options = Options(p.batch, p.lr, seed, clip=1.0, ema=p.ema, flip=True, folder=checkpoints, save_every=100)
        x, denoise = pictures("noto", "source", seed), partial(denoiser, schedule=schedule)
        of_fake = {"fake_updates": p.fake_updates, "fake_lr": p.fake_lr}
        _, history = rdmd.train_translator(
            unet, denoise, schedule.sigma, x, lambda_, p.steps, options, sigma=p.sigma, **of_fake
        )
        weights = {name: value.half().contiguous() for name, value in history.ema["G"].items()}
        write_atomic(draft / "net.safetensors", save(weights))

    settings = {"target": fingerprint(unet), "lambda": lambda_}
    settings |= {name: getattr(p, name) for name in ("steps", "batch", "lr", "ema", "fake_updates", "fake_lr", "sigma")}
    folder = sources.MODELS / "translators" / f"{seed}-{lambda_:g}"
    if not sources.made_with(folder, settings):
        folder = p.artefacts / "translators" / str(seed) / f"{lambda_:g}"
        sources.artefact(folder, settings | {"code": digest(translator)}, make)
    net, _ = sources.load(p.target, p.device)
    net.load_state_dict(load_file(folder / "net.safetensors"))
    return held(p, net, schedule)


def trained(p: Any, seed: int) -> tuple[World, Any, Generators]:
    """Return what a replicate starts from: the source's world, the target's model, and the seed's translators."""
    target, schedule = sources.load(p.target, p.device)
    generators = {one: translator(p, seed, one, target, schedule) for one in lambdas(p, seed)}
    return emoji_measures.world(p), target, generators


class Task:
    """What is to be translated with one seed, and all measures of a translation."""

    def __init__(self, seed: int, p: Any, world: World) -> None:
        self.inputs, self.space = Inputs(p.inputs, seed, world, toned=True), world.space
        drawn = emoji.drawings("twemoji")
        unseen = torch.tensor([one.part == "source" for one in emoji.table()])[drawn.emoji]
        each = emoji.one_of_each(emoji.select(drawn, unseen), seed)
        self.reference = world.space.features["twemoji"][unseen][each]

    def measure(self, images: Tensor) -> list[float]:
        """Return MEASURES of translations (n, 3, 32, 32).

        Beside those of `lib.worlds.emoji_measures.Inputs` the distances to drawings by Twemoji that no model has seen,
        of other emoji, and the likeness to the input.
        """
        seen, x = neutral.features(images), self.inputs.x
        far = self.space.frechet(seen, self.reference, AXES), self.space.kernel(seen, self.reference)
        alike = [measure(images, x).mean().item() for measure in (distances.psnr, distances.ssim)]
        return [*self.inputs.measure(images, seen), *far, *alike]


class Method(NamedTuple):
    """A translator of pictures with a knob: its values as shares of T, and the network calls of a picture."""

    translate: Callable[[float], Tensor]
    knob: list[float]
    calls: Callable[[float], int]


def methods(p: Any, seed: int, world: World, target: Any, x: Tensor) -> dict[str, Method]:
    """Return the diffusion translators of pictures x (n, 3, 32, 32), each with the knob that trades fidelity for
    quality.

    SDEdit, EGSDE and CycleDiffusion start at a share of T, ILVR is guided down to one; DDIB has none. CycleDiffusion
    goes without its authors' last pass of SDEdit, which made it worse. An evaluation of EGSDE's classifier, with its
    gradient, is counted as two calls.
    """
    walk = translation.Sampler(world.schedule, p.sampling_steps, clip=True)
    source, model = quick_model(world.unet), quick_model(target)
    domains, phi = classifier(p, seed, world), partial(translation.low_pass, left=p.left)

    def t(share: float) -> int:
        return round(share * p.sampling_steps) * (world.schedule.T // p.sampling_steps)

    def steps(share: float) -> int:
        return round(share * p.sampling_steps) + 1

    def rng() -> torch.Generator:
        return torch.Generator().manual_seed(seed)

    lambdas = {"lambda_s": p.lambda_s, "lambda_i": p.lambda_i, "phi": phi}
    cycle = replace(walk, eta=p.cycle_eta)
    whole = p.sampling_steps
    return {
        "SDEdit": Method(lambda s: translation.sdedit(model, walk, x, rng(), t(s)), p.starts, steps),
        "ILVR": Method(lambda s: translation.ilvr(model, walk, x, rng(), t(s), phi), p.ranges, lambda _: whole),
        "EGSDE": Method(
            lambda s: egsde(model, domains.features, walk, x, rng(), t(s), **lambdas), p.starts, lambda s: 3 * steps(s)
        ),
        "DDIB": Method(
            lambda _: translation.ddib(source, model, walk, x, iterations=p.iterations),
            [1.0],
            lambda _: (p.iterations + 1) * whole,
        ),
        "CycleDiffusion": Method(
            lambda s: translation.cycle_diffusion(source, model, cycle, x, rng(), t(s), refine=0),
            p.cycle_starts,
            lambda s: 2 * steps(s),
        ),
    }


def classifier(p: Any, seed: int, world: World) -> NoisedClassifier:
    """Return EGSDE's classifier of the two houses, which learns from the pictures that the two models learnt from."""
    net = NoisedClassifier(world.unet)
    noto, twemoji = pictures("noto", "source", seed), pictures("twemoji", "target", seed)
    options = {"batch": p.classifier_batch, "lr": p.classifier_lr, "seed": seed}
    train_noised(net, world.schedule, noto, twemoji, p.classifier_steps, **options)
    return net


def translators(seed: int, p: Any, world: World, target: Any, generators: Generators) -> dict[str, Any]:
    """R4 to R6: every method over its knob, on the same inputs.

    "METHOD" is (values of the knob, MEASURES), "METHOD images" (values, SHOWN, 3, 32, 32), "METHOD calls" and "METHOD
    seconds" (values,) are network calls and seconds of a picture. RDMD's knob is `lambdas`. "input", "truth", "other"
    are MEASURES of the input, of its partner and of another partner, "start" of the translator before training.
    """
    task = Task(seed, p, world)
    x, truth = task.inputs.x, task.inputs.truth
    with torch.no_grad():
        start = held(p, target, world.schedule)(x).clamp(-1, 1)
    known = {"input": x, "truth": truth, "other": truth.roll(1, 0), "start": start}
    found: dict[str, Any] = {name: task.measure(images) for name, images in known.items()}
    found |= {f"{name} images": known[name][:SHOWN] for name in ("input", "truth")}
    every = {"RDMD": Method(lambda one: generators[one](x), list(generators), lambda _: 1)}
    every |= methods(p, seed, world, target, x)
    for name, method in every.items():
        rows, seconds, outputs = [], [], []
        for value in method.knob:
            began = time.perf_counter()
            with torch.no_grad():
                y = method.translate(value).clamp(-1, 1)
            seconds.append((time.perf_counter() - began) / len(x))
            rows.append(task.measure(y))
            outputs.append(y[:SHOWN])
        found |= {name: rows, f"{name} images": torch.stack(outputs), f"{name} seconds": seconds}
        found[f"{name} calls"] = [method.calls(value) for value in method.knob]
    return found


def at_cost(found: dict[str, Any], method: str, measure: str, cost: np.ndarray) -> np.ndarray:
    """Return a measure of a method at a cost (seeds,), the distance to the input, interpolated over its knob; (seeds,).

    A start of 0 leaves the input, so it ends the curves of the methods that have a start. NaN where a method's least
    distance is larger; its last value where its largest is smaller.
    """
    of_input, column = found["input"], MEASURES.index(measure)
    values = []
    for rows, unchanged, c in zip(found[method], of_input, cost, strict=True):
        if method in STARTED:
            rows = np.concatenate([unchanged[None], rows])
        x, y = rows[np.argsort(rows[:, COST])][:, [COST, column]].T
        values.append(np.interp(c, x, y, left=np.nan))
    return np.array(values)
