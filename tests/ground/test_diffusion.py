from __future__ import annotations

import pytest
import torch
from diffusers import (
    DDIMInverseScheduler,
    DDIMScheduler,
    DDPMScheduler,
    EDMEulerScheduler,
)

from lib.ground import diffusion
from lib.ground.toy2d import Gaussian, Mixture
from lib.record.files import UserError
from tests.exact import exact, exact_denoiser, run_diffusers

SCHEDULES = {
    "linear": (diffusion.linear, {"beta_schedule": "linear"}),
    "scaled_linear": (
        diffusion.scaled_linear,
        {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012},
    ),
    "cosine": (diffusion.cosine, {"beta_schedule": "squaredcos_cap_v2"}),
}
MIXTURE = Mixture(torch.tensor([[1.5, 0.0], [-1.0, 0.5], [0.2, -1.2]], dtype=torch.float64), 0.3)
TIGHT = {"rtol": 1e-9, "atol": 1e-6}


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.fixture(params=SCHEDULES)
def schedule(request):
    return SCHEDULES[request.param][0]()


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("scheduler", [DDPMScheduler, DDIMScheduler])
def test_schedules_equal_diffusers(name, scheduler):
    ours, options = SCHEDULES[name]
    theirs = scheduler(**options)
    torch.testing.assert_close(ours().alpha_bar, theirs.alphas_cumprod.double(), rtol=0, atol=1e-6)
    copied = diffusion.from_diffusers(theirs)
    assert copied.alpha_bar.dtype == torch.float64
    assert torch.equal(copied.alpha_bar, theirs.alphas_cumprod.double())


def test_schedule_of_other_length_equals_diffusers():
    theirs = DDPMScheduler(num_train_timesteps=50, beta_start=0.001, beta_end=0.3)
    ours = diffusion.linear(50, 0.001, 0.3)
    assert ours.T == 50
    torch.testing.assert_close(ours.alpha_bar, theirs.alphas_cumprod.double(), rtol=0, atol=1e-6)


def test_noise_levels_agree_with_each_other(schedule):
    torch.testing.assert_close(schedule.sigma**-2, schedule.snr, rtol=1e-9, atol=0)
    torch.testing.assert_close(1 / (1 + schedule.sigma**2), schedule.alpha_bar, rtol=1e-9, atol=0)
    assert (schedule.alpha_bar.diff() < 0).all()


def test_add_noise_and_velocity_equal_diffusers():
    scheduler, schedule = exact(DDPMScheduler())
    x0, eps, t = normal(6, 1, 4, 4), normal(6, 1, 4, 4, seed=1), torch.tensor([0, 1, 250, 500, 998, 999])
    x_t = schedule.add_noise(x0, eps, t)
    torch.testing.assert_close(x_t, scheduler.add_noise(x0, eps, t), **TIGHT)
    torch.testing.assert_close(schedule.v_from_eps(x0, eps, t), scheduler.get_velocity(x0, eps, t), **TIGHT)
    torch.testing.assert_close(schedule.eps_from_v(x_t, scheduler.get_velocity(x0, eps, t), t), eps, **TIGHT)


def test_conversions_return_to_the_start(schedule):
    x0, eps, t = normal(5, 3), normal(5, 3, seed=1), torch.tensor([0, 10, 400, 800, 990])
    x_t = schedule.add_noise(x0, eps, t)
    v = schedule.v_from_eps(x0, eps, t)
    torch.testing.assert_close(schedule.x0_from_eps(x_t, eps, t), x0)
    torch.testing.assert_close(schedule.eps_from_x0(x_t, x0, t), eps)
    torch.testing.assert_close(schedule.eps_from_v(x_t, v, t), eps)


def test_at_takes_the_type_and_shape_of_the_batch():
    schedule = diffusion.linear()
    x = torch.zeros(3, 1, 4, 4)
    picked = schedule.at(schedule.snr, torch.tensor([1, 2, 3]), x)
    assert picked.shape == (3, 1, 1, 1)
    assert picked.dtype == torch.float32
    assert schedule.at(schedule.snr, 2, x).shape == (1, 1, 1, 1)


def test_timesteps_use_leading_spacing():
    assert diffusion.ddim_timesteps(1000, 40).tolist() == list(range(0, 1000, 25))
    for T, steps in [(1000, 40), (1000, 30), (100, 7), (50, 50), (10, 1)]:
        scheduler = DDIMScheduler(num_train_timesteps=T)
        scheduler.set_timesteps(steps)
        assert diffusion.ddim_timesteps(T, steps).tolist() == scheduler.timesteps.flip(0).tolist()


@pytest.mark.parametrize("clip", [False, True])
@pytest.mark.parametrize("steps", [1000, 40, 30])
def test_ddpm_equals_diffusers(steps, clip):
    scheduler, schedule = exact(DDPMScheduler(clip_sample=clip))
    model, x = exact_denoiser(schedule, MIXTURE), normal(16, 2)
    theirs = run_diffusers(scheduler, model, x, steps, generator=torch.Generator().manual_seed(3))
    ours = diffusion.sample_ddpm(model, schedule, x, steps, torch.Generator().manual_seed(3), clip)
    torch.testing.assert_close(ours, theirs, **TIGHT)


@pytest.mark.parametrize("clip", [False, True])
@pytest.mark.parametrize("steps", [40, 30, 7])
def test_ddim_equals_diffusers(steps, clip):
    scheduler, schedule = exact(DDIMScheduler(clip_sample=clip))
    model, x = exact_denoiser(schedule, MIXTURE), normal(16, 2)
    theirs = run_diffusers(scheduler, model, x, steps, use_clipped_model_output=clip)
    ours = diffusion.sample_ddim(model, schedule, x, steps, clip=clip)
    torch.testing.assert_close(ours, theirs, **TIGHT)


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("steps", [40, 250])
def test_inversion_equals_diffusers(name, steps):
    scheduler, schedule = exact(DDIMInverseScheduler(clip_sample=False, **SCHEDULES[name][1]))
    model, x = exact_denoiser(schedule, MIXTURE), normal(16, 2)
    theirs = run_diffusers(scheduler, model, x, steps)
    torch.testing.assert_close(diffusion.invert_ddim(model, schedule, x, steps), theirs, **TIGHT)


def test_inversion_and_sampling_return_gaussian_data():
    schedule = diffusion.linear()
    model = exact_denoiser(schedule, Gaussian(torch.tensor([0.5, -1.0]).double(), 0.7))
    x0 = normal(64, 2) * 0.7
    errors = []
    for steps in (50, 100, 200):
        noise = diffusion.invert_ddim(model, schedule, x0, steps)
        errors.append((diffusion.sample_ddim(model, schedule, noise, steps) - x0).abs().max().item())
    assert errors[1] < 0.6 * errors[0]  # first order: the error halves as the steps double
    assert errors[2] < 0.6 * errors[1]
    noise = diffusion.invert_ddim(model, schedule, x0, 50, iterations=60)
    torch.testing.assert_close(diffusion.sample_ddim(model, schedule, noise, 50), x0, rtol=0, atol=1e-9)


def test_start_and_stop_cut_the_trajectory():
    schedule = diffusion.linear()
    model, x = exact_denoiser(schedule, MIXTURE), normal(8, 2)
    seen: list[int] = []

    def recorded(x_t, t):
        seen.append(int(t[0]))
        return model(x_t, t)

    diffusion.sample_ddim(recorded, schedule, x, 40, start=500)
    assert seen == list(range(500, -1, -25))
    seen.clear()
    diffusion.invert_ddim(recorded, schedule, x, 40, stop=500)
    assert seen == list(range(0, 501, 25))


def test_samplers_refuse_bad_input():
    schedule = diffusion.linear()
    model, x = exact_denoiser(schedule, MIXTURE), normal(2, 2)
    with pytest.raises(UserError, match=r"steps=0: .* from 1 to .* 1000"):
        diffusion.sample_ddim(model, schedule, x, 0)
    with pytest.raises(UserError, match="steps=0"):
        diffusion.sample_ddpm(model, schedule, x, 0, torch.Generator())
    with pytest.raises(UserError, match=r"timestep 510 given; 40 steps have 0, 25, 50, \.\.\., 975"):
        diffusion.sample_ddim(model, schedule, x, 40, start=510)


def test_samples_of_a_gaussian_have_its_moments():
    schedule = diffusion.linear()
    mean, std = torch.tensor([2.0, -1.0]).double(), 0.5
    model = exact_denoiser(schedule, Gaussian(mean, std))
    x = diffusion.sample_ddpm(model, schedule, normal(4000, 2), 250, torch.Generator().manual_seed(1))
    torch.testing.assert_close(x.mean(0), mean, rtol=0, atol=0.03)
    torch.testing.assert_close(x.std(0), torch.full((2,), std).double(), rtol=0, atol=0.03)


def test_images_are_sampled_in_batches_with_a_generator_ancestral_and_without_deterministic():
    schedule = diffusion.linear()
    model, noise = exact_denoiser(schedule, MIXTURE), normal(5, 2)
    parts = [diffusion.sample_ddim(model, schedule, x, 20, clip=True) for x in noise.split(2)]
    torch.testing.assert_close(diffusion.sample(model, schedule, noise, 20, batch=2), torch.cat(parts), **TIGHT)
    generators = [torch.Generator().manual_seed(4) for _ in range(2)]
    parts = [diffusion.sample_ddpm(model, schedule, x, 20, generators[0], clip=True) for x in noise.split(2)]
    drawn = diffusion.sample(model, schedule, noise, 20, generators[1], batch=2)
    torch.testing.assert_close(drawn, torch.cat(parts), **TIGHT)
    assert drawn.abs().max() <= 1


def test_karras_sigmas_equal_diffusers():
    scheduler = EDMEulerScheduler(sigma_min=0.002, sigma_max=80.0, sigma_schedule="karras", rho=7.0)
    scheduler.set_timesteps(18)
    torch.testing.assert_close(diffusion.karras_sigmas(18), scheduler.sigmas.double(), rtol=1e-5, atol=1e-9)


def test_a_noise_prediction_is_a_denoiser_at_every_level(schedule):
    D = diffusion.denoiser(exact_denoiser(schedule, MIXTURE), schedule)
    t = torch.arange(0, schedule.T, 37)
    sigma, x = schedule.sigma[t], normal(len(t), 2) * 3
    torch.testing.assert_close(D(x, sigma), MIXTURE.denoise(x, sigma), rtol=1e-6, atol=1e-6)


def test_a_denoiser_equals_diffusers_estimate():
    theirs, ours = exact(DDPMScheduler(beta_schedule="linear", clip_sample=False))
    seen = []

    def model(x_t, t):
        seen.append((x_t, t))
        return 0.3 * x_t + t[:, None] / 1000

    x, sigma = normal(3, 2), ours.sigma[torch.tensor([5, 400, 900])]
    found = diffusion.denoiser(model, ours)(x, sigma * 1.001)  # between two levels
    (x_t, t), *_ = seen
    assert t.tolist() == [5, 400, 900]
    torch.testing.assert_close(found, x - 1.001 * sigma[:, None] * model(x_t, t))
    found = diffusion.denoiser(model, ours)(x, sigma)
    for i, step in enumerate(t.tolist()):
        x_t = x[i : i + 1] / (1 + sigma[i] ** 2).sqrt()
        expected = theirs.step(model(x_t, t[i : i + 1]), step, x_t)
        torch.testing.assert_close(found[i : i + 1], expected.pred_original_sample)
