"""Run the DAG with Snakemake, show progress, and say in one line where the book is or which notebook failed."""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys

from lib.record.files import PROFILES, ROOT


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--profile", default="cpu")
    parser.add_argument("--cores", default="all", help="number of cores, or all")
    parser.add_argument("--gpus", type=int, default=os.environ.get("GPUS", 1), help="notebooks on GPUs at a time")
    arguments = parser.parse_args()
    if arguments.profile not in PROFILES:
        sys.exit(f"PROFILE: '{arguments.profile}' given; one of {', '.join(PROFILES)}")
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
        *(sys.executable, "-m", "snakemake", "--workflow-profile", "tools/snakemake", "--cores", arguments.cores),
        *("--resources", f"gpu={arguments.gpus}", "--config", f"profile={arguments.profile}"),
    ]
    # Our lock in place of Snakemake's: the system frees it when the last of the two is dead, however it died.
    code = subprocess.run([*command, "--nolock"], cwd=ROOT, check=False, pass_fds=[lock.fileno()]).returncode
    for path in sorted((run / "failed").glob("*.txt")):
        print(f"failed: {path.read_text(encoding='utf-8').strip()}", file=sys.stderr)
    index = run / "book" / "_build" / "html" / "index.html"
    if code == 0:
        print(f"the book: {index.relative_to(ROOT)}")
    else:
        print(f"not built: see {run.relative_to(ROOT)}/logs; `make book` resumes with what is missing", file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())
