from __future__ import annotations

import math
from functools import partial

import pytest
import torch
from diffusers import DDIMScheduler
from torch import Tensor

from lib.ground import diffusion
from lib.ground.toy2d import Gaussian, Mixture
from lib.papers.baselines import egsde, translation
from lib.record.files import UserError
from tests.exact import exact, exact_denoiser, run_diffusers
from tests.rounding import assert_same

SCHEDULE = diffusion.linear()
STEPS = 40  # t = 0, 25, ..., 975
MEANS = torch.tensor([[0.6, -0.2], [-0.4, 0.3]], dtype=torch.float64)
SOURCE, TARGET = Gaussian(MEANS[0], 0.5), Gaussian(MEANS[1], 0.2)
SOURCE_MODEL, TARGET_MODEL = exact_denoiser(SCHEDULE, SOURCE), exact_denoiser(SCHEDULE, TARGET)
MIXTURE = Mixture(torch.eye(2, dtype=torch.float64), 0.2)
MIXTURE_MODEL = exact_denoiser(SCHEDULE, MIXTURE)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=generator(seed), dtype=torch.float64)


def image_model(x_t: Tensor, t: Tensor) -> Tensor:
    """The exact model of images whose pixels are independent, standard normal around 0.3."""
    return SCHEDULE.at(SCHEDULE.noise, t, x_t) * (x_t - SCHEDULE.at(SCHEDULE.signal, t, x_t) * 0.3)


def blocks(images: Tensor) -> Tensor:
    """Means of 2 x 2 pixels: a low-pass that is a projection, so that phi(phi(x)) = phi(x)."""
    mean = torch.nn.functional.avg_pool2d(images, 2)
    return mean.repeat_interleave(2, -1).repeat_interleave(2, -2)


def first(x: Tensor) -> Tensor:
    """Projection on the first coordinate of points."""
    return x * torch.tensor([1.0, 0.0]).to(x)


def pixels(x: Tensor, t: Tensor) -> Tensor:
    """Features (B, 2, 4) whose cosine depends on the direction of a pair of pixels."""
    return x.flatten(1).unflatten(1, (2, -1))


def walk(steps: int = STEPS, **options) -> translation.Sampler:
    return translation.Sampler(SCHEDULE, steps, **options)


METHODS = {
    "sdedit": lambda x, g: translation.sdedit(TARGET_MODEL, walk(), x, g, 500),
    "ilvr": lambda x, g: translation.ilvr(TARGET_MODEL, walk(), x, g, 500, first),
    "egsde": lambda x, g: egsde.egsde(TARGET_MODEL, lambda x, t: x, walk(), x, g, 500, 0.05 * egsde.VALUES, 0.5, first),
    "cycle": lambda x, g: translation.cycle_diffusion(SOURCE_MODEL, TARGET_MODEL, walk(eta=0.5), x, g, 500),
}


@pytest.mark.parametrize("name", METHODS)
def test_a_seed_decides_everything_and_images_do_not_mix(name):
    x = normal(6, 2)
    once = METHODS[name](x, generator(3))
    assert torch.equal(once, METHODS[name](x, generator(3)))
    assert not torch.allclose(once, METHODS[name](x, generator(4)), atol=1e-3)
    other = torch.cat([x[:1], normal(5, 2, seed=9)])
    assert_same(METHODS[name](other, generator(3))[0], once[0], steps=STEPS)


@pytest.mark.parametrize("name", METHODS)
def test_result_is_of_the_target(name):
    """Inputs of the source's law end near the target's: the mean moves, the spread shrinks."""
    x = SOURCE.sample(4000, generator(1)).double()
    y = METHODS[name](x, generator(2))
    assert y.dtype == torch.float64
    assert (y.mean(0) - MEANS[1]).norm() < 0.35 * (MEANS[0] - MEANS[1]).norm()
    assert y[:, 1].std().item() == pytest.approx(0.2, abs=0.05)


@pytest.mark.parametrize("eta", [0.0, 0.4, 1.0])
@pytest.mark.parametrize("clip", [False, True])
def test_sdedit_from_the_top_samples_as_diffusers_does(eta, clip):
    scheduler, schedule = exact(DDIMScheduler(clip_sample=clip))
    x0, draws, model = normal(5, 2), generator(7), exact_denoiser(schedule, MIXTURE)
    start = schedule.add_noise(x0, torch.randn(5, 2, generator=draws, dtype=torch.float64), 975)
    options = {"eta": eta, "use_clipped_model_output": clip, "generator": draws}
    theirs = run_diffusers(scheduler, model, start, STEPS, **options)
    ours = translation.sdedit(model, translation.Sampler(schedule, STEPS, eta, clip), x0, generator(7), 975)
    assert_same(ours, theirs, steps=STEPS)


def test_sdedit_from_time_0_is_the_identity_and_from_the_top_forgets():
    x0 = normal(2000, 2)
    assert torch.equal(translation.sdedit(TARGET_MODEL, walk(), x0, generator(), 0), x0)
    y = translation.sdedit(TARGET_MODEL, walk(1000), x0, generator(), 999)
    assert abs(torch.corrcoef(torch.stack([x0[:, 0], y[:, 0]]))[0, 1].item()) < 0.06
    torch.testing.assert_close(y.mean(0), MEANS[1], rtol=0, atol=0.02)


@pytest.mark.parametrize("start", [100, 300, 500])
def test_sdedit_has_the_mean_and_variance_of_the_closed_form(start):
    """Exact posterior of x0' given x_t for x_t = signal x + noise eps and a Gaussian target."""
    x = torch.tensor([[1.0, -0.5]], dtype=torch.float64)
    y = translation.sdedit(TARGET_MODEL, walk(1000), x.expand(4000, 2), generator(1), start)
    a = SCHEDULE.alpha_bar[start].item()
    keep = a * 0.2**2 / (a * 0.2**2 + 1 - a)  # share of the input that is left
    mean = MEANS[1] + keep * (x[0] - MEANS[1])
    variance = 0.2**2 * (1 - keep) + keep**2 * (1 - a) / a  # posterior, plus the noise of the start seen through it
    torch.testing.assert_close(y.mean(0), mean, rtol=0, atol=4 * math.sqrt(variance / 4000) + 1e-3)
    assert y.var(0).mean().item() == pytest.approx(variance, rel=0.06)


@pytest.mark.parametrize("factor", [1, 2, 4])
def test_low_pass_is_linear_keeps_flat_images_and_takes_noise_away(factor):
    phi = partial(translation.low_pass, left=16 // factor)
    a, b = normal(3, 1, 16, 16), normal(3, 1, 16, 16, seed=1)
    assert_same(phi(a + 2 * b), phi(a) + 2 * phi(b))
    torch.testing.assert_close(phi(torch.ones(1, 1, 16, 16)), torch.ones(1, 1, 16, 16))
    left = (phi(a).var() / a.var()).item()
    assert left == pytest.approx(1) if factor == 1 else left < 1.3 / factor**2


def test_low_pass_leaves_8_pixels_by_default():
    images = normal(2, 1, 32, 32)
    assert torch.equal(translation.low_pass(images), translation.low_pass(images, 8))
    assert_same(translation.low_pass(images[..., :8, :8]), images[..., :8, :8])


@pytest.mark.parametrize("range_t", [0, 300, 500])
def test_ilvr_has_the_low_frequencies_of_the_noised_reference_above_the_range_and_is_free_below(range_t):
    reference, seen = normal(3, 1, 4, 4), {}

    def model(x_t: Tensor, t: Tensor) -> Tensor:
        seen[int(t[0])] = x_t
        return image_model(x_t, t)

    translation.ilvr(model, walk(), reference, generator(2), range_t, blocks)
    draws = generator(2)
    assert torch.equal(seen[975], torch.randn(reference.shape, generator=draws, dtype=torch.float64))
    for t in range(950, -25, -25):
        _, noise = (torch.randn(reference.shape, generator=draws, dtype=torch.float64) for _ in range(2))
        noised = SCHEDULE.add_noise(reference, noise, t)
        if t < range_t:
            assert (blocks(seen[t]) - blocks(noised)).abs().max() > 0.1
            break
        assert_same(blocks(seen[t]), blocks(noised), steps=STEPS)
        assert (seen[t] - blocks(seen[t]) - noised + blocks(noised)).abs().max() > 0.1  # the rest is the sampler's


def test_ilvr_to_the_end_keeps_the_guided_coordinate():
    x = normal(500, 2)
    y = translation.ilvr(exact_denoiser(SCHEDULE, Gaussian(MEANS[0], 1.0)), walk(100), x, generator(), 0, first)
    torch.testing.assert_close(y[:, 0], x[:, 0], rtol=0, atol=0.06)
    assert abs(torch.corrcoef(torch.stack([x[:, 1], y[:, 1]]))[0, 1].item()) < 0.15


@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_egsde_without_energies_is_sdedit(eta):
    x = normal(4, 1, 4, 4)
    plain = translation.sdedit(image_model, walk(eta=eta), x, generator(3), 500)
    guided = egsde.egsde(image_model, pixels, walk(eta=eta), x, generator(3), 500, 0, 0)
    assert_same(plain, guided, steps=STEPS)


def test_egsde_gradient_of_the_low_frequencies_is_that_of_the_matrix():
    """phi as a matrix P: the gradient of |P (y - x)|^2 is 2 P' P (y - x)."""
    phi = partial(translation.low_pass, left=4)
    y, x = normal(3, 1, 16, 16), normal(3, 1, 16, 16, seed=1)
    P = phi(torch.eye(256, dtype=torch.float64).reshape(256, 1, 16, 16)).reshape(256, 256).T
    closed = 2 * 0.7 * ((y - x).flatten(1) @ (P.T @ P))
    ours = egsde.energy_gradient(pixels, y, x, 500, 0.0, 0.7, phi)
    assert_same(ours.flatten(1), closed)


def test_egsde_gradient_of_the_cosine_is_its_formula():
    """d cos(u, v) / du = v / (|u| |v|) - cos u / |u|^2 for each position, averaged over the 8 positions."""
    y, x = normal(3, 1, 4, 4), normal(3, 1, 4, 4, seed=1)
    u, v = (z.flatten(1).unflatten(1, (2, 8)) for z in (y, x))
    norm_u, norm_v = (z.norm(dim=1, keepdim=True) for z in (u, v))
    cosine = (u * v).sum(1, keepdim=True) / (norm_u * norm_v)
    closed = 3.0 / 8 * (v / (norm_u * norm_v) - cosine * u / norm_u**2)
    ours = egsde.energy_gradient(pixels, y, x, 500, 3.0, 0.0)
    assert_same(ours.flatten(1), closed.flatten(1))


def test_one_step_of_egsde_is_the_formula():
    """Two levels, deterministic: at the first y is the noised input and nothing pulls, at the second both do."""
    schedule = diffusion.Schedule(torch.tensor([0.8, 0.3], dtype=torch.float64))
    x = normal(3, 2)
    sampler = translation.Sampler(schedule, 2, eta=0)
    y = egsde.egsde(lambda z, t: 0.5 * z, lambda z, t: z, sampler, x, generator(), 1, 0, 0.4, lambda z: z)
    e = torch.randn(3, 2, generator=generator(), dtype=torch.float64)
    y_1 = 0.3**0.5 * x + 0.7**0.5 * e
    y_0 = 0.8**0.5 * (y_1 - 0.7**0.5 * 0.5 * y_1) / 0.3**0.5 + 0.2**0.5 * 0.5 * y_1
    mean = (y_0 - 0.2**0.5 * 0.5 * y_0) / 0.8**0.5
    pull = 0.4 * 2 * (y_0 - (0.8**0.5 * x + 0.2**0.5 * e))
    assert_same(y, mean - 0.2 / 0.8**0.5 * pull)


def test_egsde_scales_the_cosine_with_the_size_of_the_image(monkeypatch):
    used = []
    monkeypatch.setattr(
        egsde, "energy_gradient", lambda E, y, x, t, s, i, phi: used.append((s, i)) or torch.zeros_like(y)
    )
    for shape in ((1, 3, 256, 256), (1, 1, 16, 16)):
        egsde.egsde(lambda z, t: z, pixels, walk(2), torch.zeros(shape), generator(), 500)
    assert used[0] == (500, 2)
    assert used[-1] == (500 / 768, 2)


def test_ddib_between_gaussians_is_the_affine_map():
    """The optimal map m_T + s_T / s_S (x - m_S), which the ODE's steps approach."""
    x = SOURCE.sample(50, generator()).double()
    exact = MEANS[1] + 0.2 / 0.5 * (x - MEANS[0])
    errors = [
        (translation.ddib(SOURCE_MODEL, TARGET_MODEL, walk(steps), x) - exact).abs().max().item()
        for steps in (50, 250, 1000)
    ]
    assert errors[0] > errors[1] > errors[2]
    assert errors[2] < 0.02


def test_ddib_with_one_model_returns_the_input_with_more_steps_or_iterations():
    x = SOURCE.sample(50, generator()).double()

    def there(steps: int, *stop: int, **options) -> Tensor:
        return translation.ddib(SOURCE_MODEL, SOURCE_MODEL, walk(steps), x, *stop, **options)

    errors = [(there(steps) - x).abs().max().item() for steps in (10, 100, 1000)]
    assert errors[0] > 3 * errors[1] > 9 * errors[2]
    assert (there(40, iterations=30) - x).abs().max() < 1e-6
    assert (there(40, 750, iterations=30) - x).abs().max() < 1e-6


@pytest.mark.parametrize("clip", [False, True])
@pytest.mark.parametrize("eta", [0.1, 1.0])
def test_cycle_diffusion_with_one_model_returns_the_input(eta, clip):
    x = normal(20, 2)
    sampler = walk(eta=eta, clip=clip)
    y = translation.cycle_diffusion(MIXTURE_MODEL, MIXTURE_MODEL, sampler, x, generator(), 850, refine=0)
    torch.testing.assert_close(y, x, rtol=0, atol=1e-9)


def test_cycle_diffusion_moves_equal_gaussians_by_their_distance():
    """Models that differ by a shift only: equal noises give samples that differ by what is left of the shift."""
    shifted = Gaussian(MEANS[0] + 0.5, 0.5)
    x = SOURCE.sample(100, generator()).double()
    y = translation.cycle_diffusion(
        SOURCE_MODEL, exact_denoiser(SCHEDULE, shifted), walk(eta=0.3), x, generator(), 975, refine=0
    )
    torch.testing.assert_close(y - x, torch.full_like(x, 0.5), rtol=0, atol=0.01)


def test_cycle_diffusion_refines_by_sdedit():
    x, draws = normal(4, 2), generator(5)
    cycle = partial(translation.cycle_diffusion, SOURCE_MODEL, TARGET_MODEL, walk(eta=0.1), x, start=500)
    plain = cycle(generator=draws, refine=0)
    assert torch.equal(
        cycle(generator=generator(5), refine=100), translation.sdedit(TARGET_MODEL, walk(), plain, draws, 100)
    )


@pytest.mark.parametrize(("start", "steps"), [(510, 40), (1000, 1000), (-1, 40), (500, 1001)])
def test_a_start_that_is_no_step_is_refused(start, steps):
    with pytest.raises(UserError, match=f"start: timestep {start} given|steps=1001"):
        translation.sdedit(image_model, walk(steps), torch.zeros(2, 2), generator(), start)
