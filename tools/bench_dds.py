"""Measure DDS: the loop as published against ours, and what the evaluations that are not made save.

The first part has a U-Net with random weights: of Stable Diffusion 1.5's true shape at 512 x 512 on a GPU, of a few
million parameters on a CPU. The second part has the network of the digits with prompts, untrained.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lib.ground import diffusion
from lib.ground.nets import small_unet
from lib.jobs.stable_diffusion import speed as dds_speed
from lib.papers.dds import fast, method as dds
from lib.record.timing import interleaved, ratio
from lib.worlds.judge import HANDWRITTEN, PRINTED
from lib.worlds.prompts import null, prompt, prompt_model, with_prompts
from tools.bench_tools import Counted, Row, row

TITLE = "DDS: the loop as published, and ours"
GOALS = {"seconds": 2.0, "speedup": 3.0}  # of ours with a source prompt, for Stable Diffusion's shape on a GPU


def measure(device: torch.device, rounds: int = 3) -> list[Row]:
    """Return the rows of this section."""
    on_gpu = device.type == "cuda"
    geometry, iterations = ("sd15", 200) if on_gpu else ("small", 20)
    rows: list[Row] = []
    for mode in ("graph", "compile") if on_gpu else ("plain",):
        try:
            found = dds_speed.measure(device, iterations=iterations, geometry=geometry, mode=mode, rounds=rounds)
        except RuntimeError as error:  # of the compiler, on this machine; the other rows are still worth having
            if mode != "compile":
                raise
            rows[-1]["note"] += f"; compile failed here: {type(error).__name__}"
        else:
            rows += speed_rows(found, f" ({mode})" if on_gpu else "", goals=on_gpu)
    return rows + savings(device, rounds=max(2, rounds - 1))


def speed_rows(found: dds_speed.Speed, kind: str = "", goals: bool = False) -> list[Row]:
    """Return two rows a loop: its seconds with what was done in them, and how many times as fast as published."""
    size = f"{found.parameters / 1e6:.1f} M parameters, {1e3 * found.operations:.3g} GFLOP an evaluation"
    text = f"{found.setting}; {size}"
    rows = [row(f"matrix products in our type{kind}", 1e3 * found.matrix_rate, "GFLOP/s", note=text)]
    for loop in found.rows:
        note = f"{loop['evaluations']} evaluations, {loop['TFLOP']:.3g} TFLOP, {1e3 * loop['TFLOP/s']:.4g} GFLOP/s: "
        note += f"{100 * loop['share of matrix rate']:.0f} % of the matrix products' rate"
        note += f"; first run {loop['first run, seconds']:.3g} s"
        note += f"; peak {loop['GB']:.3g} GB" if "GB" in loop else ""
        wanted = GOALS if goals and loop["loop"] == "ours" else {}
        rows.append(row(f"{loop['loop']}{kind}: time", loop["seconds"], "s", wanted.get("seconds"), note=note))
        if "difference" in loop:
            note = f"the results differ by {100 * loop['difference']:.2g} % of the edit"
            goal = wanted.get("speedup")
            rows.append(row(f"{loop['loop']}{kind}: speed", loop["speedup"], "times as published", None, goal, note))
    return rows


def savings(
    device: torch.device, targets: int = 4, batch: int = 16, iterations: int = 8, rounds: int = 2, unet: Any = None
) -> list[Row]:
    """Return rows on the exact savings: each is the time of all plain edits over the time of ours."""
    torch.manual_seed(0)
    made: Any = unet or with_prompts(small_unet(16))
    net, schedule = made.to(device).eval().requires_grad_(False), diffusion.linear()
    shape = (net.config["in_channels"], net.config["sample_size"], net.config["sample_size"])
    z_hat = torch.randn(batch, *shape, generator=torch.Generator().manual_seed(0)).to(device)
    # On the device beforehand: a prompt that comes from the CPU at every step would stop a GPU.
    goals = [prompt(k, HANDWRITTEN).to(device) for k in range(targets)]
    source, empty = prompt(9, PRINTED).to(device), null().to(device)

    def edits(y_hat: Tensor, edit: Any, shared: bool = False) -> tuple[int, list[Tensor]]:
        """Edit to every target, and return the evaluations and the results."""
        model, named = Counted(prompt_model(net)), {"iterations": iterations}
        if shared:
            named["reference"] = fast.reference(model, schedule, z_hat, y_hat, empty, iterations=iterations)
        results = [edit(model, schedule, z_hat, y, y_hat, empty, **named).z for y in goals]
        return model.images, results

    rows = []
    for words, y_hat in (("", source), (", empty source prompt", empty)):
        runs = {
            "plain": lambda y_hat=y_hat: edits(y_hat, dds.edit),
            "each": lambda y_hat=y_hat: edits(y_hat, fast.edit),
            "shared": lambda y_hat=y_hat: edits(y_hat, fast.edit, shared=True),
        }
        results = {name: run() for name, run in runs.items()}
        times = interleaved(runs, rounds, device, warm_up=False)  # they have just run
        evaluations, plain = results["plain"]
        for name, what in (("each", "each by itself"), ("shared", "common reference computed once")):
            note = f"{results[name][0]} evaluations in place of {evaluations}; "
            note += _difference(results[name][1], plain, z_hat)
            text = f"{targets} edits of {batch} digits{words}, {what}"
            rows.append(row(text, ratio(times["plain"], times[name]), "times", note=note))
    return rows


def _difference(ours: list[Tensor], plain: list[Tensor], z_hat: Tensor) -> str:
    """Return how far the results are apart, in words."""
    apart = max(float((a - b).norm() / (b - z_hat).norm()) for a, b in zip(ours, plain, strict=True))
    return f"results differ by at most {apart:.0e} of the edit"
