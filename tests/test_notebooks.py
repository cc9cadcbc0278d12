"""Each notebook tells one story in one form, its two files agree, and its profiles name real parameters."""

import ast
import importlib
import inspect
import json
import re

import jupytext
import nbformat
import pytest
import yaml
from jupytext.config import load_jupytext_configuration_file

from lib.record.code import digest_of
from lib.record.files import PROFILES, ROOT
from tools import notebooks
from tools.notebooks import blocks, claims_of, lib_modules, models as nb_models, names, paths, profile_file, to_compute

HEADINGS = ["Question", "Claim", "Method", "Result", "Limits"]
LONGEST_CELL, LONGEST_DRAWING = 21, 28  # drawings are folded away in the book
NAMES = names()


def source(name):
    return jupytext.read(paths()[name])


def stored(name):
    return nbformat.read(paths()[name].with_suffix(".ipynb"), as_version=4)


def code(name):
    return [cell for cell in source(name).cells if cell.cell_type == "code"]


def parameters(name):
    tree = ast.parse(next(cell.source for cell in code(name) if "parameters" in cell.metadata.get("tags", [])))
    return {node.target.id: node for node in tree.body if isinstance(node, ast.AnnAssign)}


def test_a_notebook_depends_on_the_modules_it_imports_and_on_the_data_beside_them():
    files = lib_modules("62_ant")
    assert {"lib/ground/train.py", "lib/papers/ant/geometries.yaml", "lib/record/styles/dark.mplstyle"} <= set(files)
    assert not [file for file in files if "dds" in file]


def test_there_are_notebooks():
    assert {"00_start", "10_rdmd_2d", "20_ant_2d", "30_sdft_weights", "40_dds_gaussian", "60_finetune"} <= set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_form(name):
    text = "\n".join(cell.source for cell in source(name).cells if cell.cell_type == "markdown")
    assert re.findall(r"^# (?!#)", text, flags=re.M) == ["# "]
    assert re.findall(r"^## (.+)$", text, flags=re.M) == HEADINGS
    cells = code(name)
    first = next(i for i, cell in enumerate(cells) if "parameters" in cell.metadata.get("tags", []))
    assert f'record.start("{name}", globals())' in cells[first + 1].source
    assert "run.finish()" in cells[-1].source
    for cell in cells[:first] + cells[first + 1 :]:
        longest = LONGEST_DRAWING if "hide-input" in cell.metadata.get("tags", []) else LONGEST_CELL
        lines = [line for line in cell.source.splitlines() if not re.match(r"(from|import) ", line)]
        assert len(lines) <= longest, f"what is longer belongs in lib: {cell.source}"


@pytest.mark.parametrize("name", NAMES)
def test_a_reader_sees_no_more_code_than_prose(name):
    lines = {"markdown": 0, "code": 0}
    for cell in source(name).cells:
        if "hide-input" not in cell.metadata.get("tags", []):
            lines[cell.cell_type] += sum(bool(line.strip()) for line in cell.source.splitlines())
    assert lines["code"] <= lines["markdown"]


@pytest.mark.parametrize("name", NAMES)
def test_every_claim_is_judged_once(name):
    judged = re.findall(r'run\.claim\(\s*"(\w+)"', "\n".join(cell.source for cell in code(name)))
    assert sorted(judged) == sorted(claims_of(name))


PROFILE_FILES = [(name, p) for name in NAMES for p in PROFILES if profile_file(name, p)]


@pytest.mark.parametrize(("name", "profile"), PROFILE_FILES)
def test_profiles_name_real_parameters_and_only_what_differs(name, profile):
    values = yaml.safe_load(profile_file(name, profile).read_text(encoding="utf-8"))
    declared = parameters(name)
    assert values["profile"] == profile
    assert len(values) > 1, "a file that says nothing else is left out: the defaults are meant"
    assert set(values) <= set(declared)
    defaults = {key: ast.literal_eval(node.value) for key, node in declared.items()}
    same = [key for key, value in values.items() if key != "profile" and value == defaults[key]]
    assert not same, f"equal to the default, so to be left out: {same}"


@pytest.mark.parametrize("name", NAMES)
def test_saving_the_stored_notebook_in_the_lab_leaves_its_pair_as_it_is(name):
    config = load_jupytext_configuration_file(str(ROOT / "jupytext.toml"))
    assert jupytext.writes(stored(name), "py:percent", config=config) == paths()[name].read_text(encoding="utf-8")


@pytest.mark.parametrize("name", NAMES)
def test_stored_outputs_are_complete_and_in_order(name):
    cells = [cell for cell in stored(name).cells if cell.cell_type == "code"]
    assert all(cell.execution_count for cell in cells)
    counts = [cell.execution_count for cell in cells]
    assert counts == sorted(counts)
    checked = [cell for cell in cells if cell.source.startswith("# NBVAL_CHECK_OUTPUT")]
    assert checked, "no cell for nbval to compare"
    assert all(cell.outputs for cell in checked), "a compared cell without stored output compares nothing"
    assert not [out for cell in cells for out in cell.outputs if out.output_type == "error"]


@pytest.mark.parametrize("name", NAMES)
def test_results_and_figures_are_committed_with_the_notebook(name):
    results = json.loads((ROOT / "results" / "record" / f"{name}.json").read_text(encoding="utf-8"))
    for figure in results["figures"].values():
        for file in figure["files"]:
            assert (ROOT / "figures" / file).exists()
    declared = {key: ast.literal_eval(node.value) for key, node in parameters(name).items() if key != "out"}
    planned = profile_file(name, "record")
    declared |= {"profile": "record"} | (yaml.safe_load(planned.read_text(encoding="utf-8")) if planned else {})
    seeds = results["parameters"].get("seeds", 1)
    if seeds < declared.get(
        "seeds", 1
    ):  # a record is added to over sittings; until it has all replicates it judges nothing
        assert {claim["verdict"] for claim in results["claims"].values() if claim["entry"].get("n", 1) > 1} == {
            "undecided"
        }
        declared["seeds"] = seeds
    assert results["parameters"] == declared, "the committed results are not those of the record's parameters"


@pytest.mark.parametrize("name", NAMES)
def test_replicates_are_computed_by_jobs_of_their_own(name):
    calls = [cell.source for cell in code(name) if "run.replicates(" in cell.source]
    jobs = blocks(name, "cpu")
    assert len({job.function for job in jobs}) == sum(text.count("run.replicates(") for text in calls)
    for job in jobs:
        measure = getattr(importlib.import_module(job.module), job.function)
        first, second, *_ = inspect.signature(measure).parameters
        assert (first, second) == ("seeds" if job.block else "seed", "p"), measure
        if job.world:
            module, function = job.world.split(":")
            assert callable(getattr(importlib.import_module(module), function))
    declared = {key: ast.literal_eval(node.value) for key, node in parameters(name).items()}
    by_function = {job.function: [] for job in jobs}
    for job in jobs:
        by_function[job.function] += job.seeds
    for seeds in by_function.values():
        assert seeds == list(range(declared["seed"], declared["seed"] + declared["seeds"]))


PICTURES = re.compile("wanted|photograph")  # units of which one seed has many


@pytest.mark.parametrize("name", NAMES)
def test_the_record_has_the_planned_replicates(name):
    planned = [entry["n"] for entry in claims_of(name).values() if "n" in entry and not PICTURES.match(entry["unit"])]
    file, declared = profile_file(name, "record"), parameters(name)
    given = {key: ast.literal_eval(node.value) for key, node in declared.items() if key == "seeds"}
    given |= yaml.safe_load(file.read_text(encoding="utf-8")) if file else {}
    assert given.get("seeds", 1) >= max(planned, default=1)


@pytest.mark.parametrize("profile", ["smoke", "cpu", "record", "gpu", "paper"])
def test_a_model_that_notebooks_share_is_trained_by_one_job(profile):
    models = {(function, seed) for _, function, seed in nb_models(profile).values()}
    jobs = [job for name in NAMES for job in to_compute(name, profile) if job.own]
    assert {job.notebook for job in jobs} >= {"43_dds_network"}
    assert {(f"{job.own.split(':')[0]}:trained", seed) for job in jobs for seed in job.seeds} == models


def test_what_the_record_holds_is_not_computed_again(monkeypatch):
    """A job whose replicates are committed is left out, unless its code or a parameter that was read has changed."""
    monkeypatch.setattr(notebooks, "done", lambda job, run: "no run of this checkout")
    assert blocks("40_dds_gaussian", "record")
    assert to_compute("40_dds_gaussian", "record") == []
    assert to_compute("40_dds_gaussian", "cpu") == blocks("40_dds_gaussian", "cpu")
    job = blocks("40_dds_gaussian", "record")[0]
    monkeypatch.setattr(notebooks, "digest_of", lambda places: "other")
    assert job in to_compute("40_dds_gaussian", "record")
    monkeypatch.setattr(notebooks, "digest_of", digest_of)
    assert job not in to_compute("40_dds_gaussian", "record")
    monkeypatch.setattr(notebooks, "_given", lambda name, profile: {})
    assert job in to_compute("40_dds_gaussian", "record")
