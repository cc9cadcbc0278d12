"""Measure and print what matters: the training loop, the measures, steps of the methods, sampling, DDS, notebooks.

`python -m tools.bench --device cuda` measures on a GPU. The table goes to `results/bench/cpu.json` or `gpu.json`, which
the page on costs shows. Each section also runs alone: `python -m tools.bench_methods`.
"""

from __future__ import annotations

import json
import platform
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from lib.ground import nets
from lib.record import run as record
from lib.record.files import ROOT, read_results, write_atomic
from tools import bench_dds, bench_loop, bench_methods, bench_metrics, bench_sampling
from tools.bench_tools import Row, options, row, table

FOLDER = ROOT / "results" / "bench"
LOOP = "Training loop: what it adds to a bare loop on the same network"


def loop(rounds: int = 11) -> list[Row]:
    """Return the overhead of the training loop, on a CPU."""
    rows = []
    for found in bench_loop.run(rounds):
        what = f"{found['net']}, {found['loop']}"
        if found["loop"] != "bare" and found["net"] == "nothing":
            rows.append(row(f"{what}: time of a step", 1e3 * found["ms_per_step"], "microseconds"))
        elif found["loop"] != "bare":  # averaging is work that the bare loop does not do: no limit
            limit = None if "EMA" in found["loop"] else bench_loop.LIMIT
            rows.append(row(what, found["overhead_percent"], "%", limit))
    return rows


def provenance(device: torch.device, began: float) -> dict[str, Any]:
    """Return where the numbers come from."""
    return {
        **record._commit(),
        "cpu": record._cpu_name(),
        "gpu": torch.cuda.get_device_name(device) if device.type == "cuda" else None,
        "threads": torch.get_num_threads(),
        "clock": "processor time" if device.type == "cpu" else "wall time between synchronisations",
        "versions": {"python": platform.python_version(), "torch": torch.__version__},
        "seconds": round(time.perf_counter() - began, 1),
        "finished": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
    }


def notebooks() -> list[str]:
    """Return a line a notebook from the latest run, or from the committed results where there is none."""
    lines = [f"{'notebook':20} {'seconds':>8} {'peak GB':>8}  where"]
    for path in sorted((ROOT / "results" / "cpu").glob("*.json")):
        latest = ROOT / "runs" / "cpu" / "results" / path.name
        used = read_results(latest if latest.exists() else path)["provenance"]
        place = f"{used['hardware']['cpu']}, {used['hardware']['threads']} thread, commit {used['commit'][:10]}"
        lines.append(f"{path.stem:20} {used['seconds']:8.1f} {used['peak_memory_gb']:8.2f}  {place}")
    return lines


def write(path: Path, sections: dict[str, list[Row]], source: dict[str, Any]) -> None:
    """Write the table with its provenance."""
    document = {"schema": 1, "sections": sections, "provenance": source}
    write_atomic(path, json.dumps(document, indent=1, allow_nan=False) + "\n")


def main() -> None:
    """Measure all sections, print them as they come, write the file."""
    chosen = options(__doc__)
    device, began = chosen.device, time.perf_counter()
    on_gpu = device.type == "cuda"
    large = nets.small_unet(64, (128, 256, 512), 2, 32, 3) if on_gpu else None  # the small one would not fill a GPU
    memory = {"gigabytes": 8.0, "side": 8192, "batches": (1, 16, 64)} if on_gpu else {}
    measured: dict[str, Callable[[], list[Row]]] = {} if on_gpu else {LOOP: lambda: loop(chosen.rounds or 11)}
    measured |= {
        bench_metrics.TITLE: lambda: bench_metrics.measure(
            device, size=256 if on_gpu else 32, rounds=chosen.rounds or 2
        ),
        bench_methods.TITLE: lambda: bench_methods.measure(device, rounds=chosen.rounds or 7, unet=large),
        bench_sampling.TITLE: lambda: bench_sampling.measure(device, rounds=chosen.rounds or 3, unet=large, **memory),
        bench_dds.TITLE: lambda: bench_dds.measure(device, rounds=chosen.rounds or 3),
    }
    sections = {}
    for title, measure in measured.items():
        sections[title] = measure()
        print(table(title, sections[title]), flush=True)
    path = FOLDER / ("gpu.json" if on_gpu else "cpu.json")
    write(path, sections, provenance(device, began))
    print(f"written to {path.relative_to(ROOT)} after {time.perf_counter() - began:.0f} s")
    print("\nNotebooks at profile cpu (memory to stay below 4 GB)")
    print("\n".join(notebooks()))


if __name__ == "__main__":
    main()
