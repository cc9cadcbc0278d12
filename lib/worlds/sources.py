"""The source model of the image runs: a DDPM (Ho et al. 2020) of printed digits, trained once and kept as a folder.

The folder has diffusers' layout, so ``DDPMPipeline.from_pretrained(folder)`` and
``UNet2DModel.from_pretrained(folder, subfolder="unet")`` load it too. It holds the averaged (EMA) weights.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers.models.unets.unet_2d import UNet2DModel
from diffusers.pipelines.ddpm.pipeline_ddpm import DDPMPipeline
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
from torch import Tensor

from lib.ground import diffusion
from lib.ground.diffusion import Schedule
from lib.ground.nets import eps_model, small_unet
from lib.ground.train import train
from lib.record.files import UserError, alone, reading, replacing, write_atomic
from lib.worlds import digits as data
from lib.worlds import judge as metrics

Device = torch.device | str
Draw = Callable[[torch.Generator], list[Tensor]]  # clean images (b, c, h, w) and, for some U-Nets, class numbers (b,)
SETTINGS, SECONDS = "training.json", "seconds.json"  # what an artefact was trained with, and how long
WARMUP, CLIP = 100, 1.0  # steps of rising learning rate; largest norm of a gradient


def source_model(
    folder: Path,
    size: int = 16,
    channels: Sequence[int] = (16, 32, 64),
    steps: int = 1600,
    batch: int = 32,
    lr: float = 2e-3,
    ema: float = 0.995,
    seed: int = 0,
    device: Device = "cpu",
) -> tuple[UNet2DModel, Schedule]:
    """Load the source model in `folder`, or train it there if it is missing or was trained with other settings.

    Training keeps a checkpoint every 200 steps beside the folder and continues from it. The folder appears at the end,
    complete, by one rename; a second process that wants the same folder waits and then loads it.
    """
    settings = {"size": size, "channels": list(channels), "steps": steps, "batch": batch, "lr": lr, "ema": ema}
    settings["seed"] = seed

    def prepare() -> tuple[UNet2DModel, Draw]:
        images = data.split(data.printed(size))[0].images

        def draw(generator: torch.Generator) -> list[Tensor]:
            return [images[torch.randint(len(images), (batch,), generator=generator)]]

        return small_unet(size, channels), draw

    denoiser(folder, settings, prepare, device)
    return load(folder, device)


def denoiser(
    folder: Path,
    settings: dict[str, Any],
    prepare: Callable[[], tuple[UNet2DModel, Draw]],
    device: Device = "cpu",
) -> None:
    """See that `folder` holds a noise-predicting U-Net trained with `settings`; if not, train it there.

    Of the settings (JSON) training needs size, channels, steps, batch, lr, ema and seed. `prepare` is called to train,
    with torch's seed set: it returns the untrained U-Net, and a function that draws from a generator the clean images
    of one batch and, if the U-Net has class numbers, these.
    """
    size, channels = settings["size"], settings["channels"]
    levels = len(channels) - 1
    if levels < 0 or size % 2**levels or any(c % 8 for c in channels) or channels[-1] % 32:
        text = "give multiples of 8, the last one of 32, not more of them than the size can be halved"
        raise UserError(f"channels = {channels} at size = {size}: {text}")

    def make(checkpoints: Path, target: Path) -> None:
        unet, spent = _train(checkpoints, settings, prepare, device)
        scheduler = DDPMScheduler(num_train_timesteps=1000, beta_schedule="linear", prediction_type="epsilon")
        DDPMPipeline(unet.cpu(), scheduler).save_pretrained(target)
        write_atomic(target / SECONDS, json.dumps(round(spent, 1)))

    _artefact(Path(folder), settings, make)


def classifier(
    folder: Path, size: int = 16, steps: int = 400, seed: int = 0, device: Device = "cpu"
) -> metrics.Classifier:
    """Load the digit-and-domain classifier in `folder`, or train it there, as `source_model` does."""

    def make(checkpoints: Path, target: Path) -> None:
        trained = metrics.train_classifier(size, steps, seed=seed, device=device, folder=checkpoints)
        metrics.save_classifier(trained, target / "model.safetensors")

    _artefact(Path(folder), {"size": size, "steps": steps, "seed": seed}, make)
    return load_classifier(folder, device)


def shared(
    artefacts: Path, source: Path | str = "", steps: int = 1600, judge_steps: int = 400, device: Device = "cpu"
) -> tuple[UNet2DModel, Schedule, metrics.Classifier]:
    """Return what the image notebooks start from: source model, its noise schedule and the classifier that judges.

    What the folder `artefacts`, which notebooks share, lacks is trained there. `source` is the folder of another source
    model in diffusers' layout.
    """
    folder = Path(source or artefacts / "source")
    found = source or folder.exists()
    unet, schedule = load(folder, device) if found else source_model(folder, steps=steps, device=device)
    return unet, schedule, judge_for(unet, artefacts, judge_steps, device)


def judge_for(unet: UNet2DModel, artefacts: Path, steps: int = 400, device: Device = "cpu") -> metrics.Classifier:
    """Load the classifier in `artefacts`, trained there if there is none yet, that is to judge the images of `unet`."""
    folder = artefacts / "classifier"
    size, channels = unet.config["sample_size"], unet.config["in_channels"]
    judge = load_classifier(folder, device) if folder.exists() else classifier(folder, size, steps, device=device)
    if (size, channels) != (judge.size, 1):
        text = f"images {channels} x {size} x {size} given; the classifier takes 1 x {judge.size} x {judge.size}"
        raise UserError(f"source: {text}; name another model, or delete {folder} and run 50_source at this size")
    return judge


def load(
    folder: Path | str, device: Device = "cpu", what: str = "source model", notebook: str = "50_source"
) -> tuple[UNet2DModel, Schedule]:
    """Load a model and its noise schedule from a folder of diffusers' pipeline layout.

    `what` it is and the `notebook` that makes it are named in errors.
    """
    folder = Path(folder)
    for name in ("unet/config.json", "unet/diffusion_pytorch_model.safetensors", "scheduler/scheduler_config.json"):
        if not (folder / name).is_file():
            raise UserError(f"{what} {folder}: {name} is missing; run {notebook} first, or name another folder")
    with reading(folder, f"delete the folder and run {notebook} again"):
        unet = UNet2DModel.from_pretrained(folder, subfolder="unet", low_cpu_mem_usage=False, use_safetensors=True)
        scheduler = DDPMScheduler.from_pretrained(folder, subfolder="scheduler")
    return unet.to(device, memory_format=torch.channels_last).eval(), diffusion.from_diffusers(scheduler)


def load_classifier(folder: Path | str, device: Device = "cpu") -> metrics.Classifier:
    """Load the classifier that `classifier` left in `folder`; errors as in `lib.worlds.judge.load_classifier`."""
    return metrics.load_classifier(Path(folder) / "model.safetensors", device)


def seconds(folder: Path | str) -> float:
    """Return how long the source model in `folder` was trained, in seconds; NaN for a model from elsewhere."""
    try:
        return float(json.loads((Path(folder) / SECONDS).read_text(encoding="utf-8")))
    except (OSError, ValueError):
        return math.nan


def samples(unet: UNet2DModel, schedule: Schedule, n: int, seed: int = 0, steps: int = 40) -> Tensor:
    """Draw n images (n, c, size, size) by ancestral sampling (Ho et al. 2020, Alg. 2) in few steps, all from `seed`.

    A briefly trained model is not exact at the highest noise; fresh noise at each step repairs that, deterministic
    DDIM carries it on.
    """
    side, generator = unet.config["sample_size"], torch.Generator().manual_seed(seed)
    noise = torch.randn(n, unet.config["in_channels"], side, side, generator=generator)
    return diffusion.sample(eps_model(unet), schedule, noise, steps, generator, device=unet.device)


def _train(checkpoints: Path, settings: dict[str, Any], prepare: Callable, device: Device) -> tuple[Any, float]:
    """Train what `prepare` returns, see `denoiser`; returns the model with its averaged weights, and seconds."""
    steps, schedule = settings["steps"], diffusion.linear()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings["seed"])
        unet, draw = prepare()
    unet.to(device, memory_format=torch.channels_last)  # a fifth faster on CPUs
    optimizer = torch.optim.AdamW(unet.parameters(), lr=settings["lr"], weight_decay=0.0)
    decay = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda i: _rate(i, steps))

    def sample(generator: torch.Generator) -> list[Tensor]:
        x0, *classes = draw(generator)
        t = torch.randint(schedule.T, (len(x0),), generator=generator)
        return [part.to(device) for part in (x0, t, torch.randn(x0.shape, generator=generator), *classes)]

    def step(drawn: list[Tensor]) -> dict[str, Tensor]:
        x0, t, eps, *classes = drawn
        predicted = unet(schedule.add_noise(x0, eps, t), t, *classes).sample
        loss = (predicted - eps).square().mean()  # Ho et al. 2020, Eq. 14
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(unet.parameters(), CLIP)
        optimizer.step()
        decay.step()
        return {"loss": loss.detach()}

    history = train(
        step,
        sample,
        {"unet": unet},
        {"unet": optimizer, "decay": decay},
        steps,
        seed=settings["seed"],
        ema={"unet": settings["ema"]},
        folder=checkpoints,
        save_every=200,
        parameters=settings,
    )
    unet.load_state_dict(history.ema["unet"])
    return unet.to(memory_format=torch.contiguous_format), history.seconds


def _rate(i: int, steps: int) -> float:
    """Learning rate as a share of the full one: linear warm-up, then half a cosine down to a twentieth."""
    return min(1.0, (i + 1) / WARMUP) * (0.05 + 0.95 * (1 + math.cos(math.pi * min(i / max(steps, 1), 1))) / 2)


def _artefact(folder: Path, settings: dict[str, Any], make: Callable[[Path, Path], None]) -> None:
    """See that `folder` exists and was made with `settings`; else ``make(checkpoints, target)`` and put it in place."""
    with alone(folder):
        if _made_with(folder, settings):
            return
        checkpoints = folder.with_name(f".{folder.name}.training")
        if _settings(checkpoints) != settings:  # of a run with other settings, stopped half-way
            shutil.rmtree(checkpoints, ignore_errors=True)
        write_atomic(checkpoints / SETTINGS, json.dumps(settings))
        with replacing(folder) as target:
            make(checkpoints, target)
            write_atomic(target / SETTINGS, json.dumps(settings, indent=1))
        shutil.rmtree(checkpoints, ignore_errors=True)


def _made_with(folder: Path, settings: dict[str, Any]) -> bool:
    """Whether the artefact in `folder` was made with `settings`; what was not made here is never replaced."""
    if not folder.exists():
        return False
    found = _settings(folder)
    if found is None:
        raise UserError(f"{folder}: {SETTINGS} is missing or damaged; delete the folder, or name another one")
    return found == settings


def _settings(folder: Path) -> dict[str, Any] | None:
    """What the artefact or the checkpoints in `folder` were made with; None if that cannot be read."""
    try:
        return json.loads((folder / SETTINGS).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
