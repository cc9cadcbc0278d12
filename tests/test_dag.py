"""The DAG in a small copy of the project: a notebook that fails does not stop the others, and the next call resumes."""

import json
import os
import shutil
import subprocess
import sys

import pytest

from lib.record.files import ROOT

HEADER = """# ---
# jupyter:
#   kernelspec: {display_name: Python 3, language: python, name: python3}
# ---
# %% tags=["parameters"]
from pydantic import NonNegativeInt, PositiveInt
profile: str = "cpu"
seed: NonNegativeInt = 0
device: str = "auto"
out: str = ""
steps: PositiveInt = 3
# %%
from lib.record import run as record
run = record.start("NAME", globals())
# %%
"""
BOOK = """from pathlib import Path
page = Path("runs/smoke/book/_build/html/index.html")
page.parent.mkdir(parents=True, exist_ok=True)
page.write_text("book")
"""


@pytest.fixture
def copy(tmp_path):
    for folder in ("lib", "tools"):
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("Snakefile", "claims.yaml"):
        shutil.copy(ROOT / name, tmp_path / name)
    (tmp_path / "tools" / "book.py").write_text(BOOK)  # the book itself is tested elsewhere
    (tmp_path / "book").mkdir()
    (tmp_path / "book" / "index.md").write_text("# Book\n")
    notebook(tmp_path, "01_good", "run.finish()")
    notebook(tmp_path, "02_bad", 'raise ValueError("broken in the middle")\n# %%\nrun.finish()')
    return tmp_path


def notebook(folder, name, code):
    (folder / "notebooks" / "paper").mkdir(parents=True, exist_ok=True)
    (folder / "notebooks" / "paper" / f"{name}.py").write_text(HEADER.replace("NAME", name) + code + "\n")
    (folder / "notebooks" / "paper" / f"{name}.smoke.yaml").write_text("profile: smoke\nsteps: 2\n")


def make(folder):
    command = [sys.executable, "-m", "tools.run", "--profile", "smoke", "--cores", "2"]
    environment = {**os.environ, "PYTHONPATH": str(folder)}
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)


def test_failure_is_kept_others_finish_and_the_next_call_resumes(copy):
    first = make(copy)
    assert first.returncode != 0
    assert "02_bad: ValueError: broken in the middle" in first.stderr
    kept = copy / "runs" / "smoke" / "failed" / "02_bad.ipynb"
    assert "broken in the middle" in kept.read_text()
    good = copy / "runs" / "smoke" / "results" / "01_good.json"
    assert json.loads(good.read_text())["parameters"]["steps"] == 2  # the profile reached the notebook
    assert not (copy / "runs" / "smoke" / "results" / "02_bad.json").exists()
    stamp = good.stat().st_mtime_ns

    notebook(copy, "02_bad", "run.finish()")
    second = make(copy)
    assert second.returncode == 0, second.stderr
    assert "runs/smoke/book/_build/html/index.html" in second.stdout
    assert good.stat().st_mtime_ns == stamp  # not run again
    assert not kept.exists()

    third = make(copy)
    assert third.returncode == 0
    assert "Nothing to be done" in third.stderr
