"""RDMD: the losses against exact gradients, the Gaussian case three ways, own seeds, measures of maps, 1-D maps."""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import pairwise
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy import integrate

from lib.ground.nets import Stack
from lib.ground.toy2d import Gaussian
from lib.papers.rdmd import experiments, method as rdmd, quantiles as rdmd_1d, toy as rdmd_toy
from tests.rounding import assert_same

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
    loss, _ = rdmd.generator_loss(x, scale * x, fake, teacher, eps, level, omega=3.0, lambda_=0.0)
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
    models = {"fake": lambda x, s: fake(x), "teacher": lambda x, s: teacher(x)}
    loss, cost = rdmd.generator_loss(y=net(inputs["x"]), **models, **inputs, omega=1.0, lambda_=0.2)
    loss.backward()
    assert fake.weight.grad is None
    assert teacher.weight.grad is None
    assert net.weight.grad is not None
    assert not cost.requires_grad


def test_cost_and_matching_share_one_reduction() -> None:
    # Cutting a sample into more coordinates with the same content must not change lambda's meaning: a batch of images
    # (n, 1, 4, 4) gives the same loss as its flattened rows (n, 16).
    g = rng(4)
    x, eps = (torch.randn(6, 1, 4, 4, generator=g, dtype=torch.float64) for _ in range(2))
    sigma = 0.5 + torch.rand(6, generator=g, dtype=torch.float64)
    models = (lambda z, s: 0.5 * z, lambda z, s: 0.9 * z)
    image, cost = rdmd.generator_loss(x, 0.7 * x, *models, eps, sigma, 2.0, 0.3)
    row, _ = rdmd.generator_loss(x.flatten(1), 0.7 * x.flatten(1), *models, eps.flatten(1), sigma, 2.0, 0.3)
    assert float(image) == pytest.approx(float(row), rel=1e-12)
    assert float(cost) == pytest.approx(float(0.09 * x.square().sum() / 6), rel=1e-12)


def test_weight_times_k_is_lambda_over_k() -> None:
    inputs, models = problem(), {"fake": lambda z, s: 0.3 * z, "teacher": lambda z, s: 0.8 * z}
    gradients = []
    for omega, lambda_ in ((1.0, 0.2), (5.0, 1.0)):
        scale = torch.tensor(0.6, dtype=torch.float64, requires_grad=True)
        loss, _ = rdmd.generator_loss(y=scale * inputs["x"], **models, **inputs, omega=omega, lambda_=lambda_)
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


# -------------------------------------------------------------------------------------------------- the Gaussian case


@pytest.mark.parametrize("name", ["one", "sigma"])
def test_matching_term_equals_adaptive_quadrature(name: str) -> None:
    for r in (0.3, 1.0, 2.2):
        omega = (lambda sigma: 1.0) if name == "one" else (lambda sigma: sigma)
        exact = integrate.quad(lambda t, r=r, w=omega: w(t) * float(rdmd.gaussian_kl(r, S, t)), 0, math.inf)[0]
        assert float(rdmd.surface(r, 1.0, S, 0.0, NODES[name])) == pytest.approx(exact, rel=1e-7)
        if name == "one":
            assert exact == pytest.approx(math.pi * (r - S) ** 2 / (2 * S), rel=1e-7)  # the book's closed form


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


P = SimpleNamespace(
    radius=4.0,
    std=0.5,
    points=64,
    width=8,
    depth=2,
    batch=16,
    teacher_steps=10,
    steps=12,
    fake_steps=1,
    warm_up=0,
    rate=1e-2,
    fake_rate=1e-2,
    judged_points=30,
)
CPU = torch.device("cpu")


@pytest.fixture
def double() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def settings(**changes: float) -> SimpleNamespace:
    return SimpleNamespace(**vars(P) | changes)


def tiny(lambdas: list[float], seeds: list[int], p: SimpleNamespace = P) -> Stack:
    """Train generators for a few steps with an exact score."""
    fake, generator = (rdmd_toy.denoisers(seeds * len(lambdas), p) for _ in range(2))
    return rdmd_toy.train_generators(seeds, lambdas, p, rdmd_toy.laws(p)[1], fake, generator)


def test_a_generator_is_a_denoiser_held_at_sigma_1() -> None:
    stack = rdmd_toy.denoisers([3, 4], P)
    x = torch.randn(10, 2, generator=rng())
    assert torch.equal(rdmd_toy.generate(stack, x), stack.rows(x, torch.ones(10)))


def test_the_numbers_of_a_member_depend_on_its_own_lambda_and_seed(double: None) -> None:
    x = torch.randn(7, 2, generator=rng(6))
    stacked = rdmd_toy.generate(tiny([0.0, 0.5], [0, 1]), x.repeat(4, 1)).unflatten(0, (2, 2, 7))
    other_seeds = rdmd_toy.generate(tiny([0.0, 0.5], [1, 5]), x.repeat(4, 1)).unflatten(0, (2, 2, 7))
    alone = rdmd_toy.generate(tiny([0.5], [1]), x)
    assert_same(stacked[1, 1], alone, steps=P.steps)
    assert_same(other_seeds[1, 0], alone, steps=P.steps)
    assert not torch.allclose(stacked[0, 1], alone, atol=1e-3)


def test_teachers_train_as_if_alone(double: None) -> None:
    x, level = torch.randn(7, 2, generator=rng(6)), torch.ones(7)
    both, one = (rdmd_toy.train_teacher(seeds, P, CPU) for seeds in ([2, 3], [3]))
    assert_same(both.rows(x.repeat(2, 1), level.repeat(2))[7:], one.rows(x, level), steps=P.teacher_steps)


def test_training_is_deterministic() -> None:
    x = torch.randn(7, 2, generator=rng(6))
    torch.manual_seed(1)
    first = rdmd_toy.generate(tiny([0.2], [0]), x)
    torch.manual_seed(2)
    assert torch.equal(first, rdmd_toy.generate(tiny([0.2], [0]), x))


def test_a_huge_lambda_keeps_the_input() -> None:
    x = torch.randn(200, 2, generator=rng(7))
    start, far = (rdmd_toy.generate(tiny([1000.0], [0], settings(steps=steps)), x) for steps in (1, 300))
    assert float((far - x).square().mean()) < 0.1 * float((start - x).square().mean())


def test_teacher_training_lowers_the_denoising_error(monkeypatch: pytest.MonkeyPatch) -> None:
    target, level = Gaussian(torch.tensor([3.0, -1.0]), 0.5), torch.ones(500)
    monkeypatch.setattr(rdmd_toy, "laws", lambda p: (Gaussian(torch.zeros(2), 1.0), target))
    p = settings(points=500, width=16, fake_rate=5e-3, teacher_steps=150, radius=2.7)
    x = target.sample(500, rng(8)) + torch.randn(500, 2, generator=rng(9))

    def error(stack: Stack) -> float:
        with torch.no_grad():
            return float((stack.rows(x, level) - target.denoise(x, level)).square().mean())

    trained = rdmd_toy.train_teacher([0], p, CPU)
    assert error(trained) < 0.5 * error(rdmd_toy.denoisers([0], p))
    assert not any(weight.requires_grad for weight in trained.parameters())


def test_the_warm_up_teaches_the_fake_the_law_that_the_generator_starts_with() -> None:
    p = settings(points=500, width=16, batch=64, steps=1, warm_up=300, rate=0.0, fake_rate=5e-3)
    source, target = rdmd_toy.laws(p)
    fake, generator = rdmd_toy.denoisers([1], p), rdmd_toy.denoisers([2], p)
    y = rdmd_toy.generate(generator, source.sample(2000, rng(11))).detach()
    eps, sigma = torch.randn(2000, 2, generator=rng(12)), torch.ones(2000)

    def error() -> float:
        return float(rdmd.fake_loss(fake.rows, y, eps, sigma).detach())

    before, weights = error(), [weight.detach().clone() for weight in generator.parameters()]
    rdmd_toy.train_generators([0], [0.0], p, target, fake, generator)
    assert error() < 0.8 * before
    assert all(torch.equal(a, b) for a, b in zip(weights, generator.parameters(), strict=True))


def test_noise_levels_are_log_uniform_and_each_seed_draws_its_own() -> None:
    eps, sigma = rdmd_toy.noise(20_000, [rng(10), rng(11)])
    low, high = rdmd_toy.SIGMA_RANGE
    assert low <= float(sigma.min()) < float(sigma.max()) <= high
    assert float(sigma.log().mean()) == pytest.approx(math.log(low * high) / 2, abs=0.05)
    again = rdmd_toy.noise(20_000, [rng(11)])
    assert torch.equal(eps[1:], again[0])
    assert torch.equal(sigma[1:], again[1])


def test_fig_3_has_one_row_a_seed_whatever_the_others_are(double: None) -> None:
    p = settings(lambdas=[0.0, 1.0], device="cpu")
    found, alone = (experiments.eight_gaussians(seeds, p) for seeds in ([0, 1, 2], [1]))
    assert found["learned_cost"].shape == found["exact_found"].shape == (3, 2)
    assert found["learned_outputs"].shape == (3, 2, 400, 2)
    assert found["optimal_inputs"].shape == found["optimal_outputs"].shape == (3, 400, 2)
    assert (found["optimal_cost"] < found["optimal_cost"] * found["optimal_ratio"] + 1e-9).all()
    np.testing.assert_allclose(found["optimal_swaps"], 0)
    np.testing.assert_allclose(found["optimal_distance"], 0, atol=1e-6)
    assert (found["optimal_floor"] > 0.1).all()
    for name, values in alone.items():
        np.testing.assert_allclose(found[name][1:2], values, rtol=1e-6, atol=1e-9, err_msg=name)


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


def test_a_sample_of_the_law_has_its_modes_and_a_ring_none() -> None:
    for seed in (1, 2, 3):
        found = experiments.optimal_map(seed, P)
        assert found["found"] == 8
        assert found["contrast"] > 0.6
        assert found["spread"] == pytest.approx(0.124, abs=0.01)
        assert found["precision"] == pytest.approx(1 - math.exp(-4.5), abs=0.01)
        assert found["ring_found"] == 0
        assert found["ring_contrast"] < 0.1
        assert found["ring_spread"] == pytest.approx(math.pi / 8 / math.sqrt(3), abs=0.01)
        assert found["ring_balance"] > 0.8  # the ring has its mass in place, so balance alone would not tell


def test_a_lost_or_a_thin_mode_is_not_found() -> None:
    law = rdmd_toy.laws(P)[1]
    y = law.sample(8000, rng(13)).double().numpy()
    first = np.linalg.norm(y - [4.0, 0.0], axis=1) < 2
    lost = rdmd_toy.judge_modes(y[~first], law)
    assert lost["found"] == 7
    assert lost["contrast"] == lost["balance"] == 0
    third = np.arange(len(y)) % 3 == 0
    assert rdmd_toy.judge_modes(y[~first | third], law)["found"] == 7
    shrunk = rdmd_toy.judge_modes(0.6 * y, law)  # the right angles at a wrong radius
    assert shrunk["found"] == 8
    assert shrunk["precision"] < 0.6


# -------------------------------------------------------------------------------------------------------- 1-D quantiles


def test_edge_quantiles_invert_the_distribution_function() -> None:
    u = np.linspace(0, 1, 101)
    x = rdmd_1d.edge_quantiles(u)
    np.testing.assert_allclose(x + 0.9 * np.sin(2 * math.pi * x) / (2 * math.pi), u, atol=1e-12)


def test_quantile_objective_is_a_divergence_with_the_right_gradient() -> None:
    n = 20
    objective = rdmd_1d.quantile_objective(n)
    u = (torch.arange(n, dtype=torch.float64) + 0.5) / n
    best = torch.as_tensor(rdmd_1d.edge_quantiles(u.numpy()))
    assert 0 <= float(objective(best, 0.0)) < 0.1 * float(objective(u, 0.0))
    assert float(objective(u.flip(0), 0.0)) == pytest.approx(float(objective(u, 0.0)))  # the law, not the pairing
    assert torch.autograd.gradcheck(lambda g: objective(g, 0.3), (u.clone().requires_grad_(),))


def test_quantile_maps_tend_to_the_optimal_map_but_for_lambda_0() -> None:
    found = experiments.quantile_maps((3.0, 0.3, 0.03), 40)
    assert found["maps"].shape == (4, 40)
    *errors, at_zero = found["rms"]
    assert all(a > 2 * b for a, b in pairwise(errors))
    assert at_zero > 0.3


# ------------------------------------------------------------------------------------------------ numbers of the claims


@pytest.mark.parametrize("weighting", ["one", "sigma"])
def test_three_ways_to_the_minimum_agree(weighting: str) -> None:
    row = experiments.three_minima(S, 0.2, weighting)
    assert float(row["gap"]) < 1e-4
    assert 1 < float(row["descent"]) < S


def test_only_the_cost_breaks_the_circle() -> None:
    assert experiments.from_a_circle(S, 0.0, starts=4) < 1e-6
    assert experiments.from_a_circle(S, 0.2, starts=4) < 1e-6


def test_slope_of_the_gaussian_case_at_0() -> None:
    assert experiments.gaussian_slope(S) == pytest.approx(4 * S * (S - 1) / math.pi, abs=1e-3)
