"""SDFT on emoji with parts taken away: each of its two terms alone, and both with one weight for all timesteps."""

from typing import Any

import torch
from torch import Tensor

from lib.ground.finetune import Options
from lib.ground.precision import quick_model
from lib.measures import neutral
from lib.papers.sdft import method as sdft
from lib.papers.sdft.on_emoji import SHOWN, drift
from lib.papers.sdft.students import target
from lib.worlds import emoji_measures, sources
from lib.worlds.emoji_measures import World

MEASURES = ("realism", "agreement", "drift", "drift on noise")
BOTH = ("distill", "aux")
ARMS: dict[str, tuple[tuple[str, ...], bool]] = {  # the terms that an arm has, and whether gamma weights them
    "naive": ((), True),
    "distill only": (("distill",), True),
    "aux only": (("aux",), True),
    "both": (BOTH, True),
    "both, gamma 0": (BOTH, False),
}


def terms(p: Any, arm: str) -> dict[str, float]:
    """Return lambdas and gammas of an arm."""
    has, weighted = ARMS[arm]
    found = {f"lambda_{name}": p.lambda_sdft * (name in has) for name in BOTH}
    return found | {f"gamma_{name}": getattr(p, f"gamma_{name}") * weighted for name in BOTH}


def taken_away(seed: int, p: Any, *world: Any) -> dict[str, Any]:
    """Fine-tune by every arm on one draw of the target; "ARM" is (checkpoints, MEASURES), "ARM images" (SHOWN, ...).

    All arms see the same pictures, timesteps and noises, and are sampled from the noises of "source images".
    """
    unet, schedule, judge, _ = World(*world)

    def draw(net: Any) -> Tensor:
        return sources.samples(net, schedule, p.samples, seed, p.sampling_steps)

    start = draw(unet)
    of_source = neutral.features(start)

    def fine_tune(arm: str) -> tuple[list[list[float]], Tensor]:
        drawn: list[Tensor] = []
        rows: list[list[float]] = []

        def look(i: int, net: Any) -> None:
            if i in p.checkpoints:
                drawn.append(images := draw(net))
                agreement = emoji_measures.found(neutral.features(images), of_source, torch.arange(p.samples))
                realism = judge.like_twemoji(images).float().mean().item()
                rows.append([realism, agreement, *drift(unet, net, schedule, seed)])

        options = Options(p.batch, p.lr, seed, flip=True)
        pictures = target(p, seed)[0].to(unet.device)
        sdft.finetune(unet, schedule, pictures, max(p.checkpoints), options, look, quick_model, **terms(p, arm))
        return rows, drawn[-1][:SHOWN]

    found: dict[str, Any] = {"source images": start[:SHOWN]}
    for arm in ARMS:
        found[arm], found[f"{arm} images"] = fine_tune(arm)
    return found
