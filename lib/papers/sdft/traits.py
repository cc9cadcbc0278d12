"""Traits of digits that experiments on SDFT steer and judge by: the slant, and small classifiers."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.transforms.functional import gaussian_blur

from lib.ground.nets import seeded
from lib.worlds import digits, judge as judging
from lib.worlds.digits import slant

Loss = Callable[[Any, int, torch.Generator], Tensor]  # of a network on batch i, which it draws


def above_median(digits_: digits.Digits) -> Tensor:
    """Return whether each image leans more than the median of its digit, so that both halves hold the same digits."""
    values, labels = slant(digits_.images), digits_.labels
    return values > torch.stack([values[labels == k].median() for k in labels])


def _fit(make: Callable[[], Any], loss: Loss, steps: int, seed: int, device: torch.device, falling: bool) -> Any:
    """Train a small classifier by AdamW, its rate `falling` along a cosine or not; weights and batches from `seed`."""
    net = seeded(seed, make).to(device)
    generator = torch.Generator().manual_seed(seed)
    rule = torch.optim.AdamW(net.parameters(), lr=3e-3)
    decay = torch.optim.lr_scheduler.CosineAnnealingLR(rule, max(steps, 1), eta_min=0.0 if falling else 3e-3)
    for i in range(steps):
        rule.zero_grad()
        loss(net, i, generator).backward()
        rule.step()
        decay.step()
    return net.requires_grad_(False).eval()


def leaning(
    images: Tensor, leans: Tensor, width: int, seed: int, steps: int, device: torch.device, blurred: bool
) -> Callable[[Tensor], Tensor]:
    """Return the logit of a network that says whether noisy images lean right; `blurred`: every other batch is."""

    def make() -> nn.Module:
        last = nn.Linear(width, 1)
        return nn.Sequential(nn.Flatten(), nn.Linear(images[0].numel(), width), nn.SiLU(), last)

    def loss(net: nn.Module, i: int, generator: torch.Generator) -> Tensor:
        index = torch.randint(len(images), (64,), generator=generator)
        x, strength, spread = images[index], *torch.rand(2, generator=generator).tolist()
        x = gaussian_blur(x, [9, 9], [0.3 + 1.5 * spread]) if blurred and i % 2 else x  # like a P_t of high noise
        x = x + 0.2 * strength * torch.randn(x.shape, generator=generator)
        return F.binary_cross_entropy_with_logits(net(x.to(device))[:, 0], leans[index].float().to(device))

    net = _fit(make, loss, steps, seed, device, falling=False)
    return lambda images: net(images)[:, 0]


def scorer(learned: digits.Digits, seed: int, steps: int, device: torch.device) -> judging.Classifier:
    """Return a classifier trained on printed digits alone, with noise and shifts of up to one pixel."""

    def loss(net: nn.Module, i: int, generator: torch.Generator) -> Tensor:
        index = torch.randint(len(learned.labels), (64,), generator=generator)
        shift = torch.randint(-1, 2, (2,), generator=generator).tolist()
        x = learned.images[index].roll(shift, dims=(2, 3))
        x = x + 0.15 * torch.randn(x.shape, generator=generator)
        return F.cross_entropy(net(x.to(device))[0], learned.labels[index].to(device))

    return _fit(judging.Classifier, loss, steps, seed, device, falling=True)
