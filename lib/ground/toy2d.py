"""Gaussians and Gaussian mixtures with exact densities, scores and denoisers at every noise level.

The noise is variance exploding (Karras et al. 2022, arXiv 2206.00364, Sec. 2): ``x_sigma = x + sigma * eps``. A mixture
stays a mixture under it, each component with variance ``std**2 + sigma**2``, so nothing here is approximated.
Points have shape ``(..., d)``; ``sigma`` is a number, a tensor of shape ``(...)`` or one of shape ``(..., 1)``.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

Level = float | Tensor  # a noise level, see the module docstring for its shapes


@dataclass(frozen=True, eq=False)
class Mixture:
    """Equal mixture of k Gaussians with centres `means` (k, d) and one standard deviation `std` in every direction."""

    means: Tensor
    std: float

    def sample(self, n: int, generator: torch.Generator) -> Tensor:
        """Draw ``n`` points, shape (n, d), in the type of ``means`` and on the device of the generator."""
        device = generator.device
        equal = torch.ones(len(self.means), dtype=self.means.dtype, device=device)
        k = torch.multinomial(equal, n, replacement=True, generator=generator)  # (n,)
        noise = torch.randn(n, self.means.shape[1], generator=generator, device=device, dtype=self.means.dtype)
        return self.means.to(device)[k] + self.std * noise  # (n, d)

    def log_prob(self, x: Tensor, sigma: Level = 0.0) -> Tensor:
        """Logarithm of the density of ``x + sigma * eps``, shape (...)."""
        variance = self._variance(x, sigma)
        squared = (x[..., None, :] - self.means.to(x)).square().sum(-1)  # (..., k)
        normaliser = 0.5 * x.shape[-1] * (2 * math.pi * variance).log()  # (..., 1)
        return torch.logsumexp(-squared / (2 * variance) - normaliser, dim=-1) - math.log(len(self.means))  # (...)

    def score(self, x: Tensor, sigma: Level = 0.0) -> Tensor:
        """Gradient of :meth:`log_prob` in ``x``, shape (..., d)."""
        variance = self._variance(x, sigma)
        return (self._expected_mean(x, variance) - x) / variance

    def denoise(self, x: Tensor, sigma: Level) -> Tensor:
        """Posterior mean of the clean point given the noisy one (Tweedie), shape (..., d)."""
        variance = self._variance(x, sigma)
        noise = variance - self.std**2  # sigma squared, shaped like variance
        return (self.std**2 * x + noise * self._expected_mean(x, variance)) / variance

    def _variance(self, x: Tensor, sigma: Level) -> Tensor:
        level = torch.as_tensor(sigma, dtype=x.dtype, device=x.device)
        return self.std**2 + (level[..., None] if 0 < level.ndim < x.ndim else level) ** 2

    def _expected_mean(self, x: Tensor, variance: Tensor) -> Tensor:
        """Mean of the components' centres, weighted by their probability given the noisy point."""
        means = self.means.to(x)
        # |x|^2 is common to all components, so the softmax does not need it.
        logits = (x @ means.T - 0.5 * means.square().sum(-1)) / variance  # (..., k)
        return logits.softmax(-1) @ means  # (..., d)


class Gaussian(Mixture):
    """Isotropic Gaussian: a mixture of one component."""

    def __init__(self, mean: Tensor, std: float) -> None:
        super().__init__(mean[None], std)

    @property
    def mean(self) -> Tensor:
        """Its centre, shape (d,)."""
        return self.means[0]


def eight_gaussians(radius: float = 4.0, std: float = 0.5) -> Mixture:
    """Eight equal Gaussians on a circle, the usual 2-D target of generative models."""
    angles = torch.arange(8, dtype=torch.float64) * (2 * math.pi / 8)
    centres = radius * torch.stack([angles.cos(), angles.sin()], dim=-1)  # (8, 2)
    return Mixture(centres.to(torch.get_default_dtype()), std)
