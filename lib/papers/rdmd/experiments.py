"""What the notebook 10_rdmd_2d measures (RDMD, arXiv 2406.14762: Figs. 2 and 3, Theorem 3.1).

`eight_gaussians` and `trained_maps` take a list of seeds for the sake of speed; every seed's numbers are its own
(`lib.papers.rdmd.toy`).
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from lib.ground.nets import Stack
from lib.ground.toy2d import Mixture
from lib.papers.rdmd import method as rdmd, quantiles, toy
from lib.record.replicates import stacked

PICTURED = 400  # points of a drawn map
COUNTED = 4000  # outputs whose modes are counted: the mass of one of eight is then known to 4 %


def three_minima(s: float, lambda_: float, weighting: str) -> dict[str, float | str]:
    """Minimum of Fig. 2 by closed form, quadrature, and descent from far away; weighting "one" or "sigma"."""
    one = weighting == "one"
    exact = rdmd.best_radius(s, lambda_) if one else rdmd.best_radius_sigma(s, lambda_)
    found = rdmd.minimum_by_quadrature(s, lambda_, lambda sigma: 1.0 if one else sigma)
    nodes = rdmd.weightings(48)[weighting]
    end = rdmd.radius_and_angle(rdmd.linear_descent(rdmd.rotation(0.5, 2.5), s, lambda_, nodes, steps=600))
    return {
        "omega": weighting,
        "lambda": lambda_,
        "closed form": exact,
        "quadrature": found[0],
        "descent": end[0],
        "angle, quadrature": found[1],
        "angle, descent": end[1],
        "gap": float(np.ptp([(exact, 0.0), found, end], axis=0).max()),
    }


def from_a_circle(s: float, lambda_: float, starts: int = 12) -> float:
    """Descend from rotations all around; return how far from the minimum, or circle of minima, any of them ends (R1).

    Without cost a descent is to end at radius s and at the angle it began with. No start is turned by exactly 180
    degrees, a saddle.
    """
    nodes = rdmd.weightings(48)["one"]
    gaps = []
    for angle in 2 * math.pi * (np.arange(starts) + 0.5) / starts - math.pi:
        end = rdmd.linear_descent(rdmd.rotation(0.5, angle), s, lambda_, nodes, steps=600)
        goal = rdmd.rotation(rdmd.best_radius(s, lambda_), 0.0 if lambda_ else angle)
        gaps.append(float((end - goal).norm()) / math.sqrt(2))
    return max(gaps)


def trained_maps(
    seeds: Sequence[int], lambdas: Sequence[float], p: Any, score: Stack | Mixture, fake: Stack, generator: Stack
) -> dict[str, np.ndarray]:
    """Measures of a map and its modes (`toy`) for trained generators, arrays (seeds, lambdas), on fresh points.

    Copies of `fake` and `generator`, one member a seed, are where the training starts. "outputs" (seeds, lambdas, 400,
    2) belong to the inputs of `optimal_map`.
    """
    copies = (stack.select([*range(len(seeds))] * len(lambdas)) for stack in (fake, generator))
    generator = toy.train_generators(seeds, lambdas, p, score, *copies)

    def outputs(x: torch.Tensor) -> np.ndarray:  # (seeds, n, 2) to (seeds, lambdas, n, 2)
        rows = x.repeat(len(lambdas), 1, 1).flatten(0, 1).to(generator.members[0].device)
        y = toy.generate(generator, rows).unflatten(0, (len(lambdas), len(seeds), -1))
        return y.transpose(0, 1).double().cpu().numpy()

    x, target = toy.draw(seeds, p.judged_points, "fresh", p)
    judged = zip(x.double().numpy(), outputs(x), target.double().numpy(), strict=True)
    measures = stacked(stacked(toy.judge_map(a, b, c) for b in maps) for a, maps, c in judged)
    counted, law = outputs(toy.draw(seeds, COUNTED, "modes", p)[0]), toy.laws(p)[1]
    measures |= stacked(stacked(toy.judge_modes(y, law) for y in maps) for maps in counted)
    return measures | {"outputs": outputs(toy.draw(seeds, PICTURED, "picture", p)[0])}


def optimal_map(seed: int, p: Any) -> dict[str, Any]:
    """The same for POT's exact map between the judged points of one seed, and a map of points to be drawn.

    "floor" is the 2-Wasserstein distance of two samples of the target, what a perfect generator would score; "inputs"
    and "outputs" are (400, 2). Modes are those of a sample of the target; "ring_found" and the like are those of the
    same points, each turned by an angle of its own: all radii are right, no mode is left.
    """
    sets = ((p.judged_points, "fresh"), (PICTURED, "picture"), (p.judged_points, "floor"), (COUNTED, "modes"))
    drawn = [[part[0].double().numpy() for part in toy.draw([seed], n, purpose, p)] for n, purpose in sets]
    (x, y), (inputs, ends), (_, other), (_, sample) = drawn
    turns = np.exp(1j * np.random.default_rng(seed).uniform(0, 2 * math.pi, COUNTED))
    ring = (sample @ [1, 1j] * turns).view(float).reshape(-1, 2)
    law, maps = toy.laws(p)[1], {"inputs": inputs, "outputs": toy.transport_map(inputs, ends)}
    modes = toy.judge_modes(sample, law) | {f"ring_{k}": v for k, v in toy.judge_modes(ring, law).items()}
    floor = {"floor": math.sqrt(toy.w2_squared(y, other))}
    return toy.judge_map(x, toy.transport_map(x, y), y) | floor | modes | maps


def eight_gaussians(seeds: Sequence[int], p: Any) -> dict[str, np.ndarray]:
    """All of Fig. 3 for some seeds, arrays (seeds, ...): what `trained_maps` and `optimal_map` return (R2, R3).

    Names begin with "learned_", the score of a trained teacher; "exact_", that of the law; "untaught_", the same with
    generators that start as untrained denoisers held at sigma = 1, near the identity; or "optimal_".
    """
    teacher, law = toy.train_teacher(seeds, p, torch.device(p.device)), toy.laws(p)[1]
    untrained = toy.denoisers([seed + 10_000 for seed in seeds], p).to(p.device)
    found = {
        "learned": trained_maps(seeds, p.lambdas, p, teacher, teacher, teacher),
        "exact": trained_maps(seeds, p.lambdas, p, law, teacher, teacher),
        "untaught": trained_maps(seeds, (0.0, 0.2), p, law, teacher, untrained),
        "optimal": stacked(optimal_map(seed, p) for seed in seeds),
    }
    return {f"{name}_{key}": value for name, measured in found.items() for key, value in measured.items()}


def trade_off(ratio: np.ndarray, distance: np.ndarray, zero: int, at: int) -> np.ndarray:
    """How far one lambda beats a straight exchange of optimality for fidelity, (seeds,): 1 at best, 0 if so (R2).

    From arrays (seeds, lambdas): the share of the excess of cost / OT over 1 at lambda = 0 that is gone, less the share
    of the rise of W2^2 up to the largest lambda that is paid by then.
    """
    excess, paid = ratio - 1, distance**2 - distance[:, [zero]] ** 2
    return 1 - excess[:, at] / excess[:, zero] - paid[:, at] / paid[:, -1]


def gaussian_slope(s: float) -> float:
    """Slope of s - r* at lambda = 0, from minima found by quadrature at two small lambdas, extrapolated (R3)."""
    slopes = [(s - rdmd.minimum_by_quadrature(s, value, start=(1.4, 0.0))[0]) / value for value in (0.002, 0.001)]
    return 2 * slopes[1] - slopes[0]


def quantile_maps(lambdas: Sequence[float], n: int) -> dict[str, np.ndarray]:
    """One-dimensional maps of n quantiles for each lambda, and last of lambda 0 from a decreasing start (R3).

    Points "u" (n,), the optimal map "monge" (n,), "maps" (lambdas + 1, n) and their "rms" errors (lambdas + 1,).
    """
    u = (np.arange(n) + 0.5) / n
    monge = quantiles.edge_quantiles(u)
    maps = [quantiles.quantile_map(value, u) for value in lambdas] + [quantiles.quantile_map(0.0, 1 - u)]
    return {"u": u, "monge": monge, "maps": np.array(maps), "rms": np.sqrt(np.mean((maps - monge) ** 2, axis=1))}
