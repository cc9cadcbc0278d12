"""Checkpoints of the training loop: what they hold, how they are written and read, and who of several processes does.

A checkpoint is a folder ``step-000123`` that appears under its name by one rename, when all its files are on the disk;
then older ones and unfinished ones are deleted. The random states of all processes are collected
before the main one writes, so a folder under its final name always is the checkpoint of all of them.
"""

import io
import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor, nn

from lib.record.files import UserError, foreign, reading, replacing, sweep, write_atomic


@dataclass
class History:
    """What a training run leaves beside the trained networks.

    Attributes
    ----------
    values : dict of lists
        Each named value of `step`, one entry a step; with several processes their mean.
    ema : dict of state dicts
        Averaged weights of the networks named in `ema`.
    seconds : float
        Time spent training, summed over resumed runs.
    """

    values: dict[str, list[float]] = field(default_factory=dict)
    ema: dict[str, dict[str, Tensor]] = field(default_factory=dict)
    seconds: float = 0.0


@dataclass
class State:
    """Everything that training changes and a checkpoint holds, and the processes that share it."""

    modules: Mapping[str, nn.Module]
    optimizers: Mapping[str, Any]
    decays: Mapping[str, float]
    generator: torch.Generator
    parameters: dict[str, Any]
    folder: Path | None
    history: History
    accelerator: Accelerator | None
    rank: int  # of this process; 0 is the main one, which shows and writes
    processes: int  # that train together
    step: int = 0

    def agree(self, problem: str | None, item: Any) -> list[Any]:
        """Return the item of every process, in their order, or raise in all what is a problem in one; all call this."""
        answers = [(problem, item)] if self.processes == 1 else gather_object([(problem, item)])
        for found, _ in answers:
            if found:
                raise UserError(found)
        return [given for _, given in answers]

    def stopped(self, i: int, what: str) -> str:
        """Say why a run ends whose numbers are no longer finite."""
        found = newest(self.folder) if self.folder else None
        kept = f"the last good checkpoint is {found}" if found else "there is no checkpoint yet"
        return f"step {i}: {what}; training stopped, {kept}; a smaller learning rate may help"


def save(run: State) -> None:
    """Check the weights; write this step's checkpoint, switch to it by one rename, delete the older ones.

    With several processes all call this; the main one writes, the others wait for it.
    """
    random = run.agree(_not_finite(run), _random_state(run))
    if run.folder and run.rank == 0:
        _write(run, run.folder, random)
    if run.accelerator:
        run.accelerator.wait_for_everyone()


def resume(run: State, steps: int) -> None:
    """Put the newest checkpoint of the run's folder, if there is one, into `run`."""
    problem = None
    try:
        if run.folder and (found := newest(run.folder)):
            _load(run, found, steps)
    except UserError as error:
        problem = str(error)
    if len(set(run.agree(problem, run.step))) > 1:
        raise UserError(f"folder {run.folder}: processes find other checkpoints in it; give one that all of them share")


def newest(folder: Path) -> Path | None:
    """Return the checkpoint of the most steps in `folder`."""
    return max(_all(folder), key=lambda p: int(p.name[5:]), default=None)


def _all(folder: Path) -> list[Path]:
    return [path for path in folder.glob("step-*") if path.name[5:].isdecimal()]


def cuda_devices(modules: Mapping[str, nn.Module]) -> list[int]:
    """Return the GPUs that hold a parameter of the networks."""
    devices = {p.device for m in modules.values() for p in m.parameters()}
    return sorted(d.index or 0 for d in devices if d.type == "cuda")


def _files(run: State) -> dict[str, dict[str, Tensor]]:
    """Tensors of each safetensors file; they share memory with the networks and averages."""
    weights = {f"{name}.safetensors": module.state_dict() for name, module in run.modules.items()}
    return weights | {f"{name}.ema.safetensors": average for name, average in run.history.ema.items()}


def _not_finite(run: State) -> str | None:
    for name, tensors in _files(run).items():
        for key, value in tensors.items():
            if not torch.isfinite(value).all():
                return run.stopped(run.step, f"weight '{key}' of {name} is not finite")
    return None


def _random_state(run: State) -> dict[str, Any]:
    """State of this process's random numbers."""
    return {
        "generator": run.generator.get_state(),
        "torch_rng": torch.get_rng_state(),
        "cuda_rng": {device: torch.cuda.get_rng_state(device) for device in cuda_devices(run.modules)},
    }


def _write(run: State, folder: Path, random: list[dict[str, Any]]) -> None:
    state = {
        "step": run.step,
        "seconds": run.history.seconds,
        "parameters": json.dumps(run.parameters),
        "optimizers": {name: optimizer.state_dict() for name, optimizer in run.optimizers.items()},
        "history": {name: torch.tensor(v, dtype=torch.float64) for name, v in run.history.values.items()},
        **random[0],
        "others": random[1:],  # random states of the processes 1, 2, ...
    }
    torch.save(state, buffer := io.BytesIO())
    target = folder / f"step-{run.step:06d}"
    with replacing(target) as draft:
        for name, tensors in _files(run).items():
            packed = {key: value.cpu().contiguous() for key, value in tensors.items()}
            write_atomic(draft / name, safetensors.torch.save(packed))
        write_atomic(draft / "state.pt", buffer.getvalue())
        _flush(draft)
    _flush(folder)
    sweep(folder)  # a kill in between leaves half of one that nobody reads
    for path in _all(folder):
        if path != target and not foreign(path):
            shutil.rmtree(path, ignore_errors=True)


def _load(run: State, path: Path, steps: int) -> None:
    """Put the checkpoint `path` into `run`; all files are read and compared before anything is changed."""
    with reading(path / "state.pt", f"restore it, or delete {path} to start anew"):
        state = torch.load(path / "state.pt", weights_only=True, map_location="cpu")
    _compare(run, state, path, steps)
    loaded = {name: _read_like(path / name, tensors) for name, tensors in _files(run).items()}
    for name, optimizer in run.optimizers.items():
        try:
            optimizer.load_state_dict(state["optimizers"][name])
        except ValueError as error:
            raise UserError(f"{path / 'state.pt'}: optimizer '{name}' does not fit: {error}") from None
    for name, tensors in _files(run).items():
        for key, value in tensors.items():
            value.copy_(loaded[name][key])
    random = state if run.rank == 0 else state["others"][run.rank - 1]
    run.generator.set_state(random["generator"])
    torch.set_rng_state(random["torch_rng"])
    for device, rng in random["cuda_rng"].items():
        torch.cuda.set_rng_state(rng, device)
    run.history.values.update({name: v.tolist() for name, v in state["history"].items()})
    run.step, run.history.seconds = state["step"], state["seconds"]


def _compare(run: State, state: dict[str, Any], path: Path, steps: int) -> None:
    old, new = {"processes": 1} | json.loads(state["parameters"]), run.parameters
    for name in [*new, *(old.keys() - new.keys())]:
        if name != "steps" and old.get(name) != new.get(name):
            text = f"'{name}' is {new.get(name)!r} in this run, but the checkpoint was made with {old.get(name)!r}"
            raise UserError(f"{path}: {text}; use that value or another folder")
    if state["step"] > steps:
        raise UserError(f"{path}: holds {state['step']} steps, more than steps={steps}; ask for as many or start anew")


def _read_like(path: Path, expected: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors of a safetensors file that has exactly the names and shapes of `expected`."""
    with reading(path, f"restore it, or delete {path.parent} to start anew"):
        tensors = safetensors.torch.load_file(path)
    for name in [*expected, *(tensors.keys() - expected.keys())]:
        has, wants = (tuple(d[name].shape) if name in d else "absent" for d in (tensors, expected))
        if has != wants:
            raise UserError(f"{path}: weight '{name}' is {has}, this network wants {wants}; use the network it is of")
    return tensors


def _flush(folder: Path) -> None:
    if os.name == "nt":  # Windows opens no folder
        return
    handle = os.open(folder, os.O_RDONLY)
    os.fsync(handle)
    os.close(handle)
