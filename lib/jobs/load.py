"""What a job asks of its networks, counted before it starts."""

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode


class Load(NamedTuple):
    """Counts of a job; operations are floating-point ones."""

    parameters: int  # of what is left in the end
    trained: int  # those that change
    averaged: int  # of these
    images: int  # steps times batch, of all that the job trains alike
    forwards: float  # passes of one image in a step
    backwards: float
    flops: float  # operations of these
    drawn: float  # operations of pictures that are made after the training
    models: int  # bytes of the models it leaves and trains before
    pictures: int  # how many it writes or keeps
    kept: int  # checkpoints that are there at once
    images_before: int = 0  # seen by models that are trained first
    flops_before: float = 0.0  # operations of their training
    memory: int = 0  # bytes that a process's share of a step needs on its device; 0: not counted


@torch.no_grad()
def operations(network: Any, *inputs: Tensor) -> float:
    """Return the operations of one forward pass; on the meta device nothing is computed."""
    with FlopCounterMode(display=False) as counter:
        network(*inputs)
    return float(counter.get_total_flops())
