"""Predictions for many noised latents, so many at a time."""

from collections.abc import Callable

import torch
from torch import Tensor


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
