"""Run the DAG with Snakemake, show progress, and say in one line where the book is or which notebook failed."""

from __future__ import annotations

import argparse
import hashlib
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

from lib.record.files import PROFILES, ROOT, read_results as read

ENGINES = {"local": "tools/snakemake", "slurm": "tools/snakemake/slurm"}  # and their workflow profiles


def cancel_jobs_left(prefix: str) -> None:
    """Cancel what a killed run left in Slurm's queue, by its jobs' names: it would write the files of this run."""

    def slurm(*command: str) -> str:
        try:
            return subprocess.run(command, check=True, capture_output=True, text=True).stdout
        except subprocess.CalledProcessError as error:
            sys.exit(f"ENGINE: slurm given, but {command[0]} fails: {' '.join(error.stderr.split())}")

    while left := [
        number
        for number, name in map(str.split, slurm("squeue", "--me", "--noheader", "--format=%A %j").splitlines())
        if name.startswith(prefix)
    ]:
        slurm("scancel", *left)
        time.sleep(1)


def agreement(results: Path) -> list[str]:
    """Return what a run says of the record: each claim's agreement, those that differ by name."""
    claims = {key: found for path in sorted(results.glob("[0-9]*.json")) for key, found in read(path)["claims"].items()}
    said = {key: found["record"]["agrees"] for key, found in claims.items() if found.get("record")}
    words = sorted({word for word in said.values() if word})
    return [f"{word}: {', '.join(key for key in said if said[key] == word)}" for word in words]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--profile", default="cpu")
    parser.add_argument("--engine", default="local", help="local, or slurm: each notebook a job of a cluster")
    parser.add_argument("--cores", default="all", help="number of cores of this machine, or all")
    parser.add_argument("--gpus", default=os.environ.get("GPUS", "1"), help="jobs on GPUs of this machine at a time")
    arguments = parser.parse_args()
    if arguments.profile not in PROFILES:
        sys.exit(f"PROFILE: '{arguments.profile}' given; one of {', '.join(PROFILES)}")
    if arguments.engine not in ENGINES:
        sys.exit(f"ENGINE: '{arguments.engine}' given; {' or '.join(ENGINES)}")
    if arguments.engine == "slurm" and not shutil.which("sbatch"):
        sys.exit("ENGINE: slurm given, but sbatch is not found; run this where jobs are submitted from")
    if not arguments.gpus.isdecimal() or not int(arguments.gpus):
        sys.exit(f"GPUS: '{arguments.gpus}' given; a whole number from 1")
    try:
        import fcntl
    except ImportError:
        sys.exit("make book: Windows has no file locks of this kind; use WSL, or run the notebooks one by one")
    run = ROOT / "runs" / arguments.profile
    run.mkdir(parents=True, exist_ok=True)
    lock = (run / ".lock").open("w")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        sys.exit(
            f"another run of PROFILE={arguments.profile} is at work in this checkout; wait for its end, or stop it"
        )
    shutil.rmtree(run / "failed", ignore_errors=True)
    command = [
        *(sys.executable, "-m", "snakemake", "--workflow-profile", ENGINES[arguments.engine]),
        *("--config", f"profile={arguments.profile}"),
    ]
    if arguments.engine == "local":
        command += ["--cores", arguments.cores, "--resources", f"gpu={arguments.gpus}"]
    else:
        prefix = f"{arguments.profile}-{hashlib.sha256(str(ROOT).encode()).hexdigest()[:8]}"
        cancel_jobs_left(prefix)
        command += ["--slurm-jobname-prefix", prefix, "--slurm-logdir", str(run / "logs" / "slurm")]
    # Our lock in place of Snakemake's: the system frees it when the last of the two is dead, however it died.
    code = subprocess.run([*command, "--nolock"], cwd=ROOT, check=False, pass_fds=[lock.fileno()]).returncode
    for path in sorted((run / "failed").glob("*.txt")):
        print(f"failed: {path.read_text(encoding='utf-8').strip()}", file=sys.stderr)
    index = run / "book" / "_build" / "html" / "index.html"
    if code == 0:
        for line in agreement(run / "results"):
            print(line)
        print(f"the book: {index.relative_to(ROOT)}")
    else:
        print(f"not built: see {run.relative_to(ROOT)}/logs; `make book` resumes with what is missing", file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())
