"""Editing in h-space (Asyrp; Kwon, Jeong, Uh, ICLR 2023), as SDFT uses it for text-guided edits (Supplement, Sec. 5).

h is the output of a U-Net's middle block. A direction adds ``c delta_h`` to it, and only the predicted clean image of a
reverse step feels the change: the step's other term keeps the noise of the unedited network. Any diffusers U-Net with a
``mid_block`` will do; a forward hook makes the change, so the network itself stays as it is. An edited step costs two
calls of the whole U-Net (the official code splits the network and runs its encoder once); the steps below ``t_edit``
are plain and cost one.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from lib.ground.diffusion import Schedule, alpha_bar_at, batch_of, ddim_sigma, draw_like, invert_ddim, trajectory
from lib.ground.nets import eps_model
from lib.ground.train import History, train
from lib.record.files import UserError
from lib.record.parameters import non_negative

Direction = Callable[[Tensor, Tensor, int], Tensor]  # delta_h = direction(h, temb, t), shapes (B, C, k, k) and (B, D)
Objective = Callable[[Tensor, Tensor], Tensor]  # one number for predicted clean images P_t and the original images


class DeltaBlock(nn.Module):
    """The learned direction ``delta_h = f(h, temb)``, one for all timesteps (Kwon et al. 2023, Sec. 3).

    Group norm, SiLU, 1x1 convolution; plus a linear map of SiLU(temb); group norm, SiLU, 1x1 convolution. Its weights
    start as PyTorch's default does, not at zero.

    Parameters
    ----------
    channels, embedding, groups : int
        Channels of h, entries of the U-Net's time embedding, groups of both normalisations.
    """

    def __init__(self, channels: int, embedding: int, groups: int = 32) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.GroupNorm(groups, channels), nn.SiLU(), nn.Conv2d(channels, channels, 1))
        self.time = nn.Sequential(nn.SiLU(), nn.Linear(embedding, channels))
        self.second = nn.Sequential(nn.GroupNorm(groups, channels), nn.SiLU(), nn.Conv2d(channels, channels, 1))

    def forward(self, h: Tensor, temb: Tensor, t: int = 0) -> Tensor:
        """Return the change of h (B, C, k, k) for the time embedding (B, D), which tells all about `t`."""
        return self.second(self.first(h) + self.time(temb)[:, :, None, None])


@dataclass(frozen=True)
class Table:
    """A direction that is one tensor (1, C, k, k) a timestep, as `mean_difference` makes it."""

    deltas: dict[int, Tensor]

    def __call__(self, h: Tensor, temb: Tensor, t: int) -> Tensor:
        """Return the tensor of timestep `t` for each image of h (B, C, k, k)."""
        if t not in self.deltas:
            known = f"{min(self.deltas)} to {max(self.deltas)}" if self.deltas else "none"
            raise UserError(f"direction: timestep {t} is missing (known: {known}); edit with the steps it was made for")
        return self.deltas[t].to(h).expand_as(h)


def delta_block(unet: Any, seed: int = 0) -> DeltaBlock:
    """Return a new delta block with the sizes of `unet` (a diffusers U-Net) and random weights from `seed`."""
    _mid_block(unet)
    config, device = unet.config, next(unet.parameters()).device
    sizes = config["block_out_channels"][-1], unet.time_embedding.linear_2.out_features, config["norm_num_groups"]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return DeltaBlock(*sizes).to(device)


def hooked(unet: Any, change: Callable[[Tensor, Tensor], Tensor | None]) -> RemovableHandle:
    """Return a context in which the middle block's output h becomes ``change(h, temb)`` (None: stays as it is)."""
    return _mid_block(unet).register_forward_hook(lambda block, inputs, h: change(h, inputs[1]))


def edited_eps(unet: Any, x: Tensor, t: int, direction: Direction, strength: float | Tensor = 1.0) -> Tensor:
    """Return the noise predicted with ``h + c delta_h``; c is `strength`, a number or one an image (B,)."""
    c = torch.as_tensor(strength, dtype=x.dtype, device=x.device).reshape(-1, 1, 1, 1)  # (1 or B, 1, 1, 1)
    with hooked(unet, lambda h, temb: h + c * direction(h, temb, t)):
        return eps_model(unet)(x, batch_of(t, x))


def asymmetric_step(
    schedule: Schedule,
    x: Tensor,
    eps: Tensor,
    edited: Tensor,
    t: int,
    previous: int,
    eta: float = 0.0,
    generator: torch.Generator | None = None,
    clip: bool = False,
) -> tuple[Tensor, Tensor]:
    """Return the next, less noisy sample and the predicted clean image P_t (Kwon et al. 2023, Sec. 3).

    ``sqrt(a_prev) P_t + sqrt(1 - a_prev - s^2) eps + s z`` with P_t from the edited noise, the rest from the other.

    Parameters
    ----------
    x, eps, edited
        Sample at level `t`, and its noise as predicted without and with the edit; (B, c, h, w).
    t, previous
        Timestep of `x` and of the result; -1 is the clean image.
    eta, generator
        0 is deterministic, 1 ancestral (s of Song et al. 2021, Eq. 16): that draws noise, and without a generator
        it is a UserError.
    clip
        Clamp P_t to [-1, 1].
    """
    clean = schedule.x0_from_eps(x, edited, t)
    clean = clean.clamp(-1, 1) if clip else clean
    a, a_prev = alpha_bar_at(schedule, t), alpha_bar_at(schedule, previous)
    spread = ddim_sigma(a, a_prev, eta)
    following = a_prev**0.5 * clean + (1 - a_prev - spread**2) ** 0.5 * eps
    if spread > 0:
        following = following + spread * draw_like(x, generator)
    return following, clean


@torch.no_grad()
def edit(
    unet: Any,
    schedule: Schedule,
    x: Tensor,
    direction: Direction,
    strength: float | Tensor = 1.0,
    steps: int = 40,
    start: int | None = None,
    t_edit: int = 500,
    t_boost: int = 0,
    generator: torch.Generator | None = None,
    clip: bool = False,
) -> Tensor:
    """Sample from noise or inverted images `x` with the direction added where t >= t_edit (Kwon et al. 2023, Sec. 3).

    With strength 0 and ``t_boost=0`` this is :func:`lib.ground.diffusion.sample_ddim`.

    Parameters
    ----------
    x
        Noise, or images inverted to level `start` by :func:`lib.ground.diffusion.invert_ddim`; (B, c, h, w).
    direction, strength
        delta_h and its factor c, a number or one an image (B,).
    steps, start
        Steps of the whole trajectory, and the timestep of `x`, one of them (default: the noisiest).
    t_edit
        Smallest timestep that is edited; 500 is SDFT's 0.5 T.
    t_boost
        Below this timestep noise is added as in ancestral sampling (eta = 1, "quality boosting"); needs `generator`.

    Raises
    ------
    UserError
        No middle block; `steps` or `start` off the grid; noise wanted and no generator.
    """
    _mid_block(unet)  # refuse before the work
    for t, previous in trajectory(schedule, steps, start):
        eps = eps_model(unet)(x, batch_of(t, x))
        edited = edited_eps(unet, x, t, direction, strength) if t >= t_edit else eps
        x, _ = asymmetric_step(schedule, x, eps, edited, t, previous, float(t < t_boost), generator, clip)
    return x


def sweep(
    unet: Any,
    schedule: Schedule,
    x: Tensor,
    direction: Direction,
    strengths: Sequence[float],
    seed: int = 0,
    **how: Any,
) -> Tensor:
    """Return :func:`edit` of `x` (B, c, h, w) at each of k strengths, all with the same noise; (k, B, c, h, w)."""
    generators = (torch.Generator().manual_seed(seed) for _ in strengths)
    pairs = zip(strengths, generators, strict=True)
    return torch.stack([edit(unet, schedule, x, direction, c, generator=g, **how) for c, g in pairs])


def learn(
    unet: Any,
    schedule: Schedule,
    images: Tensor,
    objective: Objective,
    noisy: Tensor | None = None,
    steps: int = 40,
    start: int | None = None,
    t_edit: int = 500,
    lambda_l1: float = 3.0,
    walks: int = 500,
    batch: int = 1,
    optimizer: Callable[[Any], torch.optim.Optimizer] | None = None,
    seed: int = 0,
    progress: bool = True,
) -> tuple[DeltaBlock, History]:
    """Learn a delta block for one attribute; the U-Net stays frozen (Kwon et al. 2023, Sec. 3).

    A walk takes a batch of inverted images from level `start` down to `t_edit`, one update of the block a timestep:
    ``objective(P_t edited, image) + lambda_l1 |P_t edited - P_t of the unedited walk|``. Between timesteps the samples
    are detached. The learning rate falls to a tenth at 3/5 of the walks, as after three of the paper's five epochs.

    Parameters
    ----------
    images
        Training images (n, c, h, w) in [-1, 1], drawn with replacement.
    objective
        Scalar of the edited P_t and the original images, (B, c, h, w): :func:`toward` or
        :func:`lib.measures.clip.toward`.
    noisy
        The images inverted to level `start`; by default they are inverted here, once.
    steps, start, t_edit
        As in :func:`edit`; they also give the number of updates a walk.
    lambda_l1
        Weight of the distance to the unedited images, mean over pixels.
    walks, batch
        Number of walks, images in each; the paper has 5 epochs of 100 images one by one, so 500 walks.
    optimizer
        Makes the optimizer from the block's parameters; SGD with rate 0.5 by default, as in the official code.
    seed
        Of the block's first weights and of the images' order.

    Raises
    ------
    UserError
        No middle block; `steps` or `start` off the grid; no timestep at or above `t_edit`; a negative `lambda_l1`;
        `noisy` and `images` differ in shape.
    """
    non_negative(lambda_l1=lambda_l1)
    levels = [pair for pair in trajectory(schedule, steps, start) if pair[0] >= t_edit]
    if not levels:
        raise UserError(f"t_edit: {t_edit} given, but no timestep of the walk is that high; take a smaller one")
    frozen, block = copy.deepcopy(unet).requires_grad_(False).eval(), delta_block(unet, seed)
    model = eps_model(frozen)
    noisy = invert_ddim(model, schedule, images, steps, stop=start) if noisy is None else noisy
    if noisy.shape != images.shape:
        raise UserError(f"noisy: shape {tuple(noisy.shape)} given; it should be that of images, {tuple(images.shape)}")
    rule = optimizer(block.parameters()) if optimizer else torch.optim.SGD(block.parameters(), lr=0.5)
    decay = torch.optim.lr_scheduler.StepLR(rule, step_size=max(1, round(0.6 * walks)))

    def sample(generator: torch.Generator) -> Tensor:
        return torch.randint(len(images), (batch,), generator=generator).to(images.device)

    def walk(index: Tensor) -> dict[str, Tensor]:
        original, ours, plain = images[index], noisy[index], noisy[index]
        values = []
        for t, previous in levels:
            with torch.no_grad():
                eps, eps_plain = model(torch.cat([ours, plain]), batch_of(t, torch.cat([ours, plain]))).chunk(2)
                plain, clean = asymmetric_step(schedule, plain, eps_plain, eps_plain, t, previous)
            following, edited = asymmetric_step(schedule, ours, eps, edited_eps(frozen, ours, t, block), t, previous)
            wanted, kept = objective(edited, original), F.l1_loss(edited, clean)
            rule.zero_grad()
            (wanted + lambda_l1 * kept).backward()
            rule.step()
            ours = following.detach()
            values.append(torch.stack([wanted.detach(), kept.detach()]))
        decay.step()
        return dict(zip(("attribute", "l1"), torch.stack(values).mean(0), strict=True))

    rules = {"delta": rule, "decay": decay}
    history = train(walk, sample, {"delta": block}, rules, walks, seed=seed, progress=progress)
    return block.requires_grad_(False).eval(), history


def toward(logit: Callable[[Tensor], Tensor], sign: int = 1) -> Objective:
    """Return the objective ``-log sigma(sign * logit(P_t))``, mean over the images: a classifier instead of CLIP."""
    return lambda edited, original: F.softplus(-sign * logit(edited)).mean()


@torch.no_grad()
def mean_difference(
    unet: Any,
    schedule: Schedule,
    noisy: Tensor,
    labels: Tensor,
    steps: int = 40,
    start: int | None = None,
    t_edit: int = 500,
) -> Table:
    """Return the direction without training: ``mean(h_t | a = 1) - mean(h_t | a = 0)`` at each edited timestep.

    Parameters
    ----------
    noisy
        Images inverted to level `start`, (n, c, h, w); h_t is read on their plain way back.
    labels
        Whether each image has the attribute, (n,), bool or 0 and 1.

    Raises
    ------
    UserError
        Labels of another length, or all alike; no middle block; `steps` or `start` off the grid.
    """
    has = labels.bool().to(noisy.device)
    if has.shape != noisy.shape[:1] or has.all() or not has.any():
        raise UserError(f"labels: {int(has.sum())} of {has.numel()} set; give {len(noisy)}, some set and some not")
    x, deltas, seen = noisy, dict[int, Tensor](), list[Tensor]()

    def note(h: Tensor, temb: Tensor) -> None:
        seen.append(h)

    for t, previous in trajectory(schedule, steps, start):
        if t < t_edit:
            break
        with hooked(unet, note):
            eps = eps_model(unet)(x, batch_of(t, x))
        deltas[t] = (seen[-1][has].mean(0) - seen[-1][~has].mean(0))[None]  # (1, C, k, k)
        x, _ = asymmetric_step(schedule, x, eps, eps, t, previous)
    return Table(deltas)


def random_like(direction: Direction, seed: int = 0) -> Direction:
    """Return the control: one random direction for all images and timesteps, as long as `direction` is each time."""

    def control(h: Tensor, temb: Tensor, t: int) -> Tensor:
        length = direction(h, temb, t).flatten(1).norm(dim=1).view(-1, 1, 1, 1)  # (B, 1, 1, 1)
        pattern = torch.randn(h.shape[1:], generator=torch.Generator().manual_seed(seed)).to(h)
        return length * pattern / pattern.norm()

    return control


def _mid_block(unet: Any) -> nn.Module:
    block = getattr(unet, "mid_block", None)
    if not isinstance(block, nn.Module):
        raise UserError(f"unet: {type(unet).__name__} has no mid_block, so no h-space; give a diffusers U-Net with one")
    return block
