"""The DAG in a small copy of the project: it resumes after a failure; a sixth paper comes in by its folders alone."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time

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
BOOK = """import sys
from pathlib import Path
page = Path("runs", sys.argv[-1], "book/_build/html/index.html")
page.parent.mkdir(parents=True, exist_ok=True)
page.write_text("book")
"""


# What a sixth paper brings: three folders, a page, and its claims.
SIXTH = {
    "lib/papers/sixth/__init__.py": '"""The sixth paper."""\n',
    "lib/papers/sixth/method.py": '"""The method of the sixth paper."""\n\n\ndef half(x: float) -> float:\n'
    '    """Return x / 2, eq. (1)."""\n    return x / 2\n',
    "tests/papers/sixth/test_sixth.py": "from lib.papers.sixth.method import half\n\n\n"
    "def test_half():\n    assert half(3) == 1.5\n",
    "book/sixth.md": "# Sixth: halves\n\n{py:func}`lib.papers.sixth.method.half`: {{ num['70_sixth']['half'] }}\n\n"
    "```{claim} Q1\n```\n",
}
SIXTH_CODE = """from lib.papers.sixth.method import half
# %% [markdown]
# # Halves
#
# ## Result
# %%
run.number("half", half(steps))
run.claim("Q1", half=2 * half(steps) - steps)
run.finish()"""
SIXTH_CLAIM = """
Q1:
  paper: Sixth
  where: eq. (1)
  notebook: 70_sixth
  kind: identity
  claim: Two halves are a whole.
  expected: no difference
  differs: in nothing
  unit: computation
  n: 1
  checks:
    - {name: half, role: primary, what: difference, rule: exact, value: 0, tolerance: 0.001}
"""


def small_copy(folder):
    """Copy what runs and records, without papers."""
    for part in ("lib/record", "tools"):
        shutil.copytree(ROOT / part, folder / part, ignore=shutil.ignore_patterns("__pycache__"))
    (folder / "lib" / "papers").mkdir()
    for name in ("Snakefile", "claims.yaml", "lib/__init__.py", "lib/papers/__init__.py"):
        shutil.copy(ROOT / name, folder / name)
    (folder / "book").mkdir()
    (folder / "book" / "index.md").write_text("# Book\n")


@pytest.fixture
def copy(tmp_path):
    folder = tmp_path / "a folder"  # a space in its path, and in that of the interpreter
    folder.mkdir()
    small_copy(folder)
    (folder / ".venv").symlink_to(sys.prefix)
    (folder / "tools" / "book.py").write_text(BOOK)  # the book itself is tested elsewhere
    notebook(folder, "paper", "01_good", "run.finish()")
    notebook(folder, "paper", "02_bad", 'raise ValueError("broken in the middle")\n# %%\nrun.finish()')
    return folder


def notebook(folder, chapter, name, code):
    (folder / "notebooks" / chapter).mkdir(parents=True, exist_ok=True)
    (folder / "notebooks" / chapter / f"{name}.py").write_text(HEADER.replace("NAME", name) + code + "\n")
    (folder / "notebooks" / chapter / f"{name}.smoke.yaml").write_text("profile: smoke\nsteps: 2\n")


def call(folder, profile="smoke", **environment):
    python = folder / ".venv" / "bin" / "python"
    command = [str(python) if python.exists() else sys.executable, "-m", "tools.run", "--profile", profile]
    environment |= {"PYTHONPATH": str(folder)}
    return {"args": [*command, "--cores", "2"], "cwd": folder, "env": {**os.environ, **environment}}


def make(folder, **settings):
    return subprocess.run(**call(folder, **settings), capture_output=True, text=True, check=False)


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

    notebook(copy, "paper", "02_bad", "run.finish()")
    second = make(copy)
    assert second.returncode == 0, second.stderr
    assert "runs/smoke/book/_build/html/index.html" in second.stdout
    assert good.stat().st_mtime_ns == stamp  # not run again
    assert not kept.exists()

    third = make(copy)
    assert third.returncode == 0
    assert "Nothing to be done" in third.stderr


def test_two_runs_do_not_meet_and_one_that_was_killed_is_gone_on_with(copy):
    notebook(copy, "paper", "02_bad", "import time\ntime.sleep(600)\nrun.finish()")
    running = subprocess.Popen(
        **call(copy), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    )
    while not (copy / "runs" / "smoke" / "work" / "02_bad.in.ipynb").exists():
        assert running.poll() is None
        time.sleep(0.1)
    assert "another run of PROFILE=smoke is at work" in make(copy).stderr
    os.killpg(running.pid, signal.SIGKILL)  # all of them at once: nobody can tidy up
    running.wait()

    notebook(copy, "paper", "02_bad", "run.finish()")
    done = make(copy)
    assert done.returncode == 0, done.stderr


EXPERIMENT = """import os
import time
from pathlib import Path

SCALE = 2


def slow(seed, p):
    with Path(os.environ["COUNT"]).open("a") as file:
        file.write(f"{seed}\\n")
    time.sleep(float(os.environ["PAUSE"]))
    return {"a": SCALE * seed}
"""
REPLICATES = """seeds: PositiveInt = 4
# %%
from lib.papers.paper import experiments
from lib.record import run as record
run = record.start("NAME", globals())
found = run.replicates(experiments.slow)
run.number("a", found["a"])
run.finish()"""


def test_killed_in_the_middle_no_more_than_the_running_replicates_are_lost(copy, tmp_path):
    (copy / "lib" / "papers" / "paper").mkdir()
    module = copy / "lib" / "papers" / "paper" / "experiments.py"
    module.write_text(EXPERIMENT)
    (module.parent / "__init__.py").touch()
    for path in (copy / "notebooks" / "paper").iterdir():
        path.unlink()
    header = HEADER.split("# %%\nfrom lib")[0]
    (copy / "notebooks" / "paper" / "03_many.py").write_text(header + REPLICATES.replace("NAME", "03_many") + "\n")
    count, kept = tmp_path / "count", copy / "runs" / "cpu" / "replicates" / "03_many" / "slow"
    settings = {"profile": "cpu", "COUNT": str(count)}

    with (tmp_path / "log").open("w") as log:
        running = subprocess.Popen(**call(copy, PAUSE="1", **settings), stdout=log, stderr=log, start_new_session=True)
    while len(list(kept.glob("*.npz"))) < 2:
        assert running.poll() is None, (tmp_path / "log").read_text()
        time.sleep(0.05)
    os.killpg(running.pid, signal.SIGKILL)  # Snakemake, its jobs, all
    running.wait()
    had = len(list(kept.glob("*.npz")))
    assert had < 4
    begun = len(count.read_text().split())
    done = make(copy, PAUSE="0", **settings)
    assert done.returncode == 0, done.stderr
    assert len(count.read_text().split()) - begun == 4 - had  # each of the others once, in jobs, none in the notebook
    result = copy / "runs" / "cpu" / "results" / "03_many.json"
    assert json.loads(result.read_text())["numbers"]["a"]["values"] == [0, 2, 4, 6]

    module.write_text("# a remark\n" + EXPERIMENT)
    assert make(copy, PAUSE="0", **settings).returncode == 0
    assert len(count.read_text().split()) - begun == 4 - had  # nothing is computed for it
    module.write_text(EXPERIMENT.replace("SCALE = 2", "SCALE = 3"))
    assert make(copy, PAUSE="0", **settings).returncode == 0
    assert json.loads(result.read_text())["numbers"]["a"]["values"] == [0, 3, 6, 9]


def test_two_notebooks_at_a_time_have_a_device_each(copy):
    meet = """import os, time
from pathlib import Path
run.number("device", int(os.environ["CUDA_VISIBLE_DEVICES"]))
(run.folder / f"{os.getpid()}.here").touch()
while len(list(run.folder.glob("*.here"))) < 2:
    time.sleep(0.1)
run.finish()"""
    for name in ("01_good", "02_bad"):
        notebook(copy, "paper", name, meet)
    done = make(copy, profile="gpu", GPUS="2", CUDA_VISIBLE_DEVICES="4,7", TMPDIR=str(copy.parent))
    assert done.returncode == 0, done.stderr
    results = [json.loads(path.read_text()) for path in (copy / "runs" / "gpu" / "results").glob("*.json")]
    assert sorted(one["numbers"]["device"]["mean"] for one in results) == [4, 7]


def test_a_sixth_paper_is_three_folders_a_page_and_its_claims(tmp_path):
    small_copy(tmp_path)
    parts = ("_ext", "_static", "_templates", "_config.yml", "api", "scorecard.md", "verdicts.md")
    for part in (*parts, "titles.yaml", "papers.yaml", "references.bib"):
        put = shutil.copytree if (ROOT / "book" / part).is_dir() else shutil.copy
        put(ROOT / "book" / part, tmp_path / "book" / part)
    for name, text in SIXTH.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    notebook(tmp_path, "sixth", "70_sixth", SIXTH_CODE)
    with (tmp_path / "claims.yaml").open("a") as file:
        file.write(SIXTH_CLAIM)

    done = make(tmp_path)
    log = tmp_path / "runs" / "smoke" / "logs" / "book.log"
    assert done.returncode == 0, done.stderr + (log.read_text() if log.exists() else "")
    built = tmp_path / "runs" / "smoke" / "book" / "_build" / "html"
    row = re.search(r'<tr id="claim-q1".*?</tr>', (built / "scorecard.html").read_text(), flags=re.S)[0]
    assert "✔ reproduced" in row
    assert 'href="notebooks/70_sixth.html#result"' in row
    page = (built / "sixth.html").read_text()
    assert 'href="api/lib.papers.sixth.method.html#lib.papers.sixth.method.half"' in page
    assert 'href="notebooks/70_sixth.html"' in page  # below its chapter in the side bar
    assert 'class="claim-card"' in page

    tested = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests"]
    assert subprocess.run(tested, cwd=tmp_path, capture_output=True, check=False).returncode == 0
