"""Train the small networks of the RDMD chapter's live toy: Fig. 3 as in 10_rdmd_2d, with narrower networks.

`python -m tools.toys` writes book/_static/rdmd-nets.js, in three minutes.
"""

import base64
import json
import math
from types import SimpleNamespace

import torch
from torch import Tensor

from lib.ground import nets
from lib.papers.rdmd import toy
from lib.record.files import ROOT, write_atomic

FILE = ROOT / "book" / "_static" / "rdmd-nets.js"
LAMBDAS = (0.0, 0.05, 0.2, 0.5, 1.0)
P = SimpleNamespace(radius=4.0, std=0.5, points=5000, width=32, depth=4, batch=128, teacher_steps=4000)
P.__dict__.update(steps=6000, fake_steps=1, warm_up=300, rate=2e-3, fake_rate=4e-3)


def train(seed: int = 0) -> list[list[Tensor]]:
    """Return weights and biases, in turns, of one generator for each of `LAMBDAS`, trained with the exact score.

    A generator's noise level is 1 for good, so its embedding goes into the first bias.
    """
    teacher = toy.train_teacher([seed], P, torch.device("cpu"))
    fake, generator = (teacher.select([0] * len(LAMBDAS)) for _ in range(2))
    trained = toy.train_generators([seed], LAMBDAS, P, toy.laws(P)[1], fake, generator)
    held = nets.MLP(level="sigma", frequencies=4).embed(1.0, torch.zeros(1, 2))[0]  # as `toy.denoisers` have it
    found = []
    for i in range(len(LAMBDAS)):
        weight, bias, *others = (value[i] for value in trained.members)
        first = weight[:, :2] / math.sqrt(1 + toy.deviation(P) ** 2), bias + weight[:, 2:] @ held
        found.append([*first, *others])
    return found


def in_bytes(value: Tensor) -> tuple[float, str]:
    """Return what one step of a tensor is worth, and the tensor as signed bytes in base64."""
    step = value.abs().max().item() / 127
    return step, base64.b64encode((value / step).round().to(torch.int8).numpy().tobytes()).decode()


def main() -> None:
    trained = {f"{value:g}": [in_bytes(one) for one in net] for value, net in zip(LAMBDAS, train(), strict=True)}
    words = json.dumps({"deviation": toy.deviation(P), "nets": trained}, separators=(",", ":"))
    write_atomic(FILE, f"// Trained generators of Fig. 3, from tools.toys.\nconst RDMD = {words};\n")


if __name__ == "__main__":
    main()
