"""What S2 to S5 start from on emoji: the Noto model, and copies of it fine-tuned on few Twemoji pictures of few kinds.

A replicate has its own target pictures and its own order of everything; source and judges are the same for all.
"""

import copy
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save
from torch import Tensor, nn

from lib.ground.diffusion import Schedule
from lib.ground.finetune import Options
from lib.ground.nets import fingerprint
from lib.ground.precision import quick_model
from lib.papers.sdft import method as sdft
from lib.record.code import digest
from lib.record.files import write_atomic
from lib.worlds import emoji, emoji_measures, sources
from lib.worlds.emoji_measures import World

Students = dict[str, list[Any]]  # an arm's U-Net at each checkpoint
ARMS = ("naive", "SDFT", "naive again")  # the last is the control: the first one's pictures in another order
WEAK = "SDFT, a tenth"  # of the lambda
AGAIN = 500_000  # added to the seed of the control's order and noises


def terms(p: Any, arm: str) -> dict[str, float]:
    """Return lambdas and gammas of an arm."""
    value = {"SDFT": 1, WEAK: 0.1}.get(arm, 0) * p.lambda_sdft
    lambdas = {"lambda_distill": value, "lambda_aux": value}
    return lambdas | {"gamma_distill": p.gamma_distill, "gamma_aux": p.gamma_aux}


def target(p: Any, seed: int) -> tuple[Tensor, Tensor]:
    """Return the target pictures of a seed, (shots, 3, 32, 32), and those left of the limited and biased ones."""
    pool = emoji.limited().images
    order = torch.randperm(len(pool), generator=torch.Generator().manual_seed(seed))
    return pool[order[: p.shots]], pool[order[p.shots :]]


def finetuned(p: Any, seed: int, arm: str, unet: Any, schedule: Schedule) -> list[Any]:
    """Return an arm's student at each of the checkpoints, trained now or found in the folder that notebooks share.

    Files hold half precision, as the source's does.
    """
    folder, steps = (
        p.artefacts / "students" / str(seed) / arm.replace(",", "").replace(" ", "-"),
        sorted(set(p.checkpoints)),
    )
    given = terms(p, arm)
    options = Options(p.batch, p.lr, seed + AGAIN * (arm == "naive again"), flip=True)

    def make(_: Path, draft: Path) -> None:
        def keep(i: int, net: nn.Module) -> None:
            if i in steps:
                weights = {name: value.half().contiguous() for name, value in net.state_dict().items()}
                write_atomic(draft / f"{i}.safetensors", save(weights))

        images = target(p, seed)[0].to(unet.device)
        sdft.finetune(unet, schedule, images, steps[-1], options, keep, quick_model, **given)

    settings = {"source": fingerprint(unet), "shots": p.shots, "steps": steps, "batch": p.batch, "lr": p.lr} | given
    sources.artefact(folder, settings | {"code": digest(finetuned)}, make)
    students = [copy.deepcopy(unet) for _ in steps]
    for student, i in zip(students, steps, strict=True):
        student.load_state_dict(load_file(folder / f"{i}.safetensors"))
    return students


def trained(p: Any, seed: int) -> tuple[World, Students]:
    """Return what a replicate starts from, and the students of `ARMS`.

    `p` are the parameters of 60_finetune, or of a notebook that has those of the fine-tuning as well.
    """
    world = emoji_measures.world(p)
    return world, {arm: finetuned(p, seed, arm, world.unet, world.schedule) for arm in ARMS}


def averaged(first: Any, second: Any) -> Any:
    """Return a network half-way between two of one architecture: less moved, without any training."""
    between = copy.deepcopy(first)
    weights = second.state_dict()
    between.load_state_dict({name: (value + weights[name]) / 2 for name, value in first.state_dict().items()})
    return between
