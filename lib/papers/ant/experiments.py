"""ANT on emoji as functions of one seed: the arms of claims A3 and A5.

A seed draws ten Twemoji pictures of one kind, the shots. All arms of a seed see the same shots, timesteps and first
noises, and are sampled with the same noises at the start and at each step.
"""

import copy
import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lib.ground import nets
from lib.ground.finetune import Options, finetune
from lib.ground.noised_classifier import NoisedClassifier, accuracy, train_noised
from lib.ground.precision import quick_model
from lib.measures import neutral, perceptual
from lib.papers.ant import method as ant
from lib.papers.ant.adaptor import Adaptor
from lib.record.replicates import stacked
from lib.worlds import emoji, sources
from lib.worlds.emoji_measures import World

Values = dict[str, Any]  # numbers and small arrays
MEASURES = {
    "realism": "share drawn like Twemoji",
    "frechet": "Frechet distance",
    "intra_lpips": "Intra-LPIPS (neutral features)",
    "closeness": "distance to nearest shot / nearest other",
}
SHOWN, AXES = 10, 32  # samples of a run kept to be shown; of Frechet distances
TOLD_AT = 250  # timestep at which the classifier of the guidance is judged


@dataclass(frozen=True)
class Arm:
    """What one fine-tuning trains and how, and the iterations at which it is sampled; 0 is the source."""

    stops: tuple[int, ...]
    lr: float
    adaptor: bool = True  # else the whole network
    gamma: float = 0.0  # 0: no guidance; negative: its opposite
    J: int = 0  # adversarial ascents


class Draw:
    """The shots of one seed, and what all arms of it have in common; `p` are the notebook's parameters."""

    def __init__(self, seed: int, p: Any, world: World) -> None:
        self.seed, self.p, (self.unet, self.schedule, self.judge, self.space) = seed, p, world
        self.shots = emoji.ten(p.kind, seed).images
        self.source, self.unseen = (emoji.plain("noto", part).images for part in ("source", "test"))
        real = emoji.plain("twemoji", "", emoji.KINDS[p.kind])
        self.others = real.images[~(real.images[:, None] == self.shots).flatten(2).all(2).any(1)]
        self.target = neutral.features(self.others)
        self.embed = neutral.embedding(self.unet.device)

    def classifier(self) -> NoisedClassifier:
        """Return a classifier of noised images that has seen the source's pictures and the shots, mirrored, shifted."""
        p, classifier = self.p, NoisedClassifier(self.unet)
        options = {"batch": p.classifier_batch, "lr": p.classifier_lr, "seed": self.seed}
        source, target = _moved(self.source), _moved(self.shots)
        train_noised(classifier, self.schedule, source, target, p.classifier_steps, **options)
        return classifier

    def sample(self, unet: Any) -> Tensor:
        """Return images (n, 3, h, w), from the same noises for every network."""
        return sources.samples(unet, self.schedule, self.p.samples, self.seed, self.p.sampling_steps)

    def train(self, arm: Arm, classifier: NoisedClassifier) -> tuple[list[Tensor], float]:
        """Fine-tune a copy of the source by what the arm has of Algorithm 1; return its samples at all stops but 0.

        Also the mean square of the guidance over all iterations, relative to the plain loss.
        """
        p, guidance = self.p, ant.classifier_guidance(classifier) if arm.gamma else None
        unet, trained = student(self.unet, {"c": p.c, "d": p.d} if arm.adaptor else None, self.seed)
        model, samples, native = quick_model(unet), [], nets.native_weight(unet, self.schedule)

        def loss(x0: Tensor, t: Tensor, eps: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
            return ant.loss(model, guidance, self.schedule, x0, t, eps, arm.gamma, p.omega, arm.J, native=native)

        def look(i: int, history: Any) -> None:
            if i in arm.stops:
                samples.append(self.sample(unet))

        options = Options(p.batch, arm.lr, self.seed, flip=True)
        history = finetune(trained, self.schedule, self.shots, loss, arm.stops[-1], options, look)
        shift, plain_loss = (np.sum(history.values[key]) for key in ("shift", "plain"))
        return samples, shift / plain_loss

    def measure(self, samples: Tensor) -> Values:
        """Return the MEASURES of samples (n, 3, h, w), and those that are kept as "samples" (SHOWN, 3, h, w)."""
        seen = neutral.features(samples)
        return {
            "realism": self.judge.like_twemoji(samples).double().mean().item(),
            "frechet": self.space.frechet(seen, self.target, AXES),
            "intra_lpips": perceptual.intra_lpips(self.embed, samples.split(64), self.shots).value,
            "closeness": (_near(samples, self.shots) / _near(samples, self.others)).log().mean().exp().item(),
            "samples": samples[:SHOWN].numpy(),
        }


def arms(p: Any) -> dict[str, Arm]:
    """Return the arms of claims A3 and A5; the plain ones run longer, because an ANT step costs J + 1 of theirs."""
    short = (0, *sorted(set(p.checkpoints)))
    plain = Arm(tuple(sorted({*short, *p.checkpoints_plain})), p.lr_adaptor)
    guided = Arm(short, p.lr_adaptor, gamma=p.gamma)
    return {
        "full": replace(plain, adaptor=False, lr=p.lr_full),
        "adaptor": plain,
        "no noise": guided,
        "ANT": replace(guided, J=p.ascents),
        "flipped": replace(guided, gamma=-p.gamma),
    }


def few_pictures(seed: int, p: Any, *world: Any) -> Values:
    """Train and measure all arms on one draw of the shots.

    For each arm "ARM MEASURE" at its stops (stops,), "ARM samples" (stops, SHOWN, 3, h, w), and "ARM ratio", see
    `Draw.train`; "real MEASURE" are those of the target's other pictures, "others" how many these are. Beside them
    "shots" (10, 3, h, w), and the shares of unseen pictures of both that the classifier tells, "told_source" and
    "told_target".
    """
    draw = Draw(seed, p, World(*world))
    classifier, start = draw.classifier(), draw.sample(draw.unet)
    told = accuracy(classifier, draw.schedule, draw.unseen, draw.others, TOLD_AT, seed)
    found: Values = {"shots": draw.shots.numpy(), "told_source": told[0], "told_target": told[1]}
    found |= {f"real {key}": value for key, value in draw.measure(draw.others).items()}
    found["others"] = len(draw.others)
    for name, arm in arms(p).items():
        samples, ratio = draw.train(arm, classifier)
        values = stacked(map(draw.measure, [start, *samples])) | {"ratio": ratio}
        found |= {f"{name} {key}": value for key, value in values.items()}
    return found


def student(source: nn.Module, adaptor: dict[str, int] | None = None, seed: int = 0) -> tuple[Any, nn.Module]:
    """Return a copy of a diffusers U-Net and the module to be trained: the copy itself, or an adaptor beside it.

    ``adaptor`` has the settings of :meth:`lib.papers.ant.adaptor.Adaptor.attach`, ``seed`` draws its first weights.
    """
    unet: Any = copy.deepcopy(source).to(memory_format=torch.channels_last).requires_grad_(True)  # faster on a CPU
    if adaptor is None:
        return unet, unet
    unet.eval()  # dropout, if there is any, belongs to the trained part
    return unet, nets.seeded(seed, lambda: Adaptor.attach(unet, **adaptor))


def _moved(images: Tensor) -> Tensor:
    """Return images and their mirrors, both shifted by up to two pixels."""
    both = torch.cat([images, images.flip(-1)])
    return torch.cat([both.roll((down, right), (2, 3)) for down in (-2, 0, 2) for right in (-2, 0, 2)])


def _near(samples: Tensor, real: Tensor) -> Tensor:
    """Return the distance of each sample to the nearest real picture but itself, (n,)."""
    exact: Any = "donot_use_mm_for_euclid_dist"
    apart = torch.cdist(samples.flatten(1), real.flatten(1), compute_mode=exact)
    return apart.masked_fill(apart == 0, math.inf).min(1).values
