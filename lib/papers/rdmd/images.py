"""RDMD on images (Rakitin, Shchekotov, Vetrov 2024, arXiv 2406.14762): a translator of one network call.

Three copies of one denoiser of the target domain: the teacher is frozen, the fake learns the generator's outputs, and
the generator is held at one noise level and fed with clean pictures of the source. Where the paper is silent, DMD2's
code is followed (Yin et al. 2024). Loss and cost are both means over the numbers in a picture, so that a lambda here
is the lambda of `lib.papers.rdmd.method`, for the weighting :func:`dmd_weight`.
"""

import copy
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch
from accelerate import Accelerator
from diffusers.optimization import get_constant_schedule_with_warmup
from torch import Tensor, nn

from lib.ground.finetune import Options, update
from lib.ground.train import History, train
from lib.papers.rdmd import method as rdmd
from lib.papers.rdmd.method import Denoiser
from lib.record.files import UserError

Denoise = Callable[[Any], Denoiser]  # network -> D(x, sigma)
Cost = Callable[[Tensor, Tensor], Tensor]  # of pairs of pictures (n, c, h, w), (n,)
SIGMA = 1.0  # at which the generator is held, the paper's (App. B)
RANGE = (0.02, 0.98)  # part of the noise levels at which the generator is compared
SIGMA_DATA = 0.5  # of EDM's weight in the loss of the fake


class Translator(nn.Module):
    """A denoiser held at one noise level, fed with clean pictures (n, c, h, w) in [-1, 1]: ``G(x) = D(x, sigma)``."""

    def __init__(self, net: nn.Module, denoise: Denoise, sigma: float = SIGMA) -> None:
        super().__init__()
        self.net, self.sigma = net, sigma
        self._denoise = denoise(net)

    def forward(self, x: Tensor) -> Tensor:
        """Translate pictures, in one call of the network."""
        return self._denoise(x, x.new_full((len(x),), self.sigma))


def dmd_weight(y: Tensor, denoised: Tensor, sigma: Tensor) -> Tensor:
    """Return ``sigma^2 / mean|y - D_teacher(y_sigma)|``, (n,): every sample's gradient gets one size (DMD, Eq. 8)."""
    return sigma**2 / (y - denoised).abs().flatten(1).mean(1)


def l2(x: Tensor, y: Tensor) -> Tensor:
    """Return the cost of pairs of pictures that the paper trains with: the mean squared difference, (n,)."""
    return (x - y).square().flatten(1).mean(1)


def generator_loss(
    x: Tensor, y: Tensor, fake: Denoiser, teacher: Denoiser, eps: Tensor, sigma: Tensor, lambda_: float, cost: Cost = l2
) -> tuple[Tensor, Tensor]:
    """Return the loss of `lib.papers.rdmd.method` with :func:`dmd_weight`, and the mean cost.

    The teacher is asked once for loss and weight.
    """
    with torch.no_grad():
        denoised = teacher(y + sigma.view(-1, 1, 1, 1) * eps, sigma)
        omega = dmd_weight(y, denoised, sigma)
    matched, _ = rdmd.generator_loss(x, y, fake, lambda *_: denoised, eps, sigma, omega, 0.0)
    paid = cost(x, y).mean()
    return matched / x[0].numel() + lambda_ * paid, paid.detach()


def fake_loss(fake: Denoiser, y: Tensor, eps: Tensor, sigma: Tensor) -> Tensor:
    """Return :func:`lib.papers.rdmd.method.fake_loss` with EDM's weight (Karras et al. 2022, Tab. 1), a number."""
    return rdmd.fake_loss(fake, y, eps, sigma, sigma**-2 + SIGMA_DATA**-2) / y[0].numel()


def train_translator(
    teacher: nn.Module,
    denoise: Denoise,
    sigmas: Tensor,
    images: Tensor,
    lambda_: float,
    steps: int,
    options: Options,
    fake_updates: int = 1,
    fake_lr: float | None = None,
    sigma: float = SIGMA,
    cost: Cost = l2,
    on_step: Callable[[int, Translator, History], None] | None = None,
    accelerator: Accelerator | None = None,
) -> tuple[Translator, History]:
    """Train a translator of `images` (n, c, h, w) in [-1, 1] into the domain of the denoiser `teacher`.

    Parameters
    ----------
    teacher
        Network of the target domain; it stays as it is.
    denoise
        Makes a network ``D(x, sigma)``: for a diffusers U-Net by `lib.ground.diffusion.denoiser`, for one in EDM's form
        the network itself.
    sigmas
        Noise levels, rising, from which the loss draws uniformly: the levels of the teacher's schedule.
    fake_updates, fake_lr
        Updates of the fake before each of the generator, and their learning rate; None: the generator's. A fake that
        lags behind makes the outputs swing (Yin et al. 2024, Sec. 4.2).
    cost
        :func:`l2`, or an LPIPS: ``partial(lib.measures.perceptual.lpips_of_pairs, embedding)``.
    on_step
        ``on_step(i, translator, history)`` after step i = 1, ..., steps, in every process; averages are ``ema["G"]``.
    """
    if options.accumulate > 1:
        raise UserError(f"accumulate: {options.accumulate} given; RDMD takes every step with one batch, so 1")
    o, layout = options, {"memory_format": torch.channels_last}  # twice as fast on a CPU
    frozen, fake, net = (copy.deepcopy(teacher).to(**layout).requires_grad_(i > 0) for i in range(3))  # type: ignore[call-overload]
    frozen.eval()
    translator = Translator(net, denoise, sigma)
    D, D_fake = denoise(frozen), denoise(fake)
    device = next(net.parameters()).device
    rates = {"G": o.lr, "fake": o.lr if fake_lr is None else fake_lr}
    modules = {"G": net, "fake": fake}
    optimizers = {
        name: torch.optim.AdamW(one.parameters(), rates[name], o.betas, weight_decay=o.weight_decay, fused=True)
        for name, one in modules.items()
    }
    warmups = {f"warmup {k}": get_constant_schedule_with_warmup(v, o.warmup) for k, v in optimizers.items()}
    low, high = (round(share * len(sigmas)) for share in RANGE)
    levels, mixed = sigmas.float(), accelerator.autocast if accelerator else nullcontext

    def sample(generator: torch.Generator) -> list[Tensor]:
        x = images[torch.randint(len(images), (o.batch,), generator=generator).to(images.device)].to(device)
        if o.flip:
            x = x.flip(3).where((torch.rand(o.batch, 1, 1, 1, generator=generator) < 0.5).to(device), x)
        drawn = [x]
        for first, last in [*[(0, len(sigmas))] * fake_updates, (low, high)]:
            drawn += [
                levels[torch.randint(first, last, (o.batch,), generator=generator)].to(device),
                torch.randn(x.shape, generator=generator).to(device),
            ]
        return drawn

    def step(drawn: list[Tensor]) -> dict[str, Tensor]:
        x, *noises = drawn
        with mixed():
            y = translator(x)
        for level, eps in zip(noises[:-2:2], noises[1:-2:2], strict=True):
            with mixed():
                of_fake = fake_loss(D_fake, y, eps, level)
            optimizers["fake"].zero_grad()
            of_fake.backward()
            update(optimizers["fake"], o.clip, accelerator)
        with mixed():
            loss, paid = generator_loss(x, y, D_fake, D, noises[-1], noises[-2], lambda_, cost)
        optimizers["G"].zero_grad()
        loss.backward()
        norm = update(optimizers["G"], o.clip, accelerator)
        for one in warmups.values():
            one.step()
        return {"cost": paid, "fake": of_fake.detach(), **norm}

    shared = {"lambda": lambda_, "fake_updates": fake_updates, "rates": rates, "sigma": sigma, "images": images.shape}
    shared |= {name: getattr(o, name) for name in ("batch", "betas", "weight_decay", "warmup", "clip", "flip")}
    ema = {"G": o.ema} if o.ema else None
    look = (lambda i, history: on_step(i, translator, history)) if on_step else None
    changing, shared = optimizers | warmups, shared | {**o.parameters}
    history = train(
        step, sample, modules, changing, steps, o.seed, ema, o.folder, o.save_every, look, shared, accelerator
    )
    return translator, history
