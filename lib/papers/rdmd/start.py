"""RDMD on emoji from other starts: the generator held at several noise levels, before and after a short training."""

from functools import partial
from typing import Any

import torch
from torch import Tensor

from lib.ground.finetune import Options
from lib.papers.rdmd import images as rdmd
from lib.papers.rdmd.on_emoji import SHOWN, Task, denoiser, pictures
from lib.worlds import sources
from lib.worlds.emoji_measures import World


def held_at(seed: int, p: Any, *world: Any) -> dict[str, Any]:
    """Measure the translator at each of `p.sigmas`: "before" and "after" are (sigmas, MEASURES) of `on_emoji`.

    "before images" and "after images" are (sigmas, SHOWN, 3, 32, 32). All trainings see the same pictures and noises.
    """
    target, schedule = sources.load(p.target, p.device)
    denoise, task = partial(denoiser, schedule=schedule), Task(seed, p, World(*world))
    x, drawn = task.inputs.x, pictures("noto", "source", seed)
    options = Options(p.batch, p.lr, seed, clip=1.0, ema=p.ema, flip=True)
    how = {"fake_updates": p.fake_updates, "fake_lr": p.fake_lr}
    outputs: dict[str, list[Tensor]] = {"before": [], "after": []}
    for sigma in p.sigmas:
        with torch.no_grad():
            outputs["before"].append(rdmd.Translator(target, denoise, sigma)(x).clamp(-1, 1))
        translator, history = rdmd.train_translator(
            target, denoise, schedule.sigma, drawn, p.lambda_, p.steps, options, sigma=sigma, **how
        )
        translator.net.load_state_dict(history.ema["G"])
        with torch.no_grad():
            outputs["after"].append(translator(x).clamp(-1, 1))
    found: dict[str, Any] = {
        "input": task.measure(x),
        "input images": x[:SHOWN],
        "truth": task.measure(task.inputs.truth),
    }
    for name, images in outputs.items():
        found |= {name: [task.measure(y) for y in images], f"{name} images": torch.stack(images)[:, :SHOWN]}
    return found
