"""Keep recorded replicates whose code has changed but not what it computes: one, computed again, must be the same.

`python -m tools.adopt 41_dds_digits ...` takes each experiment of the named notebooks. Where the first replicates
computed by today's code equal the stored ones, the others are taken over, and say by which replicates that was checked;
where they differ, nothing is changed, and `make record` computes all of them anew.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

import numpy as np

from lib.record import replicates
from lib.record.files import RECORD, ROOT
from tools.notebooks import Block, blocks, code_of
from tools.replicate import opened, started

NEAR = {"rtol": 1e-6, "atol": 1e-9, "equal_nan": True}  # on one kind of processor: rounding


def adopt(job: Block, folder: Path) -> str:
    """Take over the stored replicates of an experiment, if they hold; return what was done."""
    measure, how = opened(job)
    code, kept = code_of(job), {int(path.stem): replicates.read(path) for path in folder.glob("*.npz")}
    stale = {seed: one for seed, one in sorted(kept.items()) if one[1]["code"] != code}
    if not stale:
        return "up to date"
    if len({about["code"] for _, about in stale.values()}) > 1:
        return "of several codes: left alone"
    checked = list(stale)[: job.block or 1]
    with tempfile.TemporaryDirectory() as scratch:
        p = started(job.notebook, RECORD).parameters
        replicates.collect(measure, checked, p, [Path(scratch)], **how)
        for seed in checked:
            new, about = replicates.read(Path(scratch) / f"{seed}.npz")
            row, then = stale[seed]
            if about["parameters"] != then["parameters"] or new.keys() != row.keys():
                return f"seed {seed}: other parameters or other values are read; left alone"
            wrong = [key for key in row if not np.allclose(new[key].astype(float), row[key].astype(float), **NEAR)]
            if wrong:
                return f"seed {seed}: {', '.join(wrong[:5])} differ; left alone"
    for seed, (row, about) in stale.items():
        taken = [*about.get("adopted", []), {"code": about["code"], "checked": checked}]
        replicates.write(folder / f"{seed}.npz", row, about | {"code": code, "adopted": taken})
    return f"{len(stale)} taken over; checked: {', '.join(map(str, checked))}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("names", nargs="+", help="notebooks")
    for name in parser.parse_args().names:
        for job in {job.function: job for job in reversed(blocks(name, RECORD))}.values():
            folder = ROOT / "results" / RECORD / "replicates" / name / job.function
            print(f"{name}, {job.function}: {adopt(job, folder) if folder.exists() else 'none stored'}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
