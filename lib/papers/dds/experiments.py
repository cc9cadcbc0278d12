"""What one replicate in the world of exact scores measures: a function of one seed; numbers and small arrays by name.

Notebook 40_dds_gaussian. Those with networks are in `lib.papers.dds.digit_experiments` and `lib.papers.dds.directions`.
"""

from typing import Any

import torch
from torch import Tensor

from lib.ground.diffusion import scaled_linear
from lib.papers.dds import measures, method as dds
from lib.papers.dds.gaussian import GaussianWorld, disc_world
from lib.papers.dds.optimizers import PRESETS

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
