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
from lib.ground.batching import batch_for_memory
from lib.record.timing import matrix_products
from tools.bench_tools import Row, interleaved, options, row, table

TITLE = "Sampling: deterministic DDIM in few steps"
BATCHES = (1, 8, 64)


@torch.no_grad()
def operations(unet: Any) -> int:
    """Floating-point operations of one forward pass of one image (a product and a sum are two)."""
    x = torch.zeros(1, unet.config["in_channels"], *[unet.config["sample_size"]] * 2, device=unet.device)
    with FlopCounterMode(display=False) as counter:
        unet(x, torch.zeros(1, dtype=torch.long, device=unet.device))
    return counter.get_total_flops()


@torch.no_grad()
def measure(
    device: torch.device,
    gigabytes: float = 0.1,
    steps: int = 5,
    batches: tuple = BATCHES,
    side: int = 512,
    rounds: int = 5,
    unet: Any = None,
) -> list[Row]:
    """Return the rows of this section."""
    torch.manual_seed(0)
    net = (unet or nets.small_unet(16)).to(device, memory_format=torch.channels_last).eval()
    model, schedule = nets.eps_model(net), diffusion.linear()
    shape = (net.config["in_channels"], net.config["sample_size"], net.config["sample_size"])
    chosen = batch_for_memory(model, shape, gigabytes, device)
    products, done = matrix_products(device, side, repeats=8)
    noises = {n: torch.randn(n, *shape, device=device) for n in sorted({*batches, chosen})}
    # As many samplings a turn as make up about one large batch, so that turns are alike.
    repeats = {n: max(1, min(16, max(batches) // n)) for n in noises}

    def sample(n: int) -> None:
        for _ in range(repeats[n]):
            diffusion.sample_ddim(model, schedule, noises[n], steps=steps)

    runs = {f"{n}": lambda n=n: sample(n) for n in noises}
    times = interleaved({"matmul": products, **runs}, rounds, device)
    flops = operations(net)
    rate = done / statistics.median(times["matmul"])
    ideal = rate / (flops * steps)
    rows = [row(f"matrix products of {side} x {side} in float32", rate / 1e9, "GFLOP/s")]
    rows.append(row(f"ideal: {flops / 1e6:.1f} MFLOP a pass, {steps} passes an image", ideal, "images/s"))
    for n in noises:
        found = n * repeats[n] / statistics.median(times[f"{n}"])
        share = f"{100 * found / ideal:.0f} % of the ideal"
        fits = f"; the batch that {gigabytes:g} GiB allows" if n == chosen else ""
        rows.append(row(f"batch {n}", found, "images/s", note=share + fits))
    return rows


def main() -> None:
    """Print the table of this section."""
    chosen = options(__doc__)
    print(table(TITLE, measure(chosen.device, rounds=chosen.rounds or 5)))


if __name__ == "__main__":
    main()
