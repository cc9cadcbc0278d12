"""The best possible network for a known density, for tests of what runs on a network."""

from collections.abc import Callable

from torch import Tensor

from lib.ground.diffusion import Schedule
from lib.ground.toy2d import Mixture


def exact_denoiser(schedule: Schedule, density: Mixture) -> Callable[[Tensor, Tensor], Tensor]:
    """Return eps(x_t, t) = -sqrt(1 - alpha_bar_t) grad log p_t(x_t)."""

    def model(x_t: Tensor, t: Tensor) -> Tensor:
        sigma = schedule.at(schedule.sigma, t, x_t)
        return -sigma * density.score(x_t / schedule.at(schedule.signal, t, x_t), sigma)

    return model
