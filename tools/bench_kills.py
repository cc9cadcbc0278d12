"""Kill jobs at random moments, and fill their disk; then see whether the same command ends as if nothing had been.

Every method, on one process and on two. A moment: one process of the running job, chosen at random, gets SIGKILL (one
time in four SIGTERM) at a random time; then the job is started again, killed again, and at last left alone. What it
leaves must equal, byte for byte, what an undisturbed job left. `python -m tools.bench_kills --moments 12` is what CI
does; `--write` puts the table where the book shows it.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import psutil
import torch
import torch.nn.functional as F
from diffusers import DDPMPipeline, DDPMScheduler
from torch.utils import tensorboard  # noqa: F401 (for the copies of this process)

from lib.ground.nets import seeded, small_unet
from lib.jobs import job, report
from lib.jobs.settings import METHODS
from lib.measures import distances
from lib.record.files import ROOT
from tools.bench import provenance, table, write
from tools.bench_tools import Row, row

TITLE = "Jobs killed at random moments, started again, compared byte for byte with undisturbed ones"
PATIENCE = 300.0  # seconds after which a job counts as hung
TWO = 0.25  # share of moments on two processes: they take ten times as long to start


def prepare(place: Path) -> dict[str, Any]:
    """Write a model and images, and return the settings that all jobs share."""
    unet = seeded(0, lambda: small_unet(16, (8, 32), image_channels=3))
    DDPMPipeline(unet, DDPMScheduler(num_train_timesteps=50)).save_pretrained(place / "source")
    report.write_images(place / "images", torch.rand(6, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1)
    small = {"steps": 12, "batch": 4, "samples": 8, "sampling_steps": 4, "shown": 4, "save_every": 2, "device": "cpu"}
    small |= {"classifier_steps": 6, "classifier_batch": 4, "classifier_images": 8, "J": 2, "ema": 0.9, "grid_every": 3}
    return small | {"source": str(place / "source"), "images": str(place / "images")}


def start(settings: dict[str, Any], log: Path) -> int:
    """Begin a job in a copy of this process, which has everything imported; return its number."""
    path = log.with_suffix(".json")
    path.write_text(json.dumps(settings), encoding="utf-8")
    if pid := os.fork():
        return pid
    try:
        with log.open("wb") as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
        sys.stdout, sys.stderr = os.fdopen(1, "w"), os.fdopen(2, "w")
        if settings["processes"] == 1:  # any features will do for a score
            distances.inception = lambda device: lambda x: F.adaptive_avg_pool2d(x.float(), 2).flatten(1)
        code = job.main([str(path)])
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    finally:
        os._exit(99)


def ended(pid: int, family: list[psutil.Process]) -> int:
    """Wait until a job and all its processes are gone; return its exit code, negative for a signal."""
    _, status = os.waitpid(pid, 0)
    _, alive = psutil.wait_procs([p for p in family if p.pid != pid], timeout=PATIENCE)
    for process in alive:
        process.kill()
    return -98 if alive else os.waitstatus_to_exitcode(status)


def left(out: Path) -> dict[str, str]:
    """Return a digest of everything that a job leaves for its user; times and places are left out."""
    files = [p for name in ("model", "samples", "best") for p in sorted((out / name).rglob("*")) if p.is_file()]
    found = {p.relative_to(out).as_posix(): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}
    metrics = json.loads((out / "metrics.json").read_text(encoding="utf-8"))
    del metrics["settings"]["out"], metrics["training"]["seconds"]
    drafts = {path.name: "a draft" for path in out.rglob(".companion-*")}
    return found | {"metrics.json": json.dumps(metrics, sort_keys=True, default=str)} | drafts


def disturbed(settings: dict[str, Any], seconds: float, kills: int, dice: random.Random, log: Path) -> Counter:
    """Kill a job so many times, then let it end; count what it said on the way."""
    said: Counter = Counter()
    k, waited = 0, time.monotonic()
    while k <= kills:
        pid = start(settings, log)
        family = [psutil.Process(pid)]
        if k < kills:
            time.sleep(dice.uniform(0, seconds))
            try:
                family += family[0].children(recursive=True)
                dice.choice(family).send_signal(dice.choice([signal.SIGKILL] * 3 + [signal.SIGTERM]))
            except psutil.NoSuchProcess:
                said["over before it was killed"] += 1
        code = ended(pid, family)
        text = log.read_text(encoding="utf-8", errors="replace")
        if "a job is running in it" in text and time.monotonic() - waited < PATIENCE:
            time.sleep(2)  # as it asks: processes that outlived their parent are still at work
            continue
        said["ended by itself" if code == 0 else "killed" if code < 0 else "said what is left to do"] += k < kills
        if settings["processes"] == 1 and "Traceback" in text:
            said["traceback"] += 1
        if k == kills and code:
            raise RuntimeError(f"exit {code}: {text[-400:]}")
        k, waited = k + 1, time.monotonic()
    return said


def full(settings: dict[str, Any], kilobytes: int, log: Path) -> tuple[bool, dict[str, str]]:
    """Run a job on a disk of that size, then on a large one; return whether it was full at first, and what is left."""
    out = Path(settings["out"]).parent
    out.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={kilobytes}k", "tmpfs", out], check=True, capture_output=True)
    try:
        code = ended(start(settings, log), [])
        text = log.read_text(encoding="utf-8", errors="replace")
        if code not in (0, 1) or "Traceback" in text or (code and "full" not in text and "free" not in text.lower()):
            raise RuntimeError(f"exit {code}: {text[-400:]}")
        subprocess.run(["mount", "-o", "remount,size=64m", out], check=True)
        if again := ended(start(settings, log), []):
            raise RuntimeError(f"exit {again} after the disk was made larger: {log.read_text()[-400:]}")
        return code == 1, left(Path(settings["out"]))
    finally:
        subprocess.run(["umount", "-l", out], check=True)


def measure(moments: int, disks: int, seed: int) -> tuple[list[Row], list[str]]:
    """Return the table, and what was lost."""
    dice, lost, rows = random.Random(seed), [], []
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        os.environ["TORCH_HOME"] = str(place / "torch")  # no weights of LPIPS: their absence is part of the result
        common, whole, times = prepare(place), {}, {}

        def settings(method: str, processes: int, out: str) -> dict[str, Any]:
            score = {"reference": common["images"], "score_every": 4, "score_samples": 4} if processes == 1 else {}
            return common | score | {"method": method, "processes": processes, "out": str(place / out)}

        def undisturbed(method: str, processes: int) -> dict[str, str]:
            key = (method, processes)
            if key not in whole:
                out, began = f"whole-{method}-{processes}", time.perf_counter()
                log = place / f"{out}.log"
                if code := ended(start(settings(*key, out), log), []):
                    raise RuntimeError(f"exit {code}: {log.read_text()}")
                whole[key], times[key] = left(place / out), time.perf_counter() - began
            return whole[key]

        for processes, share in ((1, 1 - TWO), (2, TWO)):
            said: Counter = Counter()
            done, wanted, jobs, before = 0, round(moments * share), 0, len(lost)
            while done < wanted:
                method = METHODS[jobs % len(METHODS)]
                expected, name = undisturbed(method, processes), f"{processes}-{jobs}"
                kills, jobs = min(dice.randint(1, 3), wanted - done), jobs + 1
                done += kills
                try:
                    wish = settings(method, processes, name)
                    said += disturbed(wish, times[method, processes], kills, dice, place / f"{name}.log")
                    found = left(place / name)
                    if wrong := sorted(k for k in expected.keys() | found.keys() if expected.get(k) != found.get(k)):
                        raise RuntimeError(f"other bytes in {wrong[:3]}")
                    if said["traceback"]:
                        raise RuntimeError("a traceback")
                except RuntimeError as error:
                    lost.append(f"{method}, {processes} processes, job {jobs}: {error}")
            note = f"{jobs} jobs of {len(METHODS)} methods; " + ", ".join(
                f"{v} {k}" for k, v in sorted(said.items()) if v
            )
            rows.append(row(f"moments, {processes} process{'es' * (processes > 1)}", done, "", note=note))
            rows.append(row(f"lost, {processes} process{'es' * (processes > 1)}", len(lost) - before, "", most=0))
        if disks:
            before, were_full = len(lost), 0
            for i in range(disks):
                method = METHODS[i % len(METHODS)]
                wish = settings(method, 1, f"disk{i}/out")
                try:
                    was_full, found = full(wish, 16 + 200 * i, place / f"disk{i}.log")
                    were_full += was_full
                    if found != undisturbed(method, 1):
                        raise RuntimeError("other bytes")
                except RuntimeError as error:
                    lost.append(f"{method}, a disk of {16 + 200 * i} KB: {error}")
            note = f"{were_full} of them were full before the job was done; then they were made larger"
            rows.append(row("small disks (16 KB and more)", disks, "", note=note))
            rows.append(row("lost on small disks", len(lost) - before, "", most=0))
    return rows, lost


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--moments", type=int, default=100)
    parser.add_argument("--disks", type=int, default=0, help="small disks to fill; needs the right to mount")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--write", action="store_true", help="to results/bench/kills.json, which the book shows")
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    os.environ |= dict.fromkeys(("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"), "http://127.0.0.1:9")
    os.environ |= {"OMP_NUM_THREADS": "1", "TQDM_DISABLE": "1"}
    began = time.perf_counter()
    rows, lost = measure(chosen.moments, chosen.disks, chosen.seed)
    print(table(TITLE, rows), *lost, sep="\n")
    if chosen.write:
        source = provenance(torch.device("cpu"), began)
        write(ROOT / "results" / "bench" / "kills.json", {TITLE: rows}, source)
    return bool(lost)


if __name__ == "__main__":
    sys.exit(main())
