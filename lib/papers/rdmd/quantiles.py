"""Theorem 3.1 of RDMD (arXiv 2406.14762) in one dimension: maps as quantiles, no networks and no samples."""

import math
from collections.abc import Callable

import numpy as np
import torch
from scipy import optimize
from torch import Tensor


def edge_quantiles(u: np.ndarray) -> np.ndarray:
    """Optimal map from U(0, 1) to the density ``1 + 0.9 cos(2 pi x)`` on (0, 1): its quantile function, by bisection.

    Both laws satisfy the theorem's first assumption: convex support, density bounded away from 0 and infinity.
    """
    low, high = np.zeros_like(u), np.ones_like(u)
    for _ in range(60):
        middle = (low + high) / 2
        above = middle + 0.9 * np.sin(2 * math.pi * middle) / (2 * math.pi) > u
        low, high = np.where(above, low, middle), np.where(above, middle, high)
    return (low + high) / 2


def quantile_objective(n: int) -> Callable[[Tensor, float], Tensor]:
    """Objective L^lambda of a map of n quantiles of U(0, 1), as a function of its values g (n,) and lambda.

    The output law is ``mean N(g_i, sigma^2)``, its divergence from the noised target is a sum over a grid finer than
    sigma, and the integral over sigma in [0.02, 2] with omega = 1 a trapezoid rule over 14 geometric levels.
    """
    sigmas = torch.logspace(math.log10(0.02), math.log10(2.0), 14, dtype=torch.float64)
    truth = torch.as_tensor(edge_quantiles((np.arange(8 * n) + 0.5) / (8 * n)))
    x = (torch.arange(n, dtype=torch.float64) + 0.5) / n
    grids = [torch.arange(-6 * float(s), 1 + 6 * float(s), float(s) / 3, dtype=torch.float64) for s in sigmas]

    def log_density(centres: Tensor, grid: Tensor, sigma: Tensor) -> Tensor:
        return torch.logsumexp(-0.5 * ((grid[:, None] - centres) / sigma) ** 2, dim=1) - math.log(len(centres))

    targets = [log_density(truth, grid, sigma) for grid, sigma in zip(grids, sigmas, strict=True)]

    def divergence(g: Tensor, sigma: Tensor, grid: Tensor, target: Tensor) -> Tensor:
        logs = log_density(g, grid, sigma)
        return (logs.exp() * (logs - target)).sum() * (grid[1] - grid[0]) / (math.sqrt(2 * math.pi) * sigma)

    def objective(g: Tensor, lambda_: float) -> Tensor:
        parts = torch.stack([divergence(g, *level) for level in zip(sigmas, grids, targets, strict=True)])  # (levels,)
        return torch.trapezoid(parts, sigmas) + lambda_ * (g - x).square().mean()

    return objective


def quantile_map(lambda_: float, start: np.ndarray) -> np.ndarray:
    """Minimise `quantile_objective` by L-BFGS from the values `start` (n,); returns the map's values (n,)."""
    objective = quantile_objective(len(start))

    def value(g: np.ndarray) -> tuple[float, np.ndarray]:
        point = torch.as_tensor(g).requires_grad_()
        loss = objective(point, lambda_)
        loss.backward()
        assert point.grad is not None
        return loss.item(), point.grad.numpy()

    options = {"maxiter": 500, "maxfun": 1000, "ftol": 1e-15, "gtol": 1e-10}
    return optimize.minimize(value, start, jac=True, method="L-BFGS-B", options=options).x
