"""The one training loop: any number of networks, moving averages, progress bar, atomic checkpoints, exact resume.

A checkpoint is a folder ``step-000123`` that appears under its name by one rename, when all its files are on the disk;
then older ones are deleted. A run killed at any moment and started again ends with the same weights, bit for bit.
"""

from __future__ import annotations

import io
import json
import math
import os
import shutil
import signal
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from lib.parameters import UserError

Values = Mapping[str, float | Tensor]
NAMES = "step-[0-9]*"  # checkpoints; an unfinished one ends in .tmp


@dataclass
class History:
    """What a training run leaves beside the trained networks.

    Attributes
    ----------
    values : dict of lists
        Each named value of `step`, one entry a step.
    ema : dict of state dicts
        Averaged weights of the networks named in `ema`.
    seconds : float
        Time spent training, summed over resumed runs.
    """

    values: dict[str, list[float]] = field(default_factory=dict)
    ema: dict[str, dict[str, Tensor]] = field(default_factory=dict)
    seconds: float = 0.0


@dataclass
class _Run:
    """Everything that training changes and a checkpoint holds."""

    modules: Mapping[str, nn.Module]
    optimizers: Mapping[str, Any]
    decays: Mapping[str, float]
    averages: dict[str, dict[str, Tensor]]
    generator: torch.Generator
    parameters: dict[str, Any]
    folder: Path | None
    history: History = field(default_factory=History)
    step: int = 0


def train(
    step: Callable[[Any], Values],
    sample: Callable[[torch.Generator], Any],
    modules: Mapping[str, nn.Module],
    optimizers: Mapping[str, Any],
    steps: int,
    seed: int = 0,
    ema: Mapping[str, float] | None = None,
    folder: str | Path | None = None,
    save_every: int = 0,
    resume: bool = True,
    progress: bool = True,
    on_step: Callable[[int, dict[str, float]], None] | None = None,
    parameters: Mapping[str, Any] | None = None,
) -> History:
    """Train networks in place for `steps` steps, or for those that a checkpoint in `folder` still lacks.

    Parameters
    ----------
    step : callable
        ``step(batch)`` does the backward passes and optimizer steps and returns its losses by name.
    sample : callable
        ``sample(generator)`` draws a batch, noise and timesteps included, from that CPU generator alone.
    modules, optimizers : mappings by name
        All that training changes. An "optimizer" is anything with ``state_dict`` and ``load_state_dict``, so a
        learning-rate scheduler may be one.
    seed : int
        Seed of the generator and of torch's global random numbers inside the loop; those outside are left alone.
    ema : mapping, optional
        Decay of the exponential moving average for each network that is to have one.
    folder : path, optional
        Where checkpoints go: at the end, at Ctrl-C and every `save_every` steps (0: not in between).
    resume : bool
        Continue from the checkpoint in `folder`; false deletes it and starts anew.
    on_step : callable, optional
        ``on_step(i, values)`` after step i = 1, ..., steps.
    parameters : mapping, optional
        Settings, as JSON, that a resumed run must share with its checkpoint (an entry "steps" may differ).

    Returns
    -------
    History

    Raises
    ------
    UserError
        A loss or weight that is not finite, a folder that cannot be written, a checkpoint that does not fit.
    KeyboardInterrupt
        At Ctrl-C, after the running step is finished and saved.
    """
    ema = dict(ema or {})
    if unknown := ema.keys() - modules.keys():
        raise UserError(f"ema: there is no network '{min(unknown)}'; choose from {', '.join(modules)}")
    averages = {name: {k: p.detach().clone() for k, p in modules[name].named_parameters()} for name in ema}
    kinds = {name: type(optimizer).__name__ for name, optimizer in optimizers.items()}
    settings = {"seed": seed, "ema": ema, "optimizers": kinds, **(parameters or {})}
    settings = json.loads(json.dumps(settings, default=str))
    place = None if folder is None else _writable(Path(folder))
    run = _Run(modules, optimizers, ema, averages, torch.Generator().manual_seed(seed), settings, place)
    with torch.random.fork_rng(devices=_cuda_devices(modules)):
        torch.manual_seed(seed)
        if place and resume and (found := _newest(place)):
            _load(run, found, steps)
        elif place:
            _delete(place.glob(NAMES))
        _loop(run, step, sample, steps, save_every, progress, on_step)
    run.history.ema = {name: modules[name].state_dict() | average for name, average in averages.items()}
    return run.history


def _loop(
    run: _Run, step: Callable, sample: Callable, steps: int, save_every: int, progress: bool, on_step: Callable | None
) -> None:
    history, before, began = run.history, run.history.seconds, time.perf_counter()
    live = {name: [p.detach() for p in run.modules[name].parameters()] for name in run.decays}
    pairs = [(list(run.averages[name].values()), live[name], 1 - decay) for name, decay in run.decays.items()]
    with (
        _deferred_interrupt() as interrupted,
        tqdm(total=steps, initial=run.step, disable=not progress, mininterval=0.5) as bar,
    ):
        while run.step < steps:
            values = _finite(step(sample(run.generator)), run)
            for average, weights, share in pairs:
                torch._foreach_lerp_(average, weights, share)  # in place, one call for all tensors
            for name, value in values.items():
                history.values.setdefault(name, []).append(value)
            run.step += 1
            history.seconds = before + time.perf_counter() - began
            if on_step:
                on_step(run.step, values)
            if bar.update():
                bar.set_postfix_str(_recent(history), refresh=False)
            if interrupted.is_set() or run.step == steps or (save_every and run.step % save_every == 0):
                _save(run)
            if interrupted.is_set():
                raise KeyboardInterrupt


def _finite(values: Values, run: _Run) -> dict[str, float]:
    """Values as floats; one that is not finite ends the run."""
    numbers = {name: v.item() if isinstance(v, Tensor) else float(v) for name, v in values.items()}
    for name, number in numbers.items():
        if not math.isfinite(number):
            raise _stopped(run, run.step + 1, f"'{name}' is {number}")
    return numbers


def _stopped(run: _Run, i: int, what: str) -> UserError:
    found = _newest(run.folder) if run.folder else None
    kept = f"the last good checkpoint is {found}" if found else "there is no checkpoint yet"
    return UserError(f"step {i}: {what}; training stopped, {kept}; a smaller learning rate may help")


def _recent(history: History, window: int = 50) -> str:
    means = {name: sum(v[-window:]) / len(v[-window:]) for name, v in history.values.items()}
    return ", ".join(f"{name} {mean:.4g}" for name, mean in means.items())


@contextmanager
def _deferred_interrupt() -> Iterator[threading.Event]:
    """Make Ctrl-C wait for the end of the running step, so that no half-made update is saved; a second one does not."""
    pressed = threading.Event()

    def note(number: int, frame: Any) -> None:
        if pressed.is_set():
            raise KeyboardInterrupt
        pressed.set()

    # Another handler, or another thread than the main one: their business.
    ours = threading.current_thread() is threading.main_thread()
    ours = ours and signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if ours:
        signal.signal(signal.SIGINT, note)
    try:
        yield pressed
    finally:
        if ours:
            signal.signal(signal.SIGINT, signal.default_int_handler)


def _files(run: _Run) -> dict[str, dict[str, Tensor]]:
    """Tensors of each safetensors file; they share memory with the networks and averages."""
    weights = {f"{name}.safetensors": module.state_dict() for name, module in run.modules.items()}
    return weights | {f"{name}.ema.safetensors": average for name, average in run.averages.items()}


def _save(run: _Run) -> None:
    """Check the weights; write this step's checkpoint, switch to it by one rename, delete the older ones."""
    for name, tensors in _files(run).items():
        for key, value in tensors.items():
            if not torch.isfinite(value).all():
                raise _stopped(run, run.step, f"weight '{key}' of {name} is not finite")
    if not run.folder or (target := run.folder / f"step-{run.step:06d}").exists():
        return
    draft = target.with_suffix(".tmp")
    _delete([draft])
    draft.mkdir()
    for name, tensors in _files(run).items():
        packed = {key: value.cpu().contiguous() for key, value in tensors.items()}
        _write(draft / name, safetensors.torch.save(packed))
    buffer = io.BytesIO()
    torch.save(_state(run), buffer)
    _write(draft / "state.pt", buffer.getvalue())
    _flush(draft)
    draft.rename(target)
    _flush(run.folder)
    _delete(path for path in run.folder.glob(NAMES) if path != target)


def _state(run: _Run) -> dict[str, Any]:
    return {
        "step": run.step,
        "seconds": run.history.seconds,
        "parameters": json.dumps(run.parameters),
        "optimizers": {name: optimizer.state_dict() for name, optimizer in run.optimizers.items()},
        "generator": run.generator.get_state(),
        "torch_rng": torch.get_rng_state(),
        "cuda_rng": {device: torch.cuda.get_rng_state(device) for device in _cuda_devices(run.modules)},
        "history": {name: torch.tensor(v, dtype=torch.float64) for name, v in run.history.values.items()},
    }


def _load(run: _Run, path: Path, steps: int) -> None:
    """Put the checkpoint `path` into `run`; all files are read and compared before anything is changed."""
    state = _read(path / "state.pt", lambda file: torch.load(file, weights_only=True, map_location="cpu"))
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
    run.generator.set_state(state["generator"])
    torch.set_rng_state(state["torch_rng"])
    for device, rng in state["cuda_rng"].items():
        torch.cuda.set_rng_state(rng, device)
    values = {name: v.tolist() for name, v in state["history"].items()}
    run.step, run.history = state["step"], History(values, seconds=state["seconds"])


def _compare(run: _Run, state: dict[str, Any], path: Path, steps: int) -> None:
    old, new = json.loads(state["parameters"]), run.parameters
    for name in [*new, *(old.keys() - new.keys())]:
        if name != "steps" and old.get(name) != new.get(name):
            text = f"'{name}' is {new.get(name)!r} in this run, but the checkpoint was made with {old.get(name)!r}"
            raise UserError(f"{path}: {text}; use that value, another folder, or resume=False")
    if state["step"] > steps:
        raise UserError(f"{path}: holds {state['step']} steps, more than steps={steps}; ask for as many or start anew")


def _read(path: Path, reader: Callable[[Path], Any]) -> Any:
    try:
        return reader(path)
    except FileNotFoundError:
        why = "missing from the checkpoint"
    except Exception as error:  # the libraries report a damaged file in many ways
        why = f"truncated or damaged ({type(error).__name__})"
    raise UserError(f"{path}: {why}; restore it, or delete {path.parent} to start anew")


def _read_like(path: Path, expected: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors of a safetensors file that has exactly the names and shapes of `expected`."""
    tensors = _read(path, safetensors.torch.load_file)
    for name in [*expected, *(tensors.keys() - expected.keys())]:
        has, wants = (tuple(d[name].shape) if name in d else "absent" for d in (tensors, expected))
        if has != wants:
            raise UserError(f"{path}: weight '{name}' is {has}, this network wants {wants}; use the network it is of")
    return tensors


def _writable(folder: Path) -> Path:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return folder
    except OSError as error:
        raise UserError(f"folder {folder}: cannot be written ({error.strerror}); give one that can") from None


def _newest(folder: Path) -> Path | None:
    return max((p for p in folder.glob(NAMES) if not p.suffix), key=lambda p: int(p.name[5:]), default=None)


def _delete(paths: Any) -> None:
    """Delete checkpoints; each loses its name first, so that a kill in between leaves no half of one."""
    for path in list(paths):
        if path.suffix != ".tmp":
            path = path.rename(path.with_suffix(".tmp"))
        shutil.rmtree(path, ignore_errors=True)


def _write(path: Path, data: bytes) -> None:
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _flush(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    os.fsync(handle)
    os.close(handle)


def _cuda_devices(modules: Mapping[str, nn.Module]) -> list[int]:
    devices = {p.device for m in modules.values() for p in m.parameters()}
    return sorted(d.index or 0 for d in devices if d.type == "cuda")
