"""UNIT (Liu et al. 2017, arXiv 1703.00848): two autoencoders with one latent space, and a GAN in each domain.

As in its authors' released code, written anew: noise of variance 1 is added to latents while training, no weights are
shared, and what the other domain decodes has to come back. There the learning rate halves every 100,000 steps.
"""

from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lib.papers.baselines.two_player import Pair, See, judged, least_squares, summed
from lib.papers.baselines.ugatit import OTHER, Block

WEIGHTS = {"adversarial": 1.0, "reconstruction": 10.0, "kl": 0.01, "cycle": 10.0, "cycle_kl": 0.01}
conv = partial(nn.Conv2d, padding_mode="reflect")


class Coder(nn.Module):
    """Encoder of pictures (n, 3, h, w) into latents (n, 4 width, h / 4, w / 4), and decoder."""

    def __init__(self, width: int = 64, blocks: int = 4) -> None:
        super().__init__()
        inner = 4 * width
        down: list[nn.Module] = [conv(3, width, 7, padding=3), nn.InstanceNorm2d(width), nn.ReLU()]
        for c in (width, 2 * width):
            down += [conv(c, 2 * c, 4, stride=2, padding=1), nn.InstanceNorm2d(2 * c), nn.ReLU()]
        self.encode = nn.Sequential(*down, *(Block(inner) for _ in range(blocks)))
        up: list[nn.Module] = [Block(inner) for _ in range(blocks)]
        for c in (inner, inner // 2):
            up += [nn.Upsample(scale_factor=2), conv(c, c // 2, 5, padding=2), nn.GroupNorm(1, c // 2), nn.ReLU()]
        self.decode = nn.Sequential(*up, conv(width, 3, 7, padding=3), nn.Tanh())
        for one in self.modules():
            if isinstance(one, nn.Conv2d):
                nn.init.kaiming_normal_(one.weight)
            elif isinstance(one, nn.GroupNorm):
                nn.init.uniform_(one.weight)
            if isinstance(one, nn.Conv2d) and one.bias is not None:
                nn.init.zeros_(one.bias)


class Discriminator(nn.Module):
    """Critics of patches at several scales, each half of the one before, of `halvings` of the side."""

    def __init__(self, halvings: int = 4, scales: int = 3, width: int = 64) -> None:
        super().__init__()
        self.scales = nn.ModuleList()
        for _ in range(scales):
            layers: list[nn.Module] = []
            for i in range(halvings):
                a = width * 2 ** (i - 1) if i else 3
                layers += [conv(a, width * 2**i, 4, stride=2, padding=1), nn.LeakyReLU(0.2)]
            self.scales.append(nn.Sequential(*layers, nn.Conv2d(width * 2 ** (halvings - 1), 1, 1)))
        for one in self.modules():
            if isinstance(one, nn.Conv2d):
                nn.init.normal_(one.weight, std=0.02)
                if one.bias is not None:
                    nn.init.zeros_(one.bias)

    def forward(self, x: Tensor) -> list[Tensor]:
        """Return the logits of patches at each scale; 1 means real."""
        logits = []
        for scale in self.scales:
            logits.append(scale(x))
            x = F.avg_pool2d(x, 3, stride=2, padding=1, count_include_pad=False)
        return logits


class UNIT(nn.Module):
    """The game of UNIT: a coder and a discriminator a domain; a translation is what the other domain decodes."""

    weights = WEIGHTS

    def __init__(self, width: int = 64, blocks: int = 4, halvings: int = 4, scales: int = 3) -> None:
        super().__init__()
        self.G: Any = nn.ModuleDict({domain: Coder(width, blocks) for domain in "sd"})
        self.D: Any = nn.ModuleDict({domain: Discriminator(halvings, scales, width) for domain in "sd"})

    def play(self, x: Pair) -> tuple[Pair, dict[str, Tensor]]:
        """Return the translations by the domain that they lead to, and the coders' losses but the adversarial."""
        y: Pair = {}
        found: dict[str, list[Tensor]] = {name: [] for name in WEIGHTS if name != "adversarial"}
        for d, s in OTHER.items():
            h = self.G[s].encode(x[s])
            noised = h + torch.randn_like(h)
            found["kl"].append(h.square().mean())
            found["reconstruction"].append(F.l1_loss(self.G[s].decode(noised), x[s]))
            y[d] = self.G[d].decode(noised)
            again = self.G[d].encode(y[d])
            found["cycle_kl"].append(again.square().mean())
            found["cycle"].append(F.l1_loss(self.G[s].decode(again + torch.randn_like(again)), x[s]))
        return y, {name: summed(losses) for name, losses in found.items()}

    def adversarial(self, y: Pair, see: See) -> Tensor:
        """Return the loss of coders whose translations are to be taken for real."""
        return summed(least_squares(logits, 1) for d in y for logits in self.D[d](see(y[d])))

    def discriminators_loss(self, x: Pair, y: Pair, see: See) -> tuple[Tensor, Tensor]:
        """Return the discriminators' loss of real x and translated y, and their logits of real patches, (n,)."""
        pairs = [pair for d in y for pair in judged(self.D[d], see(x[d]), see(y[d]))]
        losses = (least_squares(real, 1) + least_squares(fake, 0) for real, fake in pairs)
        return summed(losses), torch.cat([real.detach().flatten() for real, _ in pairs])

    def settle(self) -> None:
        """Do nothing: there is nothing to bring back after a step."""

    def translator(self, domain: str = "d") -> nn.Module:
        """Return the network that translates pictures of the other domain into `domain`, without noise."""
        return nn.Sequential(self.G[OTHER[domain]].encode, self.G[domain].decode)
