"""Replicates are kept as they end, found again if they still hold, and computed again if they do not."""

import errno
import importlib.util
import os
import signal
import subprocess
import sys
import textwrap
import time
from types import SimpleNamespace

import numpy as np
import pytest

from lib.record import code, replicates
from lib.record.files import ROOT, UserError

MODULE = '''
"""An experiment."""
import time

SCALE = 2


def measure(seed, p):
    """Measure."""
    time.sleep(p.pause)
    print("computing", seed, flush=True)
    return {"a": SCALE * seed, "b": [p.size, seed], "flag": seed > 1}


def side_by_side(seeds, p):
    return {"a": [2 * seed for seed in seeds], "b": [[p.size, seed] for seed in seeds]}
'''
P = SimpleNamespace(size=3, pause=0, unread=1, device="cpu", artefacts=None)


def changed(**values):
    return SimpleNamespace(**vars(P) | values)


@pytest.fixture
def module(tmp_path):
    path = tmp_path / "experiment.py"
    path.write_text(MODULE)
    return path


def load(path):
    spec = importlib.util.spec_from_file_location("experiment", path)
    loaded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    for cached in (code.digest_of, code._module, code._used, code._meaning):
        cached.cache_clear()
    return loaded


@pytest.fixture
def collect(module, tmp_path, capsys):
    """Collect, and say which seeds were computed and what was told."""

    def call(seeds=(0, 1, 2), p=P, name="measure", **options):
        found, took = replicates.collect(getattr(load(module), name), seeds, p, [tmp_path / "kept"], **options)
        assert len(took) == len(seeds)
        lines = capsys.readouterr().out.splitlines()
        computed = [int(line.split()[1]) for line in lines if line.startswith("computing")]
        return found, computed, [line for line in lines if not line.startswith("computing")]

    return call


def test_what_has_ended_is_not_computed_again(collect):
    found, computed, _ = collect((0, 1))
    again, later, told = collect((0, 1, 2))
    assert (computed, later, told) == ([0, 1], [2], [])
    assert again["a"].tolist() == [0, 2, 4]
    assert again["b"].tolist() == [[3, 0], [3, 1], [3, 2]]
    assert again["flag"].tolist() == [False, False, True]
    assert found["a"].tolist() == [0, 2]


def test_a_parameter_that_was_read_decides_and_no_other(collect):
    collect()
    assert collect(p=changed(unread=2, device="cuda"))[1] == []
    _, computed, told = collect(p=changed(size=4))
    assert computed == [0, 1, 2]
    assert told == [f"{seed}.npz of kept: size has changed, computed again" for seed in (0, 1, 2)]


def test_changed_code_is_not_mistaken_but_comments_are_free(collect, module):
    collect()
    module.write_text(MODULE.replace('"""An experiment."""', "# says why").replace("    print", "\n    print"))
    assert collect()[1] == []
    module.write_text(MODULE.replace("SCALE = 2", "SCALE = 3"))
    found, computed, told = collect()
    assert computed == [0, 1, 2]
    assert "its code has changed" in told[0]
    assert found["a"].tolist() == [0, 3, 6]


@pytest.mark.parametrize("damage", [b"", b"PK\x03\x04 half", None])
def test_a_damaged_file_is_named_and_computed_again(collect, tmp_path, damage):
    collect()
    path = tmp_path / "kept" / "1.npz"
    path.write_bytes(path.read_bytes()[:-40] if damage is None else damage)
    found, computed, told = collect()
    assert computed == [1]
    assert told[0].startswith(f"{path}: damaged (")
    assert found["a"].tolist() == [0, 2, 4]
    assert collect()[1] == []


def test_no_file_holds_a_pickle(collect, tmp_path):
    collect()
    np.savez(tmp_path / "kept" / "0.npz", a=np.array([{}], dtype=object))
    assert collect()[1] == [0]


def test_blocks_have_the_same_rows(collect, tmp_path):
    found, *_ = collect((0, 1, 2), name="side_by_side", block=2)
    assert found["b"].tolist() == [[3, 0], [3, 1], [3, 2]]
    assert sorted(path.name for path in (tmp_path / "kept").iterdir()) == ["0.npz", "1.npz", "2.npz"]


def test_the_world_is_opened_only_where_something_is_missing(module, tmp_path):
    opened, measure = [], lambda seed, p, world: {"a": world * seed}
    for _ in range(2):
        replicates.collect(measure, [1, 2], P, [tmp_path], lambda p: [opened.append(1) or p.size])
    assert len(opened) == 1


def test_where_a_replicate_comes_from_stands_in_it(collect, tmp_path):
    collect(about={"commit": "abc"})
    _, about = replicates.read(tmp_path / "kept" / "0.npz")
    assert about["parameters"] == {"pause": 0, "size": 3}
    assert {"commit", "code", "seconds", "finished"} <= about.keys()


def test_a_committed_record_is_found_too(module, tmp_path):
    measure = load(module).measure
    replicates.collect(measure, [0, 1], P, [tmp_path / "record"])
    found, _ = replicates.collect(measure, [0, 1, 2], P, [tmp_path / "run", tmp_path / "record"])
    assert found["a"].tolist() == [0, 2, 4]
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["2.npz"]


def test_a_full_disk_costs_the_running_one_only(collect, tmp_path, monkeypatch):
    fsync, count = os.fsync, iter(range(9))

    def full(handle):
        if next(count) == 1:
            raise OSError(errno.ENOSPC, "No space left on device")
        return fsync(handle)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match=r"No space left|disk is full"):
        collect()
    assert [path.name for path in (tmp_path / "kept").iterdir()] == ["0.npz"]
    assert collect()[1][-2:] == [1, 2]  # after 0 and 1 of the first try


def test_a_killed_process_loses_the_running_replicate_only(module, tmp_path):
    program = f"""
        import sys
        sys.path[:0] = [{str(tmp_path)!r}, {str(ROOT)!r}]
        from pathlib import Path
        from types import SimpleNamespace
        import experiment
        from lib.record import code, replicates
        p = SimpleNamespace(size=3, pause=0.4)
        replicates.collect(experiment.measure, range(6), p, [Path({str(tmp_path / "kept")!r})])
    """
    command = [sys.executable, "-c", textwrap.dedent(program)]
    kept = tmp_path / "kept"
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    while len(list(kept.glob("[0-9]*.npz"))) < 3:
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    had = sorted(path.name for path in kept.glob("[0-9]*.npz"))
    assert len(had) < 6
    again = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert again.count("computing") == 6 - len(had)


def test_modules_are_found_through_imports():
    found = {str(path.relative_to(ROOT)) for path in code.modules(ROOT / "lib/papers/sdft/experiments.py")}
    assert {"lib/worlds/digits.py", "lib/ground/diffusion.py", "lib/record/files.py"} <= found
    assert "lib/papers/ant/method.py" not in found


def test_a_world_of_its_own_is_opened_for_each_seed_that_is_missing(module, tmp_path):
    module.write_text(MODULE.replace("measure(seed, p)", "measure(seed, p, weight)").replace("SCALE * seed", "weight"))
    opened = []

    def own(p, seed):
        opened.append(seed)
        return (p.size * 10 + seed,)

    measure = load(module).measure
    replicates.collect(measure, [1], P, [tmp_path], own=own)
    found, _ = replicates.collect(measure, [1, 2], P, [tmp_path], own=own)
    assert opened == [1, 2]
    assert found["a"].tolist() == [31, 32]


def test_pictures_are_kept_as_bytes_and_are_the_same_computed_and_found(tmp_path):
    def measure(seed, p):
        rng = np.random.default_rng(seed)
        pictures = rng.uniform(-1.2, 1.2, (2, 3, 8, 8)).astype(np.float32)
        return {"drawn images": pictures, "mean images": pictures.mean((2, 3)), "all": pictures}

    first, _ = replicates.collect(measure, [1], P, [tmp_path])
    again, _ = replicates.collect(measure, [1], P, [tmp_path])
    assert all(np.array_equal(first[name], again[name]) for name in first)
    whole = first["all"]
    assert np.abs(first["drawn images"] - whole.clip(-1, 1)).max() <= 0.5 / 127.5 + 1e-6
    assert np.array_equal(first["mean images"], whole.mean((3, 4)))  # no pictures
    with np.load(tmp_path / "1.npz") as file:
        assert (file["drawn images"].dtype, file["all"].dtype) == (np.uint8, np.float32)
