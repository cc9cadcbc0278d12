"""RDMD (Rakitin, Shchekotov, Vetrov 2024, arXiv 2406.14762): its two losses (Sec. 3.1) and the Gaussian case of Fig. 2.

The generator minimises ``int omega(sigma) KL(p_sigma^G || p_sigma^target) dsigma + lambda E|x - G(x)|^2``. The first
term's scale is that of omega, so a lambda means nothing until omega is said. Both terms sum over the coordinates of a
sample and average over the batch: a mean over coordinates in one of them only would change lambda by their number.
Denoisers are callables ``D(x, sigma)``, noise is variance exploding, ``x_sigma = x + sigma eps``.
"""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from scipy import integrate, optimize
from torch import Tensor

from lib.ground.diffusion import karras_sigmas

Denoiser = Callable[[Tensor, Tensor], Tensor]
Factor = Tensor | float  # one for each sample, (n,), or one for all

# ------------------------------------------------------------ the two losses (Sec. 3.1), for points and images alike


def generator_loss(
    x: Tensor, y: Tensor, fake: Denoiser, teacher: Denoiser, eps: Tensor, sigma: Tensor, omega: Factor, lambda_: Factor
) -> tuple[Tensor, Tensor]:
    """Loss whose gradient in the generator is that of the regularised objective L^lambda (Sec. 3.1).

    The gradient of the Kullback-Leibler term is ``omega (score_fake - score_teacher) dG``, with Tweedie's
    ``score = (D - x_sigma) / sigma^2``. It is held fixed and multiplied with the generator's output ``y = G(x)``, so
    the loss's value tells nothing of the progress; the second result, the mean cost |x - G(x)|^2, does. Source samples
    x, outputs y and noise eps are (n, ...), noise levels sigma (n,); omega is omega(sigma) over the density with which
    sigma was drawn.
    """
    with torch.no_grad():
        level = _column(sigma, x)
        noisy = y + level * eps
        pull = _column(omega, x) * (fake(noisy, sigma) - teacher(noisy, sigma)) / level**2
    cost = (x - y).square().flatten(1).sum(1)  # (n,)
    loss = ((pull * y).flatten(1).sum(1) + lambda_ * cost).mean()
    return loss, cost.detach().mean()


def fake_loss(fake: Denoiser, y: Tensor, eps: Tensor, sigma: Tensor, beta: Factor = 1.0) -> Tensor:
    """Denoising loss of the fake model on the generator's output y (Sec. 3.1); on real data also that of a teacher.

    Samples y and noise eps are (n, ...), noise levels sigma (n,); beta is the weight beta(sigma). No gradient
    flows into y.
    """
    y = y.detach()
    error = (fake(y + _column(sigma, y) * eps, sigma) - y).square().flatten(1).sum(1)  # (n,)
    return (beta * error).mean()


def _column(value: Factor, x: Tensor) -> Tensor:
    """A factor in a shape that multiplies x (n, ...)."""
    return torch.as_tensor(value, dtype=x.dtype, device=x.device).reshape(-1, *[1] * (x.ndim - 1))


# ---------------------------------------------------------------------------- weightings: int omega(sigma) dsigma


class Weighting(NamedTuple):
    """A weighting as nodes of a quadrature: ``int omega(sigma) f(sigma) dsigma`` is ``(weights * f(sigmas)).sum()``."""

    sigmas: np.ndarray  # (m,)
    weights: np.ndarray  # (m,)


def weightings(nodes: int = 200) -> dict[str, Weighting]:
    """Weightings that the paper's unstated omega could be, keyed by a short name.

    ``one`` is omega = 1 over all sigma, used wherever this companion gives a lambda without further words; ``mean``
    weightings average over the usual densities of sigma in [0.002, 80] (Karras et al. 2022; Yin et al. 2024).
    """
    u, w = (part / 2 for part in np.polynomial.legendre.leggauss(nodes))
    u = u + 0.5  # Gauss-Legendre on (0, 1)
    half_line, jacobian = np.tan(math.pi / 2 * u), w * math.pi / 2 / np.cos(math.pi / 2 * u) ** 2
    z, normal = np.polynomial.hermite_e.hermegauss(min(nodes, 100))
    lognormal, normal = np.exp(-1.2 + 1.2 * z), normal / normal.sum()
    low, high = math.log(0.002), math.log(80.0)
    karras = karras_sigmas(1000).numpy()[:-1]
    return {
        "one": Weighting(half_line, jacobian),
        "sigma": Weighting(half_line, jacobian * half_line),
        "lognormal mean": Weighting(lognormal, normal),
        "lognormal mean, sigma^2": Weighting(lognormal, normal * lognormal**2),
        "Karras mean": Weighting(karras, np.full(1000, 1e-3)),
        "log-uniform mean": Weighting(np.exp(low + (high - low) * u), w),
        "uniform mean": Weighting(0.002 + 79.998 * u**3, 3 * u**2 * w),  # nodes crowd where the integrand changes
    }


# ------------------------------------------------------------- Fig. 2: N(0, I) to N(0, s^2 I) with G(x) = r C(alpha) x


def gaussian_kl(r: np.ndarray, s: float, sigma: np.ndarray) -> np.ndarray:
    """KL(N(0, (r^2 + sigma^2) I) || N(0, (s^2 + sigma^2) I)) in the plane; arguments broadcast."""
    excess = (r**2 - s**2) / (s**2 + sigma**2)
    return excess - np.log1p(excess)


def transport_cost(r: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    """``E|x - r C(alpha) x|^2`` for x of N(0, I) in the plane; arguments broadcast."""
    return 2 * (1 + r**2 - 2 * r * np.cos(alpha))


def surface(r: np.ndarray, alpha: np.ndarray, s: float, lambda_: float, weighting: Weighting) -> np.ndarray:
    """Objective L^lambda of Fig. 2 by quadrature over sigma; r and alpha broadcast."""
    divergence = gaussian_kl(np.asarray(r)[..., None], s, weighting.sigmas) @ weighting.weights
    return divergence + lambda_ * transport_cost(r, alpha)


def best_radius(s: float, lambda_: float) -> float:
    """Radius of the minimum for omega = 1, ``s (pi + 4 lambda) / (pi + 4 lambda s)``; angle 0 (our derivation)."""
    return s * (math.pi + 4 * lambda_) / (math.pi + 4 * lambda_ * s)


def best_radius_sigma(s: float, lambda_: float) -> float:
    """Radius of the minimum for omega = sigma: root of ``r ln(s / r) = 2 lambda (r - 1)`` between 1 and s."""
    return float(optimize.brentq(lambda r: r * math.log(s / r) - 2 * lambda_ * (r - 1), 1.0, s, xtol=1e-14))


def stationary_radius(s: float, lambda_: float, weighting: Weighting) -> float:
    """Radius of the minimum for any weighting: root of ``r (s^2 - r^2) I(r) = 2 lambda (r - 1)`` between 1 and s.

    ``I(r)`` is the integral of ``omega / ((s^2 + sigma^2) (r^2 + sigma^2))``; s must be above 1, lambda above 0.
    """

    def slope(r: float) -> float:
        squares = weighting.sigmas**2
        integral = float(np.sum(weighting.weights / ((s**2 + squares) * (r**2 + squares))))
        return r * (s**2 - r**2) * integral - 2 * lambda_ * (r - 1)

    return float(optimize.brentq(slope, 1.0, s, xtol=1e-14))


def minimum_by_quadrature(
    s: float, lambda_: float, omega: Callable[[float], float] = lambda sigma: 1.0, start: Sequence[float] = (0.5, 2.0)
) -> tuple[float, float]:
    """Radius and angle of the minimum, with scipy's adaptive quadrature over sigma and a quasi-Newton search.

    The gradient is integrated too: a search on values alone ends about 1e-6 away.
    """

    def objective(p: np.ndarray) -> tuple[float, np.ndarray]:
        r, alpha = p

        def slope(sigma: float) -> float:
            return omega(sigma) * 2 * r * (r**2 - s**2) / ((s**2 + sigma**2) * (r**2 + sigma**2))

        value = integrate.quad(lambda sigma: omega(sigma) * float(gaussian_kl(r, s, sigma)), 0, math.inf)[0]
        slope_r = integrate.quad(slope, 0, math.inf, epsabs=1e-12, epsrel=1e-12)[0]
        slope_r += lambda_ * 4 * (r - math.cos(alpha))
        return value + lambda_ * transport_cost(r, alpha), np.array([slope_r, lambda_ * 4 * r * math.sin(alpha)])

    bounds = [(1e-3, None), (-math.pi, math.pi)]  # (-r, alpha + pi) is (r, alpha)
    options = {"ftol": 1e-15, "gtol": 1e-10}
    found = optimize.minimize(objective, start, jac=True, method="L-BFGS-B", bounds=bounds, options=options)
    return float(found.x[0]), float(found.x[1])


def linear_descent(
    A: Tensor, s: float, lambda_: float, weighting: Weighting, steps: int = 500, rate: float = 0.2
) -> Tensor:
    """Gradient descent on `generator_loss` over linear generators ``G(x) = A x``; returns the last A, (2, 2) float64.

    The fake law N(0, A A^T) is known at every step. For linear maps the gradient's expectation depends on second
    moments only, so 2 * (2 + 2) symmetric points (x, eps) with unit covariance give it without sampling error. The
    start A is `rotation` for the family of Fig. 2.
    """
    A = A.clone().requires_grad_()
    sigmas, weights = map(torch.as_tensor, weighting)  # (m,)
    cubature = torch.cat([2 * torch.eye(4, dtype=A.dtype), -2 * torch.eye(4, dtype=A.dtype)])  # (8, 4)
    x, eps = cubature.repeat(len(sigmas), 1).split(2, dim=1)  # each (8 m, 2)
    sigma, omega = sigmas.repeat_interleave(8), (weights * len(sigmas)).repeat_interleave(8)  # (8 m,)

    def denoiser(covariance: Tensor) -> Denoiser:
        axes, basis = torch.linalg.eigh(covariance)
        return lambda x, level: (x @ basis) * (axes / (axes + level[:, None] ** 2)) @ basis.T

    teacher = denoiser(s**2 * torch.eye(2, dtype=A.dtype))
    for _ in range(steps):
        fake = denoiser((A @ A.T).detach())
        loss, _ = generator_loss(x, x @ A.T, fake, teacher, eps, sigma, omega, lambda_)
        (gradient,) = torch.autograd.grad(loss, A)
        with torch.no_grad():
            A -= rate * gradient
    return A.detach()


def rotation(r: float, alpha: float) -> Tensor:
    """The generator ``r C(alpha)`` of Fig. 2, shape (2, 2), float64."""
    c, s = math.cos(alpha), math.sin(alpha)
    return r * torch.tensor([[c, -s], [s, c]], dtype=torch.float64)


def radius_and_angle(A: Tensor) -> tuple[float, float]:
    """Inverse of `rotation`; for other matrices those of the nearest ``r C(alpha)``."""
    x, y = float(A[0, 0] + A[1, 1]) / 2, float(A[1, 0] - A[0, 1]) / 2
    return math.hypot(x, y), math.atan2(y, x)
