"""Replicates of changed code are taken over where one, computed again, is the same; else they are left alone."""

import numpy as np
import pytest

from lib.record import replicates
from lib.record.files import ROOT
from tools import adopt
from tools.notebooks import Block, blocks, code_of


@pytest.fixture
def stored(tmp_path, monkeypatch):
    """Two replicates of an experiment, of a code that is no more."""
    job = Block("40_dds_gaussian", "lib.papers.dds.experiments", "gaussian", "", "", 0, [0, 1])
    monkeypatch.setattr(adopt, "started", lambda name, profile: type("Run", (), {"parameters": None}))
    found = {"a": np.arange(3.0), "flag": np.array(True), "hole": np.array(np.nan)}

    def collect(measure, seeds, p, folders, **worlds):
        for seed in seeds:
            about = {"parameters": {"size": 3}, "code": code_of(job)}
            replicates.write(folders[0] / f"{seed}.npz", {**found, "a": found["a"] + collect.shift}, about)

    collect.shift = 0.0
    monkeypatch.setattr(adopt.replicates, "collect", collect)
    for seed in (0, 1):
        replicates.write(tmp_path / f"{seed}.npz", found, {"parameters": {"size": 3}, "code": "old", "commit": "c"})
    return job, tmp_path, collect


def test_equal_replicates_are_taken_over_and_say_so(stored):
    job, folder, _ = stored
    assert adopt.adopt(job, folder) == "2 taken over; checked: 0"
    row, about = replicates.read(folder / "1.npz")
    assert row["a"].tolist() == [0, 1, 2]
    assert about["code"] == code_of(job)
    assert about["adopted"] == [{"code": "old", "checked": [0]}]
    assert about["commit"] == "c"
    assert adopt.adopt(job, folder) == "up to date"


def test_what_differs_is_left_alone(stored):
    job, folder, collect = stored
    collect.shift = 1e-3
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert adopt.adopt(job, folder) == "seed 0: a differ; left alone"
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


RECORDED = sorted((ROOT / "results" / "record" / "replicates").glob("*/*"))


@pytest.mark.parametrize("folder", RECORDED, ids=lambda folder: folder.name)
def test_the_record_is_of_the_code_in_the_tree(folder):
    name = folder.parent.name
    job = next(job for job in blocks(name, "record") if job.function == folder.name)
    codes = {replicates.read(path)[1]["code"] for path in folder.glob("*.npz")}
    assert codes == {code_of(job)}, f"python -m tools.adopt {name}, or make record"
