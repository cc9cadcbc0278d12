"""What one replicate of each DDS experiment measures: functions of one seed; numbers and small arrays out, by name."""

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lib.ground.diffusion import Schedule, scaled_linear
from lib.papers.dds import directions, fast, measures, method as dds, network
from lib.papers.dds.gaussian import GaussianWorld, disc_world
from lib.papers.dds.optimizers import PRESETS
from lib.worlds import digits, judge, prompts
from lib.worlds.judge import HANDWRITTEN, PRINTED, Classifier

Found = dict[str, Any]

SDS: Found = {"method": "sds"}


def key_of(name: str) -> str:
    """Return the name of a run as it stands in a number's key: `DDS, Adam 0.05` is `dds_adam_0_05`."""
    return name.lower().replace(",", "").replace(" ", "_").replace("-", "_").replace(".", "_")


def adam(eta: float) -> Found:
    """Return the options of an edit with Adam."""
    return {"optimizer": "adam", "eta": eta}


def maps(done: dds.Edit, steps: list[int]) -> Tensor:
    """Return both saliency maps of the first input at some steps, (2, steps, h, w).

    The size of an update goes with the timestep drawn, so its map is the mean of the ten steps up to the one named.
    """
    updates = [done.update[max(0, k - 10) : k, 0].mean(0) for k in steps]
    return torch.stack([torch.stack(updates), done.accumulated[[k - 1 for k in steps], 0]])


# 40: exact scores
def gaussian_edit(world: GaussianWorld, z_hat: Tensor, p: Any, seed: int, y: int = 2, **options: Any) -> dds.Edit:
    """Edit images of a disc world from its source prompt to prompt y."""
    options = {"omega": p.omega, "iterations": p.iterations, "seed": seed} | options
    null, source, target = (torch.tensor([k]) for k in (0, 1, y))
    return dds.edit(world, world.schedule, z_hat, target, source, null, **options)


def gaussian_methods(p: Any) -> dict[str, Found]:
    """Return the runs in the world of equal variances, with their options."""
    return {"DDS": {}, "SDS": SDS} | {f"SDS, lambda {v:g}": SDS | {"lambda_id": v} for v in p.lambdas}


def gaussian_optimizers(p: Any) -> dict[str, Found]:
    """Return the runs in the world of unequal variances."""
    etas = sorted({*p.adam_etas, p.adam_eta})
    return {"DDS, SGD": {}} | {f"DDS, Adam {eta:g}": adam(eta) for eta in etas} | {"SDS, SGD": SDS}


def gaussian_worlds(p: Any) -> tuple[GaussianWorld, Tensor, GaussianWorld]:
    """Return the world of equal variances, the region of its edit, and the world of unequal variances."""
    settings = scaled_linear(), p.size, p.edit_size, p.omega
    world, region = disc_world(*settings)
    unequal, _ = disc_world(*settings, (p.variance_inside, p.variance_outside))
    return world.to(p.device), region.to(p.device), unequal.to(p.device)


def gaussian_input(seed: int, world: GaussianWorld) -> Tensor:
    """Return an input, (1, 3, h, w), from a stream of its own: an edit draws timesteps and noise from the seed."""
    return world.sample(1, 1, torch.Generator().manual_seed(10_000 + seed))


def gaussian(seed: int, p: Any, world: GaussianWorld, region: Tensor, unequal: GaussianWorld) -> Found:
    """Edit one image of both disc worlds by every run: what became of the edit and of the background (D1).

    Beside these numbers, named by run, what `gaussian_steps` finds.
    """
    found: Found = {}
    for made, runs in ((world, gaussian_methods(p)), (unequal, gaussian_optimizers(p))):
        z_hat, outside, step = gaussian_input(seed, made), region == 0, made.mean[2] - made.mean[1]
        for name, options in runs.items():
            done = gaussian_edit(made, z_hat, p, seed, **options)
            change = done.z - z_hat
            goal = made.end_point(z_hat, 2, 1, p.omega, options.get("method", "dds"))
            values = {
                "completed": measures.completed(done.z, z_hat, goal, region),
                "along": (change * step).sum() / (p.omega * step.square().sum()),
                "spread": done.z[..., outside].std() / z_hat[..., outside].std(),
                "background": change[..., outside].square().mean().sqrt(),
                "share": measures.energy_share(done.update, region),
                "gini": measures.gini(done.accumulated[-1]),
            }
            found |= {f"{key_of(name)}_{key}": float(value) for key, value in values.items()}
    return found | gaussian_steps(seed, p, world, region)


def gaussian_steps(seed: int, p: Any, world: GaussianWorld, region: Tensor, iterations: int = 400) -> Found:
    """Return the share completed by each preset, and what a small and a large edit lack, after every step."""
    z_hat = gaussian_input(seed, world)
    goal = world.end_point(z_hat, 2, 1, p.omega)
    found: Found = {}
    for name in PRESETS:
        path = gaussian_edit(world, z_hat, p, seed, iterations=iterations, eta=name).trajectory
        found[name] = measures.completed(path, z_hat, goal, region)[:, 0]
    for name, size in (("small", 1.0), ("large", 8.0)):  # standard deviations
        other = disc_world(world.schedule, p.size, size, p.omega)[0].to(z_hat.device)
        path = gaussian_edit(other, z_hat, p, seed, iterations=iterations).trajectory
        rest = (path - other.end_point(z_hat, 2, 1, p.omega))[..., region > 0].square().mean((1, 2, 3)).sqrt()
        found |= {f"left_{name}": rest, f"steps_{name}": (rest > 0.1).sum().item()}
    return found


# 41: digits
def digit_runs(p: Any, sweeps: bool = True) -> dict[str, Found]:
    """Return the runs of the edit that is compared, with their options."""
    runs = {"DDS": {}, "DDS, Adam": adam(p.adam_eta), "SDS": SDS}
    if sweeps:
        runs |= {f"SDS, lambda {v:g}": SDS | {"lambda_id": v} for v in sorted(p.lambdas)}
        runs |= {f"DDS, Adam {eta:g}": adam(eta) for eta in sorted(p.adam_etas) if eta != p.adam_eta}
        runs |= {f"DDS, omega {w:g}": {"omega": w} for w in sorted(p.omegas) if w != p.omega}
    return runs


def saliency_steps(p: Any) -> list[int]:
    """Return the steps at which saliency maps are shown."""
    return sorted({max(1, round(share * p.iterations)) for share in (0.05, 0.25, 1.0)})


def path_steps(p: Any) -> list[int]:
    """Return the steps after which pictures are shown."""
    return sorted(
        {
            round(share * max(p.iterations, p.iterations_long))
            for share in (0, 0.025, 0.05, 0.1, 0.15, 0.25, 0.5, 0.75, 1)
        }
    )


def digit_task(
    seed: int, p: Any, unet: Any, schedule: Schedule, inputs: Tensor, y_hat: Tensor, y: Tensor, iterations: int
) -> tuple[Tensor, Callable[..., dds.Edit]]:
    """Return inputs on the device and their edit; what depends on inputs alone is predicted once, for `iterations`."""
    model, null, z_hat, seed = prompts.prompt_model(unet), prompts.null(), inputs.to(unet.device), 1000 * seed
    known = fast.reference(model, schedule, z_hat, y_hat, null, iterations=iterations, seed=seed)
    options = {"omega": p.omega, "iterations": p.iterations, "seed": seed}
    return z_hat, partial(fast.edit, model, schedule, z_hat, y, y_hat, null, known, **options)


def digit_edits(seed: int, p: Any, unet: Any, schedule: Schedule, classifier: Classifier) -> Found:
    """Edit held-out handwritten digits by every run, the farthest pair of digits for longer, and `written` (D2, D4)."""
    held_out = digits.split(digits.handwritten(classifier.size))[1]
    pairs = {"large": prompts.farthest_pair(HANDWRITTEN, classifier.size), "small": (p.source_digit, p.target_digit)}
    found: Found = {}
    for name, pair in pairs.items():
        inputs = digits.limited(held_out, p.images, classes=pair[:1], seed=seed).images
        y_hat, y = (prompts.prompt(digit, HANDWRITTEN) for digit in pair)
        z_hat, edit = digit_task(seed, p, unet, schedule, inputs, y_hat, y, max(p.iterations, p.iterations_long))
        long = edit(iterations=max(p.iterations, p.iterations_long))
        read = prompts.reads(classifier, long.trajectory, pair[1], HANDWRITTEN)  # (n + 1, b)
        found |= {f"{name}_success": read.float().mean(1), f"{name}_path": long.trajectory[path_steps(p), :8]}
        found |= {f"steps_{name}": measures.first_read(read).float().mean(), f"never_{name}": (~read.any(0)).sum()}
    means = prompts.mean_images(HANDWRITTEN, classifier.size)
    region = measures.strokes(means[p.source_digit], means[p.target_digit]).to(z_hat.device)
    n = p.iterations  # timesteps and noises of a short edit are the first of a long one
    short = long._replace(z=long.trajectory[n], update=long.update[:n], accumulated=long.accumulated[:n])
    for name, options in digit_runs(p, sweeps=seed < p.seed + p.sweep_seeds).items():
        done = edit(**options) if options else short
        z = done.z.clamp(-1, 1)
        values = {
            "success": prompts.reads(classifier, z, p.target_digit, HANDWRITTEN).float().mean(),
            "outside": measures.change_outside(z, z_hat, region).mean(),
            "spread": measures.kept_spread(z, z_hat),
            "detail": measures.kept_detail(z, z_hat),
            "peak": done.z.abs().amax((1, 2, 3)).mean(),
            "slant": torch.corrcoef(torch.stack([digits.slant(z_hat), digits.slant(z)]))[0, 1].item(),
            "share": measures.energy_share(done.update, region).mean(),
            "gini": sum(measures.gini(image) for image in done.accumulated[-1]) / len(z),
            "maps": maps(done, saliency_steps(p)),
            "z": done.z[:12],
        }
        found |= {f"{key_of(name)}_{key}": value for key, value in values.items()}
    noise = torch.randn(n, p.images, *region.shape, generator=torch.Generator().manual_seed(seed))
    share = measures.energy_share(noise, region.cpu()).mean() - region.cpu().mean()
    found |= {"inputs": z_hat[:12], "share_noise": share}
    return found | written(seed, p, unet, schedule, classifier)


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


# 42: directions

CHANGES = [((a, HANDWRITTEN), (b, HANDWRITTEN)) for a, b in ((3, 8), (4, 9), (1, 7), (5, 6))]
CHANGES += [((digit, PRINTED), (digit, HANDWRITTEN)) for digit in (0, 2)]
KINDS = ("aligned", "unaligned", "edited", "own noise")
SHIFT, PROMPT_COSINE, LIKENESS = 0.1, 0.9, {"aligned": 0.8, "unaligned": 0.0}  # of the Gaussian world


def scales(p: Any) -> list[float]:
    """Return the guidance scales of the directions."""
    return sorted({3.0, 30.0, p.omega, *p.omegas})


def alike(first: directions.Branch, second: directions.Branch, p: Any) -> Tensor:
    """Return cosines averaged over pairs and noises, (readings, guidance scales)."""
    readings = directions.READINGS
    return torch.tensor([[directions.cosine(first, second, w, r).mean() for w in scales(p)] for r in readings])


def direction_pairs(seed: int, p: Any, unet: Any, schedule: Schedule, classifier: Classifier) -> Found:
    """Draw pairs of images of two prompts and measure how alike their directions are (D3).

    `cosines` are (timesteps, kinds, readings, guidance scales), `pairs` the first images of each pair of prompts.
    """
    model, device, b, size = prompts.prompt_model(unet), unet.device, p.images, classifier.size
    sides = (torch.cat([prompts.prompt(*goal) for goal in side]) for side in zip(*CHANGES, strict=True))
    y_hat, y, null = *(side.repeat_interleave(b).to(device) for side in sides), prompts.null().to(device)
    draw = {"omega": p.sample_omega, "steps": p.sample_steps, "seed": seed}
    z_hat, z = (directions.synthesise(model, schedule, side, null, size, **draw) for side in (y_hat, y))
    edit = {"omega": p.edit_omega, "eta": p.edit_eta, "iterations": p.edit_iterations, "seed": 1000 * seed}
    edited = fast.edit(model, schedule, z_hat[::b], y[::b], y_hat[::b], null, **edit).z
    others = z.unflatten(0, (-1, b)).roll(1, 1).flatten(0, 1)  # images of the same prompts from other noises
    generator, rows = torch.Generator().manual_seed(50_000 + seed), []
    predict = partial(directions.predict, model, schedule)
    for t in directions.FIGURE["t"]:
        eps = torch.randn(p.noises, len(CHANGES), 1, size, size, generator=generator)
        eps = eps.repeat_interleave(b, dim=1).to(device)  # images of one pair of prompts share their noises
        target, source = predict(z, y, null, t, eps), predict(z_hat, y_hat, null, t, eps)
        of_edit = predict(edited, y[::b], null, t, eps[:, ::b])
        of_input = directions.Branch(*(part[:, ::b] for part in source))
        both = [(target, source), (target.other_image(b), source), (of_edit, of_input), (target.other_noise(), source)]
        rows.append(torch.stack([alike(*pair, p) for pair in both]))
    return {
        "cosines": torch.stack(rows).double(),
        "pairs": torch.stack([z_hat[::b], z[::b], others[::b], edited.clamp(-1, 1)]),
        "read_sample": _read(classifier, torch.cat([z_hat, z]), torch.cat([y_hat, y])),
        "read_edited": _read(classifier, edited, y[::b]),
        "correlation_aligned": _pixels(z, z_hat),
        "correlation_unaligned": _pixels(others, z_hat),
        "correlation_edited": _pixels(edited, z_hat[::b]),
    }


def _read(classifier: Classifier, images: Tensor, asked: Tensor) -> Tensor:
    """Return the share of images that the classifier reads as the digit and domain of their prompts."""
    seen = judge.judge(classifier, images)
    return (seen.digit + prompts.DIGITS * seen.domain == asked.cpu()).float().mean()


def _pixels(one: Tensor, two: Tensor) -> Tensor:
    """Return the correlation of the pixels of two images, mean over the images."""
    one, two = (x.flatten(1) - x.flatten(1).mean(1, keepdim=True) for x in (one, two))
    return torch.cosine_similarity(one, two).mean()


def gaussian_pairs(seed: int, p: Any, schedule: Schedule, device: torch.device) -> Found:
    """Return the cosines of pairs in a Gaussian world, (timesteps, readings, guidance scales) by kind."""
    draws = torch.Generator().manual_seed(60_000 + seed)
    world = directions.pair_world(schedule, p.field_size, SHIFT, PROMPT_COSINE, draws).to(device)
    one, two, eps = torch.randn(3, p.fields, 4, p.field_size, p.field_size, generator=draws).to(device)
    null, source, target = torch.arange(3, device=device).split(1)
    predict = partial(directions.predict, world, schedule)
    found: Found = {}
    for kind, rho in LIKENESS.items():
        z, z_hat, rows = world.mean[2] + rho * one + (1 - rho**2) ** 0.5 * two, world.mean[1] + one, []
        for t in directions.FIGURE["t"]:
            both = predict(z, target, null, t, eps[None]), predict(z_hat, source, null, t, eps[None])
            rows.append(alike(*both, p))
        found[kind] = torch.stack(rows).double()
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
