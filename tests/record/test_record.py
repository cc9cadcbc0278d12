"""A run writes its folder, or says in one line why it cannot; results files of another version are refused."""

import errno
import json
import os
from types import SimpleNamespace

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch

from lib.record import figures, run as record
from lib.record.files import UserError, read_results, write_atomic
from lib.record.run import Run


@pytest.fixture
def run(tmp_path):
    return Run("00_test", SimpleNamespace(profile="smoke", seed=3, device="cpu", out=str(tmp_path), seeds=2))


def finished(run):
    run.finish()
    return read_results(run.folder / "results" / "00_test.json")


def draw():
    figure, axis = plt.subplots(figsize=(2, 2))
    axis.plot([0, 1], [0, 1], color=figures.ink())
    return figure


def test_results_hold_numbers_claims_and_provenance(run):
    run.number("gain", [1.0, 1.1, 1.2], unit="deg")
    assert run.text("gain") == "1.10 [0.852, 1.35] deg"
    run.table("rows", [{"lambda": 0.1, "n": np.int64(3)}], note="3 < 5 images")
    names = [check["name"] for check in record.claims.load(record.ROOT / "claims.yaml")["A4"]["checks"]]
    run.claim("A4", **dict.fromkeys(names, 0.97))
    run.claim("D6")
    results = finished(run)
    assert results["numbers"]["gain"]["n"] == 3
    assert results["numbers"]["gain"]["values"] == [1.0, 1.1, 1.2]
    assert results["tables"]["rows"] == [{"lambda": 0.1, "n": 3}]
    assert results["notes"] == {"rows": "3 < 5 images"}
    assert results["claims"]["A4"]["verdict"] == "not tested"  # its controls fail
    assert results["claims"]["D6"]["verdict"] == "not tested"
    for key in ("commit", "versions", "hardware", "seed", "seconds", "peak_memory_gb"):
        assert key in results["provenance"]
    assert str(run.folder) not in json.dumps(results)  # no path of the machine


def test_a_note_stands_below_its_table(run, monkeypatch):
    shown = []
    monkeypatch.setattr(record, "display", lambda data, raw: shown.append(data))
    run.table("rows", [{"n": 3}], note="3 < 5 images")
    run.table("more", [{"n": 4}])
    with pytest.raises(ValueError, match="different columns"):
        run.table("torn", [{"n": 4}, {"m": 4}])
    assert shown[0]["text/html"].rstrip().endswith('<p class="results-note">3 &lt; 5 images</p>')
    assert "results-note" not in shown[1]["text/html"]
    assert [data["text/plain"] for data in shown] == ["n\n3\n3 < 5 images", "n\n4"]


def test_undefined_numbers_are_null_not_nan(run):
    run.number("gap", [1.0, float("nan")])
    assert run.text("gap") == "not defined"
    assert finished(run)["numbers"]["gap"]["mean"] is None


def test_unknown_claim_is_refused(run):
    with pytest.raises(UserError, match="'Z9'"):
        run.claim("Z9", a=1.0)


def test_seeds_are_consecutive_and_seed_the_global_generators(run):
    assert run.seed_list == [3, 4]
    first = torch.rand(1)
    torch.manual_seed(3)
    assert torch.equal(first, torch.rand(1))


@pytest.mark.parametrize("kind", ["file in the way", "read-only"])
def test_unwritable_folder_is_one_line_before_the_work(tmp_path, kind):
    folder = tmp_path / "out"
    if kind == "read-only":
        if os.geteuid() == 0:
            folder = "/proc/companion"  # root ignores permissions; nobody can make folders there
        else:
            folder.mkdir(mode=0o500)
    else:
        folder.write_text("a file")
    with pytest.raises(UserError) as caught:
        Run("00_test", SimpleNamespace(profile="smoke", seed=0, device="cpu", out=str(folder)))
    assert "cannot write to folder" in str(caught.value)
    assert "`out`" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_errors_show_as_one_line_in_a_notebook():
    assert UserError("steps: wrong")._render_traceback_() == ["UserError: steps: wrong"]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ('{"schema": 99, "notebook": "x"}', ["schema 99", "reads 1"]),
        ("[]", ["schema None"]),
        ('{"schema": 1', ["damaged"]),
        (None, ["missing"]),
    ],
)
def test_results_of_another_version_are_refused(tmp_path, content, words):
    path = tmp_path / "10_test.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(UserError) as caught:
        read_results(path)
    for word in [*words, "10_test.json", "run its notebook"]:
        assert word in str(caught.value)


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "results.json"
    write_atomic(path, "old")

    def broken(*arguments):
        raise OSError(errno.ENOSPC, "disk full")

    monkeypatch.setattr(os, "replace", broken)
    with pytest.raises(UserError, match=r"cannot write to folder .*disk full"):
        write_atomic(path, "new")
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["results.json"]


def test_figures_come_in_light_and_dark_with_alt_text(run):
    figures.show(run, "line", draw, alt="A line from 0 to 1.")
    files = run.figures["line"]["files"]
    assert files == ["00_test-line-light.svg", "00_test-line-dark.svg"]
    light, dark = [(run.folder / "figures" / name).read_text() for name in files]
    assert "#ffffff" in light
    assert "#14181e" in dark
    assert figures.render(draw, "light", "svg").decode() == light  # the same bytes every time: clean diffs


def test_figures_without_alt_text_or_of_unknown_kind_are_refused(run):
    with pytest.raises(UserError, match="alt text"):
        figures.show(run, "line", draw, alt=" ")
    with pytest.raises(UserError, match="'jpg'"):
        figures.show(run, "line", draw, alt="A line.", kind="jpg")
    with pytest.raises(UserError, match="1 frames but 2 alt"):
        figures.slider(run, "line", [("0", draw)], "t", alt=["a", "b"], start=0)


def test_image_grid_fills_rows_and_keeps_values():
    pictures = torch.stack([torch.full((1, 4, 4), value) for value in (-1.0, 0.0, 1.0)])
    grid = figures.image_grid(pictures, ncols=2, titles=["a", "b"], row_labels=["x", "y"])
    shown = [axis.images[0].get_array().mean() for axis in grid.axes if axis.images]
    plt.close(grid)
    assert shown == [0.0, 0.5, 1.0]


def test_every_seed_is_measured_and_its_values_are_stacked_by_name(run):
    def measure(seed, p):
        return {"a": seed, "b": torch.zeros(2)} | ({"c": np.ones(1)} if seed == p.seed else {})

    found = run.replicates(measure)
    assert found["a"].tolist() == run.seed_list
    assert sorted(path.name for path in (run.folder / "replicates" / "00_test" / "measure").iterdir()) == [
        "3.npz",
        "4.npz",
    ]
    assert found["b"].shape == (2, 2)
    assert found["c"].shape == (1, 1)  # only one of the two has it
