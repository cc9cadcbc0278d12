"""RDMD: the losses against exact gradients, the Gaussian case three ways, stacks, measures of maps, quantile maps."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise

import numpy as np
import pytest
import torch
from scipy import integrate

from lib.ground.toy2d import Gaussian, eight_gaussians
from lib.papers.rdmd import method as rdmd
from lib.papers.rdmd import quantiles as rdmd_1d
from lib.papers.rdmd import toy as rdmd_toy
from lib.record.files import UserError

S = 1.5
NODES = rdmd.weightings(48)


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def problem(n: int = 50) -> dict[str, torch.Tensor]:
    """Inputs of the losses in float64."""
    g = rng(1)
    x, eps = (torch.randn(n, 2, generator=g, dtype=torch.float64) for _ in range(2))
    return {"x": x, "eps": eps, "sigma": 0.2 + torch.rand(n, generator=g, dtype=torch.float64)}


# ---------------------------------------------------------------------------------------------------------- the losses


def test_the_surrogate_has_the_gradient_of_the_true_divergence() -> None:
    # Scalar generator G(x) = r x: fake law N(0, r^2), so the divergence at one level is a known function of r.
    r, sigma, n = 0.8, 0.6, 400_000
    scale = torch.tensor(r, dtype=torch.float64, requires_grad=True)
    x, eps = (torch.randn(n, 2, generator=rng(k), dtype=torch.float64) for k in (2, 3))
    fake, teacher = (Gaussian(torch.zeros(2, dtype=torch.float64), std).denoise for std in (r, S))
    level = torch.full((n,), sigma, dtype=torch.float64)
    loss, _ = rdmd.generator_loss(lambda z: scale * z, fake, teacher, x, eps, level, omega=3.0, lambda_=0.0)
    loss.backward()
    h = 1e-6
    slope = 3.0 * float(rdmd.gaussian_kl(r + h, S, sigma) - rdmd.gaussian_kl(r - h, S, sigma)) / (2 * h)
    assert scale.grad is not None
    assert float(scale.grad) == pytest.approx(slope, rel=0.01)


def test_the_surrogate_is_exact_for_linear_maps() -> None:
    # linear_descent's cubature leaves no sampling error: one step equals the analytic gradient step.
    r, rate, lambda_ = 0.9, 0.1, 0.3
    after = rdmd.linear_descent(rdmd.rotation(r, 0.0), S, lambda_, NODES["one"], steps=1, rate=rate)
    # dF/dr = pi (r - s) / s + 4 lambda (r - 1); the matrix r I has two equal entries, each with half of it.
    gradient = math.pi * (r - S) / S + 4 * lambda_ * (r - 1)
    torch.testing.assert_close(after, rdmd.rotation(r - rate * gradient / 2, 0.0), rtol=1e-9, atol=1e-9)


def test_no_gradient_reaches_fake_or_teacher() -> None:
    inputs, net = problem(), torch.nn.Linear(2, 2).double()
    fake, teacher = (torch.nn.Linear(2, 2).double() for _ in range(2))
    loss, parts = rdmd.generator_loss(
        net, lambda x, s: fake(x), lambda x, s: teacher(x), **inputs, omega=1.0, lambda_=0.2
    )
    loss.backward()
    assert fake.weight.grad is None
    assert teacher.weight.grad is None
    assert net.weight.grad is not None
    assert set(parts) == {"cost", "pull"}


def test_cost_and_matching_share_one_reduction() -> None:
    # Cutting a sample into more coordinates with the same content must not change lambda's meaning: a batch of images
    # (n, 1, 4, 4) gives the same loss as its flattened rows (n, 16).
    g = rng(4)
    x, eps = (torch.randn(6, 1, 4, 4, generator=g, dtype=torch.float64) for _ in range(2))
    sigma = 0.5 + torch.rand(6, generator=g, dtype=torch.float64)
    arguments = (lambda z: 0.7 * z, lambda z, s: 0.5 * z, lambda z, s: 0.9 * z)
    image, parts = rdmd.generator_loss(*arguments, x, eps, sigma, 2.0, 0.3)
    row, _ = rdmd.generator_loss(*arguments, x.flatten(1), eps.flatten(1), sigma, 2.0, 0.3)
    assert float(image) == pytest.approx(float(row), rel=1e-12)
    assert float(parts["cost"]) == pytest.approx(float(0.09 * x.square().sum() / 6), rel=1e-12)


def test_weight_times_k_is_lambda_over_k() -> None:
    inputs = problem()
    gradients = []
    for omega, lambda_ in ((1.0, 0.2), (5.0, 1.0)):
        scale = torch.tensor(0.6, dtype=torch.float64, requires_grad=True)
        loss, _ = rdmd.generator_loss(
            lambda z, a=scale: a * z,
            lambda z, s: 0.3 * z,
            lambda z, s: 0.8 * z,
            **inputs,
            omega=omega,
            lambda_=lambda_,
        )
        loss.backward()
        gradients.append(float(scale.grad))  # type: ignore[arg-type]
    assert gradients[1] == pytest.approx(5 * gradients[0], rel=1e-12)


def test_fake_loss_is_minimal_at_the_exact_denoiser_and_leaves_the_generator_alone() -> None:
    law = Gaussian(torch.zeros(2, dtype=torch.float64), 0.7)
    g = rng(5)
    y = law.sample(100_000, g).requires_grad_()
    eps, sigma = torch.randn(len(y), 2, generator=g, dtype=torch.float64), torch.full((len(y),), 0.9).double()
    best, *others = (
        rdmd.fake_loss(lambda x, s, k=k: k * law.denoise(x, s), y, eps, sigma, 2.0) for k in (1.0, 0.95, 1.05)
    )
    assert all(float(best) < float(other) for other in others)
    assert float(best) == pytest.approx(2 * 2 * 0.49 * 0.81 / (0.49 + 0.81), rel=0.02)  # beta d Var(x0 | x_sigma)
    assert not best.requires_grad


@pytest.mark.parametrize("lambda_", [-0.1, torch.tensor([0.2, -0.1])])
def test_a_negative_lambda_is_refused_by_name(lambda_: float | torch.Tensor) -> None:
    same = (lambda z: z, lambda z, s: z, lambda z, s: z)
    with pytest.raises(UserError, match=r"^lambda_: -0\.1 given"):
        rdmd.generator_loss(*same, torch.ones(2, 2), torch.ones(2, 2), torch.ones(2), 1.0, lambda_)


@pytest.mark.parametrize("call", [rdmd.best_radius, rdmd.best_radius_sigma, rdmd.minimum_by_quadrature])
def test_a_negative_lambda_is_refused_in_the_gaussian_case(call: Callable) -> None:
    with pytest.raises(UserError, match=r"^lambda_: -1 given"):
        call(S, -1.0)


# -------------------------------------------------------------------------------------------------- the Gaussian case


@pytest.mark.parametrize("name", ["one", "sigma"])
def test_matching_term_closed_form_equals_quadrature(name: str) -> None:
    for r in (0.3, 1.0, 2.2):
        omega = (lambda sigma: 1.0) if name == "one" else (lambda sigma: sigma)
        exact = integrate.quad(lambda t, r=r, w=omega: w(t) * float(rdmd.gaussian_kl(r, S, t)), 0, math.inf)[0]
        assert float(rdmd.matching_closed_form(r, S, name)) == pytest.approx(exact, rel=1e-7)
        assert float(rdmd.surface(r, 1.0, S, 0.0, NODES[name])) == pytest.approx(exact, rel=1e-7)


def test_band_closed_form_equals_quadrature() -> None:
    for r in (0.4, 1.2, 3.0):
        exact = integrate.quad(lambda t, r=r: float(rdmd.gaussian_kl(r, S, t)), 0.1, 9.0, epsabs=1e-13)[0]
        assert float(rdmd.band_closed_form(r, S, 0.1, 9.0)) == pytest.approx(exact, rel=1e-9)


def test_unknown_closed_form_is_refused_by_name() -> None:
    with pytest.raises(UserError, match=r"^omega: no closed form for 'cubic'"):
        rdmd.matching_closed_form(1.0, S, "cubic")


@pytest.mark.parametrize("lambda_", [0.1, 0.2, 1.0])
def test_three_minima_agree(lambda_: float) -> None:
    r, alpha = rdmd.minimum_by_quadrature(S, lambda_)
    A = rdmd.linear_descent(rdmd.rotation(0.5, 2.5), S, lambda_, NODES["one"], steps=700)
    assert rdmd.radius_and_angle(A) == pytest.approx((rdmd.best_radius(S, lambda_), 0.0), abs=1e-4)
    assert (r, alpha) == pytest.approx((rdmd.best_radius(S, lambda_), 0.0), abs=1e-6)
    assert rdmd.stationary_radius(S, lambda_, NODES["one"]) == pytest.approx(rdmd.best_radius(S, lambda_), abs=1e-9)


def test_second_weighting_agrees_too() -> None:
    r, _ = rdmd.minimum_by_quadrature(S, 0.2, lambda sigma: sigma)
    assert r == pytest.approx(rdmd.best_radius_sigma(S, 0.2), abs=1e-6)
    assert rdmd.stationary_radius(S, 0.2, NODES["sigma"]) == pytest.approx(r, abs=1e-6)


def test_without_cost_the_whole_circle_is_minimal() -> None:
    turned = rdmd.linear_descent(rdmd.rotation(0.5, 2.0), S, 0.0, NODES["one"], steps=300)
    assert rdmd.radius_and_angle(turned) == pytest.approx((S, 2.0), abs=1e-6)


def test_a_reflection_is_trapped_below_pi_over_4_only() -> None:
    mirror = torch.diag(torch.tensor([1.0, -1.0], dtype=torch.float64))
    for lambda_, trapped in ((0.2, True), (0.9, False)):
        A = rdmd.linear_descent(mirror, S, lambda_, NODES["one"], steps=600, rate=0.1)
        low = min(torch.linalg.eigvals(A).real.tolist())
        assert (low < -0.1) == trapped
        if trapped:
            expected = -S * (math.pi - 4 * lambda_) / (math.pi + 4 * lambda_ * S)
            assert low == pytest.approx(expected, abs=1e-5)


def test_every_weighting_lies_between_source_and_target_radius() -> None:
    for weighting in rdmd.weightings().values():
        radii = [rdmd.stationary_radius(S, value, weighting) for value in (0.01, 0.2, 5.0)]
        assert S > radii[0] > radii[1] > radii[2] > 1
        assert rdmd.stationary_radius(S, 0.0, weighting) == S


def test_rotation_and_its_inverse() -> None:
    assert rdmd.radius_and_angle(rdmd.rotation(1.3, -2.0)) == pytest.approx((1.3, -2.0))


# --------------------------------------------------------------------------------------------------------- the 2-D toy


def test_a_stack_gives_what_its_members_give() -> None:
    one, two = (rdmd_toy.new_stack([seed], 8, 2, 3.0) for seed in (3, 4))
    both = rdmd_toy.new_stack([3, 4], 8, 2, 3.0)
    x, sigma = torch.randn(10, 2, generator=rng()), 0.1 + torch.rand(10, generator=rng(1))
    expected = torch.cat([one(x[:5], sigma[:5]), two(x[5:], sigma[5:])])
    torch.testing.assert_close(both(x, sigma), expected)
    torch.testing.assert_close(both.tiled(2).first(1)(x, sigma), one(x, sigma))


def tiny(lambdas: list[float], seeds: list[int], steps: int = 12) -> rdmd_toy.Stack:
    """Train generators for a few steps with an exact score."""
    target = eight_gaussians()
    points = rdmd_toy.draw_points(Gaussian(torch.zeros(2), 1.0), target, 64, seeds)
    fake, generator = (rdmd_toy.new_stack(seeds, 8, 2, 3.0).tiled(len(lambdas)) for _ in range(2))
    return rdmd_toy.train_generators(
        points, target, fake, generator, lambdas, steps, batch=16, rate=1e-2, fake_rate=1e-2
    )


def test_members_train_as_if_alone() -> None:
    x = torch.randn(7, 2, generator=rng(6))
    alone = rdmd_toy.apply_stack(tiny([0.5], [0, 1]), x, 1)
    stacked = rdmd_toy.apply_stack(tiny([0.0, 0.5], [0, 1]), x, 2)
    torch.testing.assert_close(stacked[1], alone[0], rtol=1e-4, atol=1e-4)
    assert not torch.allclose(stacked[0], alone[0], atol=1e-3)


def test_training_is_deterministic() -> None:
    x = torch.randn(7, 2, generator=rng(6))
    torch.manual_seed(1)
    first = tiny([0.2], [0])(x)
    torch.manual_seed(2)
    assert torch.equal(first, tiny([0.2], [0])(x))


def test_a_huge_lambda_keeps_the_input() -> None:
    x = torch.randn(200, 2, generator=rng(7))
    start, far = tiny([1000.0], [0], steps=1)(x), tiny([1000.0], [0], steps=300)(x)
    assert float((far - x).square().mean()) < 0.1 * float((start - x).square().mean())


def test_teacher_training_lowers_the_denoising_error() -> None:
    target, seeds = Gaussian(torch.tensor([3.0, -1.0]), 0.5), [0]
    points = rdmd_toy.draw_points(Gaussian(torch.zeros(2), 1.0), target, 500, seeds)
    stack = rdmd_toy.new_stack(seeds, 16, 2, 2.0)
    x = target.sample(500, rng(8)) + torch.randn(500, 2, generator=rng(9))
    level = torch.ones(500)

    def error() -> float:
        with torch.no_grad():
            return float((stack(x, level) - target.denoise(x, level)).square().mean())

    before = error()
    rdmd_toy.train_teacher(points, stack, steps=150, batch=64, rate=5e-3, seed=0)
    assert error() < 0.5 * before
    assert not any(weight.requires_grad for weight in stack.weights)


def test_the_warm_up_teaches_the_fake_the_law_that_the_generator_starts_with() -> None:
    source, seeds = Gaussian(torch.zeros(2), 1.0), [0]
    points = rdmd_toy.draw_points(source, eight_gaussians(), 500, seeds)
    fake, generator = rdmd_toy.new_stack([1], 16, 2, 3.0), rdmd_toy.new_stack([2], 16, 2, 3.0)
    y = generator(source.sample(2000, rng(11))).detach()
    eps, sigma = torch.randn(2000, 2, generator=rng(12)), torch.ones(2000)

    def error() -> float:
        return float(rdmd.fake_loss(fake, y, eps, sigma).detach())

    before, weights = error(), [weight.detach().clone() for weight in generator.weights]
    rdmd_toy.train_generators(
        points, source, fake, generator, [0.0], 1, batch=64, rate=0.0, fake_rate=5e-3, warm_up=300
    )
    assert error() < 0.8 * before
    assert all(torch.equal(a, b) for a, b in zip(weights, generator.weights, strict=True))


def test_noise_levels_are_log_uniform() -> None:
    sigma = rdmd_toy.draw_sigma((20_000,), rng(10))
    low, high = rdmd_toy.SIGMA_RANGE
    assert low <= float(sigma.min()) < float(sigma.max()) <= high
    assert float(sigma.log().mean()) == pytest.approx(math.log(low * high) / 2, abs=0.05)


# -------------------------------------------------------------------------------------------------- measures of a map


def test_crossings_of_known_segments() -> None:
    x = np.array([[0.0, 0.0], [0.0, 1.0], [5.0, 5.0]])
    crossed, parallel = np.array([[1.0, 1.0], [1.0, 0.0], [6.0, 6.0]]), np.array([[1.0, 0.0], [1.0, 1.0], [6.0, 6.0]])
    assert rdmd_toy.crossing_share(x, crossed) == pytest.approx(1 / 3)
    assert rdmd_toy.crossing_share(x, parallel) == 0.0


def test_transport_of_shuffled_points_undoes_the_shuffle() -> None:
    x = np.random.default_rng(0).normal(size=(60, 2))
    order = np.random.default_rng(1).permutation(60)
    np.testing.assert_array_equal(rdmd_toy.transport_map(x, x[order]), x)
    assert rdmd_toy.w2_squared(x, x[order] + [3.0, 4.0]) == pytest.approx(25.0)


def test_judged_maps_tell_the_optimal_from_a_turned_one() -> None:
    x = np.random.default_rng(2).normal(size=(200, 2))
    best, turned = rdmd_toy.judge_map(x, 1.5 * x, 1.5 * x), rdmd_toy.judge_map(x, -1.5 * x, 1.5 * x)
    assert best["ratio"] == pytest.approx(1.0)
    assert best["distance"] == pytest.approx(0.0, abs=1e-6)
    assert best["crossings"] == 0.0
    assert turned["ratio"] > 3
    assert turned["crossings"] > 0.3
    assert turned["cost"] == pytest.approx(6.25 * float((x**2).sum(1).mean()))


# -------------------------------------------------------------------------------------------------------- 1-D quantiles


def test_edge_quantiles_invert_the_distribution_function() -> None:
    u = np.linspace(0, 1, 101)
    x = rdmd_1d.edge_quantiles(u)
    np.testing.assert_allclose(x + 0.9 * np.sin(2 * math.pi * x) / (2 * math.pi), u, atol=1e-12)


def test_quantile_objective_is_a_divergence_with_the_right_gradient() -> None:
    n = 20
    objective = rdmd_1d.quantile_objective(n, levels=6)
    u = (torch.arange(n, dtype=torch.float64) + 0.5) / n
    best = torch.as_tensor(rdmd_1d.edge_quantiles(u.numpy()))
    assert 0 <= float(objective(best, 0.0)) < 0.1 * float(objective(u, 0.0))
    assert float(objective(u.flip(0), 0.0)) == pytest.approx(float(objective(u, 0.0)))  # the law, not the pairing
    assert torch.autograd.gradcheck(lambda g: objective(g, 0.3), (u.clone().requires_grad_(),))


def test_quantile_map_tends_to_the_optimal_map() -> None:
    n = 40
    u = (np.arange(n) + 0.5) / n
    truth = rdmd_1d.edge_quantiles(u)
    errors = [float(np.sqrt(np.mean((rdmd_1d.quantile_map(v, u) - truth) ** 2))) for v in (3.0, 0.3, 0.03)]
    assert all(a > 2 * b for a, b in pairwise(errors))
