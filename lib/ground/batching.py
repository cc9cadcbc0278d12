"""How many images fit into a given memory at a time, from two small forward passes; predictions in such batches."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any
from weakref import ref

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from lib.record.files import UserError

GIB = 1024**3
SHARE = 0.8  # of the memory; the rest is left to the workspace of convolutions and to what lies between tensors


class _Live(TorchDispatchMode):
    """Adds up the bytes of the tensors that operations make and that still exist."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self.known: dict[int, ref] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        given = {x.untyped_storage()._cdata for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)}
        result = func(*args, **(kwargs or {}))
        for x in tree_leaves(result):
            storage = x.untyped_storage() if isinstance(x, Tensor) else None
            if storage is not None and storage._cdata not in given and storage._cdata not in self.known:
                self._add(storage)
        return result

    def _add(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()

        def gone(_: Any) -> None:
            self.now -= size
            self.known.pop(key, None)

        self.known[key] = ref(storage, gone)
        self.now += size
        self.peak = max(self.peak, self.now)


def peak_bytes(call: Callable[[], Any]) -> int:
    """Return the most bytes of tensors that `call` holds at one time beside those that exist before it.

    The same on every device; what a convolution borrows inside itself is not seen.
    """
    with _Live() as live:
        result = call()
    del result
    return live.peak


@torch.no_grad()
def batch_for_memory(
    model: Callable[[Tensor, Tensor], Tensor],
    shape: Sequence[int],
    gigabytes: float,
    device: torch.device | str = "cpu",
    limit: int = 4096,
) -> int:
    """Return how many samples a model can denoise at a time in a given memory, for sampling without gradient.

    Tensors grow linearly with the batch; the line is laid through batches of 1 and 2, and 80 % of the memory is given
    to it.

    Parameters
    ----------
    model
        ``eps = model(x_t, t)``.
    shape
        Of one sample, (c, h, w).
    gigabytes
        Memory for what the passes make (GiB), weights not counted.
    limit
        Largest answer.

    Raises
    ------
    UserError
        Not even one sample fits.
    """

    def needed(batch: int) -> int:
        x, t = torch.zeros(batch, *shape, device=device), torch.zeros(batch, dtype=torch.long, device=device)
        return peak_bytes(lambda: model(x, t)) + 3 * x.nbytes  # the sampler holds x_t, x0 and eps as well

    one, two = needed(1), needed(2)
    each = max(two - one, 1)
    batch = int((SHARE * gigabytes * GIB - (one - each)) // each)
    if batch < 1:
        least = one / SHARE / GIB
        raise UserError(f"memory: {gigabytes:g} GiB given; one sample of {tuple(shape)} takes {least:.2g} GiB")
    return min(batch, limit)


def predict_in_batches(
    model: Callable[[Tensor, Tensor, Tensor], Tensor], noisy: Tensor, t: Tensor, prompt: Tensor, batch: int
) -> Tensor:
    """Return the prediction for noised latents (n, b, c, h, w) at t (n, b) with a prompt, (1, ...) or (b, ...).

    No call of the model has more than `batch` latents.
    """
    n, b = t.shape
    y = prompt.expand(b, *prompt.shape[1:]).repeat(n, *[1] * (prompt.ndim - 1))  # (n b, ...)
    parts = zip(noisy.flatten(0, 1).split(batch), t.flatten().split(batch), y.split(batch), strict=True)
    return torch.cat([model(*part).to(noisy) for part in parts]).reshape(noisy.shape)
