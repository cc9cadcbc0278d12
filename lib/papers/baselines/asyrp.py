"""Editing in h-space (Asyrp; Kwon, Jeong, Uh, ICLR 2023), as SDFT uses it for text-guided edits (Supplement, Sec. 5).

h is the output of the middle block of a diffusers U-Net. A direction adds ``c delta_h`` to it, and only the predicted
clean image of a reverse step feels the change: the step's other term keeps the noise of the unedited network. An edited
step costs two calls of the whole U-Net (the official code splits the network and runs its encoder once).
"""

import copy
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from lib.ground.diffusion import Schedule, batch_of, trajectory
from lib.ground.nets import eps_model, seeded
from lib.ground.train import History, train
from lib.measures import clip
from lib.papers.baselines.translation import Level, ddim_mean
from lib.record.files import UserError

Direction = Callable[[Tensor, Tensor, int], Tensor]  # delta_h = direction(h, temb, t), shapes (B, C, k, k) and (B, D)
Objective = Callable[[Tensor, Tensor], Tensor]  # one number for predicted clean images P_t and the original images
SGD = partial(torch.optim.SGD, lr=0.5)  # as in the official code


class DeltaBlock(nn.Module):
    """The learned direction ``delta_h = f(h, temb)``, one for all timesteps (Kwon et al. 2023, Sec. 3).

    Its weights start as PyTorch's default does, not at zero.
    """

    def __init__(self, channels: int, embedding: int, groups: int = 32) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.GroupNorm(groups, channels), nn.SiLU(), nn.Conv2d(channels, channels, 1))
        self.time = nn.Sequential(nn.SiLU(), nn.Linear(embedding, channels))
        self.second = nn.Sequential(nn.GroupNorm(groups, channels), nn.SiLU(), nn.Conv2d(channels, channels, 1))

    def forward(self, h: Tensor, temb: Tensor, t: int = 0) -> Tensor:
        """Return the change of h (B, C, k, k) for the time embedding (B, D), which tells all about `t`."""
        return self.second(self.first(h) + self.time(temb)[:, :, None, None])


def delta_block(unet: Any, seed: int = 0) -> DeltaBlock:
    """Return a new delta block with the sizes of `unet` (a diffusers U-Net) and random weights from `seed`."""
    config, device = unet.config, next(unet.parameters()).device
    sizes = config["block_out_channels"][-1], unet.time_embedding.linear_2.out_features, config["norm_num_groups"]
    return seeded(seed, lambda: DeltaBlock(*sizes)).to(device)


def hooked(unet: Any, change: Callable[[Tensor, Tensor], Tensor | None]) -> RemovableHandle:
    """Return a context in which the middle block's output h becomes ``change(h, temb)`` (None: stays as it is)."""
    if not isinstance(getattr(unet, "mid_block", None), nn.Module):
        raise UserError(f"unet: {type(unet).__name__} has no mid_block, so no h-space; give a diffusers U-Net with one")
    return unet.mid_block.register_forward_hook(lambda block, inputs, h: change(h, inputs[1]))


def edited_eps(unet: Any, x: Tensor, t: int, direction: Direction, strength: float = 1.0) -> Tensor:
    """Return the noise predicted with ``h + c delta_h``; c is `strength`."""
    with hooked(unet, lambda h, temb: h + strength * direction(h, temb, t)):
        return eps_model(unet)(x, batch_of(t, x))


def asymmetric_step(schedule: Schedule, x: Tensor, eps: Tensor, edited: Tensor, level: Level) -> tuple[Tensor, Tensor]:
    """Return the next, less noisy sample and the predicted clean image P_t (Kwon et al. 2023, Sec. 3).

    ``sqrt(a_prev) P_t + sqrt(1 - a_prev) eps`` with P_t from the noise `edited`, all (B, c, h, w).
    """
    clean = schedule.x0_from_eps(x, edited, level[0])
    return ddim_mean(schedule, clean, eps, level)[0], clean


@torch.no_grad()
def edit(
    unet: Any, schedule: Schedule, x: Tensor, direction: Direction, strength: float, steps: int, start: int, t_edit: int
) -> Tensor:
    """Sample with the direction added where t >= t_edit; 500 is SDFT's 0.5 T (Kwon et al. 2023, Sec. 3).

    `x` is noise, or images inverted to level `start` by :func:`lib.ground.diffusion.invert_ddim`; (B, c, h, w). With
    strength 0 this is :func:`lib.ground.diffusion.sample_ddim`.
    """
    for t, previous in trajectory(schedule, steps, start):
        eps = eps_model(unet)(x, batch_of(t, x))
        edited = edited_eps(unet, x, t, direction, strength) if t >= t_edit else eps
        x, _ = asymmetric_step(schedule, x, eps, edited, (t, previous))
    return x


def learn(
    unet: Any,
    schedule: Schedule,
    images: Tensor,
    noisy: Tensor,
    objective: Objective,
    levels: Sequence[Level],
    lambda_l1: float = 3.0,
    walks: int = 500,
    batch: int = 1,
    optimizer: Callable[[Any], torch.optim.Optimizer] = SGD,
    seed: int = 0,
) -> tuple[DeltaBlock, History]:
    """Learn a delta block for one attribute; the U-Net stays frozen (Kwon et al. 2023, Sec. 3).

    A walk takes a batch of inverted images through `levels`, one update of the block each:
    ``objective(P_t edited, image) + lambda_l1 |P_t edited - P_t of the unedited walk|``. Between levels the samples
    are detached. The learning rate falls to a tenth at 3/5 of the walks, as after three of the paper's five epochs.

    Images (n, c, h, w) in [-1, 1] are drawn with replacement; `noisy` are the same, inverted to the first of the
    edited levels. The paper has 5 epochs of 100 images one by one. With CLIP, see :func:`text_terms`.
    """
    frozen, block = copy.deepcopy(unet).requires_grad_(False).eval(), delta_block(unet, seed)
    model = eps_model(frozen)
    rule = optimizer(block.parameters())
    decay = torch.optim.lr_scheduler.StepLR(rule, step_size=max(1, round(0.6 * walks)))

    def sample(generator: torch.Generator) -> Tensor:
        return torch.randint(len(images), (batch,), generator=generator).to(images.device)

    def walk(index: Tensor) -> dict[str, Tensor]:
        original, ours, plain = images[index], noisy[index], noisy[index]
        values = []
        for t, previous in levels:
            level = t, previous
            with torch.no_grad():
                eps, eps_plain = model(torch.cat([ours, plain]), batch_of(t, torch.cat([ours, plain]))).chunk(2)
                plain, clean = asymmetric_step(schedule, plain, eps_plain, eps_plain, level)
            following, edited = asymmetric_step(schedule, ours, eps, edited_eps(frozen, ours, t, block), level)
            wanted, kept = objective(edited, original), F.l1_loss(edited, clean)
            rule.zero_grad()
            (wanted + lambda_l1 * kept).backward()
            rule.step()
            ours = following.detach()
            values.append(torch.stack([wanted.detach(), kept.detach()]))
        decay.step()
        return dict(zip(("attribute", "l1"), torch.stack(values).mean(0), strict=True))

    history = train(walk, sample, {"delta": block}, {"delta": rule, "decay": decay}, walks, seed)
    return block.requires_grad_(False).eval(), history


def toward(logit: Callable[[Tensor], Tensor]) -> Objective:
    """Return the objective ``-log sigma(logit(P_t))``, mean over the images: a classifier instead of CLIP."""
    return lambda edited, original: F.softplus(-logit(edited)).mean()


def text_terms(scorer: clip.Clip, target: str, source: str, lambda_l1: float = 3.0) -> tuple[Objective, float]:
    """Return the objective of two texts and the factor of the distance: the official ``lambda_l1 cos(target, source)``.

    As far as known, the cosine is that of the two texts' features; here both are means over the prompt templates.
    """
    return clip.toward(scorer, target, source), lambda_l1 * float(scorer.text(target) @ scorer.text(source))


@torch.no_grad()
def mean_difference(unet: Any, schedule: Schedule, noisy: Tensor, has: Tensor, levels: Sequence[Level]) -> Direction:
    """Return the direction without training: ``mean(h_t | a = 1) - mean(h_t | a = 0)`` at each of the edited levels.

    `noisy` (n, c, h, w) are images inverted to the first level, h_t is read on their plain way back; `has` (n,), bool,
    says which have the attribute.
    """
    x, deltas, seen = noisy, dict[int, Tensor](), list[Tensor]()
    for t, previous in levels:
        with hooked(unet, lambda h, temb: seen.append(h)):
            eps = eps_model(unet)(x, batch_of(t, x))
        deltas[t] = (seen[-1][has].mean(0) - seen[-1][~has].mean(0))[None]  # (1, C, k, k)
        x, _ = asymmetric_step(schedule, x, eps, eps, (t, previous))
    return lambda h, temb, t: deltas[t].expand_as(h)


def random_like(direction: Direction, seed: int = 0) -> Direction:
    """Return the control: one random direction for all images and timesteps, as long as `direction` is each time."""

    def control(h: Tensor, temb: Tensor, t: int) -> Tensor:
        length = direction(h, temb, t).flatten(1).norm(dim=1).view(-1, 1, 1, 1)  # (B, 1, 1, 1)
        pattern = torch.randn(h.shape[1:], generator=torch.Generator().manual_seed(seed)).to(h)
        return length * pattern / pattern.norm()

    return control
