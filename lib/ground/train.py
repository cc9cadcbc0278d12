"""The one training loop: any number of networks, moving averages, progress bar, atomic checkpoints, exact resume.

A run killed at any moment and started again ends with the same weights, bit for bit; on one process or on several.
"""

from __future__ import annotations

import json
import math
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from lib.ground import checkpoint
from lib.ground.checkpoint import History, State
from lib.record.files import UserError

if TYPE_CHECKING:
    from accelerate import Accelerator

__all__ = ["History", "train"]

Values = Mapping[str, float | Tensor]


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
    accelerator: Accelerator | None = None,
    history: History | None = None,
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
        ``on_step(i, values)`` after step i = 1, ..., steps, in every process.
    parameters : mapping, optional
        Settings, as JSON, that a resumed run must share with its checkpoint (an entry "steps" may differ).
    accelerator : Accelerator, optional
        With several processes each draws its own batches, from seed + its number; `step` has to keep the networks
        equal, by averaging gradients over the processes. All begin with the weights of the main process, which alone
        writes and shows the progress. Networks may be prepared (wrapped) or not. `folder` must be one for all.
    history : History, optional
        An empty one to fill, so that `on_step` can look at it; there `ema` holds the averages of the parameters.

    Returns
    -------
    History

    Raises
    ------
    UserError
        A loss or weight that is not finite, a folder that cannot be written, a checkpoint that does not fit; the same
        one in all processes.
    KeyboardInterrupt
        At Ctrl-C, after the running step is finished and saved. With an accelerator also at SIGTERM; all processes
        stop when one of them is told to.
    """
    ema = dict(ema or {})
    if unknown := ema.keys() - modules.keys():
        raise UserError(f"ema: there is no network '{min(unknown)}'; choose from {', '.join(modules)}")
    if accelerator:
        modules = {name: accelerator.unwrap_model(module) for name, module in modules.items()}
    place = None if folder is None else checkpoint.writable(Path(folder))
    run = State(modules, optimizers, ema, torch.Generator(), {}, place, history or History(), accelerator)
    run.generator.manual_seed(seed + run.rank)
    kinds = {name: type(optimizer).__name__ for name, optimizer in optimizers.items()}
    settings = {"seed": seed, "ema": ema, "optimizers": kinds, "processes": run.processes, **(parameters or {})}
    run.parameters = json.loads(json.dumps(settings, default=str))
    _begin_equal(run)
    for name in ema:
        run.history.ema[name] = {k: p.detach().clone() for k, p in modules[name].named_parameters()}
    with torch.random.fork_rng(devices=checkpoint.cuda_devices(modules)):
        torch.manual_seed(seed + run.rank)
        if place and resume:
            checkpoint.resume(run, steps)
        elif place and run.rank == 0:
            checkpoint.delete(place.glob(checkpoint.NAMES))
        _loop(run, step, sample, steps, save_every, progress, on_step)
    run.history.ema = {name: modules[name].state_dict() | average for name, average in run.history.ema.items()}
    return run.history


def _begin_equal(run: State) -> None:
    """Give every process the weights and buffers of the main one."""
    if run.processes == 1:
        return
    from accelerate.utils import broadcast

    for module in run.modules.values():
        for tensor in module.state_dict().values():
            tensor.copy_(broadcast(tensor.contiguous()))


def _loop(
    run: State, step: Callable, sample: Callable, steps: int, save_every: int, progress: bool, on_step: Callable | None
) -> None:
    history, before, began = run.history, run.history.seconds, time.perf_counter()
    live = {name: [p.detach() for p in run.modules[name].parameters()] for name in run.decays}
    pairs = [(list(history.ema[name].values()), live[name], 1 - decay) for name, decay in run.decays.items()]
    alone = run.processes == 1
    with (
        _deferred_interrupt(terminate=run.accelerator is not None) as interrupted,
        tqdm(total=steps, initial=run.step, disable=not progress or run.rank > 0, mininterval=0.5) as bar,
    ):
        while run.step < steps:
            values, stop = _agreed(step(sample(run.generator)), interrupted.is_set(), run)
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
            if alone:
                stop = interrupted.is_set()  # several processes hear of it after the next step
            if stop or run.step == steps or (save_every and run.step % save_every == 0):
                checkpoint.save(run)
            if stop:
                raise KeyboardInterrupt


def _agreed(values: Values, stop: bool, run: State) -> tuple[dict[str, float], bool]:
    """Values as floats, their mean over the processes, and whether any of these is to stop; so all stop together."""
    numbers = {name: v.item() if isinstance(v, Tensor) else float(v) for name, v in values.items()}
    if run.accelerator is None or run.processes == 1:
        _check(numbers, run)
        return numbers, stop
    row = torch.tensor([stop, *numbers.values()], dtype=torch.float64, device=run.accelerator.device)
    rows = run.accelerator.gather(row).view(run.processes, -1).cpu()  # (processes, 1 + values)
    for rank, others in enumerate(rows[:, 1:].tolist()):
        _check(dict(zip(numbers, others, strict=True)), run, f" in process {rank}")
    return dict(zip(numbers, rows[:, 1:].mean(0).tolist(), strict=True)), bool(rows[:, 0].any())


def _check(values: dict[str, float], run: State, where: str = "") -> None:
    """End the run at a value that is not finite."""
    for name, number in values.items():
        if not math.isfinite(number):
            raise run.stopped(run.step + 1, f"'{name}' is {number}{where}")


def _recent(history: History, window: int = 50) -> str:
    means = {name: sum(v[-window:]) / len(v[-window:]) for name, v in history.values.items()}
    return ", ".join(f"{name} {mean:.4g}" for name, mean in means.items())


@contextmanager
def _deferred_interrupt(terminate: bool) -> Iterator[threading.Event]:
    """Make Ctrl-C wait for the end of the running step, so that no half-made update is saved; a second one does not.

    If `terminate`, the SIGTERM by which launchers and clusters stop their processes waits likewise, however often.
    """
    pressed = threading.Event()

    def note(number: int, frame: Any) -> None:
        if pressed.is_set() and number == signal.SIGINT:
            raise KeyboardInterrupt
        pressed.set()

    usual = {signal.SIGINT: signal.default_int_handler} | ({signal.SIGTERM: signal.SIG_DFL} if terminate else {})
    # Another handler, or another thread than the main one: their business.
    main = threading.current_thread() is threading.main_thread()
    ours = {number: handler for number, handler in usual.items() if main and signal.getsignal(number) is handler}
    for number in ours:
        signal.signal(number, note)
    try:
        yield pressed
    finally:
        for number, handler in ours.items():
            signal.signal(number, handler)
