"""What one replicate of each SDFT experiment measures, from one seed and `p`, the parameters of its notebook.

Each function returns small arrays by name; `lib.record.run.Run.replicates` stacks those of several seeds.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.metrics import average_precision_score
from torch import Tensor, nn

from lib.ground import diffusion
from lib.ground.diffusion import Model, Schedule
from lib.ground.finetune import Options
from lib.ground.nets import eps_model, seeded, small_unet
from lib.ground.noised_classifier import NoisedClassifier, train_noised
from lib.measures import distances
from lib.papers.baselines import asyrp, translation
from lib.papers.baselines.egsde import egsde
from lib.papers.sdft import method as sdft, traits
from lib.worlds import digits, judge as judging, sources

Measured = dict[str, Any]  # numbers and arrays by name
Look = Callable[[Model], Tensor] | None
MISSING = [k for k in range(10) if k not in digits.KEPT]
SHARES = ("realism", "agreement", "coverage", "frechet")  # measures of `limited_data`
KEEPING = ("realism", "kept", "kept_seen", "kept_missing", "distance")  # measures of `translations`
EDITING = ("success", "preserved", "realism", "missing")  # measures of `edits`
SHOWN = 8  # samples kept as pictures
THRESHOLDS = np.linspace(-0.6, 1, 81)  # on the cosine, of `selection`
LAMBDAS = ("lambda_distill", "lambda_aux")  # both have one value in an SDFT arm


def matched(ours: np.ndarray, naive: np.ndarray) -> np.ndarray:
    """Return the gain at equal realism, one value a seed, of curves (seeds, points, 2: realism, agreement)."""
    pairs = zip(torch.tensor(ours), torch.tensor(naive), strict=True)
    return np.array([distances.gain_at_equal_realism(*pair) for pair in pairs])


def pure_noise(seed: int, p: Any) -> Measured:
    """S1: train a source, and feed it pure noise: relative squared error of the noise it predicts, (timesteps,).

    "noise" is the error on pure noise, "images" that on its usual input, "untrained" that of an untrained network on
    pure noise.
    """
    unet, schedule = sources.source_model(p.artefacts / f"source-{seed}", p.device, steps=p.source_steps, seed=seed)
    untrained = seeded(seed, lambda: small_unet(unet.config["sample_size"])).to(p.device)
    generator, printed = rng(seed), digits.printed(unet.config["sample_size"]).images
    eps = torch.randn(p.images, *printed.shape[1:], generator=generator).to(p.device)
    x0 = printed[torch.randint(len(printed), (p.images,), generator=generator)].to(p.device)

    @torch.no_grad()
    def error(net: nn.Module, x: Tensor, t: int) -> float:
        return ((eps_model(net)(x, diffusion.batch_of(t, x)) - eps).square().mean() / eps.square().mean()).item()

    found: dict[str, list[float]] = {"noise": [], "images": [], "untrained": []}
    for t in range(p.every, schedule.T, p.every):
        found["noise"].append(error(unet, eps, t))
        found["images"].append(error(unet, schedule.add_noise(x0, eps, t), t))
        found["untrained"].append(error(untrained, eps, t))
    return {name: np.array(errors) for name, errors in found.items()}


def arms(p: Any) -> dict[str, dict[str, float]]:
    """Return the arms of :func:`limited_data`: lambdas and gammas by name."""
    L, gammas = p.lambda_sdft, {"gamma_distill": p.gamma_distill, "gamma_aux": p.gamma_aux}
    lambdas = {"naive": (0, 0), "distill": (L, 0), "aux": (0, L), "SDFT": (L, L), "gamma 0": (L, L)}
    lambdas |= {f"SDFT, {other:g}": (other, other) for other in p.lambdas_more}
    found = {name: dict(zip(LAMBDAS, pair, strict=True)) | gammas for name, pair in lambdas.items()}
    found["gamma 0"] |= dict.fromkeys(gammas, 0.0)
    return found


def limited_data(seed: int, p: Any, unet: Any, schedule: Schedule, judge: judging.Classifier) -> Measured:
    """S2: every arm on one biased draw of the target, sampled from equal noise; SHARES at each checkpoint, and samples.

    An arm's array is (checkpoints, measures), the source's (measures,); "samples" are (SHOWN, source and arms, ...).
    """
    everything = digits.handwritten(judge.size)
    full = judging.judge(judge, everything.images).features
    target = digits.limited(everything, p.shots, seed=seed).images.to(unet.device)
    noise = torch.randn(p.samples, *target.shape[1:], generator=rng(seed))

    def draw(model: Model) -> Tensor:
        return diffusion.sample(model, schedule, noise, p.sampling_steps, rng(seed), device=unet.device)

    def measure(images: Tensor) -> list[float]:
        v = judging.judge(judge, images)
        shares = judging.realism(v), judging.agreement(v, of_source), judging.coverage(v, MISSING)
        return [*shares, distances.frechet_distance(v.features, full)]

    pictures = [draw(eps_model(unet))]
    of_source = judging.judge(judge, pictures[0])
    found: Measured = {"source": measure(pictures[0])}
    for name, terms in arms(p).items():
        _, seen = student(unet, schedule, target, p, seed, p.checkpoints, draw, **terms)
        found[name] = [measure(images) for images in seen]
        pictures.append(seen[-1])
    return found | {"samples": torch.stack(pictures, dim=1)[:SHOWN]}


def starts(p: Any) -> list[float]:
    """Return the start times of :func:`translations`, as shares of T; the paper's two are always among them."""
    return sorted({0.5, 0.625, *p.starts})


def translations(seed: int, p: Any, unet: Any, schedule: Schedule, judge: judging.Classifier) -> Measured:
    """S3 and S5: held-out printed digits translated by five methods, and pairs of source and student from one noise.

    "METHOD STUDENT" is (starts, KEEPING), "METHOD STUDENT images" (starts, 10, ...) has one input of each class;
    "pairs STUDENT" is (checkpoints, 2: realism, agreement); the rest are controls, inputs and pictures of pairs.
    """
    printed, held_out = digits.split(digits.printed(judge.size))
    target = digits.limited(digits.handwritten(judge.size), p.shots, seed=seed).images.to(unet.device)
    inputs = digits.limited(held_out, p.inputs, classes=range(10), seed=seed)
    first = [int((inputs.labels == k).nonzero()[0]) for k in range(10)]
    x, source = inputs.images.to(unet.device), eps_model(unet)
    noise = torch.randn(p.pairs, *target.shape[1:], generator=rng(seed)).to(unet.device)
    turn = _level(p.pair_start, p.pair_steps)

    def decode(model: Model) -> Tensor:
        return diffusion.sample_ddim(model, schedule, noise, p.pair_steps, start=turn, clip=True)

    def measure(images: Tensor) -> list[float]:
        v = judging.judge(judge, images)
        kept, seen = (v.digit == inputs.labels).float(), torch.isin(inputs.labels, torch.tensor(digits.KEPT))
        distance = (images.clamp(-1, 1) - x).square().mean((1, 2, 3)).sqrt().mean()
        return [judging.realism(v), *(part.mean().item() for part in (kept, kept[seen], kept[~seen], distance))]

    found: Measured = {"inputs": inputs.images[first]}
    models, seen = {}, {"source": decode(source)}
    reference = judging.judge(judge, seen["source"])
    for name, weight, order in (("naive", 0, 0), ("SDFT", p.lambda_sdft, 0), ("naive again", 0, 500_000)):
        terms = dict.fromkeys(LAMBDAS, weight)
        look = None if order else decode
        net, pairs = student(unet, schedule, target, p, seed + order, p.checkpoints, look, **terms)
        models[name] = eps_model(net)
        if pairs:
            seen[name], verdicts = pairs[-1], [judging.judge(judge, images) for images in pairs]
            found[f"pairs {name}"] = [[judging.realism(v), judging.agreement(v, reference)] for v in verdicts]

    classifier, data = NoisedClassifier(unet), (printed.images.to(unet.device), target)
    train_noised(classifier, schedule, *data, p.classifier_steps, 2 * p.batch, p.classifier_lr, seed=seed)
    walk = translation.Sampler(schedule, p.steps, p.eta, clip=True)
    paired = replace(walk, steps=p.pair_steps, eta=0.1)  # of the methods that pair noises with inputs
    E, cycle = classifier.features, [_level(share, p.pair_steps) for share in (p.cycle_start, 0.1)]
    methods: dict[str, Callable[[Model, int], Tensor]] = {
        "SDEdit": lambda model, t: translation.sdedit(model, walk, x, rng(seed), t),
        "ILVR": lambda model, t: translation.ilvr(model, walk, x, rng(seed), t),
        "EGSDE": lambda model, t: egsde(model, E, walk, x, rng(seed), t, lambda_i=p.lambda_i),
        "DDIB": lambda model, _: translation.ddib(source, model, paired, x, turn, p.iterations),
        "CycleDiffusion": lambda model, _: translation.cycle_diffusion(source, model, paired, x, rng(seed), *cycle),
    }
    for method, translate in methods.items():
        times = starts(p) if method in ("SDEdit", "ILVR", "EGSDE") else [0.0]  # the others have one setting
        for name in models if method == "SDEdit" else ("naive", "SDFT"):
            outputs = [translate(models[name], _level(start, p.steps)) for start in times]
            found[f"{method} {name}"] = [measure(y) for y in outputs]
            found[f"{method} {name} images"] = torch.stack([y[first] for y in outputs])

    usual = distances.nearest(held_out.images, printed.images)[0].max()
    unusable = distances.nearest(seen["source"].cpu(), printed.images)[0] > usual
    shifted = judging.judge(judge, seen["SDFT"].roll(1, 0))  # beside each source sample, the student's of another noise
    back = translation.ddib(source, source, replace(paired, clip=False), x, turn, p.iterations)
    return found | {
        "unusable": unusable.float().mean(),
        "other_noise": judging.agreement(shifted, reference),
        "identity": (methods["SDEdit"](source, 0) - x).abs().max(),
        "round_trip": (back - x).square().mean().sqrt(),
        **{f"pairs {name} images": images[:12] for name, images in seen.items()},
    }


def strengths(p: Any) -> list[float]:
    """Return the strengths of the learned direction in :func:`edits`; 0 and 1 are always among them."""
    return sorted({0.0, 1.0, *p.strengths})


def edits(seed: int, p: Any, unet: Any, schedule: Schedule, judge: judging.Classifier) -> Measured:
    """S4: the edit "lean right" on both students, by a learned, a mean, a random and the source's direction.

    "STUDENT DIRECTION" is (strengths, EDITING), "STUDENT images" (strengths, SHOWN, ...); "STUDENT difference" is the
    largest one of strength 0 to plain sampling.
    """
    training, held_out = digits.split(digits.handwritten(judge.size))
    slants = traits.slant(training.images)
    low, wanted = slants.quantile(1 / 2), slants.quantile(2 / 3)
    upright = torch.nonzero(traits.slant(held_out.images) < low).flatten()
    test = digits.select(held_out, upright[torch.randperm(len(upright), generator=rng(seed))[: p.inputs]])
    target = digits.limited(training, p.shots, seed=seed)
    printed = digits.limited(digits.printed(judge.size), p.shots, range(10), seed=seed)
    leans = slants > wanted
    steering = traits.leaning(training.images, leans, 64, seed, p.classifier_steps, unet.device, blurred=True)
    second = traits.leaning(training.images, leans, 32, seed + 500, p.classifier_steps, unet.device, blurred=False)
    levels = [level for level in diffusion.trajectory(schedule, p.steps, p.start) if level[0] >= p.t_edit]

    def invert(net: Any, images: Tensor) -> Tensor:
        return diffusion.invert_ddim(eps_model(net), schedule, images.to(unet.device), p.steps, stop=p.start)

    def learn(net: Any, images: Tensor, noisy: Tensor) -> asyrp.DeltaBlock:
        rule, given = partial(torch.optim.Adam, lr=p.lr_delta), (images.to(unet.device), noisy, asyrp.toward(steering))
        return asyrp.learn(net, schedule, *given, levels, p.lambda_l1, p.walks, p.batch, rule, seed)[0]

    def measure(images: Tensor) -> list[float]:
        verdicts, missing = judging.judge(judge, images), torch.isin(test.labels, torch.tensor(MISSING))
        images, same = images.clamp(-1, 1), (verdicts.digit == test.labels).float()
        success = ((second(images) > 0) & (traits.slant(images) > wanted)).float()
        return [*(v.mean().item() for v in (success, same)), judging.realism(verdicts), same[missing].mean().item()]

    of_source = learn(unet, printed.images, invert(unet, printed.images))
    found: Measured = {"inputs": test.images[:SHOWN]}
    for name, weight in (("naive", 0.0), ("SDFT", p.lambda_sdft)):
        terms: dict[str, Any] = dict.fromkeys(LAMBDAS, weight)
        net, _ = student(unet, schedule, target.images.to(unet.device), p, seed, [p.tuning_steps], **terms)
        noisy, noisy_target = invert(net, test.images), invert(net, target.images)
        learned, right = learn(net, target.images, noisy_target), traits.above_median(target).to(unet.device)
        directions: dict[str, tuple[asyrp.Direction, list[float]]] = {
            "learned": (learned, strengths(p)),
            "mean difference": (asyrp.mean_difference(net, schedule, noisy_target, right, levels), p.strengths_mean),
            "random": (asyrp.random_like(learned, seed), [1.0]),
            "from the source": (of_source, [1.0]),
        }
        for key, (direction, factors) in directions.items():
            edited = [asyrp.edit(net, schedule, noisy, direction, c, p.steps, p.start, p.t_edit) for c in factors]
            found[f"{name} {key}"] = [measure(images) for images in edited]
            if key == "learned":
                plain = diffusion.sample_ddim(eps_model(net), schedule, noisy, p.steps, start=p.start)
                found[f"{name} difference"] = (edited[0] - plain).abs().max()  # strength 0
                found[f"{name} images"] = torch.stack(edited)[:, :SHOWN]
    return found


def selection(seed: int, p: Any) -> Measured:
    """S6: handwritten digits selected by the similarity to printed ones, for a scorer trained on printed digits alone.

    By class (10, ...): precision, also of an untrained scorer and of the next class's prompt, its average, recall, the
    shift of ink and slant, what is shown; for the whole curve: "passed" (thresholds, 10) of `THRESHOLDS` and "purity"
    (images, 10) of every selection.
    """
    collection, (learned, prompts) = digits.handwritten(), digits.split(digits.printed())
    labels, n = collection.labels.numpy(), selected(p.share, len(collection.labels))
    wanted = labels[:, None] == np.arange(10)  # (images, 10)

    def ranked(steps: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        net = traits.scorer(learned, seed, steps, p.device)
        ours, printed = (judging.judge(net, d.images).features for d in (collection, prompts))
        prompt = torch.stack([printed[prompts.labels == k].mean(0) for k in range(10)]) - printed.mean(0)  # (10, d)
        similarity = F.cosine_similarity((ours - ours.mean(0))[:, None], prompt[None], dim=2).numpy()  # (images, 10)
        order = np.argsort(-similarity, axis=0)  # the most similar first
        hits = np.take_along_axis(wanted, order, 0)  # whether the image at each rank is of the wanted class
        return similarity, order, hits.cumsum(0) / np.arange(1, len(hits) + 1)[:, None]

    similarity, order, purity = ranked(p.steps)
    taken = labels[order[:n]]  # (n, 10)
    images = collection.images.double()
    looks = torch.stack([(images[:, 0].mean((1, 2)) + 1) / 2, traits.slant(images)], dim=1).numpy()  # (images, 2)
    bias = np.full((10, 2), np.nan)
    for k, top in enumerate(order[:n].T):
        mine, kept = looks[labels == k], looks[top[labels[top] == k]]
        if len(kept):
            bias[k] = (kept.mean(0) - mine.mean(0)) / mine.std(0)
    return {
        "precision": purity[n - 1],
        "average_precision": average_precision_score(wanted, similarity, average=None),
        "recall": purity[n - 1] * n / np.bincount(labels),
        "untrained": ranked(0)[2][n - 1],
        "next": np.array([(taken[:, (k + 1) % 10] == k).mean() for k in range(10)]),
        "bias": bias,
        "shown": order[[*range(8), *range(max(0, n - 8), n)]].T,
        "passed": (similarity[None] > THRESHOLDS[:, None, None]).mean(1),
        "purity": purity,
    }


def selected(share: float, total: int) -> int:
    """Return how many of `total` images a share of them is, at least one."""
    return min(max(1, round(share * total)), total)


def rng(seed: int) -> torch.Generator:
    """Return a fresh generator: what gets one of the same seed sees the same noise."""
    return torch.Generator().manual_seed(seed)


def student(
    unet: Any, schedule: Schedule, images: Tensor, p: Any, seed: int, at: list[int], look: Look = None, **terms: Any
) -> tuple[nn.Module, list[Tensor]]:
    """Fine-tune a copy of `unet` up to the last of the steps `at`; return it, and ``look(model)`` at each of them."""
    seen = []

    def on_step(i: int, net: nn.Module) -> None:
        if look and i in at:
            seen.append(look(eps_model(net)))

    options = Options(batch=p.batch, lr=p.lr, seed=seed)
    return sdft.finetune(unet, schedule, images, max(at), options, on_step, **terms)[0], seen


def _level(share: float, steps: int, T: int = 1000) -> int:
    """Return the timestep of a trajectory of `steps` steps at a share of T."""
    return round(share * steps) * (T // steps)
