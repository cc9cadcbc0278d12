"""What one replicate of S1 and S6 measures on digits, from one seed and `p`, the parameters of its notebook.

Each function returns small arrays by name; `lib.record.run.Run.replicates` stacks those of several seeds.
"""

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.metrics import average_precision_score
from torch import Tensor, nn

from lib.ground import diffusion
from lib.ground.nets import eps_model, seeded, small_unet
from lib.worlds import digits, judge as judging, sources

Measured = dict[str, Any]  # numbers and arrays by name
THRESHOLDS = np.linspace(-0.6, 1, 81)  # on the cosine, of `selection`


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
        net = scorer(learned, seed, steps, p.device)
        ours, printed = (judging.judge(net, d.images).features for d in (collection, prompts))
        prompt = torch.stack([printed[prompts.labels == k].mean(0) for k in range(10)]) - printed.mean(0)  # (10, d)
        similarity = F.cosine_similarity((ours - ours.mean(0))[:, None], prompt[None], dim=2).numpy()  # (images, 10)
        order = np.argsort(-similarity, axis=0)  # the most similar first
        hits = np.take_along_axis(wanted, order, 0)  # whether the image at each rank is of the wanted class
        return similarity, order, hits.cumsum(0) / np.arange(1, len(hits) + 1)[:, None]

    similarity, order, purity = ranked(p.steps)
    taken = labels[order[:n]]  # (n, 10)
    images = collection.images.double()
    looks = torch.stack([(images[:, 0].mean((1, 2)) + 1) / 2, digits.slant(images)], dim=1).numpy()  # (images, 2)
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


def scorer(learned: digits.Digits, seed: int, steps: int, device: torch.device) -> judging.Classifier:
    """Return a classifier trained on printed digits alone, with noise and shifts of up to one pixel."""
    net = seeded(seed, judging.Classifier).to(device)
    generator = torch.Generator().manual_seed(seed)
    rule = torch.optim.AdamW(net.parameters(), lr=3e-3)
    decay = torch.optim.lr_scheduler.CosineAnnealingLR(rule, max(steps, 1))
    for _ in range(steps):
        index = torch.randint(len(learned.labels), (64,), generator=generator)
        shift = torch.randint(-1, 2, (2,), generator=generator).tolist()
        x = learned.images[index].roll(shift, dims=(2, 3))
        x = x + 0.15 * torch.randn(x.shape, generator=generator)
        rule.zero_grad()
        F.cross_entropy(net(x.to(device))[0], learned.labels[index].to(device)).backward()
        rule.step()
        decay.step()
    return net.requires_grad_(False).eval()


def selected(share: float, total: int) -> int:
    """Return how many of `total` images a share of them is, at least one."""
    return min(max(1, round(share * total)), total)


def rng(seed: int) -> torch.Generator:
    """Return a fresh generator: what gets one of the same seed sees the same noise."""
    return torch.Generator().manual_seed(seed)
