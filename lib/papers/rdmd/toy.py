"""The 2-D study of RDMD (arXiv 2406.14762): Fig. 3 with trained networks, and measures of a map.

The networks of every lambda and every seed train at once as one stack: its rows are equal blocks, one a member, so the
losses of `lib.papers.rdmd.method` and the loop of `lib.ground.train` need not know of it. This is for speed alone. Up
to rounding a member's numbers depend on its own lambda and seed, whatever the others are. Parameters `p` are those of
the notebook 10_rdmd_2d.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import ot
import torch
from torch import Tensor

from lib.ground import nets, toy2d
from lib.ground.nets import Stack
from lib.ground.toy2d import Mixture
from lib.ground.train import train
from lib.papers.rdmd import method as rdmd

# Noise levels drawn log-uniformly, for the teacher, the fake and the generator. Modes of std 0.5 show only below about
# 1; a lowest level of 0.15 leaves visible bridges between them.
SIGMA_RANGE = (0.05, 10.0)
# Streams of random numbers, by what is added to the seed; every seed below 10,000 has its own of each.
STREAMS = {"points": 0, "fresh": 1_000_000, "floor": 1_010_000, "teacher": 2_000_000, "generator": 3_000_000}
STREAMS |= {"picture": 4_000_000, "modes": 5_000_000}
FOUND = 0.4  # least contrast of a mode that counts as found, about half of the target's own 0.77

# ------------------------------------------------------------------------------------------- random numbers by seed


def stream(seed: int, purpose: str) -> torch.Generator:
    """Random numbers of one seed for one purpose."""
    return torch.Generator().manual_seed(STREAMS[purpose] + seed)


def laws(p: Any) -> tuple[Mixture, Mixture]:
    """Source and target of Fig. 3."""
    return toy2d.Gaussian(torch.zeros(2), 1.0), toy2d.eight_gaussians(p.radius, p.std)


def draw(seeds: Sequence[int], n: int, purpose: str, p: Any) -> tuple[Tensor, Tensor]:
    """Points of source and target, each (seeds, n, 2)."""
    streams = [stream(seed, purpose) for seed in seeds]
    source, target = (torch.stack([law.sample(n, generator) for generator in streams]) for law in laws(p))
    return source, target


def pick(points: Tensor, n: int, streams: Sequence[torch.Generator]) -> Tensor:
    """Draw n of the points (seeds, m, 2) with replacement, (seeds, n, 2)."""
    index = torch.stack([torch.randint(points.shape[1], (n,), generator=generator) for generator in streams])
    return points.gather(1, index[..., None].expand(-1, -1, 2))


def noise(n: int, streams: Sequence[torch.Generator]) -> tuple[Tensor, Tensor]:
    """Standard normal noise (seeds, n, 2) and noise levels (seeds, n), log-uniform in `SIGMA_RANGE`."""
    low, high = (math.log(level) for level in SIGMA_RANGE)
    pairs = [(torch.randn(n, 2, generator=g), torch.rand(n, generator=g)) for g in streams]
    eps, u = (torch.stack(part) for part in zip(*pairs, strict=True))
    return eps, (low + (high - low) * u).exp()


# ------------------------------------------------------------------------------------------------------- training


def denoisers(seeds: Sequence[int], p: Any) -> Stack:
    """Untrained denoisers of the plane, the weights of a member drawn with its seed."""

    def make() -> nets.EDM:
        return nets.EDM(nets.MLP(dim=2, width=p.width, depth=p.depth, level="sigma", frequencies=4), deviation(p))

    return Stack([nets.seeded(seed, make) for seed in seeds])


def deviation(p: Any) -> float:
    """Standard deviation of the target along an axis."""
    return math.sqrt(p.radius**2 / 2 + p.std**2)


def generate(generator: Stack, x: Tensor) -> Tensor:
    """Outputs for rows x (members * n, 2): a generator is a denoiser held at sigma = 1 (the paper, App. B)."""
    return generator.rows(x, torch.ones_like(x[:, 0]))


def train_teacher(seeds: Sequence[int], p: Any, device: torch.device) -> Stack:
    """Train one denoiser of the target's `p.points` points for each seed, and freeze it."""
    stack, streams = denoisers(seeds, p).to(device), [stream(seed, "teacher") for seed in seeds]
    _, target = draw(seeds, p.points, "points", p)
    adam = _adam(stack, p.fake_rate, p.teacher_steps)

    def sample(_: torch.Generator) -> list[Tensor]:
        drawn = (pick(target, 4 * p.batch, streams), *noise(4 * p.batch, streams))
        return [part.flatten(0, 1).to(device) for part in drawn]

    def step(batch: list[Tensor]) -> dict[str, Tensor]:
        return {"teacher": _denoise(stack, adam, p, *batch)}

    train(step, sample, {"teacher": stack}, {"teacher": adam}, p.teacher_steps)
    return stack.requires_grad_(False)


def train_generators(
    seeds: Sequence[int], lambdas: Sequence[float], p: Any, score: Stack | Mixture, fake: Stack, generator: Stack
) -> Stack:
    """Train RDMD generators for every lambda and seed, in place: the coordinate descent of Sec. 3.1, omega = 1.

    The score of the target is that of a teacher for each seed, or the law's own. `fake` and `generator` have a member
    for each pair of lambda and seed, seeds varying fastest. All lambdas of a seed see the same draws. The fake learns
    the generator's starting law in `p.warm_up` steps, then takes `p.fake_steps` steps before each of the generator's,
    on the same outputs with fresh noise. One that lags behind folds the map for good at small lambda, so its learning
    rate `p.fake_rate` should exceed the generator's `p.rate`.
    """
    device = generator.members[0].device
    truth = score.select([*range(len(seeds))] * len(lambdas)).rows if isinstance(score, Stack) else score.denoise
    weights = torch.tensor(lambdas).repeat_interleave(len(seeds) * p.batch).to(device)  # (rows,)
    points, streams = draw(seeds, p.points, "points", p)[0], [stream(seed, "generator") for seed in seeds]
    modules = {"fake": fake, "generator": generator}
    adams = {"fake": _adam(fake, p.fake_rate, p.warm_up + p.steps * p.fake_steps)}
    adams["generator"] = _adam(generator, p.rate, p.steps)

    def rows(part: Tensor) -> Tensor:  # (seeds, n, ...) to (lambdas * seeds * n, ...)
        return part.repeat(len(lambdas), *[1] * (part.ndim - 1)).flatten(0, 1).to(device)

    def sample(_: torch.Generator) -> tuple[Tensor, list[list[Tensor]]]:
        x = rows(pick(points, p.batch, streams))
        return x, [[rows(part) for part in noise(p.batch, streams)] for _ in range(p.fake_steps + 1)]

    def first_step(draws: tuple[Tensor, list[list[Tensor]]]) -> dict[str, Tensor]:
        x, (level, *_) = draws
        with torch.no_grad():
            y = generate(generator, x)
        return {"fake": _denoise(fake, adams["fake"], p, y, *level)}

    def step(draws: tuple[Tensor, list[list[Tensor]]]) -> dict[str, Tensor]:
        x, (*early, (eps, sigma)) = draws
        y = generate(generator, x)
        losses = [_denoise(fake, adams["fake"], p, y, *level) for level in early]
        density = 1 / (sigma * math.log(SIGMA_RANGE[1] / SIGMA_RANGE[0]))
        loss, cost = rdmd.generator_loss(x, y, fake.rows, truth, eps, sigma, 1 / density, weights)
        _descend(loss, generator, adams["generator"])
        return {"fake": losses[-1], "cost": cost}

    train(first_step, sample, modules, adams, p.warm_up)
    train(step, sample, modules, adams, p.steps)
    return generator.requires_grad_(False)


def _denoise(stack: Stack, adam: torch.optim.Adam, p: Any, y: Tensor, eps: Tensor, sigma: Tensor) -> Tensor:
    """One update of denoisers on clean rows y, the levels weighted as in EDM: errors count alike at every level."""
    beta = sigma**-2 + deviation(p) ** -2  # Karras et al. 2022, Tab. 1
    return _descend(rdmd.fake_loss(stack.rows, y, eps, sigma, beta), stack, adam)


def _descend(loss: Tensor, stack: Stack, adam: torch.optim.Adam) -> Tensor:
    """One update; the mean over all rows times the number of members is the sum of the members' own losses."""
    adam.zero_grad()
    (len(stack) * loss).backward()
    adam.step()
    return loss.detach()


def _adam(stack: Stack, rate: float, steps: int) -> torch.optim.Adam:
    """Adam whose rate falls along a cosine, a little after each of its `steps` steps."""
    adam = torch.optim.Adam(stack.parameters(), lr=rate, foreach=True)
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR(adam, steps)
    adam.register_step_post_hook(lambda *_: cosine.step())
    return adam


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


def swap_share(x: np.ndarray, y: np.ndarray) -> float:
    """Share of the pairs of points whose outputs would cost less if swapped: 0 for the optimal map, unlike crossings.

    Lines of the optimal map for |x - y|^2 may cross, as long as points moving along them do not meet.
    """
    products = ((x[:, None] - x) * (y[:, None] - y)).sum(-1)  # (n, n)
    return float((products[np.triu_indices(len(x), 1)] < 0).mean())


def judge_modes(y: np.ndarray, law: Mixture) -> dict[str, float]:
    """How well the outputs y (n, 2) fall into the modes of a law whose k centres go evenly round a circle.

    Each mode has a sector of 1 / k of the turn. Its contrast is the share of outputs in the inner half of the sector
    less that in the outer half, over 1 / k: 0 on a ring of any mass, 0 for a lost mode, 1 for a fair share far from the
    neighbours. "found" counts contrasts above `FOUND`, "contrast" is the weakest; "balance" is the smallest mass of a
    sector over 1 / k, "precision" the share within three standard deviations of a centre, "spread" the root mean square
    of the angle to the nearest centre, in radians.
    """
    centres = law.means.double().numpy()
    k = len(centres)
    turn = (np.arctan2(y[:, 1], y[:, 0]) - math.atan2(*centres[0, ::-1])) / (2 * math.pi / k)
    sector, off = np.round(turn).astype(int) % k, turn - np.round(turn)  # off from -0.5 to 0.5
    inner, mass = (np.bincount(part, minlength=k) * k / len(y) for part in (sector[np.abs(off) < 0.25], sector))
    contrasts = 2 * inner - mass
    nearest = np.linalg.norm(y[:, None] - centres, axis=-1).min(1)
    return {
        "found": float((contrasts > FOUND).sum()),
        "contrast": float(contrasts.min()),
        "balance": float(mass.min()),
        "precision": float((nearest < 3 * law.std).mean()),
        "spread": 2 * math.pi / k * math.sqrt((off**2).mean()),
    }


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
