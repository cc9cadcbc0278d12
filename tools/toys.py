"""Train the small networks of the RDMD chapter's live toy: Fig. 3 as in 10_rdmd_2d, with narrower networks.

`python -m tools.toys` writes book/_static/rdmd-nets.js, in three minutes.
"""

import base64
import json
import math
from typing import Any

import torch
from torch import Tensor

from lib.ground import nets
from lib.papers.rdmd import toy
from lib.record.files import RECORD, ROOT, write_atomic
from tools.replicate import started

FILE = ROOT / "book" / "_static" / "rdmd-nets.js"
NARROW = {"width": 32, "depth": 4}


def train(p: Any, seed: int = 0) -> list[list[Tensor]]:
    """Return weights and biases, in turns, of one generator for each of `p.lambdas`, trained with the exact score.

    A generator's noise level is 1 for good, so its embedding goes into the first bias.
    """
    teacher = toy.train_teacher([seed], p, torch.device("cpu"))
    fake, generator = (teacher.select([0] * len(p.lambdas)) for _ in range(2))
    trained = toy.train_generators([seed], p.lambdas, p, toy.laws(p)[1], fake, generator)
    held = nets.MLP(level="sigma", frequencies=4).embed(1.0, torch.zeros(1, 2))[0]  # as `toy.denoisers` have it
    found = []
    for i in range(len(p.lambdas)):
        weight, bias, *others = (value[i] for value in trained.members)
        first = weight[:, :2] / math.sqrt(1 + toy.deviation(p) ** 2), bias + weight[:, 2:] @ held
        found.append([*first, *others])
    return found


def in_bytes(value: Tensor) -> tuple[float, str]:
    """Return what one step of a tensor is worth, and the tensor as signed bytes in base64."""
    step = value.abs().max().item() / 127
    return step, base64.b64encode((value / step).round().to(torch.int8).numpy().tobytes()).decode()


def main() -> None:
    p = started("10_rdmd_2d", RECORD).parameters
    vars(p).update(NARROW)
    trained = {f"{value:g}": [in_bytes(one) for one in net] for value, net in zip(p.lambdas, train(p), strict=True)}
    words = json.dumps({"deviation": toy.deviation(p), "nets": trained}, separators=(",", ":"))
    write_atomic(FILE, f"// Trained generators of Fig. 3, from tools.toys.\nconst RDMD = {words};\n")


if __name__ == "__main__":
    main()
