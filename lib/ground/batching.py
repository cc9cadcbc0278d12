"""So many at a time, and what to say when they are too many."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from accelerate.utils.memory import should_reduce_batch_size
from torch import Tensor

from lib.record.files import UserError


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


@contextmanager
def enough_memory(settings: str) -> Iterator[None]:
    """Turn running out of memory, on a GPU or a CPU, into a `UserError` that names the settings to lower."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:  # torch.OutOfMemoryError is a RuntimeError
        if not (isinstance(error, MemoryError) or should_reduce_batch_size(error)):
            raise
        raise UserError(f"out of memory: lower {settings}") from None
