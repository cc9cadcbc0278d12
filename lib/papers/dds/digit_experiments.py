"""What one replicate of the DDS experiments on digits measures, by a network with prompts: functions of one seed.

Notebooks 41_dds_digits and 43_dds_network.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lib.ground.diffusion import Schedule
from lib.papers.dds import fast, measures, method as dds, network
from lib.papers.dds.experiments import SDS, Found, key_of, maps
from lib.worlds import digits, judge, prompts
from lib.worlds.judge import HANDWRITTEN, PRINTED, Classifier


def digit_runs(p: Any, sweeps: bool = True) -> dict[str, Found]:
    """Return the runs of the edit that is compared, with their options."""
    runs: dict[str, Found] = {"DDS": {}, "SDS": SDS}
    if sweeps:
        runs |= {f"SDS, lambda {v:g}": SDS | {"lambda_id": v} for v in sorted(p.lambdas)}
        runs |= {f"DDS, omega {w:g}": {"omega": w} for w in sorted(p.omegas) if w != p.omega}
    return runs


def path_steps(p: Any) -> list[int]:
    """Return the steps after which pictures are shown."""
    return sorted({round(share * p.iterations_long) for share in (0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.625, 0.75, 0.875, 1)})


def digit_task(
    seed: int, p: Any, unet: Any, schedule: Schedule, inputs: Tensor, y_hat: Tensor, y: Tensor, iterations: int
) -> tuple[Tensor, Callable[..., dds.Edit]]:
    """Return inputs on the device and their edit; what depends on inputs alone is predicted once, for `iterations`."""
    model, null, z_hat, seed = prompts.prompt_model(unet), prompts.null(), inputs.to(unet.device), 1000 * seed
    known = fast.reference(model, schedule, z_hat, y_hat, null, iterations=iterations, seed=seed)
    options = {"omega": p.omega, "iterations": p.iterations, "seed": seed}
    return z_hat, partial(fast.edit, model, schedule, z_hat, y, y_hat, null, known, **options)


def inputs_of(digit: int, seed: int, p: Any, size: int) -> Tensor:
    """Draw held-out handwritten pictures of a digit, (p.images, 1, size, size)."""
    return digits.limited(digits.split(digits.handwritten(size))[1], p.images, classes=[digit], seed=seed).images


def compared(seed: int, p: Any, unet: Any, schedule: Schedule, size: int) -> tuple[Tensor, Callable[..., dds.Edit]]:
    """Return the inputs of the edit of all comparisons, and the edit (see `digit_task`)."""
    y_hat, y = (prompts.prompt(digit, HANDWRITTEN) for digit in (p.source_digit, p.target_digit))
    return digit_task(seed, p, unet, schedule, inputs_of(p.source_digit, seed, p, size), y_hat, y, p.iterations)


def strokes_of(p: Any, size: int) -> Tensor:
    """Return the region that this edit concerns, (size, size) of 0 and 1."""
    means = prompts.mean_images(HANDWRITTEN, size)
    return measures.strokes(means[p.source_digit], means[p.target_digit])


def digit_edits(seed: int, p: Any, unet: Any, schedule: Schedule, classifier: Classifier) -> Found:
    """Edit held-out handwritten digits by every run, and `written`."""
    z_hat, edit = compared(seed, p, unet, schedule, classifier.size)
    region = strokes_of(p, classifier.size).to(z_hat.device)
    found: Found = {"inputs": z_hat[:12]}
    for name, options in digit_runs(p, sweeps=seed < p.seed + p.sweep_seeds).items():
        done = edit(**options)
        z = done.z.clamp(-1, 1)
        values = {
            "success": prompts.reads(classifier, z, p.target_digit, HANDWRITTEN).float().mean(),
            "outside": measures.change_outside(z, z_hat, region).mean(),
            "spread": measures.kept_spread(z, z_hat),
            "detail": measures.kept_detail(z, z_hat),
            "peak": done.z.abs().amax((1, 2, 3)).mean(),
            "slant": torch.corrcoef(torch.stack([digits.slant(z_hat), digits.slant(z)]))[0, 1].item(),
            "z": done.z[:12],
        }
        found |= {f"{key_of(name)}_{key}": value for key, value in values.items()}
    return found | written(seed, p, unet, schedule, classifier)


READ = 0.9  # share of the inputs read as the target at which edits are compared
ARMS: dict[str, Found] = {"sgd": {}, "adam": {"optimizer": "adam"}, "sds": SDS}


def rates(p: Any) -> dict[str, list[float]]:
    """Return the grid of step sizes of each arm, from small to large."""
    return {"sgd": sorted(p.sgd_etas), "adam": sorted(p.adam_etas), "sds": sorted(p.sgd_etas)}


def optimisers(seed: int, p: Any, unet: Any, schedule: Schedule, classifier: Classifier) -> Found:
    """Make the same edit with SGD, with Adam and by SDS, over a grid of rates, compared at equal completion (D2).

    By arm, over its rates: the first step at which `READ` of the inputs are read as the target (NaN: never), and at
    that step the change outside the strokes and the share of the update energy inside; for the rate with the least
    change outside, pictures "z" and the maps of the first input at half of that step and at it. "share_noise" is what
    noise in the place of updates has inside, beyond the share of the pixels.
    """
    z_hat, edit = compared(seed, p, unet, schedule, classifier.size)
    region = strokes_of(p, classifier.size).to(z_hat.device)
    found: Found = {"inputs": z_hat[:12]}
    for arm, etas in rates(p).items():
        rows, least = [], math.inf
        best = {"z": z_hat[:12], "maps": torch.zeros(2, 2, *region.shape)}
        for eta in etas:
            done = edit(**ARMS[arm], eta=eta)
            read = prompts.reads(classifier, done.trajectory, p.target_digit, HANDWRITTEN).float().mean(1)  # (n + 1,)
            if read.max() < READ:
                rows.append([math.nan] * 3)
                continue
            step = int((read >= READ).int().argmax())
            outside = measures.change_outside(done.trajectory[step], z_hat, region).mean().item()
            rows.append([step, outside, measures.energy_share(done.update[:step], region).mean().item()])
            if outside < least:
                least, best = outside, {"z": done.trajectory[step, :12], "maps": maps(done, [(step + 1) // 2, step])}
        found |= {f"{arm}_{key}": np.array(rows)[:, i] for i, key in enumerate(("step", "outside", "share"))}
        found |= {f"{arm}_{key}": value for key, value in best.items()}
    noise = torch.randn(p.iterations, p.images, *region.shape, generator=torch.Generator().manual_seed(seed))
    share = measures.energy_share(noise, region.cpu()).mean() - region.cpu().mean()
    return found | {"share_noise": share}


def lengths(seed: int, p: Any, unet: Any, schedule: Schedule, classifier: Classifier) -> Found:
    """Make the edit of all comparisons, small, and that of the farthest pair of digits, large, in many steps (D4)."""
    pairs = {"small": (p.source_digit, p.target_digit), "large": prompts.farthest_pair(HANDWRITTEN, classifier.size)}
    found: Found = {}
    for name, pair in pairs.items():
        inputs = inputs_of(pair[0], seed, p, classifier.size)
        y_hat, y = (prompts.prompt(digit, HANDWRITTEN) for digit in pair)
        path = digit_task(seed, p, unet, schedule, inputs, y_hat, y, p.iterations_long)[1](
            iterations=p.iterations_long, eta=p.small_eta
        ).trajectory
        read = prompts.reads(classifier, path, pair[1], HANDWRITTEN)  # (n + 1, b)
        found |= {f"{name}_success": read.float().mean(1), f"{name}_path": path[path_steps(p), :8]}
        found |= {f"steps_{name}": measures.first_read(read).float().mean(), f"never_{name}": (~read.any(0)).sum()}
    return found


def written(seed: int, p: Any, unet: Any, schedule: Schedule, classifier: Classifier) -> Found:
    """Edit printed digits into handwritten ones of the same digit, a prompt for each."""
    inputs = digits.limited(digits.split(digits.printed(classifier.size))[1], p.images, classes=range(10), seed=seed)
    asked = inputs.labels
    z_hat, edit = digit_task(seed, p, unet, schedule, inputs.images, asked, asked + prompts.DIGITS, p.iterations)
    found = {"printed": z_hat[:20]}
    for name, options in {"written_dds": {}, "written_sds": SDS}.items():
        z = edit(**options).z.clamp(-1, 1)
        found[f"{name}_success"] = prompts.reads(classifier, z, asked, HANDWRITTEN).float().mean()
        found[f"{name}_digit_kept"] = (judge.judge(classifier, z).digit == asked).float().mean()
        found[f"{name}_change"] = (z - z_hat).square().mean((1, 2, 3)).sqrt().mean()
        found[f"{name}_z"] = z[:20]
    return found


# 43: one network for several edits

WANTED = {"handwritten 8": (8, HANDWRITTEN), "handwritten 5": (5, HANDWRITTEN), "printed 3": (3, PRINTED)}
VARIANTS: dict[str, Found] = {"DDS": {}, "no warm-up": {"omega_warmup": 0}, "SDS": SDS}
GOALS = torch.cat([prompts.prompt(*goal) for goal in WANTED.values()])
TASKS = network.Tasks(GOALS, prompts.prompt(3, HANDWRITTEN), prompts.null())
MEASURES = ("success", "variety", "detail", "outside")


def threes(size: int) -> tuple[Tensor, Tensor]:
    """Return the handwritten threes for training and the held-out ones, (n, 1, size, size) each."""
    known, unseen = (part.images[part.labels == 3] for part in digits.split(digits.handwritten(size)))
    return known, unseen


def checkpoints(p: Any) -> list[int]:
    """Return the iterations after which outputs are judged."""
    return sorted(i for i in {*p.checkpoints, p.iterations} if i <= p.iterations)


def outputs(student: network.DistilledNetwork, z_hat: Tensor) -> Tensor:
    """Return a student's outputs for all tasks, (tasks, n, 1, h, w)."""
    return torch.stack([network.apply(student, z_hat, k) for k in range(len(WANTED))])


def network_trainings(seed: int, p: Any, unet: Any, schedule: Schedule, classifier: Classifier) -> Found:
    """Train a network of every variant, for the first seeds at every guidance scale (D6).

    "VARIANT OMEGA measured" and "VARIANT OMEGA outputs" are those of `network_training`.
    """
    found: Found = {}
    for omega in [p.omega, *(w for w in p.omegas if w != p.omega and seed < p.seed + p.sweep_seeds)]:
        for variant in VARIANTS:
            done = network_training(seed, p, unet, schedule, classifier, variant, omega)
            found |= {f"{variant} {omega:g} {key}": value for key, value in done.items()}
    return found


def network_training(
    seed: int, p: Any, unet: Any, schedule: Schedule, classifier: Classifier, variant: str, omega: float
) -> Found:
    """Train one network for all tasks.

    At every checkpoint: `measured` are the `MEASURES` of the outputs for held-out inputs, (checkpoints, tasks, 4), and
    `outputs` those for the first ten, (checkpoints, tasks, 10, 1, h, w).
    """
    known, unseen = threes(classifier.size)
    means = {domain: prompts.mean_images(domain, classifier.size) for domain in (PRINTED, HANDWRITTEN)}
    regions = [measures.strokes(means[HANDWRITTEN][3], means[domain][digit]) for digit, domain in WANTED.values()]
    student = network.student_of(unet, TASKS.y.to(unet.device)).to(memory_format=torch.channels_last)
    measured, seen = [], []

    def look(i: int, _: Any) -> None:
        if i in checkpoints(p):
            seen.append(outputs(student, unseen))
            measured.append([measure(*task) for task in zip(seen[-1], WANTED.values(), regions, strict=True)])

    def measure(z: Tensor, wanted: tuple[int, int], region: Tensor) -> list[float]:
        success = prompts.reads(classifier, z, *wanted).float().mean().item()
        kept = measures.kept_spread(z, unseen), measures.kept_detail(z, unseen)
        return [success, *kept, measures.change_outside(z, unseen, region).mean().item()]

    settings = network.PAPER.scaled(p.iterations, batch=p.batch, lr=p.lr, omega=omega, **VARIANTS[variant])
    network.train_network(student, prompts.prompt_model(unet), schedule, known, TASKS, settings, seed, on_step=look)
    return {"measured": np.array(measured), "outputs": torch.stack([z[:, :10] for z in seen])}
