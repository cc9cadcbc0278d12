"""A world of independent Gaussian pixels, where denoisers and the ends of DDS and SDS are known exactly.

Hertz et al., ICCV 2023, have no such experiment; the closed forms follow from their Eq. 4 and Sec. 3.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from lib.ground.diffusion import Schedule
from lib.papers.dds.method import T_RANGE


@dataclass(frozen=True)
class GaussianWorld:
    """Denoiser of p(z | y) = N(mean[y], variance[y]), pixels independent: exact, without weights."""

    mean: Tensor  # (prompts, c, h, w); prompt 0 is the null prompt
    variance: Tensor  # like mean
    schedule: Schedule

    def __call__(self, z_t: Tensor, t: Tensor, y: Tensor) -> Tensor:
        """Return E[eps | z_t, y] = sigma (z_t - alpha mean) / (alpha^2 variance + sigma^2); y is (b,) long."""
        alpha, sigma = (self.schedule.at(values, t, z_t) for values in (self.schedule.signal, self.schedule.noise))
        return sigma * (z_t - alpha * self.mean[y]) / (alpha**2 * self.variance[y] + sigma**2)

    def to(self, device: torch.device) -> "GaussianWorld":
        """Return the world on another device."""
        return GaussianWorld(self.mean.to(device), self.variance.to(device), self.schedule)

    def sample(self, y: int, n: int, generator: torch.Generator) -> Tensor:
        """Draw n images of prompt y, (n, c, h, w)."""
        eps = torch.randn(n, *self.mean.shape[1:], generator=generator).to(self.mean)
        return self.mean[y] + self.variance[y].sqrt() * eps

    def drift(self, y: int, omega: float) -> tuple[Tensor, Tensor]:
        """Return (rate, pull), each (c, h, w): averaged over t and noise, the guided prediction is rate z - pull."""
        a2 = self.schedule.alpha_bar[T_RANGE[0] : T_RANGE[1] + 1].to(self.mean).reshape(-1, 1, 1, 1)
        m_0, m_y = (((a2 * (1 - a2)).sqrt() / (a2 * self.variance[k] + 1 - a2)).mean(dim=0) for k in (0, y))
        return (1 - omega) * m_0 + omega * m_y, (1 - omega) * m_0 * self.mean[0] + omega * m_y * self.mean[y]

    def end_point(
        self, z_hat: Tensor, y: int, y_hat: int, omega: float, method: str = "dds", lambda_id: float = 0.0
    ) -> Tensor:
        """Return where SGD ends on average, like z_hat: the zero of the expected direction.

        With equal variances: DDS at z_hat + omega (mean[y] - mean[y_hat]), SDS at mean[0] + omega (mean[y] - mean[0]),
        regularised SDS on the segment from there (lambda_id = 0) to z_hat.
        """
        rate, pull = self.drift(y, omega)
        rate_hat, pull_hat = self.drift(y_hat, omega)
        reference = rate_hat * z_hat - pull_hat if method == "dds" else 0.0
        return (pull + reference + lambda_id * z_hat) / (rate + lambda_id)


def expected_share(rate: Tensor, etas: Tensor) -> Tensor:
    """Return the share of the way to the end point that SGD has gone after each step, on average, like etas (n,)."""
    return 1 - (1 - etas * rate).cumprod(dim=0)


def disc_world(
    schedule: Schedule, size: int, edit_size: float = 2.0, omega: float = 7.5, variance: tuple[float, float] = (1, 1)
) -> tuple[GaussianWorld, Tensor]:
    """Return a world of three-channel pictures, and the region (size, size) of 0 and 1 that its prompts differ in.

    Prompts 0 (null) and 1 (source) are N(0, 1). Prompt 2 (target) adds a disc: its mean there is `edit_size` / `omega`,
    so that the guided edit is `edit_size` standard deviations of a channel; `variance` is its own, in it and around.
    """
    x = (torch.arange(size) + 0.5) / size
    region = ((x[:, None] - 0.55).square() + (x - 0.45).square() < 0.25**2).float()  # (h, w)
    colour = torch.tensor([1.0, -1.0, -1.0])[:, None, None]
    mean, spread = torch.zeros(3, 3, size, size), torch.ones(3, 3, size, size)
    mean[2] = edit_size / omega * colour * region
    spread[2] = torch.where(region > 0, *variance)
    return GaussianWorld(mean, spread, schedule), region


def texture(size: int, generator: torch.Generator) -> Tensor:
    """Return a soft texture with mean 0 and variance 1 in every channel, (1, 3, size, size): details one can see."""
    coarse = torch.randn(1, 3, 6, 6, generator=generator)
    soft = F.interpolate(coarse, size=(size, size), mode="bicubic")  # (1, 3, size, size)
    return (soft - soft.mean(dim=(2, 3), keepdim=True)) / soft.std(dim=(2, 3), keepdim=True)
