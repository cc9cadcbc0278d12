"""The smoke DAG through a real Slurm, every job on one of two pretended GPUs, with what may happen on the way.

Needs root and Debian's packages (`cluster`, beside this file) and starts from an empty `runs/smoke`: done with
SLURM_TEST=1 only.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time

import psutil
import pytest
import yaml

from lib.record.files import ROOT
from tools.notebooks import names

pytestmark = pytest.mark.skipif(os.environ.get("SLURM_TEST") != "1", reason="SLURM_TEST=1 is not set")
CLUSTER = ROOT / "tests" / "slurm" / "cluster"
RUN = ROOT / "runs" / "smoke"
PATIENCE = 2700  # seconds


def slurm(*command):
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()


def memories():
    """Return the jobs that wait or run: number -> rule, and the MB it asks for."""
    words = slurm("squeue", "--noheader", "--format=%A %k %m")
    return {number: (rule, int(mb.rstrip("M"))) for number, rule, mb in zip(*[iter(words)] * 3, strict=True)}


def until(happened, run):
    """Wait until something has happened in a run that goes on."""
    end = time.monotonic() + PATIENCE
    while not (found := happened()):
        assert run.poll() is None, "the run ended too early"
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.2)
    return found


class Watch(threading.Thread):
    """Sees, five times a second, which jobs' processes hold which device: those of the DAG's tools, and kernels."""

    def __init__(self):
        super().__init__(daemon=True)
        self.held = {}  # process of a tool -> its command, its job, its device, when it was first and last seen
        self.together = []  # what was seen on one device at one moment
        self.over = threading.Event()

    def run(self):
        while not self.over.wait(0.2):
            now = time.time()
            found = {}
            for process in psutil.process_iter():
                try:
                    command, environment = process.cmdline(), process.environ()
                except psutil.Error:
                    continue
                job, device = environment.get("SLURM_JOB_ID"), environment.get("CUDA_VISIBLE_DEVICES")
                if job and "--gpus" in command and command[2].startswith("tools."):
                    self.held.setdefault(process.pid, [command[2:], job, device, now, now])[4] = now
                    found.setdefault(device, set()).add(process.pid)
                elif job and "ipykernel_launcher" in command:  # may outlive the notebook's process
                    parent = int(environment["JPY_PARENT_PID"])
                    self.held.get(parent, [0] * 5)[4] = now
                    found.setdefault(device, set()).add(parent)
            self.now = {pid for pids in found.values() for pid in pids}
            self.together += [sorted(pids) for pids in found.values() if len(pids) > 1]

    now = frozenset()  # the processes that run


@pytest.fixture
def cluster():
    subprocess.run([CLUSTER, "start"], check=True)
    yield
    subprocess.run([CLUSTER, "stop"], check=True)


@pytest.fixture
def make(cluster, tmp_path):
    """Return what starts a run, with the settings that a user would have for this cluster."""
    listed = [sys.executable, "-m", "snakemake", "--list-rules", "--config", "profile=smoke"]
    rules = subprocess.run(listed, cwd=ROOT, check=True, capture_output=True, text=True).stdout.split()
    site = {
        "slurm-status-command": "squeue",  # no accounts are kept here
        "slurm-init-seconds-before-status-checks": 2,
        "set-resources": {rule: {"gpu": 1} for rule in rules if rule not in ("all", "book")},
    }
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(site))
    started = []

    def start():
        command = ["make", "book", "PROFILE=smoke", "ENGINE=slurm"]
        environment = {**os.environ, "SNAKEMAKE_PROFILE": str(tmp_path)}
        started.append(subprocess.Popen(command, cwd=ROOT, env=environment, start_new_session=True))
        return started[-1]

    yield start
    for run in started:
        if run.poll() is None:
            os.killpg(run.pid, signal.SIGKILL)


def test_smoke_dag_through_slurm(make):
    shutil.rmtree(RUN, ignore_errors=True)
    watch = Watch()
    watch.start()

    # The machine that submits goes down: its jobs stay, and the next run cancels them before it begins.
    run = make()
    until(lambda: len(watch.now) == 2, run)
    os.killpg(run.pid, signal.SIGKILL)
    run.wait()
    left = set(slurm("squeue", "--noheader", "--format=%A"))
    assert left
    run = make()
    until(lambda: set(slurm("squeue", "--noheader", "--format=%A")) - left, run)
    assert not left & set(slurm("squeue", "--noheader", "--format=%A"))

    # A node goes down in the middle: Slurm kills its jobs, and starts them again once it is back.
    until(lambda: len(watch.held) >= 6 and len(watch.now) == 2, run)
    fallen = set(watch.now)
    (node,) = slurm("sinfo", "--noheader", "--format=%n")
    slurm("scontrol", "update", f"nodename={node}", "state=down", "reason=test")
    until(lambda: not watch.now, run)
    slurm("scontrol", "update", f"nodename={node}", "state=resume")

    # A job is cancelled, as one is that wants more memory than it asked for: it comes again and asks for twice as much.
    until(lambda: len(watch.now - fallen) == 2, run)
    _, job, *_ = watch.held[max(watch.now, key=lambda pid: watch.held[pid][3])]  # the one that has just begun
    rule, memory = memories()[job]
    slurm("scancel", job)
    again = until(lambda: [one for other, one in memories().items() if other != job and one[0] == rule], run)
    assert again == [(rule, 2 * memory)]

    assert run.wait(PATIENCE) == 0
    watch.over.set()
    watch.join()
    for command, job, device, first, last in sorted(watch.held.values(), key=lambda one: one[3]):
        begun = time.strftime("%H:%M:%S", time.localtime(first))
        print(f"{begun} {last - first:6.1f} s, GPU {device}, job {job}: {' '.join(command)}")
    assert not watch.together, "two jobs at a time on one device"
    assert {one[2] for one in watch.held.values()} == {"0", "1"}
    assert any(one[:2] == watch.held[pid][:2] for pid in fallen for it, one in watch.held.items() if it != pid)  # again
    assert (RUN / "book" / "_build" / "html" / "index.html").exists()
    for name in names():
        assert json.loads((RUN / "results" / f"{name}.json").read_text())["provenance"]["profile"] == "smoke"
