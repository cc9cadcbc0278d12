"""Diffusion-GAN (Wang et al. 2023, arXiv 2206.02262) as an augmentation: noise on all that a discriminator sees.

The discriminator is not told how much. The surer it is of real pictures, the more noise there is. As in the authors'
code; there the discriminator's logit of a real picture is positive, here, with least squares, it is above 1/2.
"""

import torch
from torch import Generator, Tensor, nn

BETAS = (1e-4, 0.02)  # spread over the T steps that there are now
TIMES = (10, 1000)  # least and largest T
SIGMA = 0.05  # standard deviation of the noise; with StyleGAN2
SURE = 0.6  # mean sign that T is steered to
LISTED, EVERY = 64, 4  # timesteps drawn at a time; steps after which T is changed


class Noise(nn.Module):
    """``y = sqrt(alpha_bar_t) x + sqrt(1 - alpha_bar_t) sigma eps``, with t among 64 of which half are 0.

    `kimg` is how many thousand pictures it takes at least from the least to the largest T.
    """

    p: Tensor
    sure: Tensor
    t: Tensor

    def __init__(self, kimg: float = 100.0) -> None:
        super().__init__()
        self.kimg = kimg
        self.register_buffer("p", torch.zeros(()))  # share of the way from the least to the largest T
        self.register_buffer("sure", torch.zeros(2))  # sum of mean signs, and how many
        self.register_buffer("t", torch.zeros(LISTED, dtype=torch.long))
        self._draw(Generator().manual_seed(0))

    @property
    def T(self) -> Tensor:
        """Number of timesteps now."""
        return TIMES[0] + (self.p * (TIMES[1] - TIMES[0])).round()

    def alpha_bar(self) -> Tensor:
        """Return the share of the signal's variance at t = 0 (all of it), 1, ..., T; (1001,), beyond T of no use."""
        i = torch.arange(TIMES[1], device=self.p.device)
        betas = BETAS[0] + (BETAS[1] - BETAS[0]) * i / (self.T - 1)
        return torch.cat([betas.new_ones(1), (1 - betas).clamp(min=0).cumprod(0)])

    def forward(self, images: Tensor, rng: Generator) -> Tensor:
        """Return noised pictures (n, ...)."""
        t = self.t[torch.randint(LISTED, (len(images),), generator=rng).to(self.t.device)]
        kept = self.alpha_bar()[t].view(-1, *[1] * (images.ndim - 1))
        eps = torch.randn(images.shape, generator=rng).to(images.device)
        return kept.sqrt() * images + (1 - kept).sqrt() * SIGMA * eps

    def adapt(self, sure: Tensor, batch: int, rng: Generator) -> None:
        """Note a step's mean sign of the real logits; each `EVERY` steps follow it by one notch and draw anew."""
        self.sure += torch.stack([sure, torch.ones_like(sure)])
        due = self.sure[1] == EVERY
        notch = (self.sure[0] / self.sure[1] - SURE).sign() * batch * EVERY / (self.kimg * 1000)
        self.p.copy_(torch.where(due, (self.p + notch).clamp(0, 1), self.p))
        self._draw(rng, due)
        self.sure *= ~due

    def _draw(self, rng: Generator, due: Tensor | bool = True) -> None:
        """Draw half of the timesteps from 1, ..., T, with a probability that grows as t - 1; the others are 0."""
        u, T = torch.rand(LISTED // 2, generator=rng).to(self.t.device), self.T
        drawn = ((1 + (1 + 4 * u * T * (T - 1)).sqrt()) / 2).ceil().minimum(T).long()  # their CDF t (t - 1), inverted
        new = torch.cat([torch.zeros_like(drawn), drawn])
        self.t.copy_(torch.where(torch.as_tensor(due, device=self.t.device), new, self.t))
