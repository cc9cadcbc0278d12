"""A diffusers U-Net made ready for many evaluations without gradient: 16-bit weights, channels last, a graph.

The usual way, weights of 32 bit under ``torch.autocast``, converts every weight again at every call. Here they are
converted once. Predictions come back in the type of the input, so a loop keeps its latents in 32 bit.
"""

from collections.abc import Callable
from typing import Any

import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionOutput
from torch import Tensor, nn

from lib.record.files import UserError

MODES = ("plain", "compile", "graph")
SHAPES = 64  # that one network may be compiled for; PyTorch itself would stop at the ninth

Run = Callable[..., Tensor]


def prepare(unet: nn.Module, dtype: torch.dtype | None = None, mode: str = "plain") -> "FastUNet":
    """Make a U-Net on its device fast; it changes itself, as with ``unet.to(...)``, and can no longer be trained.

    Parameters
    ----------
    unet
        A ``UNet2DConditionModel`` or ``UNet2DModel``. To keep it, give a ``copy.deepcopy``.
    dtype
        Type of the weights: float16 on a GPU and float32 on a CPU unless given. DDS takes differences of predictions
        that are nearly equal, so float16 (11 significant bits) is closer to float32 than bfloat16 (8 bits) is.
    mode
        `plain`; `compile`, ``torch.compile`` of the whole network, which takes minutes at the first call with a new
        shape; `graph`, a CUDA graph for every new shape, seconds to capture. In `compile` nothing falls back to plain
        Python: a part that cannot be compiled is an error. Inside, PyTorch's own kernels stay wherever none of the
        generated ones is faster, and on a GPU it captures CUDA graphs by itself.
    """
    device = next(unet.parameters()).device
    check_mode(mode, device)
    dtype = dtype or (torch.float16 if device.type == "cuda" else torch.float32)
    # Not diffusers' own `to`, which warns of modules to keep in float32 even for networks that have none.
    nn.Module.to(nn.Module.to(unet, dtype), memory_format=torch.channels_last)
    return FastUNet(unet.eval().requires_grad_(False), dtype, mode)


def check_mode(mode: str, device: torch.device) -> None:
    """Refuse a mode of `prepare` that is unknown, or that a device does not have."""
    if mode not in MODES:
        raise UserError(f"mode: unknown '{mode}'; one of {', '.join(MODES)}")
    if mode == "graph" and device.type != "cuda":
        raise UserError(f"mode: 'graph' needs a GPU and the network is on '{device.type}'; take 'plain' or 'compile'")


class FastUNet:
    """What `prepare` returns: called like the U-Net; no gradient passes through it."""

    def __init__(self, unet: nn.Module, dtype: torch.dtype, mode: str) -> None:
        self.unet, self.dtype, self.mode = unet, dtype, mode
        self.device = next(unet.parameters()).device
        self._run: Run = self._plain
        if mode == "compile":
            kind = "max-autotune" if self.device.type == "cuda" else None
            compiled = torch.compile(self._plain, fullgraph=True, dynamic=False, mode=kind)
            self._run = torch._dynamo.config.patch(recompile_limit=SHAPES)(compiled)
        elif mode == "graph":
            self._graphs: dict[tuple, Any] = {}
            self._pool = torch.cuda.graph_pool_handle()  # one for all shapes: no result outlives its call
            self._run = self._replayed

    @torch.no_grad()
    def __call__(self, sample: Tensor, timestep: Tensor, condition: Tensor) -> UNet2DConditionOutput:
        """Predict for samples (b, c, h, w) at timesteps (b,); the result has the sample's type.

        The condition is text embeddings (b, tokens, features) of a ``UNet2DConditionModel``, or class numbers (b,) of a
        ``UNet2DModel``. What is on the device already stays as it is: nothing here waits for a GPU.
        """
        x = sample.to(self.device, self.dtype, memory_format=torch.channels_last)
        y = condition.to(self.device, self.dtype if condition.is_floating_point() else condition.dtype)
        if self.mode == "compile" and self.device.type == "cuda":
            torch.compiler.cudagraph_mark_step_begin()  # the result of the last call is copied, so its memory is free
        with torch.autocast(self.device.type, enabled=False):  # around it, autocast would convert the weights again
            eps = self._run(x, timestep.to(self.device), y)
        # Always a copy: the next call of a graph writes into the same memory.
        return UNet2DConditionOutput(eps.to(sample.dtype, copy=True, memory_format=torch.contiguous_format))

    def _plain(self, *inputs: Tensor) -> Tensor:
        return self.unet(*inputs, return_dict=False)[0]

    def _replayed(self, *inputs: Tensor) -> Tensor:
        """Replay the graph of these shapes; capture it first if they are new. The next call overwrites the result."""
        key = tuple((value.shape, value.dtype) for value in inputs)
        if key not in self._graphs:
            kept = tuple(value.clone() for value in inputs)  # a graph has input memory of its own
            with torch.cuda.device(self.device):  # streams and captures belong to the current GPU
                self._graphs[key] = torch.cuda.make_graphed_callables(self._plain, kept, pool=self._pool)
        return self._graphs[key](*inputs)
