"""The one training loop: any number of networks, moving averages, progress bar, atomic checkpoints, exact resume.

A run killed at any moment and started again ends with the same weights, bit for bit; on one process or on several.
"""

import json
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, nullcontext
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import broadcast
from torch import Tensor, nn
from tqdm.auto import tqdm

from lib.ground import checkpoint
from lib.ground.checkpoint import History, State
from lib.record.files import UserError, occupied, writable

__all__ = ["History", "train"]

Values = Mapping[str, float | Tensor]
FETCH = 10  # steps after which losses are read from the device
LATEST = 600.0  # seconds after which a run that saves at all saves, however slow its steps


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
    on_step: Callable[[int, History], None] | None = None,
    parameters: Mapping[str, Any] | None = None,
    accelerator: Accelerator | None = None,
) -> History:
    """Train networks in place for `steps` steps, or for those that a checkpoint in `folder` still lacks.

    Parameters
    ----------
    step
        ``step(batch)`` does the backward passes and optimizer steps and returns its losses by name.
    sample
        ``sample(generator)`` draws a batch, noise and timesteps included, from that CPU generator alone.
    modules, optimizers
        All that training changes, by name. An "optimizer" is anything with ``state_dict`` and ``load_state_dict``, so a
        learning-rate scheduler may be one.
    seed
        Of the generator and of torch's global random numbers inside the loop; those outside are left alone.
    ema
        Decay of the exponential moving average for each network that is to have one.
    folder
        Where checkpoints go: at the end, at Ctrl-C and every `save_every` steps or ten minutes (0: not in
        between). One run at a time.
    on_step
        ``on_step(i, history)`` after step i = 1, ..., steps, in every process, when that step is saved if it is to
        be. A resumed run begins with it for the step that it resumes from: it is done again, or for the first time.
    parameters
        Settings, as JSON, that a resumed run must share with its checkpoint.
    accelerator
        With several processes each draws its own batches, from a seed of its own (`stream`); `step` has to keep the
        networks equal, by averaging gradients over the processes. All begin with the weights of the main process, which
        alone writes and shows the progress. Networks may be prepared (wrapped) or not. `folder` must be one for all.

    Raises
    ------
    UserError
        A loss or weight that is not finite, a folder that cannot be written, a checkpoint that does not fit; the same
        one in all processes.
    KeyboardInterrupt
        At Ctrl-C, after the running step is finished and saved. With an accelerator also at SIGTERM; all processes
        stop when one of them is told to.
    """
    ema, rank, processes = dict(ema or {}), 0, 1
    if accelerator:
        modules = {name: accelerator.unwrap_model(module) for name, module in modules.items()}
        rank, processes = accelerator.process_index, accelerator.num_processes
    place = None if folder is None else writable(Path(folder))
    kinds = {name: type(optimizer).__name__ for name, optimizer in optimizers.items()}
    settings = {"seed": seed, "ema": ema, "optimizers": kinds, "processes": processes, **(parameters or {})}
    if processes > 1:
        for module in modules.values():
            for tensor in module.state_dict().values():  # buffers, too
                tensor.copy_(broadcast(tensor.contiguous()))
    averages = {name: {k: p.detach().clone() for k, p in modules[name].named_parameters()} for name in ema}
    own = stream(seed, rank)
    generator, shared = torch.Generator().manual_seed(own), json.loads(json.dumps(settings, default=str))
    history = History(ema=averages)
    run = State(modules, optimizers, ema, generator, shared, place, history, accelerator, rank, processes)
    lock = occupied(place) if place and rank == 0 else nullcontext()
    with lock, torch.random.fork_rng(devices=checkpoint.cuda_devices(modules)):
        torch.manual_seed(own)
        checkpoint.resume(run, steps)
        _loop(run, step, sample, steps, save_every, on_step)
    history.ema = {name: modules[name].state_dict() | average for name, average in history.ema.items()}
    return history


def stream(seed: int, rank: int) -> int:
    """Return the seed of a process: `seed` in the first; in others one that no neighbouring seed's process has."""
    return int(np.random.SeedSequence([seed, rank]).generate_state(1)[0]) if rank else seed


def _loop(run: State, step: Callable, sample: Callable, steps: int, save_every: int, on_step: Callable | None) -> None:
    history, began, saved = run.history, time.perf_counter() - run.history.seconds, time.monotonic()
    live = {name: [p.detach() for p in run.modules[name].parameters()] for name in run.decays}
    pairs = [(list(history.ema[name].values()), live[name], 1 - decay) for name, decay in run.decays.items()]
    quiet: dict[str, Any] = {"disable": True} if run.rank else {}  # else as TQDM_DISABLE says
    waiting: list[Values] = []  # of steps whose values are still on the device
    with (
        _deferred_interrupt(terminate=run.accelerator is not None) as interrupted,
        tqdm(total=steps, initial=run.step, leave=False, mininterval=0.5, **quiet) as bar,
    ):
        if on_step and run.step:
            on_step(run.step, history)  # what stopped the run may have come before it
        while run.step < steps:
            waiting.append(step(sample(run.generator)))
            for average, weights, share in pairs:
                torch._foreach_lerp_(average, weights, share)  # in place, one call for all tensors
            run.step += 1
            history.seconds = time.perf_counter() - began
            due = run.step == steps or bool(save_every and run.step % save_every == 0)
            stop = late = False
            if due or run.step % FETCH == 0:
                late = bool(save_every) and time.monotonic() - saved > LATEST
                stop, late = _fetch(waiting, [interrupted.is_set(), late], run)
                recent = {name: fmean(values[-50:]) for name, values in history.values.items()}
                bar.set_postfix(recent, refresh=False)
            if due or late:
                checkpoint.save(run)
                saved = time.monotonic()
            if on_step:
                on_step(run.step, history)
            bar.update()
            stop |= interrupted.is_set() and run.processes == 1  # several processes have to agree first, in `_fetch`
            if stop:
                if not (due or late):
                    _fetch(waiting, [stop, late], run)
                    checkpoint.save(run)
                raise KeyboardInterrupt


def _fetch(waiting: list[Values], flags: list[bool], run: State) -> list[bool]:
    """Move the values of some steps into the history, their mean over the processes; return flags that any has set.

    One read for all, because a GPU stops for each.
    """
    if not waiting:
        return flags
    names = list(waiting[0])
    device = next((v.device for v in waiting[0].values() if isinstance(v, Tensor)), torch.device("cpu"))
    values = [torch.as_tensor(v, dtype=torch.float64, device=device) for w in waiting for v in w.values()]
    rows = torch.stack(values).reshape(len(waiting), -1)  # (steps, values)
    if run.accelerator and run.processes > 1:
        set_ = [torch.full_like(rows[:1], float(flag)) for flag in flags]
        every = run.accelerator.gather(torch.cat([*set_, rows]).to(run.accelerator.device)[None]).cpu()
        flags = every[:, : len(flags), 0].any(0).tolist()
        every = every[:, len(flags) :]  # (processes, steps, values)
    else:
        every = rows.cpu()[None]
    for rank, i, k in (~every.isfinite()).nonzero().tolist()[:1]:
        where = f" in process {rank}" if run.processes > 1 else ""
        what = f"'{names[k]}' is {float(every[rank, i, k])}{where}"
        raise UserError(run.stopped(run.step - len(waiting) + 1 + i, what))
    for name, column in zip(names, every.mean(0).T.tolist(), strict=True):
        run.history.values.setdefault(name, []).extend(column)
    waiting.clear()
    return flags


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
    with ExitStack() as restore:
        for number, handler in usual.items():
            if main and signal.getsignal(number) is handler:
                restore.callback(signal.signal, number, signal.signal(number, note))
        yield pressed
