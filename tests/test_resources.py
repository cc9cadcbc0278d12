"""What a job asks for, one device a process, and engines that cannot be: refused in one line."""

import os
import select
import subprocess
import sys

import pytest

from lib.record.files import ROOT
from tools import devices, resources

TAKE = """import os, time
from tools import devices
devices.take(["4", "7"])
print(os.environ["CUDA_VISIBLE_DEVICES"], flush=True)
time.sleep(600)
"""


@pytest.fixture
def asked(monkeypatch):
    """Return what asks for one job, by a record of one profile."""
    runs = {
        ("long", "cpu"): {"peak_memory_gb": 2.5, "seconds": 3000},
        ("short", "cpu"): {"peak_memory_gb": 1, "seconds": 9},
    }
    monkeypatch.setattr(resources, "recorded", lambda name, profile: runs.get((name, profile), {}))

    def ask(name, profile, attempt=1):
        found = resources.resources(name, profile)
        return found["gpu"], found["mem_mb"](None, attempt), found["runtime"](None, attempt)

    return ask


def test_memory_and_time_follow_the_record_and_double_at_the_second_attempt(asked):
    assert asked("long", "cpu") == (0, 7500, 150)
    assert asked("long", "cpu", attempt=2) == (0, 15_000, 300)


def test_short_jobs_have_a_floor_and_unknown_ones_a_default(asked):
    assert asked("short", "cpu") == (0, 4000, 30)
    assert asked("long", "paper") == (1, 16_000, 24 * 60)


@pytest.fixture
def take(tmp_path):
    """Return what starts a process that takes one of two pretended devices, and what it printed once it has one."""
    started = []

    def start(**environment):
        settings = {"cwd": ROOT, "env": {**os.environ, "TMPDIR": str(tmp_path), **environment}}
        started.append(subprocess.Popen([sys.executable, "-c", TAKE], **settings, stdout=subprocess.PIPE))
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.wait()


def device(process):
    return process.stdout.readline().decode().strip()


def test_processes_take_one_device_each_and_a_killed_one_frees_its_own(take):
    first, second = take(), take()
    held = device(first)
    assert {held, device(second)} == {"4", "7"}
    third = take()
    assert not select.select([third.stdout], [], [], 5)[0], "a third process has a device, too"
    first.kill()
    assert device(third) == held


def test_jobs_of_slurm_do_not_wait_for_each_other_as_each_counts_its_devices_from_0(take):
    assert [device(take(SLURM_JOB_ID=job)) for job in ("1", "2", "3")] == ["4"] * 3


@pytest.mark.parametrize(("named", "found"), [("3", ["3"]), ("1,GPU-0a", ["1", "GPU-0a"]), ("", [])])
def test_devices_that_are_named_are_kept_to(monkeypatch, named, found):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", named)
    assert devices.visible() == found


def refused(*arguments, **environment):
    command = [sys.executable, "-m", "tools.run", *arguments]
    done = subprocess.run(command, cwd=ROOT, env={**os.environ, **environment}, capture_output=True, text=True)
    assert done.returncode != 0
    return done.stderr.strip()


def test_engines_that_cannot_be_are_refused_by_name():
    assert refused("--engine", "lsf") == "ENGINE: 'lsf' given; local or slurm"
    missing = "ENGINE: slurm given, but sbatch is not found; run this where jobs are submitted from"
    assert refused("--engine", "slurm", PATH="") == missing
    assert refused(GPUS="many") == "GPUS: 'many' given; a whole number from 1"


def test_a_cluster_that_does_not_answer_is_refused_by_name(tmp_path):
    for name, code in {"sbatch": "exit 0", "squeue": "echo 'Unable to contact controller' >&2; exit 1"}.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{code}\n")
        (tmp_path / name).chmod(0o755)
    found = refused("--engine", "slurm", PATH=f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    assert found == "ENGINE: slurm given, but squeue fails: Unable to contact controller"
