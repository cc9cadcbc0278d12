"""Measure and print what matters: the training loop, the measures, steps of the methods, sampling, DDS, translation.

`python -m tools.bench --device cuda` measures on a GPU. The table goes to `results/bench/cpu.json` or `gpu.json`, which
the page on costs shows. `--only methods` prints one section and writes nothing.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from lib.record import run as record
from lib.record.files import ROOT, SCHEMA, write_atomic
from tools import bench_dds, bench_loop, bench_methods, bench_metrics, bench_sampling, bench_translation
from tools.bench_tools import Row

SECTIONS = {
    "loop": bench_loop,
    "metrics": bench_metrics,
    "methods": bench_methods,
    "sampling": bench_sampling,
    "dds": bench_dds,
    "translation": bench_translation,
}


def provenance(device: torch.device, began: float) -> dict[str, Any]:
    """Return where the numbers come from."""
    return {
        **record.commit(),
        "cpu": record.processor(),
        "gpu": torch.cuda.get_device_name(device) if device.type == "cuda" else None,
        "threads": torch.get_num_threads(),
        "clock": "processor time" if device.type == "cpu" else "wall time between synchronisations",
        "versions": {"python": platform.python_version(), "torch": torch.__version__},
        "seconds": round(time.perf_counter() - began, 1),
        "finished": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
    }


def table(title: str, rows: list[Row]) -> str:
    """Return the rows as text."""
    lines = [title]
    for found in rows:
        met = {True: "met", False: "NOT MET", None: ""}[found["met"]]
        goal = f"{found['goal']}, {met}" if met else ""
        lines.append(f"  {found['what']:64}{found['value']:12.4g} {found['unit']:14}{goal}")
        if found["note"]:
            lines.append(f"      {found['note']}")
    return "\n".join(lines)


def write(path: Path, sections: dict[str, list[Row]], source: dict[str, Any]) -> None:
    """Write the table with its provenance."""
    document = {"schema": SCHEMA, "sections": sections, "provenance": source}
    write_atomic(path, json.dumps(document, indent=1, allow_nan=False) + "\n")


def main() -> None:
    """Measure the sections, print them as they come, write the file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"), help="where to measure (default: cpu)")
    parser.add_argument("--rounds", type=int, default=0, help="turns of each run (default: what the section needs)")
    parser.add_argument("--only", choices=SECTIONS, help="one section alone")
    chosen = parser.parse_args()
    if chosen.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: no GPU is visible here")
    torch.set_num_threads(1)
    device, began = torch.device(chosen.device), time.perf_counter()
    named = {"rounds": chosen.rounds} if chosen.rounds else {}
    sections = {}
    for name, section in SECTIONS.items():
        if name == chosen.only or (not chosen.only and (name != "loop" or device.type == "cpu")):
            sections[section.TITLE] = section.measure(device, **named)
            print(table(section.TITLE, sections[section.TITLE]), flush=True)
    if not chosen.only:
        path = ROOT / "results" / "bench" / ("gpu.json" if device.type == "cuda" else "cpu.json")
        write(path, sections, provenance(device, began))
        print(f"written to {path.relative_to(ROOT)} after {time.perf_counter() - began:.0f} s")


if __name__ == "__main__":
    main()
