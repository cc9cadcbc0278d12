"""One rule for files, pictures, arrays and tensors: equal content, equal pixels; what is doubtful is said."""

import io
import os

import numpy as np
import pytest
import torch
from PIL import Image, ImageCms

from lib.ground import folder, pictures
from lib.ground.pictures import picture
from lib.record.files import MARK, UserError

RNG = np.random.default_rng(0)
BYTES = RNG.integers(0, 256, (20, 30, 3), dtype=np.uint8)


def test_every_form_of_a_picture_gives_the_same_pixels(tmp_path):
    image = Image.fromarray(BYTES)
    image.save(tmp_path / "a.png")
    image.save(buffer := io.BytesIO(), "PNG")
    buffer.seek(0)
    forms = [tmp_path / "a.png", str(tmp_path / "a.png"), buffer, image, BYTES, BYTES / 255]
    forms += [BYTES.astype(np.uint16) * 257, torch.from_numpy(BYTES.transpose(2, 0, 1).copy())]
    first, *others = (picture(form, 8) for form in forms)
    assert first.shape == (3, 8, 8)
    for other in others:
        assert torch.equal(other, first)
    # A tensor of floats is not rounded on its way, and resized by another filter: near, not equal.
    floats = torch.from_numpy(BYTES.transpose(2, 0, 1).copy()).float() / 127.5 - 1
    torch.testing.assert_close(picture(floats, 8), first, atol=0.2, rtol=0)
    assert picture(BYTES[:, :, 0], 8).shape == picture(BYTES[:, :, :1], (8, 12)[0]).shape == (3, 8, 8)
    assert picture(BYTES > 127, 8).shape == (3, 8, 8)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (None, "image: NoneType given; give a file"),
        ([BYTES], "image: list given"),
        (np.zeros((2, 2, 5)), "an array of shape (2, 2, 5)"),
        (np.full((4, 4), 3.0), "floats from 3 to 3; they should be from 0 to 1"),
        (np.full((4, 4), np.nan), "floats from nan to nan"),
        (np.zeros((4, 4), np.int64), "an array of int64; give uint8"),
        (Image.new("I", (4, 4), 70_000), "whole numbers from 70000 to 70000"),
        (torch.zeros(4, 5), "tensor (4, 5)"),
        (torch.full((3, 4, 4), 7.0), "a tensor from 7 to 7; it should be in [-1, 1]"),
        ("nowhere.png", "image: nowhere.png does not exist"),
        (".", "image: . is a folder"),
    ],
)
def test_what_is_no_picture_is_said_in_one_line(given, message):
    with pytest.raises(UserError) as error:
        picture(given, 4)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_values_that_may_be_meant_otherwise_are_doubted(tmp_path, capsys):
    picture(torch.rand(3, 4, 4), 4)
    assert "no value is below 0; tensors are in [-1, 1]" in capsys.readouterr().out
    ramp = np.linspace(0, 4095, 64).astype(np.uint16).reshape(8, 8)  # 12 bits
    Image.fromarray(ramp).save(tmp_path / "ramp.png")
    Image.fromarray(ramp * 16).save(tmp_path / "scaled.png")
    found = folder.read(tmp_path, 8, channels=1)
    (hint,) = found.hints
    assert hint.startswith("1 of 2 images of 16 bits that use the lowest 13 only and look dark: scale them")
    assert found.images[0].max() == pytest.approx(4095 / 65535 * 2 - 1, abs=0.01)
    assert found.images[1].max() == pytest.approx(1, abs=0.01)


def test_a_colour_profile_becomes_srgb(tmp_path):
    """Pure red of a profile whose red and blue are exchanged is blue."""
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    red, blue = srgb.index(b"rXYZ"), srgb.index(b"bXYZ")
    swapped = bytearray(srgb.replace("sRGB".encode("utf-16-be"), "mine".encode("utf-16-be")))
    swapped[red : red + 4], swapped[blue : blue + 4] = b"bXYZ", b"rXYZ"
    for name, profile in (("own", bytes(swapped)), ("standard", srgb), ("broken", b"no profile"), ("without", None)):
        Image.new("RGB", (8, 8), (255, 0, 0)).save(tmp_path / f"{name}.png", icc_profile=profile)
    found = folder.read(tmp_path, 8)
    colours = {name: found.images[i, :, 4, 4].tolist() for i, name in enumerate(found.names)}
    assert colours["own.png"] == pytest.approx([-1, -1, 1], abs=0.05)
    assert colours["standard.png"] == colours["without.png"] == colours["broken.png"] == [1, -1, -1]
    assert [hint.split(" images ")[1][:30] for hint in found.hints] == [
        "have a colour profile that can", "had another colour profile and",
    ]  # fmt: skip


def test_a_big_picture_is_shrunk_while_it_is_decoded(tmp_path, monkeypatch):
    """Nearly the same pixels as from the whole one, from a part of it."""
    smooth = Image.fromarray(BYTES).resize((1200, 800), Image.Resampling.BICUBIC)
    monkeypatch.setattr(pictures, "BIG", 10_000)
    seen = []
    fit = pictures.ImageOps.fit
    monkeypatch.setattr(pictures.ImageOps, "fit", lambda image, *rest: seen.append(image.size) or fit(image, *rest))
    for name in ("a.png", "a.jpg"):
        smooth.save(tmp_path / name, quality=95)
        shrunk = pictures.decode(tmp_path / name, 16, 3)
        whole = pictures.decode(Image.open(tmp_path / name), 16, 3)
        assert shrunk.whole == (1200, 800)
        assert (shrunk.array.float() - whole.array.float()).abs().max() < 8
    assert [size[0] < 300 for size in seen] == [True, False, True, False]


def test_threads_are_bounded_by_pixels(tmp_path, monkeypatch):
    asked = []
    pool = folder.ThreadPoolExecutor
    monkeypatch.setattr(folder, "ThreadPoolExecutor", lambda n: asked.append(n) or pool(n))
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    monkeypatch.setattr(folder, "BUDGET", 30_000)
    for i in range(8):
        Image.new("L", (100, 100)).save(tmp_path / f"{i}.png")
    folder.read(tmp_path, 8)
    assert asked == [3]


def test_running_out_of_memory_is_not_damage(tmp_path, monkeypatch):
    def full(*_):
        raise MemoryError

    Image.new("L", (8, 8)).save(tmp_path / "a.png")
    monkeypatch.setattr(folder, "decode", full)
    with pytest.raises(UserError, match=r"a\.png: out of memory; make the picture smaller"):
        folder.read(tmp_path, 8, damaged="skip")


def test_height_and_width(tmp_path):
    Image.fromarray(BYTES).save(tmp_path / "a.png")  # 20 high, 30 wide: as it is
    read = folder.images(tmp_path, (20, 30))
    assert torch.equal(read[0], torch.from_numpy(BYTES.transpose(2, 0, 1).copy()).float() / 127.5 - 1)


# ----------------------------------------------------------------------------------- what is in a folder


def test_what_pillow_reads_is_read_and_the_rest_is_listed(tmp_path):
    image = Image.new("RGB", (8, 8))
    for name in ("a.jfif", "b.jp2", "c.tga", "d.PNG"):
        image.save(tmp_path / name)
    image.save(tmp_path / "suffixless", "PNG")
    (tmp_path / "e.heic").write_bytes(b"\0\0\0\x18ftypheic")
    (tmp_path / "f.nef").write_bytes(b"II*\0")
    (tmp_path / "notes.txt").write_text("a cat")
    (tmp_path / ".hidden.png").write_bytes(b"")
    for name in (".DS_Store", MARK):  # of nobody's interest
        (tmp_path / name).write_bytes(b"")
    os.mkfifo(tmp_path / "pipe")
    found = folder.read(tmp_path, 8)
    assert found.names == ["a.jfif", "b.jp2", "c.tga", "d.PNG", "suffixless"]
    assert found.left_out == [
        ".hidden.png (hidden)",
        "e.heic (HEIF, which cannot be read here; convert it to PNG)",
        "f.nef (raw, which cannot be read here; convert it to PNG)",
        "notes.txt (no image)",
        "pipe (no file)",
    ]
    assert "left out: .hidden.png" in found.notes()[-1]


def test_folders_of_the_system_of_runs_and_links(tmp_path):
    for name in (".ipynb_checkpoints", ".Trash-1000", "@eaDir", "__MACOSX", "samples", "mine"):
        (tmp_path / name).mkdir()
        Image.new("RGB", (8, 8)).save(tmp_path / name / "a.png")
    (tmp_path / "samples" / MARK).write_text("[]")
    elsewhere = tmp_path.parent / f"{tmp_path.name}-elsewhere"
    elsewhere.mkdir()
    Image.new("RGB", (8, 8)).save(elsewhere / "b.png")
    (tmp_path / "linked").symlink_to(elsewhere)
    (elsewhere / "loop").symlink_to(tmp_path)
    found = folder.read(tmp_path, 8, recursive=True)
    assert found.names == ["linked/b.png", "mine/a.png"]
    assert "linked/loop/ (a link to where it was read already)" in found.left_out
    assert "samples/ (made by a run)" in found.left_out
    assert sum("hidden" in name or "of the system" in name for name in found.left_out) == 4
    with pytest.raises(UserError, match="set recursive"):
        folder.read(tmp_path, 8)


def test_a_link_that_leads_nowhere_is_damaged(tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    (tmp_path / "b.png").symlink_to("gone.png")
    with pytest.raises(UserError, match=r"1 of 2 files cannot be read: b\.png \(a link that leads nowhere\)"):
        folder.read(tmp_path, 8)
    assert folder.read(tmp_path, 8, damaged="skip").names == ["a.png"]


def test_failures_that_may_pass_are_not_remembered(tmp_path, monkeypatch):
    place, cache = tmp_path / "images", tmp_path / "cache"
    place.mkdir()
    for name in ("a.png", "b.png"):
        Image.new("RGB", (8, 8)).save(place / name)
    decode = folder.decode

    def flaky(path, *rest):
        if path.name == "b.png":
            raise OSError(5, "Input/output error")
        return decode(path, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(folder, "decode", lambda source, size, channels: flaky(source, size, channels))
        found = folder.read(place, 8, damaged="skip", cache=cache)
        folder.keep(found)
    assert found.skipped == ["b.png (Input/output error)"]
    assert folder.read(place, 8, damaged="skip", cache=cache).names == ["a.png", "b.png"]


def test_a_name_that_is_no_text_is_printed_with_backslashes(tmp_path, capsys):
    Image.new("RGB", (40, 8)).save(os.fsencode(tmp_path) + b"/\xff.png", "PNG")
    (tmp_path / os.fsdecode(b"\xfe.txt")).write_text("")
    folder.images(tmp_path, 8)
    out = capsys.readouterr().out
    assert "\\udcff.png, 40 x 8" in out
    assert "\\udcfe.txt (no image)" in out
    with pytest.raises(UserError) as error:
        picture(tmp_path / os.fsdecode(b"\xfd\n.png"), 8)
    str(error.value).encode()
    assert "\\udcfd\\n.png does not exist" in str(error.value)
