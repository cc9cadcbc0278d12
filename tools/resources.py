"""What a job of the DAG asks for: one GPU where the profile needs it, memory and time by what earlier runs recorded.

A job goes by the notebook that it belongs to, so that any rule that does a part of a notebook's work can ask the same.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tools.notebooks import recorded

MARGIN = 3  # other machines are slower, other seeds larger
LEAST = {"mem_mb": 4_000, "runtime": 30}  # runtime in minutes
UNKNOWN = {"mem_mb": 16_000, "runtime": 24 * 60}  # where no run of this profile is committed


def resources(name: str, profile: str) -> dict[str, Any]:
    """Return what a job of notebook `name` asks for, in Snakemake's words."""
    run = recorded(name, profile)
    used = {"mem_mb": 1000 * run["peak_memory_gb"], "runtime": run["seconds"] / 60} if run else {}
    wanted = {key: max(LEAST[key], MARGIN * used[key]) if used else UNKNOWN[key] for key in LEAST}
    return {"gpu": int(profile in ("gpu", "paper"))} | {key: growing(round(value)) for key, value in wanted.items()}


def growing(amount: int) -> Callable[..., int]:
    """Return a resource that grows with each attempt: what ended for want of it has more the next time."""
    return lambda wildcards, attempt: amount * attempt
