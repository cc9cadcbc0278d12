"""ANT on digits as functions of one seed: the arms of claims A3 and A5, the sweeps of claim A6.

A seed draws ten shots, one of each class. All arms of a seed see the same shots, timesteps and first noises, and are
sampled with the same noises at the start and at each step.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lib.ground import diffusion, nets
from lib.ground.finetune import Options, finetune
from lib.ground.noised_classifier import NoisedClassifier, accuracy, train_noised
from lib.measures import distances, perceptual
from lib.papers.ant import images as ant_images
from lib.papers.ant import method as ant
from lib.worlds import digits as data
from lib.worlds import judge as metrics

Arrays = dict[str, NDArray[Any]]
MEASURES = ("realism", "frechet", "intra_lpips", "digits", "distance")
BALANCE = ("spread", "copies", "transferred", "copies_end")
SHOTS, SHOWN = 10, 10  # target images; samples of each run that are kept to be shown
TOLD_AT = 250  # timestep at which the classifier of the guidance is judged
GAMMA, OMEGA = 5.0, 0.02  # the paper's


@dataclass(frozen=True)
class Arm:
    """What one fine-tuning trains and how, and the iterations at which it is sampled."""

    stops: tuple[int, ...]
    lr: float
    adaptor: bool = True  # else the whole network
    gamma: float = 0.0  # 0: no guidance
    sign: int = -1  # of the guidance; the paper's
    J: int = 0  # adversarial ascents
    omega: float = OMEGA
    told: int = SHOTS  # target images that the classifier has seen


class Draw:
    """The shots of one seed, and what all arms of it have in common; `p` are the notebook's parameters."""

    def __init__(self, seed: int, p: Any, unet: Any, schedule: diffusion.Schedule, judge: metrics.Classifier) -> None:
        self.seed, self.p, self.unet, self.schedule, self.judge = seed, p, unet, schedule, judge
        self.digits, self.printed = data.handwritten(judge.size), data.printed(judge.size).images
        self.shots = data.limited(self.digits, SHOTS, range(10), seed).images
        self.embed = metrics.digit_features(judge)
        self.target = metrics.judge(judge, self.digits.images).features

    def classifier(self, told: int = SHOTS) -> NoisedClassifier:
        """Return a classifier of noised images that has seen so many target images, the shots among them."""
        seen = self.shots
        if told > SHOTS:
            more = data.limited(self.digits, told - SHOTS, range(10), self.seed + 500)
            seen = torch.cat([seen, more.images])
        classifier, p = NoisedClassifier(self.unet), self.p
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
        """Fine-tune a copy of the source by Algorithm 1, or by what the arm leaves of it; its samples at the stops."""
        p, guidance = self.p, ant.classifier_guidance(classifier) if arm.gamma else None
        unet, trained = ant_images.student(self.unet, {"c": p.c, "d": p.d} if arm.adaptor else None, self.seed)
        model, samples = nets.eps_model(unet), []

        def loss(x0: Tensor, t: Tensor, eps: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
            parts = {"omega": arm.omega, "J": arm.J, "sign": arm.sign}
            return ant.loss(model, guidance, self.schedule, x0, t, eps, arm.gamma, **parts)

        def look(i: int, history: Any) -> None:
            if i in arm.stops:
                samples.append(self.sample(unet))

        options = Options(batch=p.batch, lr=arm.lr, seed=self.seed)
        finetune(trained, self.schedule, self.shots, loss, arm.stops[-1], options, look)
        return samples

    def measure(self, samples: Tensor) -> list[float]:
        """Return the MEASURES of samples (n, 1, h, w)."""
        verdicts = metrics.judge(self.judge, samples)
        frechet = distances.frechet_distance(verdicts.features, self.target)
        diversity = perceptual.intra_lpips(self.embed(samples), self.embed(self.shots)).value
        nearest = distances.nearest(samples, self.shots)[0].mean().item()
        return [metrics.realism(verdicts), frechet, diversity, len(verdicts.digit.unique()), nearest]

    def handwritten(self, samples: Tensor) -> Tensor:
        """Return which samples (n, 1, h, w) the judge takes for handwritten, (n,)."""
        return metrics.judge(self.judge, samples).domain == metrics.HANDWRITTEN

    def balance(self, arm: Arm, samples: list[Tensor], start: Tensor, k: int) -> list[float]:
        """Return the BALANCE of an arm (claim A5).

        Spread over noises of log2 of the first of k stops at which a sample is handwritten, without noises whose sample
        is so at the start (n,); copies when 80 % have transferred; the iteration of that; copies at the last stop.
        """
        flags = torch.stack([self.handwritten(x) for x in samples])  # (stops, n)
        times = ant_images.first_handwritten(flags[:k, ~start], arm.stops[:k])
        radius = ant_images.copy_radius(self.shots, self.digits.images)
        copies = [ant_images.copies(x, self.shots, radius) for x in samples]
        reached = (flags.float().mean(1) >= ant_images.TRANSFERRED).nonzero().flatten().tolist()
        when = [copies[reached[0]], arm.stops[reached[0]]] if reached else [np.nan, np.nan]
        return [times.log2().std().item(), *when, copies[-1]]


def arms(p: Any) -> dict[str, Arm]:
    """Return the arms of claims A3 and A5; the plain ones run longer, because an ANT step costs J + 1 of theirs."""
    short = tuple(sorted(set(p.checkpoints)))
    plain = Arm(tuple(sorted({*short, *p.checkpoints_plain})), p.lr_adaptor)
    guided = Arm(short, p.lr_adaptor, gamma=p.gamma)
    unguided = Arm(short, p.lr_adaptor, J=p.ascents, omega=p.omega)
    return {
        "full": replace(plain, adaptor=False, lr=p.lr_full),
        "adaptor": plain,
        "no noise": guided,
        **({"no guidance": unguided} if p.no_guidance else {}),
        "ANT": replace(unguided, gamma=p.gamma),
        "flipped": replace(guided, sign=1),
    }


def limited_data(seed: int, p: Any, unet: Any, schedule: diffusion.Schedule, judge: metrics.Classifier) -> Arrays:
    """Train and measure all arms on one draw of the shots.

    For "source" and each arm: NAME, the MEASURES at every stop (stops, 5); "NAME balance" (4,), arms only;
    "NAME samples" (stops, SHOWN, 1, h, w) and "NAME flags" (stops, SHOWN), whether these are handwritten. Beside them
    "shots" (10, 1, h, w) and "told", the shares of printed and handwritten digits that the classifier tells.
    """
    draw = Draw(seed, p, unet, schedule, judge)
    classifier = draw.classifier()
    told = accuracy(classifier, schedule, draw.printed[::10], draw.digits.images[::10], TOLD_AT, seed)
    found: Arrays = {"shots": draw.shots.numpy(), "told": np.array(told)}
    start = draw.sample(unet)
    found |= {"source": np.array([draw.measure(start)]), "source samples": start[None, :SHOWN].numpy()}
    for name, arm in arms(p).items():
        samples = draw.train(arm, classifier)
        found[name] = np.array([draw.measure(x) for x in samples])
        found[f"{name} samples"] = torch.stack(samples)[:, :SHOWN].numpy()
        found[f"{name} flags"] = torch.stack([draw.handwritten(x[:SHOWN]) for x in samples]).numpy()
        k = len(set(p.checkpoints))
        found[f"{name} balance"] = np.array(draw.balance(arm, samples, draw.handwritten(start), k))
    return found


def settings(p: Any) -> dict[str, dict[float, Arm]]:
    """Return the runs of claim A6: two sweeps through the paper's values, and a better informed classifier."""
    paper = Arm((p.iterations,), p.lr, gamma=GAMMA, J=p.ascents)
    return {
        "gamma": {gamma: replace(paper, gamma=gamma) for gamma in sorted(set(p.gammas))},
        "omega": {omega: replace(paper, omega=omega) for omega in sorted(set(p.omegas))},
        "classifier": {told: replace(paper, told=told) for told in (SHOTS, p.classifier_shots)},
    }


def sensitivity(seed: int, p: Any, unet: Any, schedule: diffusion.Schedule, judge: metrics.Classifier) -> Arrays:
    """Train and measure all `settings` on one draw of the shots.

    For "source" and each run, such as "gamma 5": NAME, the MEASURES (5,), and "NAME samples" (SHOWN, 1, h, w).
    """
    draw = Draw(seed, p, unet, schedule, judge)
    classifiers = {told: draw.classifier(told) for told in (SHOTS, p.classifier_shots)}
    found: Arrays = {"source": np.array(draw.measure(draw.sample(unet)))}
    samples: dict[Arm, Tensor] = {}  # the sweeps meet in one run
    for sweep, runs in settings(p).items():
        for value, arm in runs.items():
            if arm not in samples:
                samples[arm] = draw.train(arm, classifiers[arm.told])[-1]
            found[f"{sweep} {value:g}"] = np.array(draw.measure(samples[arm]))
            found[f"{sweep} {value:g} samples"] = samples[arm][:SHOWN].numpy()
    return found


def row(points: NDArray[Any]) -> dict[str, float | str]:
    """Return the mean over the draws of each measure (draws, 5); in words where no cluster of Intra-LPIPS has a pair."""
    means = [float(x.mean()) if np.isfinite(x).all() else "not defined" for x in points.T]
    return dict(zip(MEASURES, means, strict=True))


def protocol(p: Any) -> str:
    """Return what to write beside a table of the measures."""
    sets = {"samples a run and draw": p.samples, "handwritten digits": len(data.handwritten().labels)}
    line = distances.protocol("Frechet distance by clean-fid", sets, "64 of the digit classifier")
    return f"{line}. Intra-LPIPS, digit features: the same samples, 10 shots, clusters without a pair left out"
