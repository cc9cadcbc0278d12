"""Fine-tuning of an image model with any of the methods: batches, one optimizer, the training loop."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lib.diffusion import Schedule
from lib.train import History, train

Loss = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, dict[str, Tensor]]]  # loss, parts = loss(x0, t, eps)


def finetune(
    student: nn.Module,
    schedule: Schedule,
    images: Tensor,
    loss: Loss,
    steps: int,
    batch: int = 16,
    lr: float = 2e-5,
    seed: int = 0,
    betas: tuple[float, float] = (0.9, 0.999),
    weight_decay: float = 0.0,
    on_step: Callable[[int], None] | None = None,
    progress: bool = True,
    folder: str | Path | None = None,
    save_every: int = 0,
    parameters: dict[str, Any] | None = None,
) -> History:
    """Train those parameters of `student` that require a gradient, in place, by AdamW at a constant rate.

    Images, timesteps and noises come from `seed` alone: runs with another `loss` and the same seed see the same ones.

    Parameters
    ----------
    student
        The network in training; `loss` calls it. It is in training mode inside the loop, and in evaluation mode after.
    schedule
        Its noise schedule; timesteps are drawn uniformly from it.
    images
        Target images, (n, c, h, w) in [-1, 1], on the student's device.
    loss
        ``loss(x0, t, eps)`` returns the scalar loss and its named parts, detached.
    steps, batch, lr, betas, weight_decay
        Length of the training, images a step (drawn with replacement), and the options of AdamW.
    on_step
        ``on_step(i)`` after step i = 1, ..., steps; the student is in evaluation mode inside it.
    folder, save_every, parameters
        Checkpoints and what a resumed run must share with them, as in :func:`lib.train.train`.
    """
    trained = [p for p in student.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=lr, betas=betas, weight_decay=weight_decay, fused=True)

    def sample(generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        index = torch.randint(len(images), (batch,), generator=generator)
        t = torch.randint(schedule.T, (batch,), generator=generator)
        eps = torch.randn(batch, *images.shape[1:], generator=generator)  # (batch, c, h, w)
        return images[index.to(images.device)], t.to(images.device), eps.to(images.device)

    def step(drawn: tuple[Tensor, Tensor, Tensor]) -> dict[str, Tensor]:
        total, parts = loss(*drawn)
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
        return parts

    def after(i: int, values: dict[str, float]) -> None:
        if on_step:
            student.eval()
            on_step(i)
            student.train()

    student.train()
    history = train(
        step,
        sample,
        {"student": student},
        {"student": optimizer},
        steps,
        seed,
        folder=folder,
        save_every=save_every,
        on_step=after,
        progress=progress,
        parameters=parameters,
    )
    student.eval()
    return history
