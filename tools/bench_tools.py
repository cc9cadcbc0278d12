"""What the sections of the bench share: rows of the table, counting of network calls, the network that is measured.

Everything is a ratio of two things measured in the same process in turns, so that a slower machine or a busy one
changes both. On a CPU processor time is counted, on a GPU the wall time between two synchronisations.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from lib.ground import nets

Row = dict[str, Any]  # what, value, unit, goal (text), met (True, False or None without a goal), note


def row(
    what: str, value: float, unit: str = "", most: float | None = None, least: float | None = None, note: str = ""
) -> Row:
    """Return a row of the table; `most` or `least` is the goal."""
    bound, sign = (most, "at most") if most is not None else (least, "at least")
    met = None if bound is None else bool(value <= bound if most is not None else value >= bound)
    goal = "" if bound is None else f"{sign} {bound:g}"
    return {"what": what, "value": float(value), "unit": unit, "goal": goal, "met": met, "note": note}


def network(device: torch.device) -> Any:
    """Return a U-Net, large enough to fill the device."""
    torch.manual_seed(0)
    net = nets.small_unet(64, (128, 256, 512), 2, 32, 3) if device.type == "cuda" else nets.small_unet(16)
    return net.to(device, memory_format=torch.channels_last)


class Counted:
    """A model that counts forward passes, the images in them, and backward passes."""

    def __init__(self, model: Callable[..., Tensor]) -> None:
        self.model = model
        self.forward = self.images = self.backward = 0

    def __call__(self, x_t: Tensor, *others: Tensor) -> Tensor:
        """Call the model."""
        self.forward += 1
        self.images += len(x_t)
        output = self.model(x_t, *others)
        if output.requires_grad:
            output.register_hook(self._count)
        return output

    def _count(self, gradient: Tensor) -> None:
        self.backward += 1

    def text(self) -> str:
        """Return the counts as words."""
        return f"{self.forward} forward ({self.images} images), {self.backward} backward"
