"""How far two results may lie apart that are equal but for rounding; the one place where that is decided."""

import torch
from torch import Tensor

# A result of a network is a sum of some hundred to some thousand products, taken in an order that the processor's
# matrix kernel and the shape of the batch decide. Each rounding errs by at most eps / 2 of the size of the partial sum,
# with either sign, so n of them err by about sqrt(n) eps / 2: 16 eps for n = 1,000. Layers multiply that by a few.
ROUNDINGS = 64


def tolerance(values: Tensor, steps: int = 1) -> float:
    """Return the largest difference that rounding explains in `values` after `steps` steps that feed each other."""
    size = max(float(values.detach().abs().max()), 1.0)
    return ROUNDINGS * torch.finfo(values.dtype).eps * size * steps


def assert_same(actual: Tensor, expected: Tensor, steps: int = 1) -> None:
    """Assert that two results, of one type, differ by rounding only; errors of `steps` steps add up."""
    torch.testing.assert_close(actual, expected, rtol=0, atol=tolerance(expected, steps), check_device=False)
