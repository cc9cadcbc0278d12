"""A diffusers U-Net made ready for many evaluations without gradient: 16-bit weights, channels last, a graph.

The usual way, weights of 32 bit under ``torch.autocast``, converts every weight again at every call. Here they are
converted once. Predictions come back in the type of the input, so a loop keeps its latents in 32 bit.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from lib.record.files import UserError

MODES = ("plain", "compile", "graph")
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
SHAPES = 64  # that one network may be compiled for
WARM_UP = 3  # calls on a side stream before a capture, as many as PyTorch's notes on CUDA graphs take

Run = Callable[..., Tensor]


class Output(NamedTuple):
    """What diffusers' U-Nets return, with the one field that they have."""

    sample: Tensor


def prepare(unet: nn.Module, dtype: torch.dtype | None = None, mode: str = "plain") -> FastUNet:
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
    if dtype not in DTYPES:
        raise UserError(f"dtype: {dtype} given; one of {', '.join(map(str, DTYPES))}")
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
    """What `prepare` returns: called like the U-Net, with the same ``config``; no gradient passes through it."""

    def __init__(self, unet: nn.Module, dtype: torch.dtype, mode: str) -> None:
        self.unet, self.dtype, self.mode = unet, dtype, mode
        self.config: Any = unet.config
        self.device = next(unet.parameters()).device
        self._graphs: dict[tuple, _Graph] = {}
        self._run: Run = self._plain
        if mode == "compile":
            kind = "max-autotune" if self.device.type == "cuda" else None
            self._compiled = torch.compile(self._plain, fullgraph=True, dynamic=False, mode=kind)
            self._run = self._as_compiled
        elif mode == "graph":
            self._run = self._replayed
            self._pool = torch.cuda.graph_pool_handle()  # one for all shapes: no result outlives its call

    @torch.no_grad()
    def __call__(self, sample: Tensor, timestep: Tensor, condition: Tensor) -> Output:
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
        return Output(eps.to(sample.dtype, copy=True, memory_format=torch.contiguous_format))

    def _plain(self, *inputs: Tensor) -> Tensor:
        return self.unet(*inputs, return_dict=False)[0]

    def _as_compiled(self, *inputs: Tensor) -> Tensor:
        """Run what was compiled for these shapes; PyTorch itself would stop at the ninth."""
        with torch._dynamo.config.patch(recompile_limit=SHAPES):
            return self._compiled(*inputs)

    def _replayed(self, *inputs: Tensor) -> Tensor:
        """Replay the graph of these shapes; capture it first if they are new."""
        key = tuple((value.shape, value.dtype) for value in inputs)
        if key not in self._graphs:
            self._graphs[key] = _Graph(self._plain, inputs, self.device, self._pool)
        return self._graphs[key](*inputs)


class _Graph:
    """A CUDA graph of one call, with input and output memory of its own."""

    def __init__(self, run: Run, inputs: tuple[Tensor, ...], device: torch.device, pool: Any) -> None:
        self.inputs = [value.clone() for value in inputs]
        with torch.cuda.device(device):  # streams and captures belong to the current GPU
            side = torch.cuda.Stream()
            side.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(side):  # libraries choose algorithms and take memory before, never while, capturing
                for _ in range(WARM_UP):
                    run(*self.inputs)
            torch.cuda.current_stream().wait_stream(side)
            self.graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(self.graph, pool=pool):
                self.output = run(*self.inputs)

    def __call__(self, *inputs: Tensor) -> Tensor:
        """Copy the inputs in and replay; the output is overwritten by the next call."""
        for kept, value in zip(self.inputs, inputs, strict=True):
            kept.copy_(value)
        self.graph.replay()
        return self.output
