"""Compute replicates of an experiment before its notebook runs, which then finds them: one job of the DAG."""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Callable
from typing import Any

import jupytext

from lib.record import run as record
from lib.record.files import UserError
from tools import devices
from tools.notebooks import Block, blocks, parameters, paths


def started(name: str, profile: str) -> record.Run:
    """Return the run of a notebook as its parameters cell begins it, without the rest of the notebook."""
    cells = jupytext.read(paths()[name]).cells
    namespace: dict[str, Any] = {"__annotations__": {}}
    source = next(cell.source for cell in cells if "parameters" in cell.metadata.get("tags", []))
    exec(compile(source, f"{name}: parameters", "exec", dont_inherit=True), namespace)
    given = {key: namespace[key] for key in namespace["__annotations__"]} | parameters(name, profile)
    return record.start(name, {"__annotations__": namespace["__annotations__"], **given})


def named(place: str) -> Any:
    """Return a function that is named `module:function`."""
    module, function = place.split(":")
    return getattr(importlib.import_module(module), function)


def opened(job: Block) -> tuple[Callable[..., Any], dict[str, Any]]:
    """Return the experiment of a job, and how `run.replicates` is to measure it."""
    worlds = {key: named(place) for key, place in {"world": job.world, "own": job.own}.items() if place}
    return named(f"{job.module}:{job.function}"), {**worlds, "block": job.block}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name", help="a notebook")
    parser.add_argument("function", help="an experiment, or MODULE:FUNCTION that trains what it needs")
    parser.add_argument("seed", type=int, help="the first of the job's seeds")
    parser.add_argument("--profile", default="cpu")
    parser.add_argument("--gpus", type=int, default=0, choices=(0, 1))
    arguments = parser.parse_args()
    if arguments.gpus:
        devices.take(devices.visible())
    try:
        run = started(arguments.name, arguments.profile)
        if ":" in arguments.function:
            named(arguments.function)(run.parameters, arguments.seed)
            return 0
        job = next(
            block
            for block in blocks(arguments.name, arguments.profile)
            if (block.function, block.seeds[0]) == (arguments.function, arguments.seed)
        )
        measure, how = opened(job)
        run.replicates(measure, **how, seeds=job.seeds)
    except UserError as error:
        print(f"{arguments.name}: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
