"""The toy of ANT's Fig. 2 (Wang et al., ICML 2024): two known Gaussians, small networks, claims A1 and A2.

One replicate is one draw of the few shots, and one seed decides all of it. `first_gradient` and `transfer` take a list
of seeds and train the networks of all of them side by side, for speed alone: up to rounding a member's numbers depend
on its own seed, whatever the others are. Parameters `p` are those of the notebook 20_ant_2d.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import ot
import torch
from torch import Tensor

from lib.ground import diffusion
from lib.ground.nets import MLP, Stack, seeded
from lib.ground.noised_classifier import classifier_loss
from lib.ground.toy2d import Gaussian, Mixture
from lib.ground.train import History, train
from lib.papers.ant import method as ant

SCHEDULE = diffusion.linear()  # T = 1000, beta from 0.0001 to 0.02
SOURCE, TARGET = Gaussian(torch.ones(2), 1.0), Gaussian(-torch.ones(2), 1.0)
EXACT = ant.exact_guidance(SCHEDULE, SOURCE, TARGET)
MANY = 10_000  # target samples that stand for all
EDGES = np.linspace(-5, 4, 91)  # of the heat-map's cells in the first coordinate
# What random numbers are for; every seed below 10,000 has its own stream of each.
STREAMS = (
    "shots", "more shots", "gradient", "samples", "fresh", "many", "floor", "second gradient",
    "source", "classifier", "transfer",
)  # fmt: skip

Arm = tuple[ant.Guidance | None, dict[str, Any]]  # guidance and further options of the loss
Results = dict[str, np.ndarray]


def adapted(seeds: list[int], p: Any) -> Results:
    """Train a source network a seed and adapt it to draws of the shots: (n, ...), a row a seed (A1, A2).

    What `first_gradient` finds for `p.draws` draws of each, (n, draws, 2), and `transfer` for the first.
    """
    sources = source_networks(seeds, p)
    draws = [draws_of(seed, p) for seed in seeds]
    networks = sources.select([k for k, own in enumerate(draws) for _ in own])
    found = first_gradient([draw for own in draws for draw in own], p, networks)
    found = {name: values.reshape(len(seeds), p.draws, *values.shape[1:]) for name, values in found.items()}
    return found | transfer([own[0] for own in draws], p, sources)


def draws_of(seed: int, p: Any) -> list[int]:
    """Return the seeds of the draws of the shots that a source network is adapted to."""
    return [p.draws * seed + i for i in range(p.draws)]


# ------------------------------------------------------------------------------------------- random numbers by seed


def stream(seed: int, purpose: str) -> torch.Generator:
    """Random numbers of one seed for one purpose."""
    return torch.Generator().manual_seed(10_000 * (1 + STREAMS.index(purpose)) + seed)


def draw(density: Mixture, seeds: Sequence[int], size: int, purpose: str) -> Tensor:
    """Samples (n, size, 2), those of a member from its own seed."""
    return torch.stack([density.sample(size, stream(seed, purpose)) for seed in seeds])


def noise(size: int, streams: Sequence[torch.Generator]) -> Tensor:
    """Standard normal noise (n, size, 2)."""
    return torch.stack([torch.randn(size, 2, generator=generator) for generator in streams])


def batch(points: Tensor, size: int, streams: Sequence[torch.Generator]) -> tuple[Tensor, Tensor, Tensor]:
    """x0 (n, size, 2), drawn with replacement from points (n, k, 2), t (n, size) uniform, eps (n, size, 2)."""
    index, t = (
        torch.stack([torch.randint(high, (size,), generator=generator) for generator in streams]).to(points.device)
        for high in (points.shape[1], SCHEDULE.T)
    )
    return points.gather(1, index[..., None].expand(-1, -1, 2)), t, noise(size, streams).to(points)


# ------------------------------------------------------------------------------------------- networks side by side


def networks(seeds: Sequence[int], purpose: str, p: Any) -> Stack:
    """Untrained networks, the weights of a member drawn from its own seed."""
    streams = (stream(seed, purpose).initial_seed() for seed in seeds)
    return Stack([seeded(begin, lambda: MLP(width=p.width, depth=2, frequencies=8)) for begin in streams])


def fit(stack: Stack, loss: Callable[[], Tensor], steps: int, lr: float, **options: Any) -> History:
    """Train a stack in place with Adam; ``loss()`` draws a batch, its value is a mean over members and samples."""
    optimizer = torch.optim.Adam(stack.parameters(), lr=lr)

    def step(_: None) -> dict[str, Tensor]:
        value = loss()
        optimizer.zero_grad()
        (len(stack) * value).backward()
        optimizer.step()
        return {"loss": value.detach()}

    return train(step, lambda _: None, {"stack": stack}, {"adam": optimizer}, steps, **options)


def source_networks(seeds: Sequence[int], p: Any) -> Stack:
    """Noise predictors of the source, one a seed."""
    stack, streams = networks(seeds, "source", p).to(p.device), [stream(seed, "source") for seed in seeds]

    def plain() -> Tensor:
        x0 = torch.stack([SOURCE.sample(256, generator) for generator in streams])
        return ant.loss(stack, None, SCHEDULE, *batch(x0.to(p.device), 256, streams), J=0)[0]

    history = fit(stack, plain, p.source_steps, 2e-3, ema={"stack": 0.995})
    stack.load_state_dict(history.ema["stack"])
    return stack


def classifiers(seeds: Sequence[int], known: Tensor, p: Any) -> Stack:
    """Noised classifiers of the source against the known target samples (n, k, 2), one a seed."""
    stack = networks(seeds, "classifier", p).to(known.device)
    streams = [stream(seed, "classifier") for seed in seeds]
    y = torch.arange(64, device=known.device).ge(32).long().expand(len(seeds), -1)  # (n, 64)

    def loss() -> Tensor:
        x0, t, eps = batch(known, 64, streams)
        x0[:, :32] = torch.stack([SOURCE.sample(32, generator) for generator in streams])
        return classifier_loss(stack, SCHEDULE, x0, y, t, eps)

    fit(stack, loss, p.classifier_steps, 1e-3)
    return stack


# --------------------------------------------------------------------------------------- A1: the first gradient


def output_gradients(
    model: ant.Model, guidance: ant.Guidance | None, x0: Tensor, t: Tensor, eps: Tensor, weight: Tensor, **options: Any
) -> Tensor:
    """First gradient of `method.loss` in the output layer in two readings, (2, n, 2): bias and weight.

    The second is the gradient in the output layer's `weight` (n, 2, h), averaged over its h inputs. The rest is as in
    the loss, n transfers at once: x0, eps (n, B, 2), t (n, B).
    """
    offset = torch.zeros_like(x0[:, :1]).requires_grad_()  # (n, 1, 2), acts as a change of the output bias
    value, _ = ant.loss(lambda x_t, t: model(x_t, t) + offset, guidance, SCHEDULE, x0, t, eps, **options)
    bias, matrix = torch.autograd.grad(value, (offset, weight))
    return torch.stack([bias.mean(1), matrix.mean(-1)])


def angle(a: Tensor, b: Tensor) -> Tensor:
    """Angle between plane vectors (..., 2) in degrees, from 0 to 180, shape (...)."""
    cross = a[..., 0] * b[..., 1] - a[..., 1] * b[..., 0]
    return torch.rad2deg(torch.atan2(cross.abs(), (a * b).sum(-1)))


def gradient_batch(
    seeds: Sequence[int], shots: Tensor, t: int, size: int, purpose: str = "gradient"
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Shots (n, k, 2) repeated to fill a batch, as many target samples, and t and noise, which all methods share."""
    streams = [stream(seed, purpose) for seed in seeds]
    reference = torch.stack([TARGET.sample(size, generator) for generator in streams]).to(shots)
    x0 = shots[:, torch.arange(size, device=shots.device) % shots.shape[1]]  # (n, size, 2)
    return x0, reference, torch.full(x0.shape[:2], t, device=x0.device), noise(size, streams).to(shots)


def arms_of(p: Any, classifier: ant.Guidance) -> dict[str, Arm]:
    """Guidance and options of the methods that are compared; "batch" is the normalisation in the plane."""
    still = {"gamma": p.gamma, "J": 0}
    noisy = {"gamma": p.gamma, "J": p.ascents, "omega": p.omega, "norm": "batch"}
    arms = {"DDPM": (None, still), "guidance": (classifier, still), "ANT": (classifier, noisy)}
    return arms | {"guidance, exact": (EXACT, still)}


def first_gradient(seeds: list[int], p: Any, net: Stack) -> Results:
    """Angle of each arm's first gradient to that of as many target samples, (n, 2): bias and weight, in degrees (A1).

    A seed is a draw of the shots, with its own member of `net`, the source networks.
    The names of `arms_of`, and "flipped, exact", are at `p.timestep` and `p.batch`. "references" is the angle between
    the gradients of two independent reference sets. At `p.sweep_batch`: "t 500: ANT"; "sweep: DDPM"; "2 -1 10 shots",
    guidance with sigma_hat's power, its sign and the classifier; "omega 1 batch", ANT with this step and norm.
    """
    weight = net.members[-2]  # of the output layer
    shots = draw(TARGET, seeds, p.shots, "shots").to(weight)
    hundred = torch.cat([shots, draw(TARGET, seeds, 90, "more shots").to(weight)], dim=1)
    few, more = (ant.classifier_guidance(classifiers(seeds, known, p)) for known in (shots, hundred))
    arms = arms_of(p, few)
    still, noisy = arms["DDPM"][1], arms["ANT"][1]
    gradients = partial(output_gradients, net, weight=weight)

    def angles(arms: Mapping[str, Arm], t: int, size: int, prefix: str = "") -> Results:
        x0, reference, *fixed = gradient_batch(seeds, shots, t, size)
        aim = gradients(None, reference, *fixed, J=0)
        found = {name: gradients(guidance, x0, *fixed, **options) for name, (guidance, options) in arms.items()}
        return {prefix + name: angle(gradient, aim).T.cpu().numpy() for name, gradient in found.items()}

    found = angles(arms | {"flipped, exact": (EXACT, still | {"gamma": -p.gamma})}, p.timestep, p.batch)
    sets = (gradient_batch(seeds, shots, p.timestep, p.batch, name)[1:] for name in ("gradient", "second gradient"))
    found["references"] = angle(*(gradients(None, *reference, J=0) for reference in sets)).T.cpu().numpy()
    for t in p.sweep_timesteps:
        found |= angles(arms, t, p.sweep_batch, f"t {t}: ")
    choices = {
        f"{power} {sign:+d} {judge}": (guidance, still | {"power": power, "gamma": -sign * p.gamma})
        for power in (2, 1)
        for sign in (-1, 1)
        for judge, guidance in {"10 shots": few, "100 shots": more, "exact": EXACT}.items()
    }
    ways = {
        f"omega {omega:g} {norm}": (few, noisy | {"omega": omega, "norm": norm})
        for norm in ("batch", "all")
        for omega in (p.omega, *p.sweep_omegas)
    }
    return found | angles({"sweep: DDPM": arms["DDPM"]} | choices | ways, p.timestep, p.sweep_batch)


# ------------------------------------------------------------------------------------------- A2: after fine-tuning


def sampled(stack: Stack, seeds: Sequence[int], size: int, steps: int) -> Tensor:
    """Path of ancestral sampling (Ho et al. 2020, Alg. 2) in so many steps, (steps + 1, n, size, 2), on the CPU."""
    streams, device = [stream(seed, "samples") for seed in seeds], stack.members[0].device
    x = noise(size, streams).to(device)
    path = [x.cpu()]
    for t, previous in diffusion.trajectory(SCHEDULE, steps):
        a, a_prev = (diffusion.alpha_bar_at(SCHEDULE, level) for level in (t, previous))
        beta = 1 - a / a_prev
        with torch.no_grad():
            eps = stack(x, torch.full(x.shape[:2], t, device=device))
        x = (x - beta / (1 - a) ** 0.5 * eps) / (1 - beta) ** 0.5
        if previous >= 0:
            x = x + (beta * (1 - a_prev) / (1 - a)) ** 0.5 * noise(size, streams).to(device)
        path.append(x.cpu())
    return torch.stack(path)


def w2(x: Tensor, seeds: Sequence[int]) -> np.ndarray:
    """2-Wasserstein distance (n,) of samples (n, size, 2) to as many fresh target samples."""
    pairs = zip(x.double().numpy(), draw(TARGET, seeds, x.shape[1], "fresh").double().numpy(), strict=True)
    return np.sqrt([float(ot.emd2([], [], ot.dist(a, b))) for a, b in pairs])


def checkpoints(p: Any) -> list[int]:
    """Fine-tuning steps after which W2 is measured."""
    return sorted({max(1, p.transfer_steps * k // 12) for k in range(1, 13)})


def steps_to(level: float, stops: Sequence[int], start: np.ndarray, curves: np.ndarray) -> np.ndarray:
    """Steps (n,) after which W2 is first at a level, on lines between start (n,) and curves (n, k); NaN if never."""
    steps, found = np.array([0, *stops]), []
    for values in np.column_stack([start, curves]):
        below = np.flatnonzero(values <= level)
        i = below[0] if len(below) else None
        found.append(np.nan if i is None else np.interp(level, values[[i, i - 1]], steps[[i, i - 1]]) if i else 0.0)
    return np.array(found)


def transfer(seeds: list[int], p: Any, sources: Stack) -> Results:
    """Fine-tune a source network on the shots of every seed, all weights, and measure the samples: n rows (A2).

    For the source, for plain fine-tuning on 10,000 samples and for each arm: "ARM w2" (n,); "ARM mean" (n, 2); "ARM
    curve", W2 at the `checkpoints` (not for the source). For DDPM and ANT: "ARM path" (n, 201), one sample's first
    coordinate at every sampling step, and "ARM counts" (n, 201, 90), all samples'. With other step sizes and gammas:
    "lr 0.001 w2" (10,000 samples), "gamma 1 w2", "gamma 1 mean", "gamma 1 points". "floor": W2 of target samples.
    """
    shots, many = (draw(TARGET, seeds, *drawn).to(sources.members[0]) for drawn in ((p.shots, "shots"), (MANY, "many")))
    few = ant.classifier_guidance(classifiers(seeds, shots, p))
    quick = min(400, p.samples)

    def tuned(
        known: Tensor, guidance: ant.Guidance | None, stops: list[int], lr: float = p.transfer_lr, **options: Any
    ) -> tuple[Stack, list[np.ndarray]]:
        student, streams, curve = sources.select(range(len(sources))), [stream(seed, "transfer") for seed in seeds], []

        def loss() -> Tensor:
            drawn = batch(known, p.transfer_batch, streams)  # the same for all methods
            return ant.loss(student, guidance, SCHEDULE, *drawn, **options)[0]

        def watch(i: int, _: History) -> None:
            if i in stops:
                curve.append(w2(sampled(student, seeds, quick, 40)[-1], seeds))

        fit(student, loss, p.transfer_steps, lr, on_step=watch)
        return student, curve

    students, found = {"source": sources}, {}
    arms = {"10,000 samples": (many, None, {"J": 0})} | {name: (shots, *arm) for name, arm in arms_of(p, few).items()}
    for name, (known, guidance, options) in arms.items():
        students[name], curve = tuned(known, guidance, checkpoints(p), **options)
        found[f"{name} curve"] = np.stack(curve, axis=1)
    for name, student in students.items():
        path = sampled(student, seeds, p.samples, 200)
        found |= {f"{name} w2": w2(path[-1], seeds), f"{name} mean": path[-1].mean(1).numpy()}
        if name in ("DDPM", "ANT"):
            first = path[..., 0].transpose(0, 1).numpy()  # (n, 201, size)
            found[f"{name} path"] = first[..., 0]
            found[f"{name} counts"] = np.stack([[np.histogram(x, EDGES)[0] for x in member] for member in first])
    for lr in p.sweep_lrs:
        found[f"lr {lr:g} w2"] = tuned(many, None, [p.transfer_steps], lr, J=0)[1][0]
    for gamma in (*p.sweep_gammas, p.gamma):
        student = students["guidance"] if gamma == p.gamma else tuned(shots, few, [], gamma=gamma, J=0)[0]
        points = sampled(student, seeds, p.samples, 40)[-1]
        found |= {f"gamma {gamma:g} w2": w2(points, seeds), f"gamma {gamma:g} mean": points.mean(1).numpy()}
        found[f"gamma {gamma:g} points"] = points[:, :500].numpy()
    return found | {"floor": w2(draw(TARGET, seeds, p.samples, "floor"), seeds)}
