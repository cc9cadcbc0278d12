"""The best possible network for a known density, and diffusers' samplers in float64: what tests compare with."""

from collections.abc import Callable

from torch import Tensor

from lib.ground.diffusion import Schedule, from_diffusers
from lib.ground.toy2d import Mixture


def exact_denoiser(schedule: Schedule, density: Mixture) -> Callable[[Tensor, Tensor], Tensor]:
    """Return eps(x_t, t) = -sqrt(1 - alpha_bar_t) grad log p_t(x_t)."""

    def model(x_t: Tensor, t: Tensor) -> Tensor:
        sigma = schedule.at(schedule.sigma, t, x_t)
        return -sigma * density.score(x_t / schedule.at(schedule.signal, t, x_t), sigma)

    return model


def exact(scheduler):
    """Return the scheduler with its float32 tables in float64, so that both sides round alike, and its schedule."""
    scheduler.alphas_cumprod = scheduler.alphas_cumprod.double()
    for name in ("final_alpha_cumprod", "initial_alpha_cumprod", "one"):
        if hasattr(scheduler, name):
            setattr(scheduler, name, getattr(scheduler, name).double())
    return scheduler, from_diffusers(scheduler)


def run_diffusers(scheduler, model, x, steps, **options):
    """Sample from x with all steps of a scheduler."""
    scheduler.set_timesteps(steps)
    for t in scheduler.timesteps:
        x = scheduler.step(model(x, t.expand(len(x))), t, x, **options).prev_sample
    return x
