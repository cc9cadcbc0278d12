"""The 2-D study of RDMD (arXiv 2406.14762): Fig. 3 with trained networks, and measures of a map.

Many small networks (every lambda and every seed) train at once as one stack; a stack's batch is a run of equal blocks
of rows, one block a member, so the losses of `lib.papers.rdmd.method` and the loop of `lib.ground.train` need not know
of it.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import ot
import torch
from torch import Tensor, nn

from lib.ground import nets
from lib.ground.toy2d import Mixture
from lib.ground.train import train
from lib.papers.rdmd import method as rdmd

SIGMA_RANGE = (0.1, 10.0)  # noise levels drawn log-uniformly, for the teacher, the fake and the generator


class Stack(nn.Module):
    """Equal networks that run side by side: block j of the rows goes through member j.

    Parameters
    ----------
    members
        Networks of one architecture, called as ``net(x, sigma)``.
    sigma
        Noise level used where `forward` gets none: a generator is a denoiser held at one level.
    """

    def __init__(self, members: Sequence[nn.Module], sigma: float = 1.0) -> None:
        super().__init__()
        weights, buffers = nets.stack(members)
        self.weights = nn.ParameterList([value.detach().clone() for value in weights.values()])
        self.names, self.sigma, self.size = list(weights), sigma, len(members)
        for name, value in buffers.items():
            self.register_buffer(name.replace(".", "_"), value, persistent=False)
        self.buffer_names = list(buffers)
        self.architecture = [copy.deepcopy(members[0]).to("meta")]  # in a list: not a module of its own

    def forward(self, x: Tensor, sigma: Tensor | None = None) -> Tensor:
        """Output of shape (size * n, d) for rows x (size * n, d) and noise levels (size * n,)."""
        level = torch.full_like(x[:, 0], self.sigma) if sigma is None else sigma
        state = dict(zip(self.names, self.weights, strict=True))
        state |= {name: getattr(self, name.replace(".", "_")) for name in self.buffer_names}
        blocks = x.unflatten(0, (self.size, -1)), level.unflatten(0, (self.size, -1))  # (size, n, d), (size, n)
        call = torch.vmap(lambda s, *inputs: torch.func.functional_call(self.architecture[0], s, inputs))
        return call(state, *blocks).flatten(0, 1)  # (size * n, d)

    def first(self, n: int) -> Stack:
        """Return a trainable copy of the first n members."""
        return self._changed(lambda value: value[:n])

    def tiled(self, times: int) -> Stack:
        """Return a trainable copy with all members repeated in order: 1 2 3 1 2 3 ..."""
        return self._changed(lambda value: value.repeat(times, *[1] * (value.ndim - 1)))

    def _changed(self, change: Callable[[Tensor], Tensor]) -> Stack:
        other = copy.deepcopy(self)
        other.weights = nn.ParameterList([change(weight.detach()).clone() for weight in self.weights])
        for name in self.buffer_names:
            setattr(other, name.replace(".", "_"), change(getattr(self, name.replace(".", "_"))))
        other.size = len(other.weights[0])
        return other


def new_stack(seeds: Sequence[int], width: int, depth: int, sigma_data: float) -> Stack:
    """Stack of untrained denoisers of the plane, the weights of member j drawn with seed j."""
    members = []
    with torch.random.fork_rng(devices=[]):
        for seed in seeds:
            torch.manual_seed(seed)
            net = nets.MLP(dim=2, width=width, depth=depth, level="sigma", frequencies=4)
            members.append(nets.EDM(net, sigma_data))
    return Stack(members)


class Points(NamedTuple):
    """Training points of every seed: source and target, each (seeds, n, 2)."""

    source: Tensor
    target: Tensor


def draw_points(source: Mixture, target: Mixture, n: int, seeds: Sequence[int]) -> Points:
    """Fixed training sets, one pair for each seed."""
    pairs = []
    for seed in seeds:
        generator = torch.Generator().manual_seed(seed)
        pairs.append((source.sample(n, generator), target.sample(n, generator)))
    return Points(*(torch.stack(part) for part in zip(*pairs, strict=True)))


def train_teacher(points: Points, stack: Stack, steps: int, batch: int, rate: float, seed: int) -> Stack:
    """Train one denoiser of the target for each seed, in place, and freeze it.

    Parameters
    ----------
    stack
        As many members as there are seeds in `points`.
    rate
        Learning rate of Adam, falling to 0 along a cosine.
    """
    optimizers, spread = _optimizers(stack, rate, steps), float(points.target.std())
    device = stack.weights[0].device

    def sample(generator: torch.Generator) -> tuple[Tensor, ...]:
        y = _pick(points.target, batch, generator)
        return _to(device, y, torch.randn(y.shape, generator=generator), draw_sigma(y.shape[:2], generator))

    def step(batch: tuple[Tensor, ...]) -> dict[str, Tensor]:
        y, eps, sigma = (part.flatten(0, 1) for part in batch)
        loss = rdmd.fake_loss(stack, y, eps, sigma, _beta(sigma, spread))
        _descend(loss, stack.size, optimizers)
        return {"teacher": loss.detach()}

    train(step, sample, {"teacher": stack}, optimizers, steps=steps, seed=seed)
    return stack.requires_grad_(False)


def train_generators(
    points: Points,
    teacher: Stack | Mixture,
    fake: Stack,
    generator: Stack,
    lambdas: Sequence[float],
    steps: int,
    batch: int,
    rate: float,
    fake_rate: float,
    fake_steps: int = 1,
    warm_up: int = 0,
    omega: Callable[[Tensor], Tensor] = torch.ones_like,
    seed: int = 0,
) -> Stack:
    """Train RDMD generators for every lambda and seed, in place: the coordinate descent of Sec. 3.1.

    Parameters
    ----------
    teacher
        Stack with one member for each seed, or the target law itself for its exact denoiser.
    fake, generator
        Stacks with a member for each pair of lambda and seed, seeds varying fastest. Seeds share their draws over all
        lambdas.
    rate, fake_rate
        Learning rates of Adam, falling to 0 along a cosine. A fake that lags behind folds the map for good at small
        lambda, so it should learn faster than the generator.
    fake_steps
        Updates of the fake before each update of the generator, on the same outputs with fresh noise.
    warm_up
        Updates of the fake alone before the first of the generator, so that it knows the law the generator starts with.
    omega
        Weight omega(sigma) under the integral over dsigma.
    """
    seeds, spread = len(points.source), float(points.target.std())
    lambda_ = torch.tensor(lambdas).repeat_interleave(seeds)  # (members,)
    fake_optimizers = _optimizers(fake, fake_rate, warm_up + steps * fake_steps)
    own_optimizers = _optimizers(generator, rate, steps)
    device = generator.weights[0].device
    truth = teacher.tiled(len(lambdas)) if isinstance(teacher, Stack) else teacher.denoise
    rows = lambda_.to(device).repeat_interleave(batch)  # (members * batch,)

    def sample(rng: torch.Generator) -> tuple[Tensor, list[tuple[Tensor, ...]]]:
        x = _pick(points.source, batch, rng)  # (seeds, batch, 2)
        noises = [(torch.randn(x.shape, generator=rng), draw_sigma(x.shape[:2], rng)) for _ in range(fake_steps + 1)]
        return x.to(device), [_to(device, *noise) for noise in noises]

    def update_fake(y: Tensor, eps: Tensor, sigma: Tensor) -> Tensor:
        loss = rdmd.fake_loss(fake, y, eps, sigma, _beta(sigma, spread))
        _descend(loss, fake.size, fake_optimizers)
        return loss.detach()

    def first_step(draws: tuple[Tensor, list[tuple[Tensor, ...]]]) -> dict[str, Tensor]:
        x, (eps, sigma) = (_spread(draws[0], len(lambdas)), [_spread(part, len(lambdas)) for part in draws[1][0]])
        with torch.no_grad():
            y = generator(x)
        return {"fake": update_fake(y, eps, sigma)}

    def step(draws: tuple[Tensor, list[tuple[Tensor, ...]]]) -> dict[str, Tensor]:
        x = _spread(draws[0], len(lambdas))
        *early, late = [tuple(_spread(part, len(lambdas)) for part in noise) for noise in draws[1]]
        y = generator(x)  # (members * batch, 2)
        values = [update_fake(y, *noise) for noise in early]
        eps, sigma = late
        density = 1 / (sigma * math.log(SIGMA_RANGE[1] / SIGMA_RANGE[0]))
        loss, parts = rdmd.generator_loss(lambda _: y, fake, truth, x, eps, sigma, omega(sigma) / density, rows)
        _descend(loss, generator.size, own_optimizers)
        return {"fake": values[-1], "cost": parts["cost"]}

    if warm_up:
        train(first_step, sample, {"fake": fake}, fake_optimizers, steps=warm_up, seed=seed)
    both = {f"fake_{k}": v for k, v in fake_optimizers.items()} | {f"own_{k}": v for k, v in own_optimizers.items()}
    train(step, sample, {"generator": generator, "fake": fake}, both, steps=steps, seed=seed)
    return generator.requires_grad_(False)


def draw_sigma(shape: Sequence[int], generator: torch.Generator) -> Tensor:
    """Noise levels, log-uniform in `SIGMA_RANGE`."""
    low, high = (math.log(level) for level in SIGMA_RANGE)
    return (low + (high - low) * torch.rand(tuple(shape), generator=generator)).exp()


def _beta(sigma: Tensor, spread: float) -> Tensor:
    """Weight of the denoising losses, EDM's: errors count alike at every level (Karras et al. 2022, Tab. 1)."""
    return sigma**-2 + spread**-2


def _optimizers(stack: Stack, rate: float, steps: int) -> dict:
    adam = torch.optim.Adam(stack.parameters(), lr=rate, foreach=True)
    return {"adam": adam, "cosine": torch.optim.lr_scheduler.CosineAnnealingLR(adam, steps)}


def _descend(loss: Tensor, size: int, optimizers: dict) -> None:
    """One update; the mean over all rows times the number of members is the sum of the members' own losses."""
    optimizers["adam"].zero_grad(set_to_none=True)
    (size * loss).backward()
    optimizers["adam"].step()
    optimizers["cosine"].step()


def _pick(points: Tensor, n: int, generator: torch.Generator) -> Tensor:
    index = torch.randint(points.shape[1], (len(points), n, 1), generator=generator)  # (seeds, n, 1)
    return points.gather(1, index.expand(-1, -1, points.shape[2]))  # (seeds, n, 2)


def _spread(part: Tensor, lambdas: int) -> Tensor:
    """Give every lambda the same draws: (seeds, n, ...) to (lambdas * seeds * n, ...)."""
    return part.repeat(lambdas, *[1] * (part.ndim - 1)).flatten(0, 1)


def _to(device: torch.device, *parts: Tensor) -> tuple[Tensor, ...]:
    return tuple(part.to(device) for part in parts)


# ----------------------------------------------------------------------------------------------- measures of a map


def w2_squared(a: np.ndarray, b: np.ndarray) -> float:
    """Squared 2-Wasserstein distance of two equal-sized point sets (n, d): exact optimal transport by POT."""
    return float(ot.emd2([], [], ot.dist(a, b), numItermax=10_000_000))


def transport_map(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Exact optimal transport of the points x (n, d) to the points y (n, d): y in the order that belongs to x."""
    return y[ot.emd([], [], ot.dist(x, y), numItermax=10_000_000).argmax(1)]


def crossing_share(x: np.ndarray, y: np.ndarray) -> float:
    """Share of the pairs of segments x_i y_i, x_j y_j in the plane that strictly cross."""

    def side(a: np.ndarray, b: np.ndarray, c: np.ndarray) -> np.ndarray:
        return np.sign((b - a)[..., 0] * (c - a)[..., 1] - (b - a)[..., 1] * (c - a)[..., 0])

    i, j = np.triu_indices(len(x), 1)
    first = side(x[i], y[i], x[j]) * side(x[i], y[i], y[j]) < 0
    second = side(x[j], y[j], x[i]) * side(x[j], y[j], y[i]) < 0
    return float((first & second).mean())


def judge_stack(
    generator: Stack, source: Mixture, target: Mixture, lambdas: int, seeds: Sequence[int], n: int
) -> dict[str, np.ndarray]:
    """`judge_map` on n fresh points a seed, as arrays (lambdas, seeds); all lambdas of a seed share the points."""
    judged = []
    for column, (x, y) in enumerate(_fresh(source, target, n, seeds)):
        outputs = apply_stack(generator, x, lambdas)[:, column].double().numpy()  # (lambdas, n, 2)
        judged.append([judge_map(x.double().numpy(), output, y.double().numpy()) for output in outputs])
    return {key: np.array([[row[key] for row in rows] for rows in judged]).T for key in judged[0][0]}


def judge_optimum(source: Mixture, target: Mixture, seeds: Sequence[int], n: int) -> dict[str, np.ndarray]:
    """`judge_map` of POT's exact map between the points of `judge_stack`, and the distance's floor: arrays (seeds,).

    ``floor`` is the 2-Wasserstein distance of two samples of the target: what a perfect generator would score.
    """
    rows = []
    for (x, y), (_, other) in zip(
        _fresh(source, target, n, seeds), _fresh(source, target, n, [s + 10_000 for s in seeds]), strict=True
    ):
        a, b = x.double().numpy(), y.double().numpy()
        rows.append(judge_map(a, transport_map(a, b), b) | {"floor": math.sqrt(w2_squared(b, other.double().numpy()))})
    return {key: np.array([row[key] for row in rows]) for key in rows[0]}


def apply_stack(generator: Stack, x: Tensor, lambdas: int) -> Tensor:
    """Outputs (lambdas, seeds, n, 2) of all members for the same points x (n, 2), on the CPU."""
    rows = x.to(generator.weights[0].device).repeat(generator.size, 1)  # (size * n, 2)
    with torch.no_grad():
        return generator(rows).unflatten(0, (lambdas, -1, len(x))).cpu()


def _fresh(source: Mixture, target: Mixture, n: int, seeds: Sequence[int]) -> list[tuple[Tensor, Tensor]]:
    """Held-out points of source and target, drawn apart from those of `draw_points`."""
    generators = [torch.Generator().manual_seed(1_000_000 + seed) for seed in seeds]
    return [(source.sample(n, generator), target.sample(n, generator)) for generator in generators]


def swap_share(x: np.ndarray, y: np.ndarray) -> float:
    """Share of the pairs of points whose outputs would cost less if swapped: 0 for the optimal map, unlike crossings.

    Lines of the optimal map for |x - y|^2 may cross, as long as points moving along them do not meet.
    """
    products = ((x[:, None] - x) * (y[:, None] - y)).sum(-1)  # (n, n)
    return float((products[np.triu_indices(len(x), 1)] < 0).mean())


def judge_map(x: np.ndarray, y: np.ndarray, target: np.ndarray) -> dict[str, float]:
    """Cost of a map, cost over OT(x, y), 2-Wasserstein distance to the target points, crossings and swaps."""
    cost = float(((x - y) ** 2).sum(1).mean())
    return {
        "cost": cost,
        "ratio": cost / w2_squared(x, y),
        "distance": math.sqrt(w2_squared(y, target)),
        "crossings": crossing_share(x, y),
        "swaps": swap_share(x, y),
    }
