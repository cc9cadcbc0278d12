"""LaDiffGAN's losses and its game on points of the plane, without an autoencoder; small networks.

A domain is a ring of eight Gaussians; the target is the source's ring, turned and wider. So the right answer to every
point is known: the same place of the turned ring.
"""

import math
from functools import partial
from typing import Any

import ot
import torch
from torch import Tensor, nn

from lib.ground.diffusion import Schedule, linear
from lib.ground.finetune import Options, finetune
from lib.ground.nets import MLP, parameter_count, seeded
from lib.ground.toy2d import Mixture
from lib.papers.baselines import two_player
from lib.papers.baselines.diffusion_gan import Noise
from lib.papers.baselines.ugatit import UGATIT
from lib.papers.ladiffgan import method
from lib.papers.ladiffgan.method import Domain, Supervision

ARMS = {  # weights of the two losses
    "U-GAT-IT": (0.0, 0.0),
    "+ latent GAN": (1.0, 0.0),
    "+ denoising": (0.0, 1.0),
    "LaDiffGAN": (1.0, 1.0),
    "Diffusion-GAN": (0.0, 0.0),
}
MEASURES = ("w2", "weakest", "partner", "error")
TURN = math.pi / 12  # of the target's ring
SHOWN, GRID = 400, 17  # points kept; arrows a side
INPUTS = (0, 1)  # modes of the source whose translations the arrows move


def angles() -> Tensor:
    """Return the angles of the source's eight modes."""
    return 2 * math.pi * torch.arange(8) / 8


LAWS = {
    name: Mixture(torch.stack([(angles() + turn).cos(), (angles() + turn).sin()], 1), std)
    for name, turn, std in (("s", 0.0, 0.08), ("d", TURN, 0.12))
}


class Attentive(nn.Module):
    """Three layers whose features are weighed by the classifier that looks at them, as `ugatit.CAM` weighs channels."""

    def __init__(self, outputs: int, width: int, activation: nn.Module) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Linear(2, width), activation)
        self.classifier = nn.Linear(width, 1, bias=False)
        self.rest = nn.Sequential(nn.Linear(width, width), activation, nn.Linear(width, outputs))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return (n, outputs) and the classifier's logit, (n, 1)."""
        features = self.first(x)
        weight = 1 + self.classifier.weight  # a picture's channels are mixed anew after weighing; here they are kept
        return self.rest(features * weight), self.classifier(features)


class Generator(Attentive):
    """Translator of points."""

    def __init__(self, width: int) -> None:
        super().__init__(2, width, nn.ReLU())

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the translation (n, 2) and the logit, positive where the input is foreign."""
        moved, logits = super().forward(x)
        return moved, logits

    def settle(self) -> None:
        """Do nothing."""


class Critic(Attentive):
    """Discriminator of points; logits, 1 means real."""

    def __init__(self, width: int) -> None:
        super().__init__(1, width, nn.LeakyReLU(0.2))


class LatentCritic(nn.Module):
    """Discriminator of noised latents, told the timestep."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.net = MLP(2, width)

    def forward(self, z_t: Tensor, t: Tensor) -> Tensor:
        """Return logits (n, 1)."""
        return self.net(z_t, t)[:, :1]


def condition(x: Tensor) -> Tensor:
    """Return what the denoisers see of points: the first coordinate, as grey is one of a picture's colours; (n, 1).

    It is no perfect guide: the right answer's own first coordinate is another, as a translated picture's grey may be.
    """
    return x[:, :1]


def encode(x: Tensor, scale: float) -> Tensor:
    """Return latents of points: of unit variance. There is nothing to compress in the plane."""
    return x / scale


def stream(seed: int, purpose: int) -> torch.Generator:
    """Return random numbers of a replicate that no other purpose and no other replicate has."""
    return torch.Generator().manual_seed(10_000 * purpose + seed)


def examples(p: Any, seed: int, name: str) -> Tensor:
    """Return the points of a domain that everything is trained on, (p.examples, 2)."""
    return LAWS[name].sample(p.examples, stream(seed, 1 + list(LAWS).index(name)))


def domain(p: Any, seed: int, name: str, schedule: Schedule) -> Domain:
    """Return what a domain supervises with: its latents, and a denoiser trained on them."""
    x = examples(p, seed, name)
    E = partial(encode, scale=x.std().item())
    net = seeded(seed, lambda: MLP(3, p.width))
    pairs = torch.cat([E(x), condition(x)], 1)

    def loss(x0: Tensor, t: Tensor, eps: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        found = method.conditional_denoising(denoise, x0[:, :2], x0[:, 2:], t, eps[:, :2], schedule)
        return found, {"loss": found.detach()}

    def denoise(z_t: Tensor, t: Tensor, c: Tensor) -> Tensor:
        return net(torch.cat([z_t, c], 1), t)[:, :2]

    finetune(net, schedule, pairs, loss, p.denoiser_steps, Options(256, 2e-3, seed))
    net.requires_grad_(False)
    return Domain(E, denoise)


def trained(p: Any, seed: int, arm: str, domains: dict[str, Domain]) -> tuple[UGATIT, Supervision]:
    """Return an arm's game after training, and its supervision. All arms of a seed begin alike and see the same."""
    images = {name: examples(p, seed, name) for name in LAWS}
    game = seeded(seed, lambda: UGATIT(partial(Generator, p.width), lambda: [Critic(p.width)]))
    game.weights = {"adversarial": 1.0, "cycle": p.cycle, "identity": p.identity, "cam": p.cam}
    weights = ARMS[arm]
    supervision = seeded(
        seed + 1, lambda: Supervision(domains, condition, partial(LatentCritic, p.width), linear(), *weights, p.reading)
    )
    noise = Noise(p.kimg) if arm == "Diffusion-GAN" else None
    options = Options(p.batch, p.lr, seed, betas=(0.5, 0.999))
    two_player.train_game(game, images, p.steps, options, supervision if any(weights) else None, noise)
    return game, supervision


def nearest(domain: str, x: Tensor) -> Tensor:
    """Return the number of the mode of a domain that each point (n, 2) is nearest to."""
    return torch.cdist(x, LAWS[domain].means).argmin(1)


def right(x: Tensor) -> Tensor:
    """Return the right answers to points of the source: turned, and as much wider about their mode."""
    turned = torch.tensor([[math.cos(TURN), math.sin(TURN)], [-math.sin(TURN), math.cos(TURN)]])
    centre = LAWS["s"].means[nearest("s", x)]
    return (centre + (x - centre) * LAWS["d"].std / LAWS["s"].std) @ turned


def measures(x: Tensor, y: Tensor, real: Tensor) -> list[float]:
    """Return MEASURES of translations y of x (n, 2).

    W2 to `real` points of the target; the least share of a mode, of 1/8; the share that is nearest to the right mode;
    the root mean square distance to the right answer.
    """
    share = nearest("d", y).bincount(minlength=8).min().item() / len(y)
    partner = (nearest("d", y) == nearest("s", x)).float().mean().item()
    w2 = math.sqrt(float(ot.emd2([], [], ot.dist(y.double().numpy(), real.double().numpy()))))
    return [w2, 8 * share, partner, (y - right(x)).square().sum(1).mean().sqrt().item()]


def plane(seed: int, p: Any) -> dict[str, Any]:
    """Train every arm and measure its translations of unseen points; a row of MEASURES an arm.

    "ARM points" are (SHOWN, 2), those of "source" and "target" beside them; "ARM size" is how many parameters its two
    generators have; "LOSS field" (INPUTS, GRID^2, 2) is how a loss of LaDiffGAN moves a translation of an input that
    stands on a point of :func:`grid`. "thrown away" is how many parameters the supervision trained.
    """
    generator, domains = stream(seed, 3), {name: domain(p, seed, name, linear()) for name in LAWS}
    x, real = (law.sample(p.points, generator) for law in LAWS.values())
    found: dict[str, Any] = {"source points": x[:SHOWN], "target points": real[:SHOWN]}
    outputs = {"truth": right(x), "input": x}
    for arm in ARMS:
        game, supervision = trained(p, seed, arm, domains)
        with torch.no_grad():
            outputs[arm] = game.translator()(x)
        found[f"{arm} size"] = parameter_count(game.G)
        if arm == "LaDiffGAN":
            found |= fields(game, supervision, seed) | {"thrown away": parameter_count(supervision.D)}
    found |= {arm: measures(x, y, real) for arm, y in outputs.items()}
    return found | {f"{arm} points": y[:SHOWN] for arm, y in outputs.items() if arm in ARMS}


def grid() -> Tensor:
    """Return points over the plane, (GRID^2, 2)."""
    line = torch.linspace(-1.6, 1.6, GRID)
    return torch.cartesian_prod(line, line)


def fields(game: UGATIT, supervision: Supervision, seed: int, draws: int = 200) -> dict[str, Tensor]:
    """Return minus the gradient of each loss at translations on the grid, for the source's modes INPUTS as inputs."""
    moved: dict[str, list[Tensor]] = {}
    for mode in INPUTS:
        at, rng = grid().requires_grad_(), torch.Generator().manual_seed(seed)
        x, y = LAWS["s"].means[mode].expand(draws * len(at), 2), at.repeat(draws, 1)
        losses = {"GAN": game.adversarial({"d": y}, lambda points: points)}
        losses |= supervision.losses({"s": x}, {"d": y}, rng)
        for name, loss in losses.items():
            moved.setdefault(f"{name} field", []).append(-torch.autograd.grad(loss * len(at), at, retain_graph=True)[0])
    return {name: torch.stack(gradients) for name, gradients in moved.items()}
