"""The gate of a job: every fault is one line before anything is written, and nothing of the user's is ever touched."""

import contextlib
import errno
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
import torch
from diffusers import DDPMPipeline, DDPMScheduler
from hypothesis import given, settings as how, strategies as st
from PIL import Image

from lib.ground.nets import small_unet
from lib.jobs import gate, job
from lib.jobs.settings import METHODS, settings
from lib.record import files
from lib.record.files import LOCK, MARK, ROOT, UserError

pytestmark = pytest.mark.usefixtures("nothing_is_downloaded")
SMALL = {"steps": 1, "batch": 2, "samples": 2, "sampling_steps": 1, "shown": 1, "save_every": 1, "device": "cpu"}
SMALL |= {"classifier_steps": 1, "classifier_batch": 2, "classifier_images": 2, "J": 1}


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """A 16 x 16 RGB model."""
    place = tmp_path_factory.mktemp("source")
    torch.manual_seed(0)
    DDPMPipeline(small_unet(16, (8, 32), image_channels=3), DDPMScheduler(num_train_timesteps=20)).save_pretrained(
        place
    )
    return place


@pytest.fixture
def pictures(tmp_path):
    """Four images of the user's."""
    (tmp_path / "images").mkdir()
    for i in range(4):
        Image.new("RGB", (20, 20), (60 * i, 0, 90)).save(tmp_path / "images" / f"{i}.png")
    return tmp_path / "images"


def snapshot(place):
    """Everything below a folder: names, and what files hold or links lead to."""
    paths = sorted(Path(place).rglob("*"))
    return {
        os.fsencode(path.relative_to(place)): os.readlink(path) if path.is_symlink()
        else "folder" if path.is_dir() else hashlib.sha256(path.read_bytes()).hexdigest()
        for path in paths
    }  # fmt: skip


def made(source, pictures, out, **options):
    return settings(
        **SMALL | {"source": str(source), "images": str(pictures), "out": str(out), "method": "naive"} | options
    )


def refused(message, s):
    """Assert that the gate refuses, in one line, and that nothing was written."""
    place = s.out.parent
    before = snapshot(place)
    with pytest.raises(UserError, match=message) as error:
        job.run(s)
    assert "\n" not in str(error.value)
    assert snapshot(place) == before


def test_what_was_found_is_told(source, pictures, tmp_path):
    (pictures / "notes.txt").write_text("")
    found = str(gate.check(made(source, pictures, tmp_path / "out", reference=str(pictures))))
    lines = [f"source     {source}: 3 x 16 x 16, 0.", f"images     {pictures}: 4\n", f"reference  {pictures}: 4\n"]
    lines += ["device     cpu, processes 1, precision no\n", f"out        {tmp_path / 'out'}: new; needs up to"]
    lines += ["20 noise levels\n", "note       images: left out: notes.txt (no image)"]
    assert [line for line in lines if line not in found] == []
    assert not (tmp_path / "out").exists()


def test_inputs_and_outputs_lie_apart(source, pictures, tmp_path):
    refused("out: .* holds what is to be read .images: ", made(source, pictures, tmp_path / "images"))
    shutil.copytree(pictures, tmp_path / "r" / "real")
    refused(
        "out: .* holds what is to be read .reference: ",
        made(source, pictures, tmp_path / "r", reference=f"{tmp_path}/r/real"),
    )
    refused("out: .* lies inside what is to be read .images: ", made(source, pictures, pictures / "out"))
    copied = tmp_path / "mine" / "source"
    shutil.copytree(source, copied)
    refused("out: .* holds what is to be read .source: ", made(copied, pictures, tmp_path / "mine"))
    (tmp_path / "link").symlink_to(pictures)
    refused("out: .* lies inside", made(source, tmp_path / "link", pictures / "out"))


def test_a_folder_of_somebody_else_is_refused(source, pictures, tmp_path):
    out = tmp_path / "out"
    (out / "model").mkdir(parents=True)
    (out / "model" / "thesis.txt").write_text("mine")
    refused(r"out: .* holds files, and no job \(model/thesis\.txt\)", made(source, pictures, out))
    shutil.rmtree(out)
    s = made(source, pictures, out)
    job.run(s)
    again = s.model_copy(update={"steps": 2})
    (out / "model" / "thesis.txt").write_text("mine")
    refused(r"model: holds what no run made \(thesis\.txt\)", again)
    (out / "model" / "thesis.txt").unlink()
    (out / "thesis.txt").write_text("mine")  # beside what is replaced
    assert job.run(again)["training"]["steps"] == 2
    assert (out / "thesis.txt").read_text() == "mine"
    (out / "samples" / "mine.png").write_bytes(b"")
    with pytest.raises(UserError, match="holds what no run made"):
        job.anew(s, gate.check(s))
    assert (out / "samples" / "mine.png").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"reference": "typo"}, "^reference: folder typo does not exist"),
        ({"reference": "ONE"}, "^reference: 1 image in .*; distances of sets need 2"),
        ({"judge": "typo"}, "typo/.*: missing"),
        ({"images": "ONE/a.png"}, "^images: .*a.png is a file; name the folder that holds the images"),
        ({"device": "cuda"}, "^device: 'cuda' given, but this machine offers none"),
        ({"out": "ONE/a.png"}, "^out: .*a.png is a file"),
    ],
)  # fmt: skip
def test_every_input_is_looked_at_first(source, pictures, tmp_path, change, message, monkeypatch):
    (tmp_path / "one").mkdir()
    Image.new("RGB", (20, 20)).save(tmp_path / "one" / "a.png")
    monkeypatch.setattr(job, "_work", None)  # whoever begins fails
    values = {name: value.replace("ONE", str(tmp_path / "one")) for name, value in change.items()}
    refused(message, made(source, pictures, **{"out": tmp_path / "out", "score_every": 0} | values))


def test_a_disk_that_is_too_small_is_refused_by_estimate(source, pictures, tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1_000_000))
    refused(
        r"^out: .*: 0\.00 GB are free, and the job may need 0\.0",
        made(source, pictures, tmp_path / "out", samples=2000),
    )


def test_the_estimate_covers_what_a_job_leaves(source, pictures, tmp_path):
    for method in METHODS:
        s = made(source, pictures, tmp_path / method, method=method, ema=0.5, samples=30)
        opened = gate.check(s)
        job.run(s, opened)
        left = gate._size(s.out)
        assert left < gate.estimate.disk(s, opened.source, opened.reads) * 1.5 + 400_000, (
            method
        )  # names, logs and the sheet


def test_a_full_disk_is_one_line_and_the_job_goes_on(source, pictures, tmp_path, monkeypatch, capsys):
    """At each of the first writes of a job in turn; afterwards it ends as if nothing had been."""
    s = made(source, pictures, tmp_path / "whole")
    job.run(s)
    whole = snapshot(s.out / "model")
    fsync = os.fsync
    for n in range(1, 12, 2):
        count = iter(range(1, 100))

        def full(handle, n=n, count=count):
            if next(count) >= n:
                raise OSError(errno.ENOSPC, "No space left on device")
            return fsync(handle)

        s = made(source, pictures, tmp_path / f"out{n}")
        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", full)
            with pytest.raises(UserError, match=r"No space left|disk is full"):
                job.run(s)
        job.run(s)
        assert snapshot(s.out / "model") == whole
        assert not list(s.out.rglob(".companion-*"))


def test_too_little_memory_is_one_line_on_a_cpu_too(source, pictures, tmp_path, monkeypatch):
    def full(*_):
        raise RuntimeError("[enforce fail at alloc_cpu.cpp:114] DefaultCPUAllocator: can't allocate memory")

    monkeypatch.setattr(job.methods, "student", full)
    with pytest.raises(UserError, match=r"^out of memory: lower batch, or take accumulate, precision bf16$"):
        job.run(made(source, pictures, tmp_path / "out"))


def test_two_jobs_in_one_folder(source, pictures, tmp_path):
    s = made(source, pictures, tmp_path / "out")
    job.run(s)
    code = "import pathlib, sys; from lib.record.files import occupied\n"
    code += "with occupied(pathlib.Path(sys.argv[1])): print('in', flush=True); input()"
    other = subprocess.Popen(
        [sys.executable, "-c", code, str(s.out)], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert other.stdout.readline() == b"in\n"
    again = s.model_copy(update={"steps": 2})
    with pytest.raises(UserError, match=rf"out: a job is running in it \(process {other.pid} of .*, since 2"):
        job.run(again)
    other.kill()
    other.wait()
    assert job.run(again)["training"]["steps"] == 2  # a dead one holds nothing


@pytest.mark.parametrize(("text", "message"), [
    ("[1]", r"holds \[1\]; expected settings"), ("null", "holds null"), ("{", "truncated or damaged"), ("", "damaged"),
    ('{"stpes": 3}', "stpes: no such parameter"),
])  # fmt: skip
def test_job_files_that_are_none(tmp_path, text, message, capsys):
    (tmp_path / "job.json").write_text(text)
    assert job.main([str(tmp_path / "job.json")]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert re.search(message, line)


def test_a_job_file_with_a_mark_at_its_beginning(source, pictures, tmp_path):
    (tmp_path / "job.json").write_text(made(source, pictures, tmp_path / "out").model_dump_json(), encoding="utf-8-sig")
    assert job.main([str(tmp_path / "job.json")]) == 0


def test_without_a_home_no_folder_is_called_tilde(source, pictures, tmp_path, monkeypatch):
    def nobody(self):
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "expanduser", nobody)
    with pytest.raises(UserError, match=r"^out: ~/mine given, but this user has no home folder"):
        settings(source="a", images="b", out="~/mine")


def test_names_that_are_no_text(source, tmp_path, capsys):
    place = tmp_path / os.fsdecode(b"im\xffages")
    place.mkdir()
    for name in (b"\xfe.png", b"b.png"):
        Image.new("RGB", (20, 20)).save(os.path.join(os.fsencode(place), name), "PNG")
    refused("out: .*udcff is no name in UTF-8", made(source, place, tmp_path / os.fsdecode(b"out\xff")))
    found = job.run(made(source, place, tmp_path / "out"))
    assert found["images"]["n"] == 2
    assert "im\\udcffages: 2" in capsys.readouterr().out


def test_two_programs_make_the_same_bytes(source, pictures, tmp_path):
    """Every draw comes from the seed: nothing of what the process did before counts."""
    results = []
    for i in range(2):
        paths = [tmp_path / f"{i}-{method}.json" for method in METHODS]
        for method, path in zip(METHODS, paths, strict=True):
            s = made(source, pictures, tmp_path / f"{i}-{method}", method=method, steps=2, dropout=0.1)
            path.write_text(s.model_dump_json())
        torch.randn(17)
        if i:
            assert [job.main([str(path)]) for path in paths] == [0] * len(METHODS)
        else:
            code = "import sys; from lib.jobs import job; sys.exit(max(job.main([path]) for path in sys.argv[1:]))"
            subprocess.run([sys.executable, "-c", code, *map(str, paths)], cwd=ROOT, check=True)
        folders = [tmp_path / f"{i}-{method}" / name for method in METHODS for name in ("model", "samples")]
        results.append([snapshot(folder) for folder in folders])
    assert results[0] == results[1]


# ------------------------------------------------------------------- drawn folders, files and settings: the gate holds

NAMES = ["a.png", "b.jpg", "c.txt", ".d.png", "e", "sub/f.png", "sub/deeper/g.webp", "@eaDir/h.png", "\udcff.png"]
KINDS = ["image", "image", "image", "grey", "deep", "cut", "text", "nothing", "link", "loop"]


def fill(place, content):
    for name, kind in content.items():
        path = place / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if kind in ("image", "grey", "deep"):
            mode, value = {"image": ("RGB", (9, 99, 30)), "grey": ("L", 7), "deep": ("I;16", 900)}[kind]
            with open(os.fsencode(path), "wb") as file:
                Image.new(mode, (18, 21), value).save(file, "PNG")
        elif kind == "link":
            path.symlink_to("gone.png")
        elif kind == "loop":
            path.symlink_to(place)
        else:
            path.write_bytes({"cut": b"\x89PNG\r\n\x1a\n\0\0", "text": b"a cat", "nothing": b""}[kind])


content = st.dictionaries(st.sampled_from(NAMES), st.sampled_from(KINDS), max_size=6)
changes = st.fixed_dictionaries(
    {},
    optional={
        "source": st.sampled_from(["SOURCE/unet", "nowhere", "IN", "IN/a.png", "~nobody/x", ""]),
        "images": st.sampled_from(["IN/sub", "IN/a.png", "nowhere", ".", "", "2024", "a/b"]),
        "reference": st.sampled_from(["IN", "OTHER", "nowhere", "OTHER/a.png"]),
        "out": st.sampled_from(["IN", "IN/out", "OTHER", "FRESH/deep/er", "IN/a.png", "OTHER/model"]),
        "damaged": st.sampled_from(["skip", "refuse", "mend"]),
        "recursive": st.booleans(),
        "method": st.sampled_from([*METHODS, "magic"]),
        "device": st.sampled_from(["cpu", "auto", "cuda", "tpu"]),
        "batch": st.integers(-1, 3),
        "score_every": st.integers(0, 1),
        "judge": st.sampled_from(["", "IN", "nowhere"]),
        "precision": st.sampled_from(["no", "bf16", "fp16"]),
        "seed": st.sampled_from([0, 2**63, -1]),
    },
)


@how(max_examples=int(os.environ.get("EXAMPLES", 40)), deadline=None, derandomize=True)
@given(mine=content, others=content, change=changes)
def test_whatever_is_asked_nothing_of_the_users_changes(source, mine, others, change):
    """Exit code, message and what is on the disk agree: 0 and a model, or 1, one line and nothing at all."""
    with tempfile.TemporaryDirectory() as place, contextlib.chdir(place):
        place = Path(place)
        names = {"IN": place / "in", "OTHER": place / "other", "FRESH": place / "fresh", "SOURCE": source}
        for name, drawn in (("IN", mine), ("OTHER", others)):
            names[name].mkdir()
            fill(names[name], drawn)
        values = SMALL | {
            "source": str(source),
            "images": str(names["IN"]),
            "out": str(names["FRESH"]),
            "method": "naive",
        }
        for name, value in change.items():
            for word, path in names.items():
                value = value.replace(word, str(path)) if isinstance(value, str) else value
            values[name] = value
        (place / "job.json").write_text(json.dumps(values))
        before = snapshot(place)
        with tempfile.TemporaryFile("w+", encoding="utf-8") as said, open(os.devnull, "w") as nothing:
            with contextlib.redirect_stdout(nothing), contextlib.redirect_stderr(said):
                code = job.main([str(place / "job.json")])
            said.seek(0)
            lines = said.read().splitlines()
        after = snapshot(place)
        assert before.items() <= after.items()
        if code:
            assert len(lines) == 1
            assert after == before
        else:
            new = {name for name in after.keys() - before.keys() if not name.startswith(b"torch")}
            target = os.fsencode(Path(values["out"]).absolute().relative_to(place))
            assert all(name.startswith(target) or target.startswith(name) for name in new)
            assert target + b"/model/unet/config.json" in new


def test_the_marks_are_not_taken_for_files_of_somebody(tmp_path):
    for name in (MARK, LOCK, ".companion-x", ".DS_Store"):
        (tmp_path / name).write_text("[]")
    assert files.foreign(tmp_path) == []
