"""The source model of the image runs: a DDPM (Ho et al. 2020) of printed digits, trained once and kept as a folder.

The folder has diffusers' layout, so ``DDPMPipeline.from_pretrained(folder)`` and
``UNet2DModel.from_pretrained(folder, subfolder="unet")`` load it too. It holds the averaged (EMA) weights.
"""

import json
import math
import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers.models.unets.unet_2d import UNet2DModel
from diffusers.pipelines.ddpm.pipeline_ddpm import DDPMPipeline
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
from torch import Tensor

from lib.ground import diffusion, pretrained
from lib.ground.diffusion import Schedule
from lib.ground.nets import seeded, small_unet
from lib.ground.precision import quick_model
from lib.ground.train import train
from lib.record.files import DRAFT, ROOT, UserError, alone, replacing, write_atomic
from lib.worlds import digits as data
from lib.worlds.judge import Classifier, load_classifier, save_classifier, train_classifier

Device = torch.device | str
Model = tuple[UNet2DModel, Schedule]
World = tuple[UNet2DModel, Schedule, Classifier]
Draw = Callable[[int, torch.Generator], list[Tensor]]
Prepare = Callable[[], tuple[Any, Draw]]
MODELS = ROOT / "models"  # what tools.sources trained
SETTINGS, SECONDS = "training.json", "seconds.json"  # what an artefact was trained with, and how long
WARMUP, CLIP = 100, 1.0  # steps of rising learning rate; largest norm of a gradient


@dataclass(frozen=True)
class Training:
    """What a diffusion model is trained with; its folder keeps it."""

    size: int = 16
    channels: Sequence[int] = (16, 32, 64)
    steps: int = 1600
    batch: int = 32
    lr: float = 2e-3
    ema: float = 0.995
    seed: int = 0
    prediction: str = "epsilon"  # or v_prediction
    bf16: bool = False  # bfloat16 through torch.compile: twice as fast on CPUs that have it


def source_model(folder: Path, device: Device = "cpu", **settings: Any) -> Model:
    """Load the source model in `folder`, or train it there if it is missing or was trained with other settings.

    `settings` are those of `Training` that differ from its defaults. Training keeps a checkpoint every 200 steps beside
    the folder and continues from it. The folder appears at the end, complete, by one rename; a second process that
    wants the same folder waits and then loads it.
    """
    training = Training(**settings)

    def prepare() -> tuple[Any, Draw]:
        images = data.split(data.printed(training.size))[0].images
        unet = small_unet(training.size, training.channels)
        return unet, lambda n, generator: [images[torch.randint(len(images), (n,), generator=generator)]]

    denoiser(folder, training, prepare, device)
    return load(folder, device)


def denoiser(folder: Path, training: Training, prepare: Prepare, device: Device) -> None:
    """See that `folder` holds a U-Net trained as `training` says; if not, train it there.

    `prepare` is called to train, with torch's seed set. It returns the untrained U-Net and a function that draws n
    clean images (n, c, h, w) with a generator: a list of them and, if the U-Net has classes, their numbers (n,).
    """
    settings = asdict(training) | {"channels": list(training.channels)}
    artefact(folder, settings, lambda checkpoints, target: _train(training, prepare, device, checkpoints, target))


def classifier(folder: Path, size: int, steps: int, seed: int = 0, device: Device = "cpu") -> Classifier:
    """Load the digit-and-domain classifier in `folder`, or train it there, as `source_model` does."""

    def make(checkpoints: Path, target: Path) -> None:
        save_classifier(train_classifier(size, steps, seed, device, checkpoints), target)

    artefact(folder, {"size": size, "steps": steps, "seed": seed}, make)
    return load_classifier(folder, device)


def found(p: Any, folder: Path, notebook: str) -> bool:
    """Return whether a notebook with parameters `p` finds its model in `folder`, else has to train it there.

    Only the parameters of `notebook` know the size of the model at the profiles for a GPU: there it must come first.
    """
    there = bool(p.source) or folder.exists()
    if not there and p.profile in ("gpu", "paper"):
        raise UserError(f"source: no model in {folder}; at profile {p.profile} run {notebook} first, or name another")
    return there


def judge_for(unet: UNet2DModel, folder: Path, steps: int, device: Device, seed: int = 0) -> Classifier:
    """Load the classifier in `folder`, trained there if there is none yet, that is to judge the images of `unet`."""
    size, channels = unet.config["sample_size"], unet.config["in_channels"]
    judge = load_classifier(folder, device) if folder.exists() else classifier(folder, size, steps, seed, device)
    if (size, channels) != (judge.size, 1):
        text = f"images {channels} x {size} x {size} given; the classifier takes 1 x {judge.size} x {judge.size}"
        raise UserError(f"source: {text}; name another model, or delete {folder}: it is then trained anew")
    return judge


def load(folder: Path | str, device: Device = "cpu", what: str = "source model", notebook: str = "50_source") -> Model:
    """Load a model and its noise schedule from a folder of diffusers' pipeline layout, or by its name in models/.

    `what` it is and the `notebook` that makes it are named in errors.
    """
    folder = MODELS / folder if (MODELS / folder / "unet").is_dir() else Path(folder)
    remedy = f"delete the folder and run {notebook} again"
    for name in ("unet/config.json", "scheduler/scheduler_config.json"):
        if not (folder / name).is_file():
            raise UserError(f"{what} {folder}: {name} is missing; run {notebook} first, or name another folder")
    scheduler, _ = pretrained.scheduler(folder, what, remedy)
    unet, schedule = pretrained.denoiser(folder / "unet", scheduler, what, remedy)
    return unet.to(device, memory_format=torch.channels_last), schedule


def seconds(folder: Path | str) -> float:
    """Return how long the source model in `folder` was trained, in seconds; NaN for a model from elsewhere."""
    found = _kept(Path(folder) / SECONDS)
    return math.nan if found is None else found


def samples(unet: UNet2DModel, schedule: Schedule, n: int, seed: int, steps: int) -> Tensor:
    """Draw n images (n, c, size, size) by ancestral sampling (Ho et al. 2020, Alg. 2) in few steps, all from `seed`.

    Networks sampled with one seed see the same noises, at the start and later. A briefly trained model is not exact at
    the highest noise; fresh noise at each step repairs that, deterministic DDIM carries it on.
    """
    side, generator = unet.config["sample_size"], torch.Generator().manual_seed(seed)
    noise = torch.randn(n, unet.config["in_channels"], side, side, generator=generator)
    return diffusion.sample(quick_model(unet), schedule, noise, steps, generator, device=unet.device)


def _train(training: Training, prepare: Prepare, device: Device, checkpoints: Path, target: Path) -> None:
    """Train what `prepare` returns, see `denoiser`, and write its averaged weights, its schedule and the seconds."""
    schedule, velocity = diffusion.linear(), training.prediction == "v_prediction"
    unet, draw = seeded(training.seed, prepare)
    unet.to(device, memory_format=torch.channels_last)  # a fifth faster on CPUs
    quick = torch.compile(unet) if training.bf16 else unet
    precision = torch.autocast(torch.device(device).type, torch.bfloat16, enabled=training.bf16)
    optimizer = torch.optim.AdamW(unet.parameters(), lr=training.lr, weight_decay=0.0)
    decay = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda i: _rate(i, training.steps))

    def sample(generator: torch.Generator) -> list[Tensor]:
        x0, *y = draw(training.batch, generator)
        t = torch.randint(schedule.T, (training.batch,), generator=generator)
        eps = torch.randn(x0.shape, generator=generator)
        return [part.to(device) for part in (x0, t, eps, *y)]

    def step(drawn: list[Tensor]) -> dict[str, Tensor]:
        x0, t, eps, *y = drawn
        with precision:
            predicted = quick(schedule.add_noise(x0, eps, t), t, *y).sample
        goal = schedule.v_from_eps(x0, eps, t) if velocity else eps  # else Ho et al. 2020, Eq. 14
        loss = (predicted.float() - goal).square().mean()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(unet.parameters(), CLIP)
        optimizer.step()
        decay.step()
        return {"loss": loss.detach()}

    changing = {"unet": unet}, {"unet": optimizer, "decay": decay}
    kept: dict[str, Any] = {"folder": checkpoints, "save_every": 200, "parameters": asdict(training)}
    history = train(step, sample, *changing, training.steps, training.seed, ema={"unet": training.ema}, **kept)
    unet.load_state_dict(history.ema["unet"])
    scheduler = DDPMScheduler(
        num_train_timesteps=schedule.T, beta_schedule="linear", prediction_type=training.prediction
    )
    DDPMPipeline(unet.cpu().to(memory_format=torch.contiguous_format), scheduler).save_pretrained(target)
    write_atomic(target / SECONDS, json.dumps(round(history.seconds, 1)))


def _rate(i: int, steps: int) -> float:
    """Learning rate as a share of the full one: linear warm-up, then half a cosine down to a twentieth."""
    return min(1.0, (i + 1) / WARMUP) * (0.05 + 0.95 * (1 + math.cos(math.pi * min(i / max(steps, 1), 1))) / 2)


def artefact(folder: Path, settings: dict[str, Any], make: Callable[[Path, Path], None]) -> None:
    """See that `folder` exists and was made with `settings`; else ``make(checkpoints, target)`` and put it in place.

    `make` fills the folder `target`; checkpoints in the other one outlive a stop. What was not made here is never
    replaced, and a second process that wants the same folder waits.
    """
    with alone(folder):
        found = _kept(folder / SETTINGS)
        if folder.exists() and found is None:
            raise UserError(f"{folder}: {SETTINGS} is missing or damaged; delete the folder, or name another one")
        if found == settings:
            return
        checkpoints = folder.with_name(f"{DRAFT}{folder.name}.training")
        if _kept(checkpoints / SETTINGS) != settings:  # of a run with other settings, stopped half-way
            shutil.rmtree(checkpoints, ignore_errors=True)
        write_atomic(checkpoints / SETTINGS, json.dumps(settings))
        with replacing(folder) as target:
            make(checkpoints, target)
            write_atomic(target / SETTINGS, json.dumps(settings, indent=1))
        shutil.rmtree(checkpoints, ignore_errors=True)


def made_with(folder: Path, settings: dict[str, Any]) -> bool:
    """Return whether a folder says that it was made with settings."""
    return settings.items() <= (_kept(folder / SETTINGS) or {}).items()


def _kept(path: Path) -> Any:
    """Return what a JSON file holds; None if it cannot be read."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
