"""ANT: guidance, adversarial noise and the loss against closed forms for two Gaussians, in float64."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from lib.ground import diffusion, nets, toy2d
from lib.ground.nets import Stack
from lib.ground.noised_classifier import classifier_loss
from lib.papers.ant import method as ant
from tests.exact import exact_denoiser

SCHEDULE = diffusion.linear()
SOURCE = toy2d.Gaussian(torch.ones(2, dtype=torch.float64), 1.0)
TARGET = toy2d.Gaussian(-torch.ones(2, dtype=torch.float64), 1.0)
EXACT = exact_denoiser(SCHEDULE, SOURCE)
GUIDANCE = ant.exact_guidance(SCHEDULE, SOURCE, TARGET)


def seeded(seed: int = 0) -> torch.Generator:
    """Return a generator."""
    return torch.Generator().manual_seed(seed)


def batch(*shape: int, t: int | None = None, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Return target samples, timesteps and noise."""
    g = seeded(seed)
    x0 = torch.randn(*shape, generator=g, dtype=torch.float64) - 1
    eps = torch.randn(*shape, generator=g, dtype=torch.float64)
    times = torch.randint(1000, shape[:-1], generator=g)
    return x0, times if t is None else torch.full(shape[:-1], t), eps


def small_stack(n: int = 3) -> Stack:
    """Return untrained networks in float64."""
    torch.manual_seed(0)
    return Stack([nets.MLP(width=16, depth=2, frequencies=4).double() for _ in range(n)])


def test_sigma_hat_is_the_derivations_factor() -> None:
    """It equals posterior variance * sqrt(alpha (1 - alpha_bar)) / beta, and 1 - alpha_bar up to the order of beta."""
    beta = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)
    alpha_bar = (1 - beta).cumprod(0)
    previous = torch.cat([torch.ones(1, dtype=torch.float64), alpha_bar[:-1]])
    variance = (1 - previous) / (1 - alpha_bar) * beta
    expected = variance * ((1 - beta) * (1 - alpha_bar)).sqrt() / beta
    found = ant.sigma_hat(SCHEDULE)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)
    assert found[0] == 0
    assert ((found**2 - (1 - alpha_bar)).abs() <= 2.5 * beta).all()


def test_exact_classifier_gradient() -> None:
    """It is (1 - p_T) sqrt(alpha_bar) (mu_T - mu_S), the same as autograd through log p_T."""
    x0, t, eps = batch(64, 2)
    x_t = SCHEDULE.add_noise(x0, eps, t).requires_grad_()
    root = SCHEDULE.alpha_bar[t].sqrt()[:, None]
    log_odds = (root * x_t * (TARGET.mean - SOURCE.mean)).sum(-1, keepdim=True)  # means of equal norm, variance 1
    closed = torch.sigmoid(-log_odds) * root * (TARGET.mean - SOURCE.mean)
    (slope,) = torch.autograd.grad(torch.nn.functional.logsigmoid(log_odds).sum(), x_t)
    found = GUIDANCE(x_t.detach(), t)
    torch.testing.assert_close(found, closed.detach(), rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(found, slope, rtol=1e-9, atol=1e-12)


def test_exact_denoiser() -> None:
    """For variance 1 it is sqrt(1 - alpha_bar) (x_t - sqrt(alpha_bar) mu)."""
    x0, t, eps = batch(64, 2)
    x_t = SCHEDULE.add_noise(x0, eps, t)
    alpha_bar = SCHEDULE.alpha_bar[t][:, None]
    torch.testing.assert_close(EXACT(x_t, t), (1 - alpha_bar).sqrt() * (x_t - alpha_bar.sqrt() * SOURCE.mean))


def test_omega_does_not_depend_on_the_batch() -> None:
    """Each sample's ascent direction is the same alone, in a batch, and in a batch twice as large."""
    x0, t, eps = batch(32, 2)
    whole = ant.ascent_direction(EXACT, SCHEDULE, x0, t, eps)
    twice = ant.ascent_direction(EXACT, SCHEDULE, x0.repeat(2, 1), t.repeat(2), eps.repeat(2, 1))
    one = torch.cat(
        [ant.ascent_direction(EXACT, SCHEDULE, x0[i : i + 1], t[i : i + 1], eps[i : i + 1]) for i in range(32)]
    )
    torch.testing.assert_close(whole, twice[:32])
    torch.testing.assert_close(whole, one)
    images = torch.randn(4, 1, 8, 8, generator=seeded(), dtype=torch.float64)
    noise, t = torch.randn(4, 1, 8, 8, generator=seeded(1), dtype=torch.float64), torch.tensor([10, 200, 500, 900])
    many = ant.adversarial_noise(lambda x, t: x.tanh(), SCHEDULE, images, t, noise, 0.1, 10)
    single = ant.adversarial_noise(lambda x, t: x.tanh(), SCHEDULE, images[2:3], t[2:3], noise[2:3], 0.1, 10)
    torch.testing.assert_close(many[2:3], single)


def test_ascent_direction_goes_through_x_t() -> None:
    """For the exact source network it is 2 abar (abar eps - sqrt(abar (1 - abar)) (x0 - mu_S))."""
    x0, t, eps = batch(16, 2)
    abar = SCHEDULE.alpha_bar[t][:, None]
    closed = 2 * abar * (abar * eps - (abar * (1 - abar)).sqrt() * (x0 - SOURCE.mean))
    torch.testing.assert_close(ant.ascent_direction(EXACT, SCHEDULE, x0, t, eps), closed, rtol=1e-9, atol=1e-12)


def test_ascent_increases_the_error() -> None:
    """A step along the direction raises every sample's error, before the normalisation."""
    x0, t, eps = batch(64, 2)
    t = t.clamp(max=700)  # at the noisiest levels the network is almost exact and the slope almost 0

    def error(noise: Tensor) -> Tensor:
        return (noise - EXACT(SCHEDULE.add_noise(x0, noise, t), t)).square().sum(-1)

    stepped = eps + 0.02 * ant.ascent_direction(EXACT, SCHEDULE, x0, t, eps)
    assert (error(stepped) > error(eps)).all()


@pytest.mark.parametrize(
    ("norm", "shape", "axes"),
    [
        ("sample", (5, 3, 8, 8), (1, 2, 3)),
        ("batch", (4, 50, 2), (1,)),
        ("batch", (50, 2), (0,)),
        ("all", (4, 50, 2), (1, 2)),
    ],
)
def test_norm_gives_mean_0_and_deviation_1(norm: str, shape: tuple[int, ...], axes: tuple[int, ...]) -> None:
    """Over the axes that the option names."""
    noise = ant.normalise(3 + 2 * torch.randn(*shape, generator=seeded(), dtype=torch.float64), norm)
    torch.testing.assert_close(noise.mean(axes), torch.zeros_like(noise.mean(axes)), rtol=0, atol=1e-12)
    torch.testing.assert_close(noise.std(axes, correction=0), torch.ones_like(noise.mean(axes)))


def test_norm_by_sample_is_degenerate_in_the_plane() -> None:
    """Two entries a sample: only (1, -1) and (-1, 1) are left."""
    noise = ant.normalise(torch.randn(20, 2, generator=seeded(), dtype=torch.float64), "sample")
    torch.testing.assert_close(noise.abs(), torch.ones_like(noise))
    torch.testing.assert_close(noise[:, 0], -noise[:, 1])


def test_no_ascent_returns_the_noise_and_weights_get_no_gradient() -> None:
    """J = 0 changes nothing; J > 0 leaves the network's gradients alone."""
    stack = small_stack()
    x0, t, eps = batch(3, 20, 2)
    assert torch.equal(ant.adversarial_noise(stack, SCHEDULE, x0, t, eps, 0.02, 0), eps)
    moved = ant.adversarial_noise(stack, SCHEDULE, x0, t, eps, 0.02, 2, "batch")
    assert not moved.requires_grad
    assert all(p.grad is None for p in stack.parameters())


def test_loss_without_guidance_and_noise_is_plain() -> None:
    """Gamma 0 and J = 0 give the denoising loss; the parts add up for the exact target."""
    x0, t, eps = batch(64, 2)
    plain = (EXACT(SCHEDULE.add_noise(x0, eps, t), t) - eps).square().mean()
    value, parts = ant.loss(EXACT, GUIDANCE, SCHEDULE, x0, t, eps, gamma=0.0, J=0)
    assert float(value) == pytest.approx(float(plain), rel=1e-12)
    assert float(parts["plain"]) == pytest.approx(float(plain), rel=1e-12)
    assert float(parts["shift"]) == 0
    assert float(ant.loss(EXACT, None, SCHEDULE, x0, t, eps, J=0)[0]) == pytest.approx(float(plain), rel=1e-12)


def test_guided_noise_is_eq_5_and_minimises_the_loss() -> None:
    """A network that outputs eps - sigma_hat^2 gamma gradient has loss 0; sign and power change the target."""
    x0, t, eps = batch(32, 2)
    x_t = SCHEDULE.add_noise(x0, eps, t)
    factor = 5 * ant.sigma_hat(SCHEDULE)[t][:, None]
    printed = eps - factor * ant.sigma_hat(SCHEDULE)[t][:, None] * GUIDANCE(x_t, t)
    value, _ = ant.similarity_guided_loss(lambda x, t: printed, GUIDANCE, SCHEDULE, x0, t, eps, gamma=5)
    assert float(value) == pytest.approx(0, abs=1e-20)
    derived = ant.guided_noise(eps, GUIDANCE(x_t, t), SCHEDULE, t, gamma=-5, power=1)
    torch.testing.assert_close(derived, eps + factor * GUIDANCE(x_t, t))


def test_classifier_guidance_is_the_gradient_of_log_p() -> None:
    """Against finite differences of the log-probability of class 1."""
    stack = small_stack(2)
    x0, t, eps = batch(2, 6, 2)
    x_t = SCHEDULE.add_noise(x0, eps, t)
    found = ant.classifier_guidance(stack)(x_t, t)
    step = torch.tensor([1e-5, 0.0], dtype=torch.float64)
    with torch.no_grad():
        above, below = (stack(x_t + s, t).log_softmax(-1)[..., 1] for s in (step, -step))
    torch.testing.assert_close(found[..., 0], (above - below) / 2e-5, rtol=1e-5, atol=1e-8)


def test_classifier_learns_the_exact_classifier() -> None:
    """Trained on plenty of both domains, its gradient points along the exact one where it matters."""
    torch.manual_seed(1)
    classifier = nets.MLP(width=32, depth=2, frequencies=4)
    optimizer = torch.optim.Adam(classifier.parameters(), lr=3e-3)
    g, y = seeded(2), torch.arange(256) % 2
    for _ in range(300):
        x0 = torch.randn(256, 2, generator=g) + 1 - 2 * y[:, None]
        t, eps = torch.randint(1000, (256,), generator=g), torch.randn(256, 2, generator=g)
        value = classifier_loss(classifier, SCHEDULE, x0, y, t, eps)
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
    t = torch.full((500,), 250)
    x_t = SCHEDULE.add_noise(torch.randn(500, 2, generator=g) - 1, torch.randn(500, 2, generator=g), t)
    mean = ant.classifier_guidance(classifier)(x_t, t).mean(0)
    assert float(torch.nn.functional.cosine_similarity(mean, torch.tensor([-1.0, -1.0]), dim=0)) > 0.97  # 14 degrees
    assert float(mean.norm()) == pytest.approx(float(GUIDANCE(x_t, t).mean(0).norm()), rel=0.3)
