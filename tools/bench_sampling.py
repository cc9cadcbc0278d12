"""Measure how many images a second respaced DDIM draws, beside what the machine's rate of matrix products would allow.

The ideal is that rate divided by the floating-point operations of the network, so 100 % would be a network that is one
large matrix product. The rate is measured in turns with the sampler.
"""

from __future__ import annotations

import statistics
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from lib.ground import diffusion, nets
from lib.record.timing import interleaved, matrix_products
from tools.bench_tools import Row, network, row

TITLE = "Sampling: deterministic DDIM in few steps"


@torch.no_grad()
def operations(unet: Any) -> int:
    """Floating-point operations of one forward pass of one image (a product and a sum are two)."""
    x = torch.zeros(1, unet.config["in_channels"], *[unet.config["sample_size"]] * 2, device=unet.device)
    with FlopCounterMode(display=False) as counter:
        unet(x, torch.zeros(1, dtype=torch.long, device=unet.device))
    return counter.get_total_flops()


@torch.no_grad()
def measure(device: torch.device, rounds: int = 3, steps: int = 5, unet: Any = None) -> list[Row]:
    """Return the rows of this section."""
    side, batches = (8192, (1, 16, 64)) if device.type == "cuda" else (512, (1, 8, 64))
    net = (unet or network(device)).eval()
    model, schedule = nets.eps_model(net), diffusion.linear()
    products, done = matrix_products(device, side, repeats=8)
    shape = (net.config["in_channels"], net.config["sample_size"], net.config["sample_size"])
    noises = {n: torch.randn(n, *shape, device=device) for n in batches}
    # As many samplings a turn as make up about one large batch, so that turns are alike.
    repeats = {n: max(1, min(16, max(batches) // n)) for n in batches}

    def sample(n: int) -> None:
        for _ in range(repeats[n]):
            diffusion.sample_ddim(model, schedule, noises[n], steps=steps)

    runs = {f"{n}": lambda n=n: sample(n) for n in batches}
    times = interleaved({"matmul": products, **runs}, rounds, device)
    flops, rate = operations(net), done / statistics.median(times["matmul"])
    ideal = rate / (flops * steps)
    found = {n: n * repeats[n] / statistics.median(times[f"{n}"]) for n in batches}
    return [
        row(f"matrix products of {side} x {side} in float32", rate / 1e9, "GFLOP/s"),
        row(f"ideal: {flops / 1e6:.1f} MFLOP a pass, {steps} passes an image", ideal, "images/s"),
        *(row(f"batch {n}", v, "images/s", note=f"{100 * v / ideal:.0f} % of the ideal") for n, v in found.items()),
    ]
