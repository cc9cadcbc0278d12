"""What a job of RDMD does: translators of one network call from two folders of pictures, one for each lambda.

A kind of `lib.jobs.kinds`.
"""

import json
import tempfile
from collections.abc import Callable
from contextlib import closing, nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from accelerate import Accelerator
from diffusers import DDPMScheduler
from matplotlib.figure import Figure
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor, nn

from lib.ground import diffusion
from lib.ground.diffusion import Schedule
from lib.ground.finetune import Options
from lib.ground.folder import Read
from lib.ground.nets import (
    eps_model,
    fingerprint,
    noise_from_velocity,
    parameter_count,
    seeded,
    small_unet,
)
from lib.ground.train import History
from lib.jobs import hub, methods, report
from lib.jobs.hub import Source
from lib.jobs.load import Load
from lib.jobs.settings import Job, Translation
from lib.jobs.watch import Watch
from lib.measures import distances, neutral, perceptual
from lib.papers.rdmd import images as rdmd
from lib.papers.rdmd.images import Denoiser, Translator
from lib.record import figures
from lib.record.files import DRAFT, UserError, reading, replacing, write_atomic
from lib.worlds import sources
from lib.worlds.sources import Training

SHEET, ABOUT = "translations.safetensors", "translator.json"
FEWEST = 100  # pictures that a model can be trained on from nothing


def load(folder: str | Path, device: torch.device | str = "cpu") -> Translator:
    """Return a translator that a job left in ``translators/LAMBDA``: pictures (n, c, h, w) in [-1, 1] in one call."""
    source, path = hub.source(folder, device, "translator"), Path(folder) / ABOUT
    with reading(path, "name a folder that a job of RDMD left in translators/"):
        sigma = json.loads(path.read_text(encoding="utf-8"))["sigma"]
    return Translator(source.unet, partial(denoise, schedule=source.schedule), sigma).requires_grad_(False).eval()


def denoise(unet: Any, schedule: Schedule) -> Denoiser:
    """Return a U-Net as D(x, sigma)."""
    return diffusion.denoiser(eps_model(unet), schedule)


def begin(s: Translation, device: torch.device) -> Source:
    """Open the target's model, or make the one that will be trained."""
    if not s.target_model:
        return untrained(s, device)
    source, name = hub.source(s.target_model, device, "target_model"), s.target_model
    if source.adaptor:
        raise UserError(f"target_model: {name} holds an adaptor; give a model that was trained whole")
    if s.size and source.shape[1:] != (s.size, s.size):
        what = f"{s.size} given, but {name} has pictures of {' x '.join(map(str, source.shape[1:]))}"
        raise UserError(f"size: {what}; leave it out")
    return source


def open_inputs(s: Translation, source: Source) -> tuple[dict[str, Read], dict[str, str]]:
    """Open both folders at the model's size."""
    least = {"source_images": 2, "target_images": 2 if s.target_model else FEWEST}
    reads = hub.targets(s, source.shape, least, "" if s.target_model else ", or name a target_model")
    found = {key: f"{getattr(s, key)}: {len(read.names)}" for key, read in reads.items()}
    return reads, found | {"target_model": hub.described(s.target_model or "to be trained on target_images", source)}


def identity(source: Source) -> tuple[str, torch.device]:
    """Return a digest of the target's network, and its device."""
    return fingerprint(source.unet), source.unet.device


def results(s: Translation) -> list[str]:
    """Return the folders of the results."""
    return [f"{kind}/{lambda_:g}" for lambda_ in s.lambdas for kind in ("translators", "translated")]


def passes(s: Translation) -> tuple[float, float, int]:
    """Return passes as in `lib.jobs.finetuning.passes`: of the generator, of the fake's own updates, and of fake and
    teacher where they are compared.
    """
    return s.fake_updates + 3, s.fake_updates + 1, 0


def count(s: Translation, source: Source) -> Load:
    """Count."""
    (forwards, backwards, _), (_, one) = passes(s), hub.one_pass(source)
    n, whole = len(s.lambdas), parameter_count(source.unet)
    before = 0 if s.target_model else s.model_steps * s.model_batch
    return Load(
        parameters=whole,
        trained=2 * whole,  # generator and fake
        averaged=whole,
        images=s.steps * s.batch * n,
        forwards=forwards,
        backwards=backwards,
        flops=one * (forwards + 2 * backwards),
        drawn=one * s.translated * n,
        models=4 * whole * n + (0 if s.target_model else 4 * 6 * whole),  # its checkpoints
        pictures=(s.translated + 4 * s.shown) * n,
        kept=n + 1,
        images_before=before,
        flops_before=before * 3 * one,
    )


def one_pass(s: Translation, source: Source) -> tuple[Callable[[], Any], float]:
    """Return a pass of one image through the network."""
    return hub.one_pass(source)


def some_steps(s: Translation, source: Source, steps: int, clock: Callable[..., None]) -> None:
    """Train a translator of noise."""
    images = methods.noise(s, source, 4)[0].clamp(-1, 1)
    options, accelerator = replace(methods.options(s), lr=1e-8), methods.accelerator(s, source.unet.device)
    train(s, source, images, s.lambdas[0], steps, options, clock, accelerator)


def untrained(s: Translation, device: torch.device) -> Source:
    """Return the model of the target that the job will train, as it begins."""
    unet: Any = _network(s)
    scheduler = DDPMScheduler(beta_schedule="linear", prediction_type="v_prediction")
    schedule = diffusion.from_diffusers(scheduler)
    noise_from_velocity(unet, schedule)
    return Source(unet.eval().to(device), scheduler, schedule, [])


def trained(s: Translation, images: Tensor, checksum: str, device: torch.device) -> Source:
    """Return the model of the target, trained in `out` on its pictures (n, 3, size, size) if it is not there yet."""

    def draw(n: int, generator: torch.Generator) -> list[Tensor]:
        x = images[torch.randint(len(images), (n,), generator=generator)]
        mirrored = torch.rand(n, 1, 1, 1, generator=generator) < s.flip / 2
        return [torch.where(mirrored, x.flip(3), x)]

    how = (s.side, s.channels, s.model_steps, s.model_batch, s.model_lr)
    training = Training(*how, ema=0.999, seed=s.seed, prediction="v_prediction")
    folder = s.out / f"target_model-{checksum[:8]}"
    sources.denoiser(folder, training, lambda: (_network(s), draw), device)
    return hub.source(folder, device, "target_model")


def _network(s: Translation) -> Any:
    return seeded(s.seed, lambda: small_unet(s.side, s.channels, image_channels=3))


def train(
    s: Translation, target: Source, images: Tensor, lambda_: float, steps: int, options: Options,
    on_step: Callable[[int, Translator, History], None] | None, accelerator: Accelerator,
) -> tuple[Translator, History]:  # fmt: skip
    """Train a translator as the settings say; see :func:`lib.papers.rdmd.images.train_translator`."""
    how: dict[str, Any] = {"fake_updates": s.fake_updates, "fake_lr": s.fake_lr, "sigma": s.sigma}
    if s.cost == "LPIPS":
        how["cost"] = lambda x, y: perceptual.lpips_of_pairs(neutral.embedding(x.device), _coloured(x), _coloured(y))
    denoiser, levels = partial(denoise, schedule=target.schedule), target.schedule.sigma
    how |= {"on_step": on_step, "accelerator": accelerator}
    return rdmd.train_translator(target.unet, denoiser, levels, images, lambda_, steps, options, **how)


def work(
    s: Translation, target: Source, reads: dict[str, Read], checksums: dict[str, str], accelerator: Accelerator
) -> dict[str, Any]:
    """Train every translator, and in the main process translate, measure and write; return the metrics, elsewhere
    nothing.

    `target` is the given model of the target, or the untrained one, which one process trains while others wait.
    """
    x, real = (reads[name].images for name in ("source_images", "target_images"))
    if not s.target_model:
        target = trained(s, real, checksums["target_images"], target.unet.device)
    target.unet.requires_grad_(False).eval()
    unchanged = s.fixed | {"target model": fingerprint(target.unet), "checksum": checksums["source_images"]}
    translated: dict[str, Tensor] = {}
    rows = []
    for lambda_ in s.lambdas:
        place = s.out / "checkpoints" / f"{lambda_:g}"
        options = methods.options(s, folder=place, save_every=s.save_every, parameters=unchanged)
        look = _Look(s, lambda_, x[: s.shown]) if accelerator.is_main_process else None
        with closing(look) if look else nullcontext():
            translator, history = train(s, target, x, lambda_, s.steps, options, look, accelerator)
        if accelerator.is_main_process:
            if s.ema:
                translator.net.load_state_dict(history.ema["G"])
            y = translated[f"{lambda_:g}"] = translate(translator, x[: s.translated])
            _save(s, translator, target, lambda_)
            report.write_images(s.out / "translated" / f"{lambda_:g}", y)
            losses = {name: fmean(values[-50:]) for name, values in history.values.items()}
            rows.append({"seconds": round(history.seconds, 1), "losses": losses})
    if not accelerator.is_main_process:
        return {}
    rows_shown = {"input": x} | translated
    write_atomic(s.out / SHEET, save({name: y[: s.shown].contiguous() for name, y in rows_shown.items()}))
    write_atomic(s.out / "translations.png", figures.render(partial(sheet, s.out / SHEET), "light", "png"))
    found = measured(s, x[: s.translated], real, translated, target.unet.device)
    measures = zip(s.lambdas, found["translators"], rows, strict=True)
    found["translators"] = [{"lambda": lambda_, **m, **row} for lambda_, m, row in measures]
    return {"images": {name: len(read.names) for name, read in reads.items()}, **found}


class _Look:
    """What is seen of a training on the way: see `lib.jobs.watch.Watch`."""

    def __init__(self, s: Translation, lambda_: float, x: Tensor) -> None:
        self.s, self.x, self.name = s, x, f"{lambda_:g}"
        self.watch: Watch | None = None

    def __call__(self, i: int, translator: Translator, history: History) -> None:
        if not self.watch:
            checkpoints, logs = (self.s.out / kind / self.name for kind in ("checkpoints", "logs"))
            grid = partial(translate, translator, self.x)
            self.watch = Watch(translator.net, checkpoints, logs, self.s.steps, grid, self.s.grid_every, name="G")
        self.watch(i, history)

    def close(self) -> None:
        if self.watch:
            self.watch.close()


@torch.no_grad()
def translate(translator: nn.Module, x: Tensor) -> Tensor:
    """Return the translations of pictures (n, c, h, w), clamped, on the CPU, batch by batch."""
    device = next(translator.parameters()).device
    return torch.cat([translator(part.to(device)).clamp(-1, 1).cpu() for part in x.split(methods.BATCH)])


def measured(s: Job, x: Tensor, real: Tensor, translated: dict[str, Tensor], device: torch.device) -> dict[str, Any]:
    """Return how near translations, by name, are to their inputs x, and as a set to real pictures of the target.

    FID and KID are None where their weights cannot be had, and ``missing`` says why.
    """
    of_real = neutral.features(_coloured(real.to(device)))

    def far(images: Tensor) -> float:
        return distances.kernel_distance(neutral.features(_coloured(images.to(device))), of_real, seed=s.seed)

    rows: list[dict[str, Any]] = []
    for name, y in translated.items():
        apart = (y - x).square().mean((1, 2, 3)).sqrt().mean().item()
        row = {"name": name, "distance": apart, "psnr": distances.psnr(y, x).mean().item(), "kernel": far(y)}
        rows.append(row | {"fid": None, "kid": None})
    found: dict[str, Any] = {"missing": {}, "kernel_of_inputs": far(x), "translators": rows}
    try:
        network = distances.inception(device)
        with tempfile.TemporaryDirectory(dir=s.out, prefix=DRAFT) as place:
            report.write_images(Path(place), real)
            reference = distances.folder_features(place, network, device)
        for row in rows:
            drawn = distances.folder_features(s.out / "translated" / str(row["name"]), network, device)
            of_both = distances.distances_of(drawn, reference, s.seed)
            row |= {"fid": of_both.fid, "kid": of_both.kid}
    except UserError as error:
        found["missing"] = {name: str(error) for name in ("fid", "kid")}
    sets = {"translations": len(x), "target_images": len(real)}
    return found | {"protocol": distances.protocol("kernel distance", sets, "EfficientNet-Lite0, 1,280", "bicubic 128")}


def sheet(path: Path) -> Figure:
    """Return rows of pictures: inputs, and what each translator makes of them, as a job left them in `path`."""
    with safe_open(path, "pt") as file:
        lambdas = sorted(set(file.keys()) - {"input"}, key=float)
        translated = {f"$\\lambda$ {name}": file.get_tensor(name) for name in lambdas}
        return report.grid({"input": file.get_tensor("input")} | translated)


def _save(s: Translation, translator: Translator, target: Source, lambda_: float) -> None:
    """Put a translator in place, complete."""
    about = {"method": s.method, "lambda": lambda_, "sigma": s.sigma, "load": "lib.jobs.translation.load(FOLDER)"}
    with replacing(s.out / "translators" / f"{lambda_:g}") as draft:
        hub.save(translator.net, target, draft)
        write_atomic(draft / ABOUT, json.dumps(about, indent=1) + "\n")


def _coloured(images: Tensor) -> Tensor:
    """Return images with three channels, which the neutral judge takes."""
    return images.expand(-1, 3, -1, -1)
