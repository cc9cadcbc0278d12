"""One fine-tuning job from settings to folder: a model, a sample sheet, metrics, logs and checkpoints.

``python -m lib.jobs.job job.json`` runs the settings in a file, on one process or several. A notebook on several
processes starts exactly that as a new program: its own kernel may have touched the GPU, and such a process cannot be
forked.
"""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
from contextlib import closing, nullcontext
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from lib.ground.finetune import Options, finetune
from lib.ground.folder import Read, listed
from lib.ground.nets import eps_model
from lib.ground.noised_classifier import NoisedClassifier, train_noised
from lib.jobs import hub, methods, report
from lib.jobs.hub import Source
from lib.jobs.methods import GUIDED, Student
from lib.jobs.settings import FREE, Settings, read_settings
from lib.jobs.watch import Watch, best
from lib.papers.ant.adaptor import Adaptor
from lib.record.files import UserError, reading, replacing, write_atomic

CLASSIFIER, SETTINGS, METRICS = "classifier.safetensors", "job.json", "metrics.json"
SOURCE_STEPS = 50  # ancestral steps of the source's samples that the classifier learns from


def run(s: Settings) -> dict[str, Any]:
    """Do a job, or what is left of it, and return its metrics.

    The folder ``out`` then holds ``model`` (diffusers' layout; with an adaptor the source's weights and the adaptor
    beside them, see `lib.jobs.hub.source`), ``samples`` (PNG files), ``samples.png`` (source and student from equal
    noise, nearest training images), ``metrics.json``, ``logs`` (TensorBoard), ``checkpoints`` and ``job.json``; if it
    was asked to score, also ``best``, the model of the lowest score. A job that was stopped goes on from its newest
    checkpoint; one that is finished is not done again. With several processes, and unless it is one of them, this
    starts them.

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
    found = methods.images(s, source)
    if s.reference:
        methods.images(s, source, "reference")  # what is wrong with it is said now, not after hours
    print_once = print if int(os.environ.get("RANK", 0)) == 0 else lambda _: None
    for note in (*source.notes, *found.hints, *([f"skipped: {listed(found.skipped)}"] if found.skipped else [])):
        print_once(note)
    if finished := _finished(s, out, found):
        print_once(f"{out}: this job is finished; set another out to do it again")
        return finished
    write_atomic(out / SETTINGS, s.model_dump_json(indent=1) + "\n")
    if s.processes > 1 and not joined:
        launch(out / SETTINGS, s.processes)
    else:
        _work(s, out, source, found, device)
    return json.loads((out / METRICS).read_text(encoding="utf-8"))


def launch(path: Path, processes: int) -> None:
    """Run the job file `path` on several processes of this machine, whose output goes where that of this one goes.

    torch's own launcher serves GPUs and processors alike, where accelerate's wants MPI for processors.

    Raises
    ------
    UserError
        They ended with an error, which they have printed.
    KeyboardInterrupt
        At Ctrl-C, after they have saved a checkpoint.
    """
    launcher = ["torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
    command = [sys.executable, "-m", *launcher, "-m", "lib.jobs.job", str(path)]
    # In a session of their own: Ctrl-C reaches them once, from the launcher; a second one would not wait for the step.
    child = subprocess.Popen(command, start_new_session=True)
    try:
        code = child.wait()
    except KeyboardInterrupt:
        child.send_signal(signal.SIGINT)
        child.wait()
        raise
    if code:
        raise UserError(f"processes: the job ended with an error on {processes} processes; its lines are above")


def device_of(s: Settings) -> torch.device:
    """Return the device of this process of a job; a `UserError` if there are not as many GPUs as it asks for."""
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
    with reading(out / SETTINGS, f"delete {out}, or choose another out"):
        kept = json.loads((out / SETTINGS).read_text(encoding="utf-8"))
    for name, value in s.model_dump(mode="json", exclude={*FREE, "out", "device"}).items():
        if name in kept and kept[name] != value:
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
    same = metrics["settings"] == s.model_dump(mode="json") and metrics["images"]["checksum"] == _digest(found)
    return metrics if same and (out / "model").is_dir() else None


def _work(s: Settings, out: Path, source: Source, found: Read, device: torch.device) -> None:
    """Train, and in the main process write everything down."""
    accelerator = methods.accelerator(s, device)
    main = accelerator.is_main_process
    if accelerator.num_processes != s.processes:
        raise UserError(f"processes: {s.processes} in the job, but {accelerator.num_processes} were launched")
    classifier = _classifier(s, out, source, found, device, main) if s.method in GUIDED else None
    pupil = methods.student(s, source, classifier)
    options = Options(
        batch=s.batch // (s.processes * s.accumulate),
        **{name: getattr(s, name) for name in ("lr", "seed", "betas", "weight_decay", "warmup", "clip", "ema", "flip")},
        accumulate=s.accumulate,
        folder=out / "checkpoints",
        save_every=s.save_every,
        parameters=s.model_dump(mode="json", exclude={*FREE, "out", "device"}) | {"checksum": _digest(found)},
    )
    watch = _watch(s, out, source, pupil, found, device) if main else None
    with closing(watch) if watch else nullcontext():
        history = finetune(
            pupil.trained, source.schedule, found.images, pupil.loss, s.steps, options, watch, accelerator
        )
    if main:
        if s.ema:
            pupil.trained.load_state_dict(history.ema["student"])
        pupil.unet.eval()
        _save(s, out, pupil, source)
        losses = {name: sum(values[-50:]) / len(values[-50:]) for name, values in history.values.items()}
        images = {"n": len(found.names), "checksum": _digest(found), "skipped": found.skipped, "hints": found.hints}
        metrics = {
            "settings": s.model_dump(mode="json"),
            "images": images,
            "training": {"steps": s.steps, "seconds": round(history.seconds, 1), "losses": losses},
            **report.write(s, out, source, eps_model(pupil.unet), found, device),
        }
        if s.score_every:
            weights, step, kid = best(out / "checkpoints")
            pupil.trained.load_state_dict(weights)
            _save(s, out, pupil, source, "best")
            metrics["best"] = {"step": step, "kid": kid, "samples": s.score_samples}
        write_atomic(out / METRICS, json.dumps(metrics, indent=1) + "\n")
    accelerator.wait_for_everyone()
    accelerator.end_training()


def _watch(s: Settings, out: Path, source: Source, pupil: Student, found: Read, device: torch.device) -> Watch:
    """Return what looks at the training: curves, and the pictures and scores that were asked for."""
    shape, model = found.images.shape[1:], eps_model(pupil.unet)
    begin = methods.noise(s, shape, s.shown)

    def grid() -> Tensor:
        return methods.sample(s, model, source.schedule, begin, device)

    score = report.scorer(s, out, source, model, shape, device) if s.score_every else None
    looks = (grid if s.grid_every else None, s.grid_every, score, s.score_every)
    return Watch(pupil.trained, out / "checkpoints", out / "logs", s.steps, *looks)


def _classifier(
    s: Settings, out: Path, source: Source, found: Read, device: torch.device, main: bool
) -> NoisedClassifier:
    """Return the classifier of source and target, kept in `out`; every process trains it alike if it is not there."""
    classifier, path = NoisedClassifier(source.unet), out / CLASSIFIER
    if path.is_file():
        with reading(path, "delete it"):
            classifier.load_state_dict(safetensors.torch.load_file(path))
        return classifier.requires_grad_(False).eval()
    ancestral = s.model_copy(update={"sampler": "ancestral", "sampling_steps": SOURCE_STEPS})
    begin = methods.noise(s, found.images.shape[1:], s.classifier_images)
    of_source = methods.sample(ancestral, eps_model(source.unet), source.schedule, begin, device)
    options = {name: getattr(s, f"classifier_{name}") for name in ("steps", "batch", "lr")}
    train_noised(classifier, source.schedule, of_source, found.images, seed=s.seed, **options)
    if main:
        weights = {name: value.cpu().contiguous() for name, value in classifier.state_dict().items()}
        write_atomic(path, safetensors.torch.save(weights))
    return classifier


def _save(s: Settings, out: Path, pupil: Student, source: Source, name: str = "model") -> None:
    """Put the model in place, complete."""
    with replacing(out / name) as draft:
        hub.save(draft, pupil.unet.to(memory_format=torch.contiguous_format), source.scheduler)
        if isinstance(pupil.trained, Adaptor):
            pupil.trained.save(pupil.unet, draft / hub.ADAPTOR)
            about = {"source": s.source, "method": s.method, "load": "lib.jobs.hub.source(FOLDER)"}
            write_atomic(draft / "adaptor.json", json.dumps(about, indent=1) + "\n")


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
    sys.exit(main())
