"""Cosines of SDS directions against closed forms of Gaussian worlds, plain directions, and by hand."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from lib.ground import diffusion
from lib.papers.dds import directions as dds_directions, method as dds
from lib.papers.dds.directions import Branch, cosine, gaussian_cosine, predict

SCHEDULE = diffusion.scaled_linear()
NULL, SOURCE, TARGET = torch.arange(3).split(1)
SHIFT, LIKE = 0.1, 0.9


def generator(seed: int = 0) -> torch.Generator:
    """Return a seeded generator."""
    return torch.Generator().manual_seed(seed)


def net(z_t: Tensor, t: Tensor, y: Tensor) -> Tensor:
    """Return a smooth denoiser of class numbers that is nothing like a Gaussian's."""
    level = (t / 1000).to(z_t)[:, None, None, None]
    return torch.tanh(1.3 * z_t + 0.2 * y[:, None, None, None] + z_t.roll(1, -1) * level)


def gaussian_branches(rho: float, t: int, n: int = 10, size: int = 64, seed: int = 0) -> tuple[Branch, Branch]:
    """Return the branches of n pairs in a pair world, each pair with one noise."""
    world = dds_directions.pair_world(SCHEDULE, size, SHIFT, LIKE, generator(seed))
    one, two, eps = torch.randn(3, n, 4, size, size, generator=generator(seed + 1))
    z_hat, z = world.mean[1] + one, world.mean[2] + rho * one + (1 - rho**2) ** 0.5 * two
    return tuple(predict(world, SCHEDULE, image, y, NULL, t, eps[None]) for image, y in ((z, TARGET), (z_hat, SOURCE)))


@pytest.mark.parametrize("reading", ["a", "b"])
@pytest.mark.parametrize("rho", [0.0, 0.8])
@pytest.mark.parametrize("t", [20, 400, 980])
@pytest.mark.parametrize("omega", [1.0, 7.5, 30.0])
def test_closed_form_is_what_is_measured(reading, rho, t, omega):
    first, second = gaussian_branches(rho, t)
    measured = cosine(first, second, omega, reading)
    closed = gaussian_cosine(SCHEDULE.alpha_bar[t], omega, reading, rho, SHIFT, LIKE)
    assert measured.shape == (1, 10)
    assert measured.mean().item() == pytest.approx(closed.item(), abs=0.02)  # 10 x 16384 pixels: 0.003 each


@pytest.mark.parametrize("t", [20, 300, 800])
def test_unit_gaussians_without_guidance_are_alike_by_the_shared_noise_alone(t):
    world = dds_directions.pair_world(SCHEDULE, 64, 1e-6, LIKE, generator())
    z, z_hat, eps = torch.randn(3, 10, 4, 64, 64, generator=generator(1))
    first, second = (predict(world, SCHEDULE, image, SOURCE, NULL, t, eps[None]) for image in (z, z_hat))
    sigma2 = 1 - SCHEDULE.alpha_bar[t].item()
    assert cosine(first, second, 1.0, "b").mean().item() == pytest.approx(sigma2, abs=0.01)
    assert cosine(first, second, 1.0, "a").mean().item() == pytest.approx(1 - sigma2, abs=0.01)


def test_noises_of_their_own_leave_nothing_in_common():
    world = dds_directions.pair_world(SCHEDULE, 64, SHIFT, LIKE, generator())
    z_hat, eps = torch.randn(5, 4, 64, 64, generator=generator(1)), torch.randn(3, 5, 4, 64, 64, generator=generator(2))
    first, second = (predict(world, SCHEDULE, z_hat, y, NULL, 980, eps) for y in (TARGET, SOURCE))
    assert cosine(first, second, 1.0, "b").mean() > 0.99
    assert cosine(first, second.other_noise(), 1.0, "b").abs().mean() < 0.03


def test_guidance_from_stored_predictions_equals_the_direct_computation(monkeypatch):
    monkeypatch.setattr(dds_directions, "BATCH", 5)
    z, z_hat = torch.randn(2, 4, 1, 8, 8, generator=generator(), dtype=torch.float64)
    eps = torch.randn(3, 4, 1, 8, 8, generator=generator(1), dtype=torch.float64)
    y, y_hat, null = torch.tensor([3, 3, 4, 4]), torch.tensor([8, 8, 9, 9]), torch.tensor([20])
    first, second = (predict(net, SCHEDULE, *pair, null, 300, eps) for pair in ((z, y), (z_hat, y_hat)))
    times = torch.full((4,), 300)
    for omega in (1.0, 7.5, 30.0):
        for k in range(3):
            direct = [
                dds.sds_direction(net, SCHEDULE.add_noise(image, eps[k], times), prompt, null, omega, times, eps[k])
                for image, prompt in ((z, y), (z_hat, y_hat))
            ]
            torch.testing.assert_close(first.direction(omega, "a")[k], direct[0], rtol=0, atol=1e-12)
            torch.testing.assert_close(first.direction(omega, "b")[k], direct[0] + eps[k], rtol=0, atol=1e-12)
            by_hand = [(a * b).sum() / (a.norm() * b.norm()) for a, b in zip(*direct, strict=True)]
            torch.testing.assert_close(cosine(first, second, omega, "a")[k], torch.stack(by_hand))


def test_the_model_sees_each_noised_image_twice():
    seen = []

    def counted(z_t: Tensor, t: Tensor, y: Tensor) -> Tensor:
        seen.extend(y.tolist())
        return net(z_t, t, y)

    z, eps = torch.zeros(2, 1, 4, 4), torch.randn(3, 2, 1, 4, 4)
    predict(counted, SCHEDULE, z, torch.tensor([5, 6]), torch.tensor([20]), 10, eps)
    assert seen == [5, 6] * 3 + [20] * 6


def test_other_image_stays_in_its_group_and_keeps_the_noise():
    eps = torch.arange(2.0).reshape(2, 1, 1, 1, 1).expand(2, 6, 1, 1, 1)
    numbers = torch.arange(6.0).reshape(1, 6, 1, 1, 1).expand(2, 6, 1, 1, 1)
    moved = Branch(numbers, -numbers, eps).other_image(3)
    assert moved.prompt[0].flatten().tolist() == [2, 0, 1, 5, 3, 4]
    assert torch.equal(moved.null, -moved.prompt)
    assert torch.equal(moved.eps, eps)
    assert Branch(eps, eps, eps).other_noise().eps[:, 0].flatten().tolist() == [1, 0]


def test_pair_world_has_the_shifts_it_was_asked_for():
    mean = dds_directions.pair_world(SCHEDULE, 16, 0.3, 0.6, generator()).mean.flatten(1)
    assert mean[0].abs().max() == 0
    assert mean[1:].square().mean(1).sqrt().tolist() == pytest.approx([0.3, 0.3])
    assert torch.cosine_similarity(mean[1], mean[2], dim=0).item() == pytest.approx(0.6)


def synthesise(y: Tensor, **options) -> Tensor:
    """Draw images of unit Gaussians with mean 0 and 0.4, shifted by the prompt."""
    mean = torch.tensor([0.0, 0.4, -0.4]).reshape(3, 1, 1, 1).expand(3, 1, 8, 8)
    world = dds_directions.GaussianWorld(mean, torch.full_like(mean, 0.01), SCHEDULE)
    options = {"omega": 1.0, "steps": 25, "seed": 3, **options}
    return dds_directions.synthesise(world, SCHEDULE, y, NULL, 8, **options)


def test_pairs_from_one_noise_differ_in_the_prompt_alone():
    z_hat, z = synthesise(SOURCE.expand(4)), synthesise(TARGET.expand(4))
    torch.testing.assert_close(z - z_hat, torch.full_like(z, -0.8), rtol=0, atol=0.02)
    assert z.std(dim=0).mean() > 0.03  # the noise is not lost
    assert torch.equal(z, synthesise(TARGET.expand(4)))
    other = synthesise(TARGET.expand(4), seed=4)
    assert (z - other).abs().max() > 0.1
    assert synthesise(SOURCE.expand(4), omega=2.0).mean().item() == pytest.approx(0.8, abs=0.05)


def test_the_figures_table_is_complete_and_monotone():
    assert dds_directions.FIGURE["t"][0] == 20
    for kind in ("t", "aligned", "unaligned"):
        values = dds_directions.FIGURE[kind]
        assert len(values) == 12
        assert values == sorted(values)
