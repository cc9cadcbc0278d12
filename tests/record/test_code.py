"""The digest of a number's code: all that ran is in it, nothing else is."""

import sys
from pathlib import Path

import pytest

from lib.record import code, replicates
from lib.record.files import ROOT
from tools.notebooks import begins, blocks
from tools.replicate import opened, started

FILES = {
    "a.py": '''
"""An experiment."""
from lib import b
from lib.b import Scale as Factor
from lib.c import passed_on

LIMIT: int = 3


def measure(seed):
    """Measure."""
    return helper(seed) * Factor().value + b.offset(LIMIT) + passed_on()


def helper(seed):
    return seed


def unused():
    return 0
''',
    "b.py": """
import math
from pathlib import Path

with open(__file__) as file:
    line = file.readline()


class Scale:
    value = 2


def offset(x):
    return math.floor(x)


def table():
    return Path(__file__).with_name("table.csv").read_text()


def unused():
    return 0
""",
    "c.py": "from lib.d import passed_on\n",
    "d.py": "def passed_on():\n    return 1\n",
}


@pytest.fixture
def digest(tmp_path, monkeypatch):
    """Return the digest of `measure` after a change: text of one file replaced."""
    monkeypatch.setattr(code, "ROOT", tmp_path)
    (tmp_path / "lib").mkdir()
    (tmp_path / "lib" / "table.csv").write_text("1")

    def call(name="a.py", old="", new=""):
        for file, text in FILES.items():
            (tmp_path / "lib" / file).write_text(text.replace(old, new) if file == name else text)
        for cached in (code.digest_of, code._module, code._used, code._meaning):
            cached.cache_clear()
        return code.digest_of((code.Place(tmp_path / "lib" / "a.py", "measure"),))

    yield call
    for cached in (code.digest_of, code._module, code._used, code._meaning):
        cached.cache_clear()


@pytest.mark.parametrize(
    ("name", "old", "new"),
    [
        ("a.py", "return helper(seed)", "return 2 * helper(seed)"),
        ("a.py", "    return seed", "    return -seed"),
        ("a.py", "LIMIT: int = 3", "LIMIT: int = 4"),
        ("a.py", "Scale as Factor", "Other as Factor"),
        ("b.py", "value = 2", "value = 3"),
        ("b.py", "math.floor", "math.ceil"),
        ("b.py", "import math", "import cmath as math"),
        ("b.py", "file.readline()", "file.read()"),
        ("d.py", "return 1", "return 2"),
    ],
)
def test_what_is_used_counts(digest, name, old, new):
    assert digest(name, old, new) != digest()


@pytest.mark.parametrize(
    ("name", "old", "new"),
    [
        ("a.py", "    return 0", "    return 1"),
        ("b.py", "    return 0", "    return 1"),
        ("a.py", '"""Measure."""', '"""Measure it."""\n    # why'),
        ("a.py", "def unused", "\n\ndef unused_too():\n    return 1\n\n\ndef unused"),
    ],
)
def test_what_is_not_used_does_not(digest, name, old, new):
    assert digest(name, old, new) == digest()


def test_a_data_file_counts_for_what_looks_for_it(digest, tmp_path):
    plain, looking = digest(), digest("a.py", "b.offset(LIMIT)", "b.table()")
    (tmp_path / "lib" / "table.csv").write_text("2")
    assert digest("a.py", "b.offset(LIMIT)", "b.table()") != looking
    assert digest() != plain  # b.py looks at its own folder when it is imported


@pytest.mark.parametrize("name", ["40_dds_gaussian", "65_select"])
def test_every_function_that_a_replicate_runs_is_in_its_digest(name, tmp_path):
    job = blocks(name, "smoke")[0]
    measure, how = opened(job)
    ran = set()

    def note(frame, event, arg):
        path = Path(frame.f_code.co_filename)
        if event == "call" and ROOT / "lib" in path.parents and ROOT / "lib" / "record" not in path.parents:
            ran.add((path, frame.f_code.co_qualname.split(".")[0]))

    p = started(name, "smoke").parameters
    sys.setprofile(note)
    try:
        replicates.collect(measure, job.seeds[:1], p, [tmp_path], **how)
    finally:
        sys.setprofile(None)
    known = {tuple(place) for place in code.places_of(begins(job))}
    assert len(ran) > 10
    assert {one for one in ran if not one[1].startswith("<")} <= known
