"""What a job does that adapts a model to few pictures, with SDFT, ANT or naively; a kind of `lib.jobs.kinds`."""

import json
from collections.abc import Callable
from contextlib import closing, nullcontext
from dataclasses import replace
from functools import partial
from typing import Any

import safetensors.torch
import torch
from accelerate import Accelerator
from diffusers.models.unets.unet_2d import UNet2DModel

from lib.ground.finetune import finetune
from lib.ground.folder import Read
from lib.ground.nets import fingerprint, parameter_count, seeded
from lib.ground.noised_classifier import NoisedClassifier, train_noised
from lib.jobs import hub, methods, report
from lib.jobs.hub import Source
from lib.jobs.load import Load, operations
from lib.jobs.report import K
from lib.jobs.settings import Settings
from lib.jobs.watch import Watch, best, save_weights
from lib.papers.ant.adaptor import Adaptor
from lib.record.files import UserError, reading, replacing, write_atomic
from lib.worlds import judge

CLASSIFIER = "classifier.safetensors"
SOURCE_STEPS = 50  # ancestral steps of the source's samples that the classifier learns from


def begin(s: Settings, device: torch.device) -> Source:
    """Open the source."""
    source = hub.source(s.source, device)
    if source.adaptor:
        raise UserError(f"source: {s.source} holds an adaptor; give the model that it was trained beside")
    if s.judge:
        judge.load_classifier(s.judge)
    return source


def open_inputs(s: Settings, source: Source) -> tuple[dict[str, Read], dict[str, str]]:
    """Open the images at the source's size."""
    reads = {name: hub.target(s, source.shape, name) for name in ("images", "reference") if getattr(s, name)}
    n = {name: len(read.names) for name, read in reads.items()}
    if n.get("reference") == 1:
        raise UserError(f"reference: 1 image in {s.reference}; distances of sets need 2, and better 2,048 or more")
    few = f" (precision and recall need more than {K})" if n.get("reference", K + 1) <= K else ""
    found = {"source": hub.described(s.source, source), "images": f"{s.images}: {n['images']}"}
    return reads, found | {"reference": f"{s.reference}: {n['reference']}{few}" if s.reference else "none"}


def identity(source: Source) -> tuple[str, torch.device]:
    """Return a digest of the source's network, and its device."""
    return fingerprint(source.unet), source.unet.device


def results(s: Settings) -> list[str]:
    """Return the folders of the results."""
    return ["model", "best", "samples"]


def work(
    s: Settings, source: Source, reads: dict[str, Read], inputs: dict[str, str], accelerator: Accelerator
) -> dict[str, Any]:
    """Adapt the model, and in the main process sample, measure and write; return the metrics, elsewhere nothing."""
    images, reference = reads["images"], reads.get("reference")
    main, metrics = accelerator.is_main_process, {}
    classifier = _classifier(s, source, images, main) if s.method in methods.GUIDED else None
    unet, trained, loss = methods.student(s, source, classifier)
    checkpoints = s.out / "checkpoints"
    unchanged = s.fixed | {"source weights": inputs["source"], "checksum": inputs["images"]}
    options = methods.options(s, folder=checkpoints, save_every=s.save_every, parameters=unchanged)
    looks: dict[str, Any] = {"grid_every": s.grid_every, "score_every": s.score_every}
    if main and s.grid_every:
        looks["grid"] = partial(methods.sample, s, source, unet, methods.noise(s, source, s.shown))
    if main and s.score_every and reference:
        looks["score"] = report.scorer(s, source, unet, reference.images)
    watch = Watch(trained, checkpoints, s.out / "logs", s.steps, **looks) if main else None
    with closing(watch) if watch else nullcontext():
        history = finetune(trained, source.schedule, images.images, loss, s.steps, options, watch, accelerator)
    if main:
        if s.ema:
            trained.load_state_dict(history.ema["student"])
        unet.eval()
        save = partial(_save, s, unet, trained, source)
        save("model")
        losses = {name: sum(values[-50:]) / len(values[-50:]) for name, values in history.values.items()}
        metrics = {
            "images": {"n": len(images.names), "notes": images.notes()},
            "training": {"steps": s.steps, "seconds": round(history.seconds, 1), "losses": losses},
            **report.write(s, source, unet, images.images, reference.images if reference else None),
        }
        if s.score_every:
            weights, step, kid = best(checkpoints)
            trained.load_state_dict(weights)
            save("best")
            metrics["best"] = {"step": step, "kid": kid, "samples": s.score_samples}
    return metrics


def _classifier(s: Settings, source: Source, found: Read, main: bool) -> NoisedClassifier:
    """Return the classifier of source and target, kept in `out`; every process trains it alike if it is not there."""
    classifier, path = seeded(s.seed, lambda: NoisedClassifier(source.unet)), s.out / CLASSIFIER
    if path.is_file():
        with reading(path, "delete it"):
            classifier.load_state_dict(safetensors.torch.load_file(path))
        return classifier.requires_grad_(False).eval()
    ancestral = s.model_copy(update={"sampler": "ancestral", "sampling_steps": SOURCE_STEPS})
    of_source = methods.sample(ancestral, source, source.unet, methods.noise(s, source, s.classifier_images))
    options = {name: getattr(s, f"classifier_{name}") for name in ("steps", "batch", "lr")}
    train_noised(classifier, source.schedule, of_source, found.images, seed=s.seed, **options)
    if main:
        save_weights(path, classifier)
    return classifier


def _save(s: Settings, unet: Any, trained: Any, source: Source, name: str) -> None:
    """Put the model in place, complete."""
    with replacing(s.out / name) as draft:
        hub.save(unet, source, draft)
        if isinstance(trained, Adaptor):
            trained.save(unet, draft / hub.ADAPTOR)
            about = {"source": s.source, "method": s.method, "load": "lib.jobs.hub.source(FOLDER)"}
            write_atomic(draft / "adaptor.json", json.dumps(about, indent=1) + "\n")


def passes(s: Settings) -> tuple[float, float, int]:
    """Return forward and backward passes of the network for an image and step, and those of a classifier (each way).

    SDFT: the student sees x_t and, with the auxiliary term, the noise; the source sees what it is compared on. ANT: J
    steps of ascent on the noise, forward and backward each, before the step on the weights.
    """
    if s.method == "SDFT":
        student, teacher = 1 + (s.lambda_aux > 0), (s.lambda_distill > 0) + (s.lambda_aux > 0)
        return student + teacher, student, 0
    ascent = s.J if s.method == "ANT" else 0
    return 1 + ascent, 1 + ascent, int(s.method in methods.GUIDED)


def count(s: Settings, source: Source) -> Load:
    """Count; a classifier's passes count by their share of operations."""
    forwards, backwards, classifier = passes(s)
    with torch.device("meta"):
        unet: Any = UNet2DModel.from_config(source.unet.config)
        inputs = torch.zeros(1, *source.shape), torch.zeros(1, dtype=torch.long)
        one = operations(unet, *inputs)
        extra = operations(NoisedClassifier(unet), *inputs) / one if classifier else 0.0
        adaptor = None if s.method in ("naive", "SDFT") else Adaptor.attach(unet, s.c, s.d, s.heads)
    base = parameter_count(source.unet)
    trained = parameter_count(adaptor) if adaptor else base
    whole, scored = base + trained * bool(adaptor), s.score_every > 0
    return Load(
        parameters=whole,
        trained=trained,
        averaged=trained,
        images=s.steps * s.batch,
        forwards=forwards + extra,
        backwards=backwards + extra,
        flops=one * (forwards + 2 * backwards + 3 * extra),
        drawn=one * (s.samples + s.shown) * s.sampling_steps,
        models=4 * whole * (1 + scored) + 4 * trained * scored,
        pictures=s.samples + 12 * s.shown + s.score_samples * scored,
        kept=2,
    )


def one_pass(s: Settings, source: Source) -> tuple[Callable[[], Any], float]:
    """Return a pass of one image through the network."""
    return hub.one_pass(source)


def some_steps(s: Settings, source: Source, steps: int, clock: Callable[..., None]) -> None:
    """Adapt the model to noise."""
    images = methods.noise(s, source, 4)[0].clamp(-1, 1)
    pupil, options = methods.student(s, source), replace(methods.options(s), lr=1e-8)
    accelerator = methods.accelerator(s, source.unet.device)
    finetune(pupil.trained, source.schedule, images, pupil.loss, steps, options, clock, accelerator)
