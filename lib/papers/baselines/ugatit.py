"""U-GAT-IT (Kim et al. 2020, arXiv 1907.10830): unpaired translation by two GANs with attention and AdaLIN.

Networks and losses are those of the authors' PyTorch code, with widths and depths as arguments, so that they fit small
pictures. Where several things come a domain, "s" is the source and "d" the target; G["d"] leads to the target.
"""

from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from lib.papers.baselines.two_player import Pair, See, judged, least_squares, summed

OTHER = {"s": "d", "d": "s"}
WEIGHTS = {"adversarial": 1.0, "cycle": 10.0, "identity": 10.0, "cam": 1000.0}
NORM_EPS = 1e-5
conv = partial(nn.Conv2d, bias=False, padding_mode="reflect")


def mixed_norm(a: Tensor, rho: Tensor) -> Tensor:
    """Normalise a (n, c, h, w) in each channel, by the share rho (c,), and over all channels, by the rest (Eq. 1)."""
    instance, layer = ((a - a.mean(d, True)) / (a.var(d, keepdim=True) + NORM_EPS).sqrt() for d in ((2, 3), (1, 2, 3)))
    share = rho.view(1, -1, 1, 1)
    return share * instance + (1 - share) * layer


class AdaLIN(nn.Module):
    """:func:`mixed_norm` with a learned share; scale and shift (n, c) come from outside."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.rho = nn.Parameter(torch.full((channels,), 0.9))

    def forward(self, a: Tensor, gamma: Tensor, beta: Tensor) -> Tensor:
        """Return (n, c, h, w)."""
        return mixed_norm(a, self.rho) * gamma[:, :, None, None] + beta[:, :, None, None]


class LIN(nn.Module):
    """:func:`mixed_norm` with a learned share, scale and shift."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.rho, self.beta = (nn.Parameter(torch.zeros(channels)) for _ in range(2))
        self.gamma = nn.Parameter(torch.ones(channels))

    def forward(self, a: Tensor) -> Tensor:
        """Return (n, c, h, w)."""
        return mixed_norm(a, self.rho) * self.gamma.view(-1, 1, 1) + self.beta.view(-1, 1, 1)


class CAM(nn.Module):
    """Attention: two linear classifiers of pooled channels say which domain is seen, and weigh the channels.

    With spectral norm the weights that weigh are those before it, as in the authors' code.
    """

    def __init__(self, channels: int, activation: nn.Module, spectral: bool = False) -> None:
        super().__init__()
        norm = parametrizations.spectral_norm if spectral else nn.Identity()
        self.of_mean: Any = norm(nn.Linear(channels, 1, bias=False))
        self.of_max: Any = norm(nn.Linear(channels, 1, bias=False))
        self.mix = nn.Conv2d(2 * channels, channels, 1)
        self.activation, self.spectral = activation, spectral

    def forward(self, a: Tensor) -> tuple[Tensor, Tensor]:
        """Return the weighed maps (n, c, h, w) and both classifiers' logits (n, 2)."""
        logits = torch.cat([self.of_mean(a.mean((2, 3))), self.of_max(a.amax((2, 3)))], 1)
        both = (self.of_mean, self.of_max)
        weights = (one.parametrizations.weight.original if self.spectral else one.weight for one in both)
        return self.activation(self.mix(torch.cat([a * w.view(1, -1, 1, 1) for w in weights], 1))), logits


class Block(nn.Module):
    """Residual block of two convolutions; with `norm` AdaLIN it takes gamma and beta, too."""

    def __init__(self, channels: int, norm: Callable[[int], nn.Module] = nn.InstanceNorm2d) -> None:
        super().__init__()
        self.first, self.second = (conv(channels, channels, 3, padding=1) for _ in range(2))
        self.norms = nn.ModuleList([norm(channels), norm(channels)])

    def forward(self, a: Tensor, *style: Tensor) -> Tensor:
        """Return (n, c, h, w)."""
        inside = self.norms[0](self.first(a), *style).relu()
        return a + self.norms[1](self.second(inside), *style)


class Generator(nn.Module):
    """Translator of pictures (n, 3, size, size) in [-1, 1]: a quarter of the size, attention, blocks styled by it.

    The light one takes its style from the mean over positions, the full one from all of them. At 256, width 64:
    10.6 M and 279 M parameters.
    """

    def __init__(self, size: int = 256, width: int = 64, blocks: int = 4, light: bool = False) -> None:
        super().__init__()
        self.light, inner = light, 4 * width
        down: list[nn.Module] = [conv(3, width, 7, padding=3), nn.InstanceNorm2d(width), nn.ReLU()]
        for c in (width, 2 * width):
            down += [conv(c, 2 * c, 3, stride=2, padding=1), nn.InstanceNorm2d(2 * c), nn.ReLU()]
        self.down = nn.Sequential(*down, *(Block(inner) for _ in range(blocks)))
        self.cam = CAM(inner, nn.ReLU())
        seen = inner if light else inner * (size // 4) ** 2
        linear = partial(nn.Linear, bias=False)
        self.style = nn.Sequential(linear(seen, inner), nn.ReLU(), linear(inner, inner), nn.ReLU())
        self.gamma, self.beta = linear(inner, inner), linear(inner, inner)
        self.blocks = nn.ModuleList(Block(inner, AdaLIN) for _ in range(blocks))
        up: list[nn.Module] = []
        for c in (inner, inner // 2):
            up += [nn.Upsample(scale_factor=2), conv(c, c // 2, 3, padding=1), LIN(c // 2), nn.ReLU()]
        self.up = nn.Sequential(*up, conv(width, 3, 7, padding=3), nn.Tanh())

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the translation and the attention's logits (n, 2), positive where the input is foreign."""
        a, logits = self.cam(self.down(x))
        style = self.style(a.mean((2, 3)) if self.light else a.flatten(1))
        gamma, beta = self.gamma(style), self.beta(style)
        for block in self.blocks:
            a = block(a, gamma, beta)
        return self.up(a), logits

    @torch.no_grad()
    def settle(self) -> None:
        """Bring every share rho back into [0, 1]; after each step."""
        for one in self.modules():
            if isinstance(one, AdaLIN | LIN):
                one.rho.clamp_(0, 1)


class Discriminator(nn.Module):
    """Critic of patches with attention and spectral norm; `halvings` of the side, from `width` channels on.

    At 256 the authors have two a domain: a global one of 5 halvings, 53.1 M parameters, and a local one of 3, 3.3 M.
    """

    def __init__(self, halvings: int, width: int = 64) -> None:
        super().__init__()
        spectral, leaky = parametrizations.spectral_norm, nn.LeakyReLU(0.2)
        sizes = [3, *(width * 2**i for i in range(halvings + 1))]
        layers: list[nn.Module] = []
        for i, (a, b) in enumerate(pairwise(sizes)):
            layers += [spectral(conv(a, b, 4, stride=2 if i < halvings else 1, padding=1, bias=True)), leaky]
        self.layers = nn.Sequential(*layers)
        self.cam = CAM(sizes[-1], leaky, spectral=True)
        self.last = spectral(conv(sizes[-1], 1, 4, padding=1))

    def forward(self, x: Tensor) -> list[Tensor]:
        """Return the logits of patches and of the attention; 1 means real."""
        a, logits = self.cam(self.layers(x))
        return [self.last(a), logits]


class Translator(nn.Module):
    """A generator without its attention's logits."""

    def __init__(self, G: nn.Module) -> None:
        super().__init__()
        self.G = G

    def forward(self, x: Tensor) -> Tensor:
        """Return the translation."""
        return self.G(x)[0]


class UGATIT(nn.Module):
    """The game: both generators against the discriminators of both domains; LaDiffGAN's supplement has it as S4 to S7.

    Generators return a translation and the logits of :class:`CAM`, discriminators a list of logits that begins with
    those of patches.
    """

    weights = WEIGHTS

    def __init__(self, generator: Callable[[], nn.Module], discriminators: Callable[[], Sequence[nn.Module]]) -> None:
        super().__init__()
        self.G: Any = nn.ModuleDict({domain: generator() for domain in "sd"})
        self.D: Any = nn.ModuleDict({domain: nn.ModuleList(discriminators()) for domain in "sd"})

    def play(self, x: Pair) -> tuple[Pair, dict[str, Tensor]]:
        """Return the translations by the domain that they lead to, and the generators' losses but the adversarial."""
        y: Pair = {}
        identity, cam, cycle = [], [], []
        for d, s in OTHER.items():
            sizes = [len(x[s]), len(x[d])]
            both, logits = self.G[d](torch.cat([x[s], x[d]]))
            y[d], same = both.split(sizes)
            identity.append(F.l1_loss(same, x[d]))
            for part, foreign in zip(logits.split(sizes), (1.0, 0.0), strict=True):
                cam.append(F.binary_cross_entropy_with_logits(part, torch.full_like(part, foreign)))
        for d, s in OTHER.items():
            cycle.append(F.l1_loss(self.G[s](y[d])[0], x[s]))
        return y, {"cycle": summed(cycle), "identity": summed(identity), "cam": summed(cam)}

    def adversarial(self, y: Pair, see: See) -> Tensor:
        """Return the loss of generators whose translations are to be taken for real."""
        return summed(least_squares(logits, 1) for d in y for D in self.D[d] for logits in D(see(y[d])))

    def discriminators_loss(self, x: Pair, y: Pair, see: See) -> tuple[Tensor, Tensor]:
        """Return the discriminators' loss of real x and translated y, and their logits of real patches, (n,)."""
        outputs = [judged(D, see(x[d]), see(y[d])) for d in y for D in self.D[d]]
        losses = [least_squares(real, 1) + least_squares(fake, 0) for output in outputs for real, fake in output]
        return summed(losses), torch.cat([of_patches[0].detach().flatten() for of_patches, _ in outputs])

    def settle(self) -> None:
        """Do what is due after each step of the generators."""
        for one in self.G.values():
            one.settle()

    def translator(self, domain: str = "d") -> nn.Module:
        """Return the network that translates pictures of the other domain into `domain`, in one call."""
        return Translator(self.G[domain])
