"""One job from settings to folder: a model, a sheet of pictures, metrics, logs and checkpoints.

``python -m lib.jobs.job job.json`` runs the settings in a file, on one process or several. A notebook on several
processes starts exactly that as a new program: its own kernel may have touched the GPU, and such a process cannot be
forked.
"""

import hashlib
import json
import os
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

from lib.ground import folder
from lib.ground.batching import enough_memory
from lib.ground.folder import Read
from lib.jobs import kinds, methods
from lib.jobs.gate import SETTINGS, Opened, check
from lib.jobs.settings import Job, read_settings
from lib.record.files import (
    MARK,
    UserError,
    occupied,
    replacing,
    room,
    sweep,
    tell_of_another_lib,
    writable,
    write_atomic,
)

METRICS = "metrics.json"


def run(s: Job, opened: Opened | None = None) -> dict[str, Any]:
    """Do a job, or what is left of it, and return its metrics; `opened` is what the gate found, if it was asked before.

    The folder ``out`` then holds ``model`` (diffusers' layout; with an adaptor the source's weights and the adaptor
    beside them, see `lib.jobs.hub.source`), ``samples`` (PNG files), ``samples.png`` (source and student from equal
    noise, nearest training images), ``metrics.json``, ``logs`` (TensorBoard), ``checkpoints`` and ``job.json``; if it
    was asked to score, also ``best``, the model of the lowest score. RDMD leaves instead, for each lambda,
    ``translators/LAMBDA`` (see `lib.jobs.translation.load`) and ``translated/LAMBDA``, and ``translations.png``. A job
    that was stopped goes on from its newest checkpoint; one that is finished is not done again. With several processes,
    and unless it is one of them, this starts them.

    Raises
    ------
    UserError
        What `lib.jobs.gate.check` refuses; another job in ``out``; disk or memory full; training failed.
    """
    member = "WORLD_SIZE" in os.environ
    if not opened:
        opened = check(s)
        if not member:
            print(opened)
    if finished := _finished(s, opened):
        if not member:
            print(f"{s.out}: this job is finished; set another out to do it again")
        return finished
    writable(s.out)
    with occupied(s.out, member), room(s.out), enough_memory("batch, or take accumulate, precision bf16"):
        if not member:
            _begin(s, opened)
        if s.processes > 1 and not member:
            launch(s.out / SETTINGS, s.processes)
        else:
            _work(s, opened)
    return json.loads((s.out / METRICS).read_text(encoding="utf-8"))


def anew(s: Job, opened: Opened) -> dict[str, Any]:
    """Do a job from its beginning, and put its folder in the place of an earlier one's."""
    opened = opened._replace(reads={name: read._replace(kept=None) for name, read in opened.reads.items()})
    with replacing(s.out) as draft:
        return run(s.model_copy(update={"out": draft}), opened)


def _begin(s: Job, opened: Opened) -> None:
    """Make the folder this job's, and put down what its processes read."""
    if not (s.out / MARK).is_file():
        write_atomic(s.out / MARK, "[]")
    for place in [s.out, *filter(Path.is_dir, s.out.rglob("*"))]:
        sweep(place)
    write_atomic(s.out / SETTINGS, json.dumps(s.model_dump(mode="json"), indent=1) + "\n")
    for read in opened.reads.values():
        folder.keep(read)


def launch(path: Path, processes: int) -> None:
    """Run the job file `path` on several processes of this machine, whose output goes where that of this one goes.

    torch's own launcher serves GPUs and processors alike, where accelerate's wants MPI for processors.

    Raises
    ------
    UserError
        They ended with an error, which they have printed.
    KeyboardInterrupt
        At Ctrl-C and SIGTERM, after they have saved a checkpoint.
    """
    launcher = ["torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
    command = [sys.executable, "-m", *launcher, "-m", "lib.jobs.job", str(path)]
    # In a session of their own: Ctrl-C reaches them once, from the launcher; a second one would not wait for the step.
    child = subprocess.Popen(command, start_new_session=True)
    usual = signal.getsignal(signal.SIGTERM)
    try:
        with suppress(ValueError):  # not in the main thread
            signal.signal(signal.SIGTERM, signal.default_int_handler)
        code = child.wait()
    except KeyboardInterrupt:
        child.send_signal(signal.SIGINT)
        child.wait()
        raise
    finally:
        with suppress(ValueError):
            signal.signal(signal.SIGTERM, usual)
    if code:
        raise UserError(f"processes: the job ended with an error on {processes} processes; its lines are above")


def _digest(found: Read) -> str:
    """Return a checksum of the images."""
    return hashlib.sha256(found.images.numpy().tobytes()).hexdigest()[:16]


def _finished(s: Job, opened: Opened) -> dict[str, Any] | None:
    """Return the metrics of a job that was done with just these settings, images and model."""
    try:
        metrics = json.loads((s.out / METRICS).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    same = metrics["settings"] == s.model_dump(mode="json") and metrics.get("inputs") == _inputs(s, opened)
    return metrics if same and (s.out / kinds.of(s).results(s)[0]).is_dir() else None


def _inputs(s: Job, opened: Opened) -> dict[str, str]:
    source, _ = kinds.of(s).identity(opened.source)
    return {"source": source} | {name: _digest(read) for name, read in opened.reads.items()}


def _work(s: Job, opened: Opened) -> None:
    """Train, and in the main process write everything down."""
    _, device = kinds.of(s).identity(opened.source)
    accelerator, inputs = methods.accelerator(s, device), _inputs(s, opened)
    if accelerator.num_processes != s.processes:
        raise UserError(f"processes: {s.processes} in the job, but {accelerator.num_processes} were launched")
    found = kinds.of(s).work(s, opened.source, opened.reads, inputs, accelerator)
    if accelerator.is_main_process:
        about = {"settings": s.model_dump(mode="json"), "inputs": inputs}
        write_atomic(s.out / METRICS, json.dumps(about | found, indent=1) + "\n")
    accelerator.wait_for_everyone()
    accelerator.end_training()


def main(arguments: list[str]) -> int:
    """Run the job file named on the command line; an error is one line."""
    try:
        if len(arguments) != 1:
            raise UserError("usage: python -m lib.jobs.job JOB.json")
        tell_of_another_lib()
        run(read_settings(arguments[0]))
    except UserError as error:
        if int(os.environ.get("RANK", 0)) == 0:  # all processes come upon the same one
            print(error, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("stopped; the same command goes on from the checkpoint", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
