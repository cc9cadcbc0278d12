"""How alike the SDS directions of two images are (Hertz, Aberman, Cohen-Or, ICCV 2023: Fig. 8; supplement, Fig. 1).

The paper plots the cosine between the directions of two matched pairs (z, y) and (z_hat, y_hat), noised with the same
t and eps, and its words allow two readings of what a direction is:

- reading "a": the SDS direction, eps^omega(z_t, y) - eps
- reading "b": the guided prediction eps^omega(z_t, y) itself

A model is any ``eps = model(z_t, t, y)``, see `lib.papers.dds.method`. Its predictions for the prompt and for the null
prompt (`Branch`) are computed once and serve both readings and every guidance scale.
"""

from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lib.ground import diffusion
from lib.ground.batching import predict_in_batches
from lib.ground.diffusion import Schedule
from lib.papers.dds import fast, method as dds
from lib.papers.dds.gaussian import GaussianWorld
from lib.worlds import judge, prompts
from lib.worlds.judge import HANDWRITTEN, PRINTED, Classifier

READINGS = ("a", "b")
BATCH = 256  # latents in a call of the model

# Fig. 8 (right) of the paper, Stable Diffusion with guidance 7.5. Read off the picture by us, to about 0.005; between
# these timesteps the paper's curves are straight lines.
FIGURE: dict[str, list] = {
    "t": [20, 50, 100, 200, 300, 400, 500, 600, 700, 800, 900, 980],
    "aligned": [0.82, 0.85, 0.90, 0.929, 0.944, 0.956, 0.966, 0.974, 0.983, 0.989, 0.994, 0.997],
    "unaligned": [0.487, 0.56, 0.684, 0.776, 0.833, 0.874, 0.911, 0.937, 0.958, 0.972, 0.984, 0.991],
}


class Branch(NamedTuple):
    """What a model predicts for b images under n noises at one timestep, (n, b, c, h, w) each; see `predict`."""

    prompt: Tensor  # eps(z_t, y)
    null: Tensor  # eps(z_t, null)
    eps: Tensor  # the noise in z_t

    def direction(self, omega: float, reading: str) -> Tensor:
        """Return the direction under guidance omega in a reading, (n, b, c, h, w)."""
        predicted = dds.guided(self.null, self.prompt, omega)
        return predicted - self.eps if reading == "a" else predicted

    def other_noise(self) -> "Branch":
        """Return the branch with each image's noises shifted by one: beside the original, no image shares its noise."""
        return Branch(*(part.roll(1, dims=0) for part in self))

    def other_image(self, group: int) -> "Branch":
        """Return the branch with the images shifted by one inside each run of `group` images, the noises left.

        Beside the other branch of aligned pairs, whose every `group` images have one pair of prompts and one noise to
        be added, these are unaligned pairs of the same prompts.
        """
        return Branch(*(part.unflatten(1, (-1, group)).roll(1, dims=2).flatten(1, 2) for part in self))


@torch.no_grad()
def predict(model: dds.Model, schedule: Schedule, z: Tensor, y: Tensor, null: Tensor, t: int, eps: Tensor) -> Branch:
    """Predict the noise in images z (b, c, h, w) at timestep t under noises eps (n, b, c, h, w), with and without y."""
    noisy = schedule.add_noise(z, eps, t)  # (n, b, c, h, w)
    times = torch.full(eps.shape[:2], t, device=z.device)
    of_prompt, of_null = (predict_in_batches(model, noisy, times, prompt, BATCH) for prompt in (y, null))
    return Branch(of_prompt, of_null, eps)


def cosine(first: Branch, second: Branch, omega: float, reading: str) -> Tensor:
    """Return the cosine, over all pixels, of the directions of two branches, (n, b)."""
    one, two = (branch.direction(omega, reading).flatten(2) for branch in (first, second))  # (n, b, c h w)
    return torch.cosine_similarity(one, two, dim=2)


def synthesise(
    model: dds.Model, schedule: Schedule, y: Tensor, null: Tensor, size: int, omega: float, steps: int, seed: int
) -> Tensor:
    """Draw an image of each prompt y (b, ...) with guidance, by ancestral sampling: (b, 1, size, size), beside y.

    All noise comes from `seed`: two calls with it and other prompts give pairs from one noise, image by image.
    """
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(len(y), 1, size, size, generator=generator)

    def denoise(x: Tensor, t: Tensor) -> Tensor:
        return dds.predict(model, t, null, (x, y, omega))[0]

    return diffusion.sample(denoise, schedule, noise, steps, generator, len(y), y.device).to(y.device)


def pair_world(
    schedule: Schedule, size: int, shift: float, prompt_cosine: float, generator: torch.Generator
) -> GaussianWorld:
    """Return a world of four-channel images, unit variances, whose source and target prompt shift the mean alike.

    Prompt 0 (null) is N(0, 1). The means of prompts 1 (source) and 2 (target) are random fields of root mean square
    `shift`, whose cosine is `prompt_cosine`.
    """
    u, v = torch.randn(2, 4, size, size, generator=generator)
    u = u / u.square().mean().sqrt()
    v = v - (u * v).mean() * u
    v = v / v.square().mean().sqrt()
    mean = shift * torch.stack([0 * u, u, prompt_cosine * u + (1 - prompt_cosine**2) ** 0.5 * v])  # (3, 4, h, w)
    return GaussianWorld(mean, torch.ones_like(mean), schedule)


def gaussian_cosine(
    alpha_bar: Tensor, omega: float, reading: str, likeness: float, shift: float, prompt_cosine: float
) -> Tensor:
    """Return the cosine in a `pair_world` in the limit of many pixels, like `alpha_bar`.

    Reading "b": (sigma^2 + alpha^2 (likeness + kappa prompt_cosine)) / (sigma^2 + alpha^2 (1 + kappa)), with
    kappa = (omega - 1)^2 shift^2; in reading "a" alpha and sigma change places. `likeness` is the correlation of what
    the two images have beside the means of their prompts.
    """
    kappa = (omega - 1) ** 2 * shift**2
    noise, detail = (alpha_bar, 1 - alpha_bar) if reading == "a" else (1 - alpha_bar, alpha_bar)
    return (noise + detail * (likeness + kappa * prompt_cosine)) / (noise + detail * (1 + kappa))


# ------------------------------------------------------------------------------- what a replicate measures (42)

CHANGES = [((a, HANDWRITTEN), (b, HANDWRITTEN)) for a, b in ((3, 8), (4, 9), (1, 7), (5, 6))]
CHANGES += [((digit, PRINTED), (digit, HANDWRITTEN)) for digit in (0, 2)]
KINDS = ("aligned", "unaligned", "edited", "own noise")
SHIFT, PROMPT_COSINE, LIKENESS = 0.1, 0.9, {"aligned": 0.8, "unaligned": 0.0}  # of the Gaussian world


def scales(p: Any) -> list[float]:
    """Return the guidance scales at which directions are compared."""
    return sorted({p.edit_omega, p.omega, 30.0, *p.omegas})


def alike(first: Branch, second: Branch, p: Any) -> Tensor:
    """Return cosines averaged over pairs and noises, (readings, guidance scales)."""
    readings = READINGS
    return torch.tensor([[cosine(first, second, w, r).mean() for w in scales(p)] for r in readings])


def direction_pairs(seed: int, p: Any, unet: Any, schedule: Schedule, classifier: Classifier) -> dict[str, Any]:
    """Draw pairs of images of two prompts and measure how alike their directions are (D3).

    `cosines` are (timesteps, kinds, readings, guidance scales), `pairs` the first images of each pair of prompts.
    """
    model, device, b, size = prompts.prompt_model(unet), unet.device, p.images, classifier.size
    sides = (torch.cat([prompts.prompt(*goal) for goal in side]) for side in zip(*CHANGES, strict=True))
    y_hat, y, null = *(side.repeat_interleave(b).to(device) for side in sides), prompts.null().to(device)
    draw = {"omega": p.sample_omega, "steps": p.sample_steps, "seed": seed}
    z_hat, z = (synthesise(model, schedule, side, null, size, **draw) for side in (y_hat, y))
    edit = {"omega": p.edit_omega, "eta": p.edit_eta, "iterations": p.edit_iterations, "seed": 1000 * seed}
    edited = fast.edit(model, schedule, z_hat[::b], y[::b], y_hat[::b], null, **edit).z
    others = z.unflatten(0, (-1, b)).roll(1, 1).flatten(0, 1)  # images of the same prompts from other noises
    generator, rows = torch.Generator().manual_seed(50_000 + seed), []
    ask = partial(predict, model, schedule)
    for t in FIGURE["t"]:
        eps = torch.randn(p.noises, len(CHANGES), 1, size, size, generator=generator)
        eps = eps.repeat_interleave(b, dim=1).to(device)  # images of one pair of prompts share their noises
        target, source = ask(z, y, null, t, eps), ask(z_hat, y_hat, null, t, eps)
        of_edit = ask(edited, y[::b], null, t, eps[:, ::b])
        of_input = Branch(*(part[:, ::b] for part in source))
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


def gaussian_pairs(seed: int, p: Any, schedule: Schedule, device: torch.device) -> dict[str, Any]:
    """Return the cosines of pairs in a Gaussian world, (timesteps, readings, guidance scales) by kind."""
    draws = torch.Generator().manual_seed(60_000 + seed)
    world = pair_world(schedule, p.field_size, SHIFT, PROMPT_COSINE, draws).to(device)
    one, two, eps = torch.randn(3, p.fields, 4, p.field_size, p.field_size, generator=draws).to(device)
    null, source, target = torch.arange(3, device=device).split(1)
    ask = partial(predict, world, schedule)
    found: dict[str, Any] = {}
    for kind, rho in LIKENESS.items():
        z, z_hat, rows = world.mean[2] + rho * one + (1 - rho**2) ** 0.5 * two, world.mean[1] + one, []
        for t in FIGURE["t"]:
            both = ask(z, target, null, t, eps[None]), ask(z_hat, source, null, t, eps[None])
            rows.append(alike(*both, p))
        found[kind] = torch.stack(rows).double()
    return found
