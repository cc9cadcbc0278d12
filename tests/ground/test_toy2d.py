"""Exact 2-D laws: densities against integration and samples, scores and denoisers against autograd and Monte Carlo."""

from __future__ import annotations

import math

import pytest
import torch

from lib.ground.toy2d import Gaussian, Mixture, eight_gaussians

LEVELS = [0.0, 0.1, 1.0, 7.0]


def uneven() -> Mixture:
    """Three components in float64, at uneven places."""
    means = torch.tensor([[0.0, 1.0], [-2.0, 0.5], [1.5, -1.0]], dtype=torch.float64)
    return Mixture(means, 0.4)


def points(n: int = 64, seed: int = 0) -> torch.Tensor:
    return 3 * torch.randn(n, 2, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("sigma", LEVELS)
def test_density_integrates_to_one(sigma: float) -> None:
    law = uneven()
    half = 4 + 8 * math.hypot(sigma, law.std)
    axis = torch.linspace(-half, half, 801, dtype=torch.float64)
    grid = torch.stack(torch.meshgrid(axis, axis, indexing="ij"), dim=-1)  # (801, 801, 2)
    mass = law.log_prob(grid, sigma).exp().sum() * (axis[1] - axis[0]) ** 2
    assert float(mass) == pytest.approx(1.0, abs=1e-6)


@pytest.mark.parametrize("sigma", LEVELS)
def test_score_is_the_gradient_of_log_prob(sigma: float) -> None:
    law, x = uneven(), points().requires_grad_()
    (gradient,) = torch.autograd.grad(law.log_prob(x, sigma).sum(), x)
    torch.testing.assert_close(law.score(x, sigma), gradient, rtol=1e-10, atol=1e-12)


def test_score_matches_finite_differences() -> None:
    law, x, h = uneven(), points(), 1e-5
    for axis in range(2):
        step = torch.zeros(2, dtype=torch.float64)
        step[axis] = h
        slope = (law.log_prob(x + step, 0.3) - law.log_prob(x - step, 0.3)) / (2 * h)
        torch.testing.assert_close(law.score(x, 0.3)[:, axis], slope, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("sigma", LEVELS)
def test_denoiser_is_tweedie(sigma: float) -> None:
    law, x = uneven(), points()
    torch.testing.assert_close(law.denoise(x, sigma), x + sigma**2 * law.score(x, sigma), rtol=1e-10, atol=1e-11)


def test_denoiser_is_the_posterior_mean_by_monte_carlo() -> None:
    law, sigma = uneven(), 0.8
    clean = law.sample(400_000, torch.Generator().manual_seed(1))
    noisy = points(5, seed=2) / 3
    weight = (-(noisy[:, None] - clean).square().sum(-1) / (2 * sigma**2)).softmax(-1)  # (5, 400000)
    torch.testing.assert_close(law.denoise(noisy, sigma), weight @ clean, rtol=0, atol=0.02)


def test_one_component_is_the_textbook_gaussian() -> None:
    law = Gaussian(torch.tensor([1.0, -2.0], dtype=torch.float64), 1.5)
    x, sigma = points(), 0.7
    variance = 1.5**2 + sigma**2
    covariance = variance * torch.eye(2, dtype=torch.float64)
    expected = torch.distributions.MultivariateNormal(law.mean, covariance).log_prob(x)
    torch.testing.assert_close(law.log_prob(x, sigma), expected)
    torch.testing.assert_close(law.denoise(x, sigma), law.mean + 1.5**2 / variance * (x - law.mean))


def test_samples_follow_the_density() -> None:
    law = uneven()
    x = law.sample(200_000, torch.Generator().manual_seed(3))
    mean = law.means.mean(0)
    scatter = (law.means - mean).T @ (law.means - mean) / len(law.means)
    torch.testing.assert_close(x.mean(0), mean, rtol=0, atol=0.01)
    torch.testing.assert_close(x.T.cov(), scatter + law.std**2 * torch.eye(2, dtype=torch.float64), rtol=0, atol=0.03)
    assert x.dtype == torch.float64


def test_samples_depend_on_the_generator_only() -> None:
    law = eight_gaussians()
    torch.manual_seed(0)
    first = law.sample(10, torch.Generator().manual_seed(5))
    torch.manual_seed(99)
    assert torch.equal(first, law.sample(10, torch.Generator().manual_seed(5)))


def test_sigma_shapes_agree() -> None:
    law, x = uneven(), points(6)
    sigma = torch.tensor([0.0, 0.2, 0.5, 1.0, 3.0, 9.0], dtype=torch.float64)
    rows = torch.stack([law.denoise(row, float(level)) for row, level in zip(x, sigma, strict=True)])
    stacked = law.denoise(x.expand(4, 6, 2), sigma.expand(4, 6))
    torch.testing.assert_close(law.denoise(x, sigma), rows)
    torch.testing.assert_close(law.denoise(x, sigma[:, None]), rows)
    torch.testing.assert_close(stacked, rows.expand(4, 6, 2))
    assert law.log_prob(x, sigma).shape == (6,)


def test_eight_gaussians_lie_on_the_circle() -> None:
    law = eight_gaussians(radius=4.0, std=0.5)
    torch.testing.assert_close(law.means.norm(dim=-1), torch.full((8,), 4.0))
    assert float(torch.pdist(law.means).min()) == pytest.approx(8 * math.sin(math.pi / 8), abs=1e-5)
