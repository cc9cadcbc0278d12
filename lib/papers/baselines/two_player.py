"""Training of unpaired translators that play against discriminators: U-GAT-IT, UNIT, and either with more losses.

One function trains any of them, both directions at once, through the one loop: so a run that is killed and started
again ends with the same weights, bit for bit on a CPU. On a GPU the gradient of reflected borders has no fixed order.
"""

from collections.abc import Callable, Iterable, Mapping
from contextlib import nullcontext
from typing import Any, Protocol

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast
from torch import Generator, Tensor, nn

from lib.ground.finetune import Options, update
from lib.ground.train import History, train
from lib.papers.baselines.diffusion_gan import Noise
from lib.record.files import UserError

Pair = dict[str, Tensor]  # of the source "s" and the target "d"
See = Callable[[Tensor], Tensor]  # what a discriminator sees of pictures


class Game(Protocol):
    """Generators G and discriminators D; see `lib.papers.baselines.ugatit.UGATIT` for what the rest returns."""

    G: nn.ModuleDict
    D: nn.ModuleDict
    weights: Mapping[str, float]

    def play(self, x: Pair) -> tuple[Pair, dict[str, Tensor]]: ...  # noqa: D102
    def adversarial(self, y: Pair, see: See) -> Tensor: ...  # noqa: D102
    def discriminators_loss(self, x: Pair, y: Pair, see: See) -> tuple[Tensor, Tensor]: ...  # noqa: D102
    def settle(self) -> None: ...  # noqa: D102
    def translator(self, domain: str = "d") -> nn.Module: ...  # noqa: D102


class Supervision(Protocol):
    """More losses on translations y of x, and discriminators D of their own; noises come from a generator."""

    D: nn.Module
    weights: Mapping[str, float]
    settings: Mapping[str, Any]  # what a resumed run must share

    def losses(self, x: Pair, y: Pair, rng: Generator) -> dict[str, Tensor]: ...  # noqa: D102
    def discriminators_loss(self, x: Pair, y: Pair, rng: Generator) -> Tensor: ...  # noqa: D102


def least_squares(logits: Tensor, goal: float) -> Tensor:
    """Return the least-squares GAN loss (Mao et al. 2017): the mean squared distance to `goal`, 1 real and 0 fake."""
    return (logits.to(torch.promote_types(logits.dtype, torch.float32)) - goal).square().mean()


def summed(losses: Iterable[Tensor]) -> Tensor:
    """Return the sum of losses."""
    return torch.stack(list(losses)).sum()


def judged(D: nn.Module, real: Tensor, fake: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Return a discriminator's outputs on real and fake pictures, in one call: pairs of logits."""
    return [tuple(one.split([len(real), len(fake)])) for one in D(torch.cat([real, fake]))]  # type: ignore[misc]


def train_game(
    game: Game,
    images: Pair,
    steps: int,
    options: Options,
    supervision: Supervision | None = None,
    augmentation: Noise | None = None,
    on_step: Callable[[int, History], None] | None = None,
    accelerator: Accelerator | None = None,
) -> History:
    """Train a game's generators and discriminators in place, on unpaired pictures of both domains.

    As in U-GAT-IT's code: the discriminators' step comes first; Adam, with L2 for `weight_decay`, at a rate that is
    constant and falls linearly to 0 in the second half. Its authors have a batch of 1, rate and decay of 1e-4, betas
    (0.5, 0.999) and 1,000,000 steps.

    Parameters
    ----------
    images
        Pictures of each domain, (n, c, h, w) in [-1, 1], or points (n, 2).
    supervision
        More losses, with discriminators of their own. At weights 0 the game is as without it, bit for bit.
    augmentation
        Noise on all that the game's discriminators see.
    on_step
        ``on_step(i, history)``; averages of the generators are ``history.ema["G"]``.
    """
    o = options
    if o.warmup or o.accumulate > 1:
        raise UserError("options: two players train without warm-up and accumulation; set warmup to 0, accumulate to 1")
    device = next(game.G.parameters()).device
    processes = accelerator.num_processes if accelerator else 1
    players: dict[str, nn.Module] = {"G": game.G, "D": game.D} | ({"Dz": supervision.D} if supervision else {})
    optimizers = {
        name: torch.optim.Adam(one.parameters(), o.lr, o.betas, weight_decay=o.weight_decay, fused=True)
        for name, one in players.items()
    }
    half = max(steps // 2, 1)
    rates = {
        f"rate {name}": torch.optim.lr_scheduler.LambdaLR(one, lambda i: min(1.0, max(steps - i, 0) / half))
        for name, one in optimizers.items()
    }
    mixed = accelerator.autocast if accelerator else nullcontext

    def sample(generator: Generator) -> tuple[Pair, Generator, Generator]:
        x = {}
        for domain, pictures in images.items():
            one = pictures[torch.randint(len(pictures), (o.batch,), generator=generator).to(pictures.device)].to(device)
            if o.flip:
                mirrored = torch.rand(o.batch, 1, 1, 1, generator=generator) < 0.5
                one = torch.where(mirrored.to(device), one.flip(-1), one)
            x[domain] = one
        seeds = torch.randint(2**62, (2,), generator=generator).tolist()  # more losses then change no other draw
        rng, noises = (Generator().manual_seed(seed) for seed in seeds)
        return x, rng, noises

    def step(drawn: tuple[Pair, Generator, Generator]) -> dict[str, Tensor]:
        x, rng, noises = drawn
        see = (lambda pictures: augmentation(pictures, rng)) if augmentation else (lambda pictures: pictures)
        with mixed():
            y, losses = game.play(x)
            fixed = {domain: pictures.detach() for domain, pictures in y.items()}
            found = {}
            found["D"], logits = game.discriminators_loss(x, fixed, see)
            if supervision:
                found["Dz"] = supervision.discriminators_loss(x, fixed, noises)
        norms: dict[str, Tensor] = {}
        for name, loss in found.items():
            optimizers[name].zero_grad()
            loss.backward()
            norms |= {f"{key} {name}": norm for key, norm in update(optimizers[name], o.clip, accelerator).items()}
            players[name].requires_grad_(False)
        with mixed():
            losses["adversarial"] = game.adversarial(y, see)
            weights = dict(game.weights)
            if supervision:
                losses |= supervision.losses(x, y, noises)
                weights |= supervision.weights
            total = summed(weights[name] * loss for name, loss in losses.items())
        optimizers["G"].zero_grad()
        total.backward()
        norms |= {f"{key} G": norm for key, norm in update(optimizers["G"], o.clip, accelerator).items()}
        for name in found:
            players[name].requires_grad_(True)
        for rate in rates.values():
            rate.step()
        game.settle()
        if augmentation:
            sure = (logits - 0.5).sign().mean()
            if accelerator and processes > 1:
                sure = accelerator.reduce(sure, "mean")
            augmentation.adapt(sure, processes * o.batch, rng)
            if processes > 1:  # the main process's alone are saved
                augmentation.t.copy_(broadcast(augmentation.t))
        return {name: loss.detach() for name, loss in (losses | found | norms).items()}

    shared = {name: getattr(o, name) for name in ("batch", "lr", "betas", "weight_decay", "clip", "flip")}
    shared |= {"falls to 0 at": steps, "images": {name: one.shape for name, one in images.items()}}
    shared |= {"weights": dict(game.weights), "kimg": augmentation.kimg if augmentation else None}
    shared |= {"supervision": dict(supervision.settings) if supervision else None, **o.parameters}
    modules = players | ({"augmentation": augmentation} if augmentation else {})
    ema = {"G": o.ema} if o.ema else None
    saved: dict[str, Any] = {"folder": o.folder, "save_every": o.save_every, "on_step": on_step}
    changing: dict[str, Any] = optimizers | rates
    return train(
        step, sample, modules, changing, steps, o.seed, ema, parameters=shared, accelerator=accelerator, **saved
    )
