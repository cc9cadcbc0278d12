"""ANT on digits as functions of one seed: the arms of claims A3 and A5, the sweeps of claim A6.

A seed draws ten shots, one of each class. All arms of a seed see the same shots, timesteps and first noises, and are
sampled with the same noises at the start and at each step.
"""

import copy
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lib.ground import diffusion, nets
from lib.ground.finetune import Options, finetune
from lib.ground.noised_classifier import NoisedClassifier, accuracy, train_noised
from lib.measures import distances, perceptual
from lib.papers.ant import method as ant
from lib.papers.ant.adaptor import Adaptor
from lib.record.replicates import stacked
from lib.worlds import digits, judge as judging

Values = dict[str, Any]  # numbers and small arrays
MEASURES = {
    "realism": "share handwritten",
    "frechet": "Frechet distance",
    "intra_lpips": "Intra-LPIPS (digit features)",
    "digits": "classes",
    "distance": "distance to nearest shot",
}
SHOTS, SHOWN = 10, 10  # target images; samples of each run that are kept to be shown
TOLD_AT = 250  # timestep at which the classifier of the guidance is judged
GAMMA, OMEGA = 5.0, 0.02  # the paper's
TRANSFERRED = 0.8  # share of handwritten samples at which an arm counts as transferred


@dataclass(frozen=True)
class Arm:
    """What one fine-tuning trains and how, and the iterations at which it is sampled; 0 is the source."""

    stops: tuple[int, ...]
    lr: float
    adaptor: bool = True  # else the whole network
    gamma: float = 0.0  # 0: no guidance; negative: its opposite
    J: int = 0  # adversarial ascents
    omega: float = OMEGA
    told: int = SHOTS  # target images that the classifier has seen


class Draw:
    """The shots of one seed, and what all arms of it have in common; `p` are the notebook's parameters."""

    def __init__(self, seed: int, p: Any, unet: Any, schedule: diffusion.Schedule, judge: judging.Classifier) -> None:
        self.seed, self.p, self.unet, self.schedule, self.judge = seed, p, unet, schedule, judge
        self.digits, self.printed = digits.handwritten(judge.size), digits.printed(judge.size).images
        self.shots = digits.limited(self.digits, SHOTS, range(10), seed).images
        self.embed = judging.digit_features(judge)
        self.target = judging.judge(judge, self.digits.images).features

    def classifier(self, told: int = SHOTS) -> NoisedClassifier:
        """Return a classifier of noised images that has seen so many target images, the shots among them."""
        more = digits.limited(self.digits, told - SHOTS, range(10), self.seed + 500).images
        seen, p, classifier = torch.cat([self.shots, more]), self.p, NoisedClassifier(self.unet)
        options = {"batch": p.classifier_batch, "lr": p.classifier_lr, "seed": self.seed}
        train_noised(classifier, self.schedule, self.printed, seen, p.classifier_steps, **options)
        return classifier

    def sample(self, unet: Any) -> Tensor:
        """Return images (n, 1, h, w) by ancestral sampling, from the same noises for every network."""
        draws = torch.Generator().manual_seed(self.seed)
        noise = torch.randn(self.p.samples, *self.shots.shape[1:], generator=draws)
        model, steps = nets.eps_model(unet), self.p.sampling_steps
        return diffusion.sample(model, self.schedule, noise, steps, draws, device=unet.device)

    def train(self, arm: Arm, classifier: NoisedClassifier) -> list[Tensor]:
        """Fine-tune a copy of the source by what the arm has of Algorithm 1; return its samples at all stops but 0."""
        p, guidance = self.p, ant.classifier_guidance(classifier) if arm.gamma else None
        unet, trained = student(self.unet, {"c": p.c, "d": p.d} if arm.adaptor else None, self.seed)
        model, samples = nets.eps_model(unet), []

        def loss(x0: Tensor, t: Tensor, eps: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
            return ant.loss(model, guidance, self.schedule, x0, t, eps, arm.gamma, arm.omega, arm.J)

        def look(i: int, history: Any) -> None:
            if i in arm.stops:
                samples.append(self.sample(unet))

        finetune(trained, self.schedule, self.shots, loss, arm.stops[-1], Options(p.batch, arm.lr, self.seed), look)
        return samples

    def measure(self, samples: Tensor) -> Values:
        """Return the MEASURES of samples (n, 1, h, w), and those that are kept as "samples" (SHOWN, 1, h, w)."""
        verdicts = judging.judge(self.judge, samples)
        return {
            "realism": judging.realism(verdicts),
            "frechet": distances.frechet_distance(verdicts.features, self.target),
            "intra_lpips": perceptual.intra_lpips(self.embed, samples.split(64), self.shots).value,
            "digits": len(verdicts.digit.unique()),
            "distance": distances.nearest(samples, self.shots)[0].mean().item(),
            "samples": samples[:SHOWN].numpy(),
        }

    def balance(self, arm: Arm, samples: list[Tensor]) -> dict[str, float]:
        """Return the numbers of claim A5 from an arm's samples at its stops.

        Spread of log2 of the checkpoint at which a noise's sample becomes handwritten, without those that are so from
        the start; copies when 80 % of the samples have transferred; the iteration of that; copies at the last stop.
        """
        flags = torch.stack([judging.judge(self.judge, x).domain == judging.HANDWRITTEN for x in samples])  # (stops, n)
        k = 1 + len(set(self.p.checkpoints))  # stops that all arms have
        times = first_handwritten(flags[1:k, ~flags[0]], arm.stops[1:k])
        radius = distances.copy_radius(self.shots, self.digits.images)
        copies = [distances.copies(x, self.shots, radius) for x in samples]
        reached = [i for i, share in enumerate(flags.float().mean(1)) if i and share >= TRANSFERRED]
        copied, when = (copies[reached[0]], arm.stops[reached[0]]) if reached else (np.nan, np.nan)
        spread = times.log2().std().item()
        return {"spread": spread, "copies": copied, "transferred": when, "copies_end": copies[-1]}


def arms(p: Any) -> dict[str, Arm]:
    """Return the arms of claims A3 and A5; the plain ones run longer, because an ANT step costs J + 1 of theirs."""
    short = (0, *sorted(set(p.checkpoints)))
    plain = Arm(tuple(sorted({*short, *p.checkpoints_plain})), p.lr_adaptor)
    guided = Arm(short, p.lr_adaptor, gamma=p.gamma)
    unguided = Arm(short, p.lr_adaptor, J=p.ascents, omega=p.omega)
    return {
        "full": replace(plain, adaptor=False, lr=p.lr_full),
        "adaptor": plain,
        "no noise": guided,
        **({"no guidance": unguided} if p.no_guidance else {}),
        "ANT": replace(unguided, gamma=p.gamma),
        "flipped": replace(guided, gamma=-p.gamma),
    }


def limited_data(seed: int, p: Any, unet: Any, schedule: diffusion.Schedule, judge: judging.Classifier) -> Values:
    """Train and measure all arms on one draw of the shots.

    For each arm "ARM MEASURE" at its stops (stops,), "ARM samples" (stops, SHOWN, 1, h, w), and the numbers of
    :meth:`Draw.balance`. Beside them "shots" (10, 1, h, w), and the shares of printed and of handwritten digits that
    the classifier tells, "told_source" and "told_target".
    """
    draw = Draw(seed, p, unet, schedule, judge)
    classifier, start = draw.classifier(), draw.sample(unet)
    told = accuracy(classifier, schedule, draw.printed[::10], draw.digits.images[::10], TOLD_AT, seed)
    found: Values = {"shots": draw.shots.numpy(), "told_source": told[0], "told_target": told[1]}
    for name, arm in arms(p).items():
        samples = [start, *draw.train(arm, classifier)]
        values = stacked(map(draw.measure, samples)) | draw.balance(arm, samples)
        found |= {f"{name} {key}": value for key, value in values.items()}
    return found


def settings(p: Any) -> dict[str, dict[float, Arm]]:
    """Return the runs of claim A6: two sweeps through the paper's values, and a better informed classifier."""
    paper = Arm((0, p.iterations), p.lr, gamma=GAMMA, J=p.ascents)
    return {
        "gamma": {gamma: replace(paper, gamma=gamma) for gamma in sorted(set(p.gammas))},
        "omega": {omega: replace(paper, omega=omega) for omega in sorted(set(p.omegas))},
        "classifier": {told: replace(paper, told=told) for told in (SHOTS, p.classifier_shots)},
    }


def sensitivity(seed: int, p: Any, unet: Any, schedule: diffusion.Schedule, judge: judging.Classifier) -> Values:
    """Train and measure all `settings` on one draw of the shots.

    For "source" and each run, such as "gamma 5", what :meth:`Draw.measure` returns: "gamma 5 frechet".
    """
    draw = Draw(seed, p, unet, schedule, judge)
    classifiers = {told: draw.classifier(told) for told in (SHOTS, p.classifier_shots)}
    train = cache(lambda arm: draw.train(arm, classifiers[arm.told])[-1])  # once: the sweeps meet in one run
    samples = {"source": draw.sample(unet)}
    for sweep, runs in settings(p).items():
        samples |= {f"{sweep} {value:g}": train(arm) for value, arm in runs.items()}
    return {f"{name} {key}": value for name, x in samples.items() for key, value in draw.measure(x).items()}


def row(values: Values, name: str, keys: Iterable[str] = MEASURES, stop: int | None = None) -> dict[str, float | str]:
    """Return means over the draws of a run's values, at one stop where there are several; in words where undefined."""
    chosen = {key: values[f"{name} {key}"] for key in keys}
    means = {key: float((x if stop is None else x[:, stop]).mean()) for key, x in chosen.items()}
    return {key: "not defined" if math.isnan(mean) else mean for key, mean in means.items()}


def protocol(p: Any) -> str:
    """Return what to write beside a table of the measures."""
    sets = {"samples a run and draw": p.samples, "handwritten digits": len(digits.handwritten().labels)}
    line = distances.protocol("Frechet distance by clean-fid", sets, "64 of the digit classifier")
    return f"{line}. Intra-LPIPS, digit features: the same samples, 10 shots, clusters without a pair left out"


def student(source: nn.Module, adaptor: dict[str, int] | None = None, seed: int = 0) -> tuple[Any, nn.Module]:
    """Return a copy of a diffusers U-Net and the module to be trained: the copy itself, or an adaptor beside it.

    ``adaptor`` has the settings of :meth:`lib.papers.ant.adaptor.Adaptor.attach`, ``seed`` draws its first weights.
    """
    unet: Any = copy.deepcopy(source).to(memory_format=torch.channels_last).requires_grad_(True)  # faster on a CPU
    if adaptor is None:
        return unet, unet
    unet.eval()  # dropout, if there is any, belongs to the trained part
    return unet, nets.seeded(seed, lambda: Adaptor.attach(unet, **adaptor))


def first_handwritten(handwritten: Tensor, iterations: Sequence[int]) -> Tensor:
    """Return the first of k iterations at which each noise's sample is handwritten; (k, n), bool -> (n,), float64.

    A noise that has not transferred at the last one counts with twice that: one unit more on the scale of log2.
    """
    grid = torch.tensor([*iterations, 2 * iterations[-1]], dtype=torch.float64)
    never = torch.ones_like(handwritten[:1])  # (1, n)
    return grid[torch.cat([handwritten, never]).int().argmax(0)]  # argmax: the first of the largest
