"""One fine-tuning job from settings to folder: a model, a sample sheet, metrics, logs and checkpoints.

``python -m lib.jobs.job job.json`` runs the settings in a file, on one process or several. A notebook on several
processes starts exactly that as a new program: its own kernel may have touched the GPU, and such a process cannot be
forked.
"""

from __future__ import annotations

import codecs
import contextlib
import hashlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from lib.ground.finetune import best, finetune
from lib.ground.folder import Read, listed
from lib.ground.noised_classifier import NoisedClassifier, train_noised
from lib.jobs import hub, methods
from lib.jobs.estimate import estimate
from lib.jobs.hub import Source
from lib.jobs.methods import GUIDED, Student, student
from lib.jobs.settings import FREE, Settings, read_settings
from lib.papers.ant.adaptor import Adaptor
from lib.record.files import UserError, write_atomic

__all__ = ["device_of", "estimate", "images", "launch", "load", "main", "run"]

CLASSIFIER, SETTINGS, METRICS = "classifier.safetensors", "job.json", "metrics.json"
LAUNCHED = "COMPANION_JOB_LAUNCHED"  # set for the processes of a job, so that none launches others
SOURCE_STEPS = 50  # ancestral steps of the source's samples that the classifier learns from


def run(s: Settings, progress: bool = True) -> dict[str, Any]:
    """Do a job, or what is left of it, and return its metrics.

    The folder ``out`` then holds ``model`` (diffusers' layout; with an adaptor the source's weights and the adaptor
    beside them, see `load`), ``samples`` (PNG files), ``samples.png`` (source and student from equal noise, nearest
    training images), ``metrics.json``, ``logs`` (TensorBoard), ``checkpoints`` and ``job.json``; if it was asked to
    score, also ``best``, the model of the lowest score. A job that was stopped
    goes on from its newest checkpoint; one that is finished is not done again.

    With more processes than one, and unless it is one of them, this starts ``python -m lib.jobs.job`` by accelerate's
    launcher and passes its output on.

    Raises
    ------
    UserError
        Source or images cannot be loaded; ``out`` holds a job with other settings; training failed.
    """
    out = Path(s.out).expanduser()
    _same_job(s, out)
    device = device_of(s)
    joined = "WORLD_SIZE" in os.environ
    source = hub.source(s.source, "cpu" if s.processes > 1 and not joined else device)
    if source.adaptor:
        raise UserError(f"source: {s.source} holds an adaptor; give the model that it was trained beside")
    found = images(s, source)
    print_once = print if int(os.environ.get("RANK", 0)) == 0 else lambda _: None
    for note in (*source.notes, *found.hints, *([f"skipped: {listed(found.skipped)}"] if found.skipped else [])):
        print_once(note)
    finished = _finished(s, out, found)
    if finished is not None:
        print_once(f"{out}: this job is finished; set another out to do it again")
        return finished
    write_atomic(out / SETTINGS, s.model_dump_json(indent=1) + "\n")
    if s.processes > 1 and not joined:
        launch(out / SETTINGS, s.processes, device)
        return json.loads((out / METRICS).read_text(encoding="utf-8"))
    return _work(s, out, source, found, device, progress)


def images(s: Settings, source: Source) -> Read:
    """Read the job's images at the source's size; a copy is kept in ``out/cache``."""
    size, channels = source.unet.config["sample_size"], source.unet.config["in_channels"]
    if not isinstance(size, int):
        size = size[0]
    options: dict[str, Any] = {"damaged": s.damaged, "recursive": s.recursive, "split": s.split, "column": s.column}
    return hub.target(s.images, size, channels, cache=Path(s.out).expanduser() / "cache", **options)


def load(folder: str | Path, device: torch.device | str = "cpu") -> Source:
    """Load the model of a job (``out/model``), with its adaptor if it has one; the same as `lib.jobs.hub.source`."""
    return hub.source(folder, device, parameter="folder")


def launch(path: Path, processes: int, device: torch.device | str = "cpu") -> None:
    """Run the job file `path` on several processes of this machine by accelerate, and pass their output on.

    Raises
    ------
    UserError
        They ended with an error, which they have printed.
    KeyboardInterrupt
        At Ctrl-C, after they have saved a checkpoint.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    if torch.device(device).type == "cuda":
        command = [
            "accelerate.commands.launch",
            "--multi_gpu",
            "--num_processes",
            str(processes),
            "--num_machines",
            "1",
        ]
        command += ["--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", str(port)]
    else:  # on processors accelerate's launcher wants MPI; torch's own does without, and sets the same variables
        command = ["torch.distributed.run", "--nproc_per_node", str(processes), "--master_port", str(port)]
    command = [sys.executable, "-m", *command, "-m", "lib.jobs.job", str(path)]
    if os.environ.get(LAUNCHED):
        raise UserError("processes: the launcher started this program without telling it of the others")
    child = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
        env=os.environ | {LAUNCHED: "1"},
    )
    assert child.stdout
    decode = codecs.getincrementaldecoder("utf-8")("replace").decode
    stopped = False
    while True:
        try:
            part = os.read(child.stdout.fileno(), 65536)
        except KeyboardInterrupt:
            stopped = True
            child.send_signal(signal.SIGINT)  # the launcher tells the processes, which save and end
            continue
        if not part:
            break
        sys.stdout.write(decode(part))
        sys.stdout.flush()
    if stopped:
        child.wait()
        raise KeyboardInterrupt
    if child.wait():
        raise UserError(f"processes: the job ended with an error on {processes} processes; its lines are above")


def device_of(s: Settings) -> torch.device:
    """Return the device of this process of a job.

    Raises
    ------
    UserError
        CUDA is asked for and there is none, or more processes than GPUs.
    """
    there = torch.cuda.is_available()
    if s.device == "cuda" and not there:
        raise UserError("device: 'cuda' given, but this machine offers none; use cpu or auto")
    if s.device == "cpu" or not there:
        return torch.device("cpu")
    if s.processes > torch.cuda.device_count():
        raise UserError(f"processes: {s.processes} given, but this machine has {torch.cuda.device_count()} GPUs")
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))


def _same_job(s: Settings, out: Path) -> None:
    """Refuse a folder that holds a job with other settings than those that may change."""
    if not (out / SETTINGS).is_file():
        return
    try:
        kept = json.loads((out / SETTINGS).read_text(encoding="utf-8"))
    except ValueError:
        raise UserError(f"out: {out / SETTINGS} is damaged; delete {out}, or choose another folder") from None
    for name, value in json.loads(s.model_dump_json()).items():
        if name not in (*FREE, "out", "device") and name in kept and kept[name] != value:
            text = f"'{name}' is {value!r} now, but the job in {out} was started with {kept[name]!r}"
            raise UserError(f"{name}: {text}; use that value, or another out")


def _digest(found: Read) -> str:
    """Return a checksum of the images."""
    return hashlib.sha256(found.images.numpy().tobytes()).hexdigest()[:16]


def _finished(s: Settings, out: Path, found: Read) -> dict[str, Any] | None:
    """Return the metrics of a job that was done with just these settings and images."""
    try:
        metrics = json.loads((out / METRICS).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    same = metrics["settings"] == json.loads(s.model_dump_json()) and metrics["images"]["checksum"] == _digest(found)
    return metrics if same and (out / "model").is_dir() else None


def _work(s: Settings, out: Path, source: Source, found: Read, device: torch.device, progress: bool) -> dict[str, Any]:
    """Train, and in the main process write everything down."""
    accelerator = methods.accelerator(s, device)
    if accelerator.num_processes != s.processes:
        raise UserError(f"processes: {s.processes} in the job, but {accelerator.num_processes} were launched")
    classifier = None
    if s.method in GUIDED:
        classifier = _classifier(s, out, source, found.images, device, progress, accelerator.is_main_process)
    pupil = student(s, source, classifier)
    options: dict[str, Any] = {"sampler": s.sampler, "steps": s.sampling_steps, "seed": s.seed}
    shape, model = found.images.shape[1:], hub.mean_model(pupil.unet)
    fixed = {**s.model_dump(mode="json", exclude={*FREE, "out", "device"}), "checksum": _digest(found)}
    score = None
    if s.score_every and accelerator.is_main_process:
        from lib.jobs import report  # much to import, and only here

        score = report.scorer(s, out, source.schedule, model, shape, device)
    history = finetune(
        pupil.trained,
        source.schedule,
        found.images,
        pupil.loss,
        s.steps,
        s.batch // (s.processes * s.accumulate),
        s.lr,
        s.seed,
        s.betas,
        s.weight_decay,
        progress=progress,
        folder=out / "checkpoints",
        save_every=s.save_every,
        parameters=fixed,
        accelerator=accelerator,
        accumulate=s.accumulate,
        ema=s.ema or None,
        flip=s.flip,
        warmup=s.warmup,
        clip=s.clip or None,
        logs=out / "logs",
        grid=partial(methods.sample, model, source.schedule, shape, s.shown, device, **options)
        if s.grid_every
        else None,
        grid_every=s.grid_every or 1,
        score=score,
        score_every=s.score_every or 1,
    )
    if accelerator.is_main_process:
        from lib.jobs import report  # much to import, and only here

        if s.ema:
            pupil.trained.load_state_dict(history.ema["student"])
        pupil.unet.eval()
        _save(s, out, pupil, source)
        metrics = {
            "settings": json.loads(s.model_dump_json()),
            "images": {
                "n": len(found.names),
                "checksum": _digest(found),
                "skipped": found.skipped,
                "hints": found.hints,
            },
            "training": {
                "steps": s.steps,
                "seconds": round(history.seconds, 1),
                "losses": {name: sum(v[-50:]) / len(v[-50:]) for name, v in history.values.items()},
            },
            **report.write(s, out, source, model, found, device, progress),
        }
        if s.score_every:
            weights, step, kid = best(out / "checkpoints")
            pupil.trained.load_state_dict(weights)
            _save(s, out, pupil, source, "best")
            metrics["best"] = {"step": step, "kid": kid, "samples": s.score_samples}
        write_atomic(out / METRICS, json.dumps(metrics, indent=1) + "\n")
    accelerator.wait_for_everyone()
    accelerator.end_training()
    return json.loads((out / METRICS).read_text(encoding="utf-8"))


def _classifier(
    s: Settings, out: Path, source: Source, target: Tensor, device: torch.device, progress: bool, main: bool
) -> NoisedClassifier:
    """Return the classifier of source and target, kept in `out`; every process trains it alike if it is not there."""
    classifier = NoisedClassifier(source.unet)
    path = out / CLASSIFIER
    if path.is_file():
        try:
            classifier.load_state_dict(safetensors.torch.load_file(path))
        except Exception as error:  # the library reports a damaged file in many ways
            raise UserError(f"{path}: truncated or damaged ({type(error).__name__}); delete it") from None
        return classifier.requires_grad_(False).eval()
    model, shape, n = hub.mean_model(source.unet), target.shape[1:], s.classifier_images
    of_source = methods.sample(model, source.schedule, shape, n, device, steps=SOURCE_STEPS, seed=s.seed)
    training: dict[str, Any] = {
        "steps": s.classifier_steps,
        "batch": s.classifier_batch,
        "lr": s.classifier_lr,
        "seed": s.seed,
    }
    train_noised(classifier, source.schedule, of_source, target, progress=progress and main, **training)
    if main:
        weights = {name: value.cpu().contiguous() for name, value in classifier.state_dict().items()}
        write_atomic(path, safetensors.torch.save(weights))
    return classifier


def _save(s: Settings, out: Path, pupil: Student, source: Source, name: str = "model") -> None:
    """Put the model in place, complete."""
    draft = Path(tempfile.mkdtemp(dir=out, prefix=".model."))
    plain: Any = torch.contiguous_format
    hub.save(draft, pupil.unet.to(memory_format=plain), source.scheduler)
    if isinstance(pupil.trained, Adaptor):
        pupil.trained.save(pupil.unet, draft / hub.ADAPTOR)
        about = {
            "source": s.source,
            "method": s.method,
            "load": "lib.jobs.job.load(FOLDER)",
        }
        write_atomic(draft / "adaptor.json", json.dumps(about, indent=1) + "\n")
    draft.chmod(0o755)
    shutil.rmtree(out / name, ignore_errors=True)
    draft.rename(out / name)


def main(arguments: list[str] | None = None) -> int:
    """Run the job file named on the command line; an error is one line."""
    given = sys.argv[1:] if arguments is None else arguments
    try:
        if len(given) != 1:
            raise UserError("usage: python -m lib.jobs.job JOB.json")
        run(read_settings(given[0]))
    except UserError as error:
        if int(os.environ.get("RANK", 0)) == 0:  # all processes come upon the same one
            print(error, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("stopped; the same command goes on from the checkpoint", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    with contextlib.suppress(BrokenPipeError):
        sys.exit(main())
