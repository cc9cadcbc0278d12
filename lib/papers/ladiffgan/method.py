"""LaDiffGAN's two losses (Liu et al., CVPR Workshops 2024, DOI 10.1109/CVPRW63382.2024.00118), on any unpaired GAN.

A reconstruction: we know the paper's abstract and supplement, not its main text: that there are a latent diffusion
GAN loss and a heterogeneous conditional denoising loss, in the latent spaces of two domains with a pretrained diffusion
model each, is theirs; how they read as formulas, their weights and the condition are ours. Every choice is an argument.

For a translation y of x into the domain d, E_d is the autoencoder of d and eps_d the denoiser of its latents.
"""

from collections.abc import Callable, Mapping
from typing import Literal, NamedTuple, get_args

import torch
from torch import Generator, Tensor, nn

from lib.ground.diffusion import Schedule, draw_like
from lib.papers.baselines.two_player import Pair, least_squares, summed
from lib.papers.baselines.ugatit import OTHER

Reading = Literal["source", "self", "cross"]
Denoise = Callable[[Tensor, Tensor, Tensor], Tensor]
READINGS: tuple[str, ...] = get_args(Reading)


class Domain(NamedTuple):
    """What a domain supervises with, trained before and frozen."""

    encode: Callable[[Tensor], Tensor]  # E: pictures to latents z (n, ...) of about unit variance, differentiable
    denoise: Denoise  # eps(z_t, t, c), differentiable


def latent_diffusion_gan(
    D: Callable[[Tensor, Tensor], Tensor], z: Tensor, t: Tensor, eps: Tensor, schedule: Schedule, goal: float
) -> Tensor:
    """Return ``E (goal - D(z_t, t))^2``: the latent diffusion GAN loss in the least-squares form of the paper's S4.

    For the discriminator `goal` is 1 with latents of real pictures and 0 of translations, for the generator 1 with
    translations. Noise of any strength makes both hard to tell apart (abstract: "different amounts of Gaussian noise").
    """
    return least_squares(D(schedule.add_noise(z, eps, t), t), goal)


def conditional_denoising(denoise: Denoise, z: Tensor, c: Tensor, t: Tensor, eps: Tensor, schedule: Schedule) -> Tensor:
    """Return ``E |eps - eps_d(z_t, t, c)|^2``, a mean over the numbers in a latent.

    With a real picture's latent and condition it is what the denoiser is trained by; with a translation's it is the
    heterogeneous conditional denoising loss, and its gradient goes through the denoiser into latent and condition.
    """
    return (eps - denoise(schedule.add_noise(z, eps, t), t, c)).square().mean()


class Supervision(nn.Module):
    """Both losses for both directions, with a latent discriminator D a domain.

    Parameters
    ----------
    domains
        "s" and "d".
    condition
        c(x): what the denoisers were trained to see of a picture, less than all of it. A denoiser that sees the full
        picture can compute the noise from it and need not learn the domain.
    discriminator
        Makes a network ``D(z_t, t)``.
    lambda_ldg, lambda_hcd
        Weights, to be read beside U-GAT-IT's 1, 10, 10, 1000. A loss of weight 0 is not computed.
    reading
        Whose latent is denoised, and on what condition. "source": the translation's, seeing the input, from the other
        domain. "self": the translation's, seeing itself. "cross": the input's, by its own domain's denoiser, seeing the
        translation.
    timed
        Whether the latent discriminators are told the timestep.
    """

    def __init__(
        self,
        domains: Mapping[str, Domain],
        condition: Callable[[Tensor], Tensor],
        discriminator: Callable[[], nn.Module],
        schedule: Schedule,
        lambda_ldg: float = 1.0,
        lambda_hcd: float = 1.0,
        reading: str = "source",
        timed: bool = True,
    ) -> None:
        super().__init__()
        self.domains, self.condition, self.schedule = domains, condition, schedule
        self.weights = {"LDG": lambda_ldg, "HCD": lambda_hcd}
        self.reading, self.timed = reading, timed
        self.settings = self.weights | {"reading": reading, "timed": timed}
        self.D = nn.ModuleDict({domain: discriminator() for domain in domains})

    def losses(self, x: Pair, y: Pair, rng: Generator) -> dict[str, Tensor]:
        """Return the losses on the generators of translations y of x."""
        found: dict[str, list[Tensor]] = {name: [] for name, weight in self.weights.items() if weight}
        for d in y:
            s, z = OTHER[d], self.domains[d].encode(y[d])
            if "LDG" in found:
                loss = latent_diffusion_gan(self._told(d), z, *self._noise(z, rng), self.schedule, 1.0)
                found["LDG"].append(loss)
            if "HCD" in found:
                denoiser, c = d, x[s] if self.reading == "source" else y[d]
                if self.reading == "cross":
                    denoiser, z = s, self.domains[s].encode(x[s])
                denoise, noise = self.domains[denoiser].denoise, self._noise(z, rng)
                loss = conditional_denoising(denoise, z, self.condition(c), *noise, self.schedule)
                found["HCD"].append(loss)
        return {name: summed(losses) for name, losses in found.items()}

    def discriminators_loss(self, x: Pair, y: Pair, rng: Generator) -> Tensor:
        """Return the loss of the latent discriminators."""
        losses = []
        for d in y:
            with torch.no_grad():
                z = self.domains[d].encode(torch.cat([x[d], y[d]]))
            for part, goal in zip(z.split([len(x[d]), len(y[d])]), (1.0, 0.0), strict=True):
                noise = self._noise(part, rng)
                losses.append(latent_diffusion_gan(self._told(d), part, *noise, self.schedule, goal))
        return summed(losses)

    def _told(self, domain: str) -> Callable[[Tensor, Tensor], Tensor]:
        D = self.D[domain]
        return D if self.timed else lambda z_t, t: D(z_t, torch.zeros_like(t))

    def _noise(self, z: Tensor, rng: Generator) -> tuple[Tensor, Tensor]:
        t = torch.randint(self.schedule.T, (len(z),), generator=rng).to(z.device)
        return t, draw_like(z, rng)
