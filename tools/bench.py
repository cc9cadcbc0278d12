"""Print the timings that matter: the training loop's overhead, and seconds and memory of every notebook at `cpu`."""

from __future__ import annotations

import contextlib
import io

from lib.results import read_results
from tools import bench_loop
from tools.notebooks import ROOT


def notebooks() -> list[str]:
    """Return a line a notebook from the latest run, or from the committed results where there is none."""
    lines = [f"{'notebook':20} {'seconds':>8} {'peak GB':>8}  where"]
    for path in sorted((ROOT / "results" / "cpu").glob("*.json")):
        latest = ROOT / "runs" / "cpu" / "results" / path.name
        used = read_results(latest if latest.exists() else path)["provenance"]
        place = f"{used['hardware']['cpu']}, {used['hardware']['threads']} thread, commit {used['commit'][:10]}"
        lines.append(f"{path.stem:20} {used['seconds']:8.1f} {used['peak_memory_gb']:8.2f}  {place}")
    return lines


def main() -> None:
    print("Training loop: seconds a step, ours over a bare loop on the same net (to stay below 5 %)")
    with contextlib.redirect_stderr(io.StringIO()):  # the loop's progress bars
        bench_loop.main()
    print("\nNotebooks at profile cpu (memory to stay below 4 GB)")
    print("\n".join(notebooks()))


if __name__ == "__main__":
    main()
