"""Fine-tuning of an image model with any of the methods: batches, one optimizer, the training loop.

On several processes the gradients are averaged here, between the backward pass and the optimizer's step, instead of by
DistributedDataParallel: a `loss` calls the network itself, some call it several times, and the hooks of that wrapper
allow one call of the wrapper a step. It costs the overlap of communication and backward pass, and nothing else.
"""

from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from diffusers.optimization import get_constant_schedule_with_warmup
from torch import Tensor, nn

from lib.ground.diffusion import Schedule
from lib.ground.train import History, train
from lib.record.files import UserError

Batch = tuple[Tensor, Tensor, Tensor]  # x0, t, eps
Loss = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, dict[str, Tensor]]]  # loss, parts = loss(x0, t, eps)


@dataclass(frozen=True)
class Options:
    """How to fine-tune: AdamW at a constant rate, images drawn with replacement."""

    batch: int = 16  # images a pass, in every process
    lr: float = 2e-5
    seed: int = 0  # of images, timesteps and noises: every loss sees the same ones
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: float = 0.0
    warmup: int = 0  # steps in which the learning rate grows linearly
    clip: float = 0.0  # largest norm of the gradient, recorded before clipping as `grad_norm`; 0: any
    ema: float = 0.0  # decay of an average of the weights; 0: none
    flip: bool = False  # mirror half of the images
    accumulate: int = 1  # passes whose mean gradient makes one step
    folder: str | Path | None = None  # of checkpoints, written every `save_every` steps
    save_every: int = 0
    parameters: Mapping[str, Any] = field(default_factory=dict)  # what else a resumed run must share


def finetune(
    student: nn.Module,
    schedule: Schedule,
    images: Tensor,
    loss: Loss,
    steps: int,
    options: Options = Options(),
    on_step: Callable[[int, History], None] | None = None,
    accelerator: Accelerator | None = None,
) -> History:
    """Train those parameters of `student` that require a gradient, in place.

    Parameters
    ----------
    student
        The network in training; `loss` calls it. It is in training mode inside a step, and in evaluation mode outside.
        Its parameters and optimizer are float32, also in mixed precision.
    schedule
        Its noise schedule; timesteps are drawn uniformly from it.
    images
        Target images, (n, c, h, w) in [-1, 1], on any device; batches are moved to the student's.
    loss
        ``loss(x0, t, eps)`` returns the scalar loss and its named parts, detached.
    on_step
        ``on_step(i, history)`` after step i = 1, ..., steps, in every process.
    accelerator
        Its processes average their gradients; its "bf16" runs `loss` in mixed precision, so `loss` takes the network's
        output back to float32, as `lib.ground.nets.eps_model` does.
    """
    o = options
    trained = [p for p in student.parameters() if p.requires_grad]
    if not trained:
        raise UserError("student: no parameter requires a gradient; call requires_grad_(True) on what is to be trained")
    device = trained[0].device
    optimizer = torch.optim.AdamW(trained, lr=o.lr, betas=o.betas, weight_decay=o.weight_decay, fused=True)
    warmup = get_constant_schedule_with_warmup(optimizer, o.warmup)

    def sample(generator: torch.Generator) -> Batch:
        n = o.accumulate * o.batch
        index = torch.randint(len(images), (n,), generator=generator)
        t = torch.randint(schedule.T, (n,), generator=generator)
        eps = torch.randn(n, *images.shape[1:], generator=generator)  # (n, c, h, w)
        x0 = images[index.to(images.device)].to(device)
        if o.flip:
            mirrored = torch.rand(n, 1, 1, 1, generator=generator) < 0.5
            x0 = torch.where(mirrored.to(device), x0.flip(3), x0)
        return x0, t.to(device), eps.to(device)

    def step(drawn: Batch) -> dict[str, Tensor]:
        student.train()
        optimizer.zero_grad()
        sums: dict[str, Tensor] = {}
        for micro in zip(*(d.split(o.batch) for d in drawn), strict=True):
            with accelerator.autocast() if accelerator else nullcontext():
                total, parts = loss(*micro)
            (total / o.accumulate).backward()
            sums = {name: sums.get(name, 0) + value / o.accumulate for name, value in parts.items()}
        sums |= update(optimizer, o.clip, accelerator)
        warmup.step()
        student.eval()
        return sums

    shared = {name: getattr(o, name) for name in ("batch", "lr", "betas", "weight_decay", "accumulate")}
    shared |= {name: getattr(o, name) for name in ("warmup", "clip", "flip")} | {"images": images.shape, **o.parameters}
    modules, optimizers = {"student": student}, {"student": optimizer} | ({"warmup": warmup} if o.warmup else {})
    ema = {"student": o.ema} if o.ema else None
    student.eval()
    return train(
        step, sample, modules, optimizers, steps, o.seed, ema, o.folder, o.save_every, on_step, shared, accelerator
    )


def update(
    optimizer: torch.optim.Optimizer, clip: float = 0.0, accelerator: Accelerator | None = None
) -> dict[str, Tensor]:
    """Take an optimizer's step with the mean of the processes' gradients; return their norm, if it is clipped."""
    trained = [p for group in optimizer.param_groups for p in group["params"]]
    if accelerator and accelerator.num_processes > 1:
        for p in trained:  # one by one: a copy of all gradients at once would take as much memory as the weights
            if p.grad is not None:  # in all processes or in none: they run the same loss
                p.grad = accelerator.reduce(p.grad, "mean")
    norm = {"grad_norm": nn.utils.clip_grad_norm_(trained, clip)} if clip else {}
    optimizer.step()
    return norm
