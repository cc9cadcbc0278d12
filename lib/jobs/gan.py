"""What a job of U-GAT-IT, UNIT or LaDiffGAN does: two translators, there and back, from two folders of pictures.

A kind of `lib.jobs.kinds`.
"""

import json
import math
from collections.abc import Callable
from contextlib import closing, nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

import torch
from accelerate import Accelerator
from matplotlib.figure import Figure
from safetensors.torch import load_file, save
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.flop_counter import FlopCounterMode

from lib.ground.diffusion import linear
from lib.ground.folder import Read
from lib.ground.nets import fingerprint, parameter_count, seeded
from lib.ground.train import History
from lib.jobs import hub, methods, report
from lib.jobs.load import Load, operations
from lib.jobs.settings import TwoPlayer, settings
from lib.jobs.translation import SHEET, measured, translate
from lib.jobs.watch import Watch
from lib.papers.baselines import two_player, ugatit
from lib.papers.baselines.diffusion_gan import Noise
from lib.papers.baselines.two_player import Pair
from lib.papers.baselines.ugatit import OTHER, UGATIT
from lib.papers.baselines.unit import UNIT
from lib.papers.ladiffgan import latent, pretrained
from lib.papers.ladiffgan.method import Supervision
from lib.papers.ladiffgan.pretrained import Recipe
from lib.record import figures
from lib.record.files import reading, replacing, write_atomic

NAMES = {"s": "source", "d": "target"}
ABOUT, WEIGHTS = "translator.json", "translator.safetensors"
ALIKE = 0.1  # translations that vary by less than this share of their inputs' variation are a collapse


class Start(NamedTuple):
    """What a job begins with: networks without weights, which come from its seed."""

    game: Any  # on the meta device
    device: torch.device


def load(folder: str | Path, device: torch.device | str = "cpu") -> nn.Module:
    """Return a translator that a job left in ``translators/target`` or ``source``: pictures in [-1, 1] in one call."""
    path = Path(folder) / ABOUT
    with reading(path, "name a folder that a job of a GAN left in translators/"):
        about = json.loads(path.read_text(encoding="utf-8"))
        s = settings(**about["settings"], out=folder, source_images="read", target_images="read")
        translator = build(s).translator(about["domain"])
        translator.load_state_dict(load_file(Path(folder) / WEIGHTS))
    return translator.requires_grad_(False).eval().to(device)


def build(s: TwoPlayer) -> Any:
    """Return the untrained base game."""
    halvings = int(math.log2(s.size)) - 3  # of the global discriminator: to a map of 8 x 8
    if (s.base if s.method == "LaDiffGAN" else s.method) == "UNIT":
        return UNIT(s.width, s.blocks, min(4, halvings - 1), 3 if s.size >= 64 else 2)
    critics = [partial(ugatit.Discriminator, n, s.width) for n in (halvings, max(halvings - 2, 1))]
    return UGATIT(partial(ugatit.Generator, s.size, s.width, s.blocks, s.light), lambda: [make() for make in critics])


def begin(s: TwoPlayer, device: torch.device) -> Start:
    """Make the networks, without weights."""
    with torch.device("meta"):
        return Start(build(s), device)


def open_inputs(s: TwoPlayer, start: Start) -> tuple[dict[str, Read], dict[str, str]]:
    """Open both folders at the size of the settings."""
    reads = hub.targets(s, (3, s.size, s.size), dict.fromkeys(("source_images", "target_images"), 2))
    if s.perceptual == "VGG-19" and s.method == "LaDiffGAN":
        latent.vgg19(torch.device("cpu"))
    found = {key: f"{getattr(s, key)}: {len(read.names)}" for key, read in reads.items()}
    sizes = ", ".join(f"{parameter_count(part) / 2e6:.2f} M a {name}" for name, part in _players(start.game).items())
    return reads, found | {"networks": f"{s.method} at {s.size} x {s.size}: {sizes}"}


def _players(game: Any) -> dict[str, nn.Module]:
    return {"generator": game.G, "domain's discriminators": game.D}


def identity(start: Start) -> tuple[str, torch.device]:
    """Return what tells whether a job begins with the same, and its device."""
    return "from the seed", start.device


def results(s: TwoPlayer) -> list[str]:
    """Return the folders of the results."""
    return [f"{kind}/{name}" for name in ("target", "source") for kind in ("translators", "translated")]


def supervision(s: TwoPlayer, domains: dict[str, Any]) -> Supervision:
    """Return LaDiffGAN's two losses, with untrained latent discriminators."""
    critic = partial(latent.LatentDiscriminator, Recipe(s.size).channels, s.width)
    condition, _ = latent.CONDITIONS[s.condition]
    return Supervision(domains, condition, critic, linear(), s.lambda_ldg, s.lambda_hcd, s.reading)


def recipe(s: TwoPlayer) -> Recipe:
    """Return how the latent models of LaDiffGAN are trained."""
    names = ("size", "condition", "ae_width", "ae_steps", "ae_batch", "ldm_width", "ldm_steps", "ldm_batch")
    return Recipe(**{name: getattr(s, name) for name in (*names, "perceptual", "flip", "seed")})


def train(
    s: TwoPlayer, game: Any, images: Pair, domains: dict[str, Any], steps: int, options: Any,
    on_step: Callable[[int, History], None] | None, accelerator: Accelerator,
) -> History:  # fmt: skip
    """Train the game as the settings say; `domains` are what supervises, if anything does."""
    device = next(game.G.parameters()).device
    more = seeded(s.seed, lambda: supervision(s, domains)).to(device) if domains else None
    noise = Noise(s.kimg).to(device) if s.noised else None
    return two_player.train_game(game, images, steps, options, more, noise, on_step, accelerator)


def work(
    s: TwoPlayer, start: Start, reads: dict[str, Read], inputs: dict[str, str], accelerator: Accelerator
) -> dict[str, Any]:
    """Train, and in the main process translate, measure and write; return the metrics, elsewhere nothing.

    One process trains what supervises, while others wait.
    """
    images = {domain: reads[f"{name}_images"].images for domain, name in NAMES.items()}
    checksums = {name: inputs[f"{name}_images"] for name in NAMES.values()}
    domains, made_by = {}, {}
    if s.method == "LaDiffGAN":
        layers = latent.vgg19(start.device) if s.perceptual == "VGG-19" else latent.neutral_layers
        for domain, name in NAMES.items():
            place = s.out / f"latents-{name}-{checksums[name][:8]}"
            models = pretrained.trained(place, recipe(s), images[domain], layers, start.device)
            domains[domain] = pretrained.supervising(*models)
            made_by[name] = [fingerprint(model) for model in models]
    game = seeded(s.seed, lambda: build(s)).to(start.device, memory_format=torch.channels_last)
    unchanged = s.fixed | {"checksums": checksums, "latent models": made_by}
    options = methods.options(s, folder=s.out / "checkpoints", save_every=s.save_every, parameters=unchanged)
    look = _Look(s, game, images) if accelerator.is_main_process else None
    with closing(look) if look else nullcontext():
        history = train(s, game, images, domains, s.steps, options, look, accelerator)
    if not accelerator.is_main_process:
        return {}
    if s.ema:
        game.G.load_state_dict(history.ema["G"])
    game.eval()
    rows: list[dict[str, Any]] = []
    protocols: list[str] = []
    shown: dict[str, Tensor] = {}
    metrics: dict[str, Any] = {"images": {name: len(read.names) for name, read in reads.items()}}
    for d in ("d", "s"):
        name, x = NAMES[d], images[OTHER[d]][: s.translated]
        y = translate(game.translator(d), x)
        _save(s, game.translator(d), d)
        report.write_images(s.out / "translated" / name, y)
        found = measured(s, x, images[d], {name: y}, start.device)
        rows.append(found["translators"][0] | {"kernel_of_inputs": found["kernel_of_inputs"], "varies": varies(x, y)})
        metrics["missing"] = found["missing"]
        protocols.append(f"into the {name}: {found['protocol']}")
        shown |= {NAMES[OTHER[d]]: x[: s.shown].contiguous(), f"to {name}": y[: s.shown].contiguous()}
    write_atomic(s.out / SHEET, save(shown))
    write_atomic(s.out / "translations.png", figures.render(partial(sheet, s.out / SHEET), "light", "png"))
    losses = {name: fmean(values[-50:]) for name, values in history.values.items()}
    training = {"steps": s.steps, "seconds": round(history.seconds, 1), "losses": losses}
    return metrics | {"protocol": "; ".join(protocols), "training": training, "translators": rows}


def varies(x: Tensor, y: Tensor) -> float:
    """Return how much translations y vary, pixel by pixel, over how much their inputs do; near 0: a collapse."""
    spread = [images.std(0).mean().item() for images in (y, x)]
    return spread[0] / max(spread[1], 1e-12)


class _Look:
    """What is seen of a training on the way: see `lib.jobs.watch.Watch`; a collapse is said as soon as it is seen."""

    def __init__(self, s: TwoPlayer, game: Any, images: Pair) -> None:
        self.game, self.i = game, 0
        self.x = {domain: pictures[: max(s.shown, 2)] for domain, pictures in images.items()}
        checkpoints, logs = s.out / "checkpoints", s.out / "logs"
        self.watch = Watch(game.G, checkpoints, logs, s.steps, self.grid, s.grid_every, name="G")

    def __call__(self, i: int, history: History) -> None:
        self.i = i
        self.watch(i, history)

    def grid(self) -> Tensor:
        rows = []
        for d, s in OTHER.items():
            x = self.x[s]
            y = translate(self.game.translator(d), x)
            rows += [x, y]
            if (share := varies(x, y)) < ALIKE:
                what = (
                    f"translations into the {NAMES[d]} are nearly all alike (they vary by {share:.2f} of their inputs)"
                )
                print(f"step {self.i}: {what}: a collapse; start again with another seed, or a lower lr")
        return torch.cat(rows)

    def close(self) -> None:
        self.watch.close()


def sheet(path: Path) -> Figure:
    """Return four rows of pictures: of each domain, and what the translators make of them."""
    shown = load_file(path)
    n = min(map(len, shown.values()))
    return report.grid({name: shown[name][:n] for name in ("source", "to target", "target", "to source")})


def _save(s: TwoPlayer, translator: nn.Module, domain: str) -> None:
    """Put a translator in place, complete."""
    names = ("method", "base", "size", "width", "blocks", "light")
    of_job = {name: getattr(s, name) for name in names}
    about = {"settings": of_job, "domain": domain, "load": "lib.jobs.gan.load(FOLDER)"}
    with replacing(s.out / "translators" / NAMES[domain]) as draft:
        weights = {name: value.cpu().contiguous() for name, value in translator.state_dict().items()}
        write_atomic(draft / WEIGHTS, save(weights))
        write_atomic(draft / ABOUT, json.dumps(about, indent=1) + "\n")


def count(s: TwoPlayer, start: Start) -> Load:
    """Count; operations and memory of a step are read off the losses themselves, of networks without weights."""
    game, more, before, models = start.game, None, 0.0, 0
    with torch.device("meta"):
        if s.method == "LaDiffGAN":
            r = recipe(s)
            both = [r.untrained() for _ in NAMES]
            for latents, unet in both:
                before += s.ae_steps * s.ae_batch * _there_and_back(latents.net, _pictures(s))
                latents.requires_grad_(False)
                z, c = latents.encode(_pictures(s)), latent.CONDITIONS[s.condition][0](_pictures(s))
                given = torch.cat([z, c], 1), torch.zeros(1, dtype=torch.long)
                before += s.ldm_steps * s.ldm_batch * _there_and_back(unet, *given)
                models += 4 * 6 * (parameter_count(latents) + parameter_count(unet.requires_grad_(False)))
            more = supervision(s, dict(zip(NAMES, (pretrained.supervising(*one) for one in both), strict=True)))
        flops, memory = _step(s, game, more)
        one = operations(game.translator(), _pictures(s))
    generators = parameter_count(game.G)
    trained = generators + parameter_count(game.D) + (parameter_count(more.D) if more else 0)
    passes = 5 if isinstance(game, UNIT) else 6  # both translated, both again, and both their own domain's
    return Load(
        parameters=generators,
        trained=trained,
        averaged=generators,
        images=s.steps * s.batch,
        forwards=passes,
        backwards=passes,
        flops=flops,
        drawn=2 * one * s.translated,
        models=4 * generators + models,
        pictures=2 * s.translated + 8 * s.shown,
        kept=2,
        images_before=2 * (s.ae_steps * s.ae_batch + s.ldm_steps * s.ldm_batch) if more else 0,
        flops_before=before,
        memory=4 * (4 * trained + bool(s.ema) * generators) + s.batch // s.processes * memory,
    )


def _pictures(s: TwoPlayer) -> Tensor:
    return torch.zeros(1, 3, s.size, s.size)


def _there_and_back(network: Any, *inputs: Tensor) -> float:
    """Return the operations of a forward and a backward pass."""
    with FlopCounterMode(display=False) as counter:
        network(*inputs).sample.sum().backward()
    return float(counter.get_total_flops())


def _step(s: TwoPlayer, game: Any, more: Supervision | None) -> tuple[float, int]:
    """Return operations of a step with one picture of each domain, and the bytes kept for the backward pass."""
    kept: dict[int, Tensor] = {}
    x, rng = {domain: _pictures(s) for domain in NAMES}, torch.Generator()

    def keep(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage()._cdata] = tensor
        return tensor

    def see(images: Tensor) -> Tensor:
        return images

    with FlopCounterMode(display=False) as counter, saved_tensors_hooks(keep, lambda tensor: tensor):
        y, losses = game.play(x)
        fixed = {domain: images.detach() for domain, images in y.items()}
        critics = [game.discriminators_loss(x, fixed, see)[0]]
        if more:
            critics.append(more.discriminators_loss(x, fixed, rng))
            more.D.requires_grad_(False)
        two_player.summed(critics).backward()
        game.D.requires_grad_(False)
        losses["adversarial"] = game.adversarial(y, see)
        losses |= more.losses(x, y, rng) if more else {}
        two_player.summed(losses.values()).backward()
    weights = {p.untyped_storage()._cdata for p in [*game.parameters(), *(more.parameters() if more else ())]}
    game.D.requires_grad_(True)
    size = sum(one.untyped_storage().nbytes() for key, one in kept.items() if key not in weights)
    return float(counter.get_total_flops()), size


def one_pass(s: TwoPlayer, start: Start) -> tuple[Callable[[], Any], float]:
    """Return the translation of one picture, by a network with weights."""
    translator = seeded(s.seed, lambda: build(s)).translator().to(start.device)
    x = _pictures(s).to(start.device)
    return lambda: translator(x), operations(start.game.translator(), x.to("meta"))


def some_steps(s: TwoPlayer, start: Start, steps: int, clock: Callable[..., None]) -> None:
    """Train on noise, with untrained latent models."""
    generator = torch.Generator().manual_seed(s.seed)
    images = {domain: torch.rand(4, 3, s.size, s.size, generator=generator) * 2 - 1 for domain in NAMES}
    domains = {}
    if s.method == "LaDiffGAN":
        for domain in NAMES:
            latents, unet = (one.requires_grad_(False).to(start.device) for one in recipe(s).untrained())
            domains[domain] = pretrained.supervising(latents, unet)
    game = seeded(s.seed, lambda: build(s)).to(start.device, memory_format=torch.channels_last)
    options, accelerator = replace(methods.options(s), lr=1e-8), methods.accelerator(s, start.device)
    train(s, game, images, domains, steps, options, clock, accelerator)
