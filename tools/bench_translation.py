"""Measure the network calls and the seconds that it takes RDMD and five other translators to translate 1,000 emoji.

Every method is at the middle value of the knob that page 11 sweeps. Weights do not change the time, so RDMD's
translator is the untrained one, and EGSDE's classifier has taken one step.
"""

from __future__ import annotations

import statistics
from types import SimpleNamespace
from typing import Any

import torch

from lib.papers.rdmd import on_emoji
from lib.papers.rdmd.on_emoji import Method
from lib.record.timing import interleaved
from lib.worlds import emoji, sources
from tools.bench_tools import Row, row
from tools.replicate import started

TITLE = "Translation of 1,000 pictures of 32 x 32"


def measure(device: torch.device, rounds: int = 2, pictures: int = 0) -> list[Row]:
    """Return the rows of this section; `pictures` are translated in a batch."""
    p = SimpleNamespace(**vars(started("11_rdmd_images", "cpu").parameters) | {"classifier_steps": 1})
    n = pictures or (1000 if device.type == "cuda" else 16)
    source, target = (sources.load(name, device)[0] for name in (p.source, p.target))
    schedule = sources.load(p.source)[1]
    x = emoji.drawings("noto").images[:n].to(device)
    translator, world = on_emoji.held(p, target, schedule), SimpleNamespace(unet=source, schedule=schedule)
    every = {"RDMD": Method(lambda _: translator(x), [0.0], lambda _: 1)}
    every |= on_emoji.methods(p, 0, world, target, x)  # type: ignore[arg-type]
    at = {name: method.knob[len(method.knob) // 2] for name, method in every.items()}

    def run(name: str) -> Any:
        with torch.no_grad():
            return every[name].translate(at[name])

    times = interleaved({name: lambda name=name: run(name) for name in every}, rounds, device)
    calls = {name: method.calls(at[name]) for name, method in every.items()}
    return [
        row(f"{name}, calls a picture: {calls[name]}", 1000 / n * statistics.median(times[name]), "s") for name in every
    ]
