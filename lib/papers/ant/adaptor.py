"""The adaptor of ANT (Wang et al., ICML 2024, Sec. 4.3): small trained layers beside the blocks of a frozen U-Net.

Every block keeps its weights and gets a parallel branch: x^l = theta^l(x^(l-1)) + psi^l(x^(l-1)). The branches are
attached to a diffusers ``UNet2DModel`` from outside, by forward hooks: its class, its weights and its state dict stay
what they are. So gradient checkpointing, ``save_pretrained`` and samplers work as before. ``copy.deepcopy`` of the net
copies the branches with it, but only a copy of the pair, ``copy.deepcopy((unet, adaptor))``, holds on to them.
"""

import hashlib
import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Self

import safetensors.torch
import torch
import torch.nn.functional as F
import yaml
from diffusers.models.attention_processor import Attention
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.unets.unet_2d import UNet2DModel
from safetensors import safe_open
from torch import Tensor, nn

from lib.ground.nets import parameter_count
from lib.record.files import UserError, reading, write_atomic

HEADER = "ant-adaptor"  # entry of the safetensors header with the settings
HEAD = "head"  # name of the branch beside conv_norm_out, activation and conv_out
GEOMETRIES: dict[str, dict[str, Any]] = yaml.safe_load(Path(__file__).with_name("geometries.yaml").read_text("utf-8"))


class Branch(nn.Module):
    """One psi^l: pooling by c, down to d channels, a transformer block over the pooled positions, and back up.

    The order and the sizes of the layers are those of the official code and of the authors' later clarifications; the
    paper has the bottleneck only. The last convolution is zero at the start, and it alone. Maps smaller than c are
    pooled to one position; only a residual block has a time embedding.
    """

    def __init__(
        self, channels: int, out_channels: int, temb_channels: int | None = None, c: int = 4, d: int = 8, heads: int = 4
    ) -> None:
        super().__init__()
        self.c = c
        self.norm_in = nn.GroupNorm(channels // 2 if channels % 2 == 0 else 1, channels)
        self.down = nn.Conv2d(channels, d, 3, padding=1)
        self.time = None if temb_channels is None else nn.Linear(temb_channels, d)
        self.block = nn.TransformerEncoderLayer(
            d, math.gcd(d, heads), 4 * d, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
        )
        self.norm_out = nn.GroupNorm(d // 4 if d % 4 == 0 else 1, d)
        self.up = nn.Conv2d(d, out_channels, 3, padding=1)
        nn.init.zeros_(self.up.weight)
        nn.init.zeros_(self.up.bias)  # type: ignore[arg-type]
        self.seen: Tensor | None = None

    def forward(self, x: Tensor, size: torch.Size | tuple[int, ...], temb: Tensor | None = None) -> Tensor:
        """Return psi(x), (B, out_channels, *size), for x (B, channels, h, w) and temb (B, temb_channels)."""
        window = [min(self.c, side) for side in x.shape[-2:]]
        z = self.down(self.norm_in(F.avg_pool2d(x, window, ceil_mode=True)))  # (B, d, h / c, w / c)
        if self.time is not None and temb is not None:
            z = z + self.time(F.silu(temb))[:, :, None, None]
        positions = self.block(z.flatten(2).transpose(1, 2))  # (B, h w / c^2, d)
        z = positions.transpose(1, 2).reshape(z.shape)
        return self.up(self.norm_out(F.interpolate(z, size=tuple(size), mode="nearest")))

    def beside(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor) -> Tensor:
        """Forward hook of a block, or of the last convolution: the head's branch takes what `before_head` has seen."""
        x = args[0] if self.seen is None else self.seen
        self.seen = None
        temb = args[1] if len(args) > 1 else kwargs.get("temb")
        return output + self(x, output.shape[-2:], temb)

    def before_head(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        """Keep the input of the output head, which begins with a normalisation, until its last convolution."""
        self.seen = args[0]


class Adaptor(nn.Module):
    """All branches of one U-Net; its parameters are the branches' only. Made by `attach` or `load`."""

    def __init__(self, unet: UNet2DModel, c: int, d: int, heads: int) -> None:
        super().__init__()
        self.settings = {"c": c, "d": d, "heads": heads}
        self.branches = nn.ModuleDict()
        self._handles: list[Any] = []
        for name, module, sizes in _sites(unet):
            branch = self.branches[name] = Branch(*sizes, c=c, d=d, heads=heads)
            self._handles.append(module.register_forward_hook(branch.beside, with_kwargs=True))
            if name == HEAD:
                self._handles.append(unet.conv_norm_out.register_forward_pre_hook(branch.before_head))
        self.to(unet.device, unet.dtype)

    @classmethod
    def attach(cls, unet: UNet2DModel, c: int = 4, d: int = 8, heads: int = 4) -> Self:
        """Freeze `unet` and put new branches beside its residual and attention blocks and its output head.

        At the start the net's output is what it was, bit for bit. The paper has c = 4 for DDPM, c = 2 for latent
        diffusion, and d = 8.
        """
        hooks = (hook for _, module, _ in _sites(unet) for hook in module._forward_hooks.values())
        if any(isinstance(getattr(hook, "__self__", None), Branch) for hook in hooks):
            raise UserError("unet: it has an adaptor already; take that out with detach() first")
        unet.requires_grad_(False)
        return cls(unet, c, d, heads)

    def detach(self) -> None:
        """Take the branches out; the net is the source again, still frozen."""
        for handle in self._handles:
            handle.remove()
        self._handles = []

    def save(self, unet: UNet2DModel, path: Path | str) -> None:
        """Write the branches as one safetensors file, with settings and a checksum of `unet` in its header."""
        tensors = {name: value.detach().cpu().contiguous() for name, value in self.state_dict().items()}
        header = json.dumps({**self.settings, "net": _checksum(unet)})
        write_atomic(Path(path), safetensors.torch.save(tensors, metadata={HEADER: header}))

    @classmethod
    def load(cls, unet: UNet2DModel, path: Path | str) -> Self:
        """Attach the branches that `save` wrote to the net they were trained beside; no other net takes them."""
        with reading(Path(path), "give a file that Adaptor.save wrote"), safe_open(str(path), framework="pt") as file:
            header = json.loads(file.metadata()[HEADER])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
        if header.pop("net") != _checksum(unet):
            raise UserError(f"{path}: made beside a net with other weights; give the net it was trained with")
        adaptor = cls.attach(unet, **header)
        adaptor.load_state_dict(tensors)
        return adaptor


def counts(unet_config: Mapping[str, Any], d: int = 8) -> tuple[int, int]:
    """Return the numbers of parameters of an adaptor and of its U-Net (arguments of ``UNet2DModel``).

    None of them is allocated.
    """
    with torch.device("meta"):
        unet = UNet2DModel(**unet_config)
        adaptor = Adaptor.attach(unet, d=d)
    return parameter_count(adaptor), parameter_count(unet)


def _sites(unet: UNet2DModel) -> Iterator[tuple[str, nn.Module, tuple[int, int, int | None]]]:
    """Name, module with the hook, and channels (input, output, time embedding) of every place for a branch."""
    for name, module in unet.named_modules():
        key = name.replace(".", "-")  # a module's name holds no dot
        if isinstance(module, ResnetBlock2D):
            temb = None if module.time_emb_proj is None else module.time_emb_proj.in_features
            yield key, module, (module.in_channels, module.conv2.out_channels, temb)
        elif isinstance(module, Attention):
            yield key, module, (module.query_dim, module.out_dim, None)
    yield HEAD, unet.conv_out, (unet.conv_out.in_channels, unet.conv_out.out_channels, None)


def _checksum(unet: UNet2DModel) -> str:
    """SHA-256 of the net's parameters."""
    digest = hashlib.sha256()
    for value in unet.parameters():
        digest.update(value.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
