"""What the sections of the bench share: fair timing, rows of the table, counting of network calls.

Everything is a ratio of two things measured in the same process in turns, so that a slower machine or a busy one
changes both. On a CPU processor time is counted, on a GPU the wall time between two synchronisations.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from lib.record.timing import interleaved, ratio, seconds

__all__ = ["Counted", "Row", "interleaved", "options", "ratio", "row", "seconds", "table"]

Row = dict[str, Any]  # what, value, unit, goal (text), met (True, False or None without a goal), note


def row(
    what: str, value: float, unit: str = "", most: float | None = None, least: float | None = None, note: str = ""
) -> Row:
    """Return a row of the table; `most` or `least` is the goal."""
    bound, sign = (most, "at most") if most is not None else (least, "at least")
    met = None if bound is None else bool(value <= bound if most is not None else value >= bound)
    goal = "" if bound is None else f"{sign} {bound:g}"
    return {"what": what, "value": float(value), "unit": unit, "goal": goal, "met": met, "note": note}


class Counted:
    """A model ``model(x_t, t)`` that counts forward passes, the images in them, and backward passes."""

    def __init__(self, model: Callable[[Tensor, Tensor], Tensor]) -> None:
        self.model = model
        self.forward = self.images = self.backward = 0

    def __call__(self, x_t: Tensor, t: Tensor) -> Tensor:
        """Call the model."""
        self.forward += 1
        self.images += len(x_t)
        output = self.model(x_t, t)
        if output.requires_grad:
            output.register_hook(self._count)
        return output

    def _count(self, gradient: Tensor) -> None:
        self.backward += 1

    def text(self) -> str:
        """Return the counts as words."""
        return f"{self.forward} forward ({self.images} images), {self.backward} backward"


def table(title: str, rows: list[Row]) -> str:
    """Return the rows as text."""
    lines = [title]
    for found in rows:
        met = {True: "met", False: "NOT MET", None: ""}[found["met"]]
        goal = f"{found['goal']}, {met}" if met else ""
        lines.append(f"  {found['what']:64}{found['value']:12.4g} {found['unit']:14}{goal}")
        if found["note"]:
            lines.append(f"      {found['note']}")
    return "\n".join(lines)


def options(description: str | None) -> argparse.Namespace:
    """Read the arguments that every section has; on a CPU one thread is used."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"), help="where to measure (default: cpu)")
    parser.add_argument("--rounds", type=int, default=0, help="turns of each run (default: what the section needs)")
    parsed = parser.parse_args()
    if parsed.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: no GPU is visible here")
    torch.set_num_threads(1)
    parsed.device = torch.device(parsed.device)
    return parsed
