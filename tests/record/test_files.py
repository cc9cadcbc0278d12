"""Only what a run made is replaced; errors are one line; the library is found and imported wherever it is started."""

import errno
import os
import subprocess
import sys

import pytest

from lib.record import files
from lib.record.files import ROOT, UserError, replacing, room, write_atomic


def test_a_folder_is_replaced_by_a_whole_one_or_not_at_all(tmp_path):
    place = tmp_path / "model"
    with replacing(place) as draft:
        write_atomic(draft / "sub" / "a", "1")
    with pytest.raises(KeyError), replacing(place) as draft:  # noqa: PT012
        write_atomic(draft / "b", "2")
        raise KeyError
    assert files._names(place) == ["sub/a"]
    with replacing(place) as draft:
        write_atomic(draft / "b", "2")
    assert files._names(place) == ["b"]
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


@pytest.mark.parametrize("name", ["mine.txt", "sub/mine.txt", "b"])
def test_what_somebody_else_put_there_stays(tmp_path, name):
    place = tmp_path / "model"
    if name != "b":
        with replacing(place) as draft:
            write_atomic(draft / "b", "2")
    (place / name).parent.mkdir(parents=True, exist_ok=True)
    (place / name).write_text("mine")
    began = False
    with pytest.raises(UserError, match=f"model: holds what no run made \\({name}\\)"), replacing(place):
        began = True
    assert not began  # refused before the work
    assert (place / name).read_text() == "mine"


def test_what_comes_while_the_draft_is_made_stays_too(tmp_path):
    place = tmp_path / "model"
    with pytest.raises(UserError, match="holds what no run made"), replacing(place) as draft:  # noqa: PT012
        write_atomic(draft / "b", "2")
        place.mkdir()
        (place / "mine.txt").write_text("mine")
    assert files._names(tmp_path) == ["model/mine.txt"]


def test_a_link_is_not_a_folder_of_ours(tmp_path):
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "mine.txt").write_text("mine")
    (tmp_path / "model").symlink_to(tmp_path / "thesis")
    with pytest.raises(UserError, match="holds what no run made"), replacing(tmp_path / "model"):
        pass
    assert (tmp_path / "thesis" / "mine.txt").exists()


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space"), files.SafetensorError("I/O error (os error 28)")])
def test_a_full_disk_is_one_line_whoever_writes(tmp_path, error):
    with (
        pytest.raises(UserError, match="the disk is full; free some of it, and the same command goes on"),
        room(tmp_path),
    ):
        raise error
    with pytest.raises(OSError, match="else"), room(tmp_path):
        raise OSError(errno.EIO, "something else")


def test_a_lib_of_the_users_hides_nothing(tmp_path):
    """As `make setup` leaves it: the companion's comes first, and a line says so."""
    (tmp_path / "lib").mkdir()
    (tmp_path / "lib" / "__init__.py").write_text("raise RuntimeError('the wrong one')")
    command = [sys.executable, "-m", "lib.jobs.job", "none.json"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].endswith("none.json: missing; name a JSON file of settings")
    assert done.stdout.startswith(f"lib: {tmp_path / 'lib' / '__init__.py'} is hidden here")


def test_modules_that_windows_has_not_are_not_needed():
    code = "import sys, IPython, filelock, torch, tqdm.auto; sys.modules |= {'fcntl': None, 'resource': None}\n"
    code += "import pathlib, tempfile; from lib.record import run; from lib.record.files import occupied\n"
    code += "with occupied(pathlib.Path(tempfile.mkdtemp())): print(run.peak_memory())"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "None\n"
    assert os.name == "nt" or files.fcntl
