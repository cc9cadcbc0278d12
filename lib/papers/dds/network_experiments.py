"""What one replicate of DDS's network for several edits measures (D6): a function of one seed."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from lib.ground.diffusion import Schedule
from lib.ground.train import History
from lib.papers.dds import measures, network
from lib.papers.dds.experiments import SDS, Found
from lib.worlds import digits as data
from lib.worlds import prompts
from lib.worlds.judge import HANDWRITTEN, PRINTED, Classifier

WANTED = {"handwritten 8": (8, HANDWRITTEN), "handwritten 5": (5, HANDWRITTEN), "printed 3": (3, PRINTED)}
VARIANTS: dict[str, Found] = {"DDS": {}, "no warm-up": {"omega_warmup": 0}, "SDS": SDS}
MEASURES = ("success", "variety", "detail", "outside")


def tasks() -> network.Tasks:
    """Return the prompts of the tasks: handwritten threes into each of `WANTED`."""
    goals = torch.cat([prompts.prompt(*goal) for goal in WANTED.values()])
    return network.Tasks(goals, prompts.prompt(3, HANDWRITTEN), prompts.null())


def threes(size: int) -> tuple[Tensor, Tensor]:
    """Return the handwritten threes for training and the held-out ones, (n, 1, size, size) each."""
    known, unseen = (part.images[part.labels == 3] for part in data.split(data.handwritten(size)))
    return known, unseen


def checkpoints(p: Any) -> list[int]:
    """Return the iterations after which outputs are judged."""
    return sorted(i for i in {*p.checkpoints, p.iterations} if i <= p.iterations)


def outputs(student: network.DistilledNetwork, z_hat: Tensor) -> Tensor:
    """Return a student's outputs for all tasks, (tasks, n, 1, h, w)."""
    return torch.stack([network.apply(student, z_hat, k) for k in range(len(WANTED))])


def network_training(
    seed: int, p: Any, unet: Any, schedule: Schedule, judge: Classifier, variant: str, omega: float
) -> Found:
    """Train one network for all tasks (D6).

    At every checkpoint: `measured` are the `MEASURES` of the outputs for held-out inputs, (checkpoints, tasks, 4), and
    `outputs` those for the first ten, (checkpoints, tasks, 10, 1, h, w).
    """
    known, unseen = threes(judge.size)
    options = {"batch": p.batch, "lr": p.lr, "omega": omega, **VARIANTS[variant]}
    student = network.student_of(unet, tasks().y.to(unet.device)).to(memory_format=torch.channels_last)
    seen = []

    def look(i: int, history: History) -> None:
        if i in checkpoints(p):
            seen.append(outputs(student, unseen))

    settings = network.PAPER.scaled(p.iterations, **options)
    network.train_network(student, prompts.prompt_model(unet), schedule, known, tasks(), settings, seed, on_step=look)
    means = {domain: prompts.mean_images(domain, judge.size) for domain in (PRINTED, HANDWRITTEN)}
    measured = []
    for z in seen:
        for images, (digit, domain) in zip(z, WANTED.values(), strict=True):
            region = measures.strokes(means[HANDWRITTEN][3], means[domain][digit])
            success = prompts.reads(judge, images, digit, domain).float().mean().item()
            kept = measures.kept_spread(images, unseen), measures.kept_detail(images, unseen)
            measured.append([success, *kept, measures.change_outside(images, unseen, region).mean().item()])
    shape = len(seen), len(WANTED), len(MEASURES)
    return {"measured": np.array(measured).reshape(shape), "outputs": torch.stack([z[:, :10] for z in seen])}
