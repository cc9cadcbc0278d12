"""Own images of any size and mode become one tensor; trouble is named file by file; a copy is kept and used again."""

import os

import numpy as np
import pytest
import torch
from PIL import Image

from lib.ground import folder
from lib.record.files import NAMED, UserError, listed


def test_sizes_modes_and_orientation(tmp_path):
    Image.new("RGB", (40, 20), "white").save(tmp_path / "a.png")
    Image.new("RGBA", (9, 30), (0, 0, 0, 0)).save(tmp_path / "b.png")  # fully transparent: paper
    Image.new("P", (16, 16), 0).save(tmp_path / "c.gif")
    sideways = Image.new("L", (16, 16), 255)
    sideways.paste(0, (0, 0, 8, 16))  # left half black
    exif = Image.Exif()
    exif[0x0112] = 6  # to be shown turned by 90 degrees clockwise
    sideways.save(tmp_path / "d.png", exif=exif)
    grey = folder.images(tmp_path, 16, channels=1)
    assert grey.shape == (4, 1, 16, 16)
    assert grey.dtype == torch.float32
    assert grey[0].min() == 1.0
    assert grey[1].min() == 1.0
    assert grey[3, 0, 2].max() < 0 < grey[3, 0, 13].min()  # black half now on top
    assert folder.images(tmp_path, 8).shape == (4, 3, 8, 8)


def colour(found, name):
    return found.images[found.names.index(name), :, 4, 4].tolist()


def test_further_modes(tmp_path):
    deep = Image.fromarray(np.full((12, 12), 40000, dtype=np.uint16))
    exif = Image.Exif()
    exif[0x0112] = 3
    deep.save(tmp_path / "deep.png", exif=exif)
    Image.new("CMYK", (12, 12), (0, 255, 255, 0)).save(tmp_path / "cmyk.jpg")
    Image.new("LA", (12, 12), (0, 0)).save(tmp_path / "grey-alpha.png")
    Image.new("1", (12, 12), 1).save(tmp_path / "bit.png")
    frames = [Image.new("RGB", (12, 12), name) for name in ("red", "blue")]
    frames[0].save(tmp_path / "film.gif", save_all=True, append_images=frames[1:])
    found = folder.read(tmp_path, 8)
    assert colour(found, "deep.png") == pytest.approx([40000 / 65535 * 2 - 1] * 3, abs=0.01)
    assert colour(found, "cmyk.jpg") == pytest.approx([1, -1, -1], abs=0.05)
    assert colour(found, "grey-alpha.png") == [1, 1, 1]
    assert colour(found, "bit.png") == [1, 1, 1]
    assert colour(found, "film.gif") == pytest.approx([1, -1, -1], abs=0.02)


def damaged_folder(tmp_path):
    Image.new("L", (8, 8)).save(tmp_path / "good.png")
    (tmp_path / "bad.png").write_bytes(b"no image")
    noise = np.random.default_rng(0).integers(0, 256, (40, 40), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "cut.png")
    data = (tmp_path / "cut.png").read_bytes()
    (tmp_path / "cut.png").write_bytes(data[: len(data) // 2])
    Image.new("F", (8, 8), 300.0).save(tmp_path / "float.tif")


def test_damaged_files_are_all_counted_and_named(tmp_path, capsys):
    damaged_folder(tmp_path)
    message = (
        r"3 of 4 files .*: bad\.png \(no image\), cut\.png \(truncated\), float\.tif \(floats from 300 to 300; .*\);"
    )
    with pytest.raises(UserError, match=message):
        folder.images(tmp_path, 8)
    assert folder.images(tmp_path, 8, damaged="skip").shape == (1, 3, 8, 8)
    assert "skipped: bad.png (no image), cut.png" in capsys.readouterr().out
    (tmp_path / "good.png").unlink()
    with pytest.raises(UserError, match="3 of 3 files"):
        folder.images(tmp_path, 8, damaged="skip")
    with pytest.raises(UserError, match="damaged: 'ignore' given; one of refuse, skip"):
        folder.images(tmp_path, 8, damaged="ignore")


def test_many_names_are_cut_short():
    assert listed([str(i) for i in range(NAMED + 3)]).endswith("19 and 3 more")


def test_empty_or_missing_folder(tmp_path):
    with pytest.raises(UserError, match="holds no image"):
        folder.images(tmp_path, 8)
    with pytest.raises(UserError, match="does not exist"):
        folder.images(tmp_path / "nowhere", 8)


def test_subfolders_if_asked(tmp_path):
    (tmp_path / "b").mkdir()
    Image.new("L", (8, 8)).save(tmp_path / "b" / "a.png")
    with pytest.raises(UserError, match="set recursive"):
        folder.images(tmp_path, 8)
    Image.new("L", (8, 8)).save(tmp_path / "z.png")
    assert folder.read(tmp_path, 8).names == ["z.png"]
    assert folder.read(tmp_path, 8, recursive=True).names == ["b/a.png", "z.png"]


def test_hints_on_sizes(tmp_path):
    Image.new("L", (8, 8)).save(tmp_path / "fits.png")
    assert folder.read(tmp_path, 8).hints == []
    Image.new("L", (5, 7)).save(tmp_path / "small.png")
    Image.new("L", (40, 10)).save(tmp_path / "long.png")
    enlarged, cropped = folder.read(tmp_path, 8).hints
    assert enlarged.startswith(
        "1 of 3 images are smaller than 8 x 8 and were enlarged (the smallest: small.png, 5 x 7)"
    )
    assert cropped.startswith(
        "1 of 3 images lose more than a third to the centre crop (the longest: long.png, 40 x 10)"
    )


def test_the_kept_copy_is_used_until_a_file_changes(tmp_path, monkeypatch):
    place, cache = tmp_path / "images", tmp_path / "cache"
    place.mkdir()
    damaged_folder(place)
    first = folder.read(place, 8, damaged="skip", cache=cache)
    assert not cache.exists()  # reading writes nothing
    folder.keep(first)
    decode = folder.decode
    monkeypatch.setattr(folder, "decode", None)  # whoever decodes now fails
    again = folder.read(place, 8, damaged="skip", cache=cache)
    assert torch.equal(first.images, again.images)
    assert (first.names, first.skipped, first.hints) == (again.names, again.skipped, again.hints)
    with pytest.raises(UserError, match="3 of 4 files"):  # what was skipped is remembered
        folder.read(place, 8, cache=cache)
    monkeypatch.setattr(folder, "decode", decode)
    Image.new("L", (8, 8), 255).save(place / "good.png")
    os.utime(place / "good.png", ns=(1, 1))
    assert folder.read(place, 8, damaged="skip", cache=cache).images.min() == 1
    assert folder.read(place, 16, damaged="skip", cache=cache).images.shape[-1] == 16
    for kept in cache.iterdir():
        kept.write_bytes(kept.read_bytes()[:50])  # damaged copies are made again
    assert folder.read(place, 8, damaged="skip", cache=cache).images.min() == 1


def test_images_do_not_depend_on_each_other(tmp_path):
    rng = np.random.default_rng(0)
    for i in range(9):
        Image.fromarray(rng.integers(0, 256, (20, 30, 3), dtype=np.uint8)).save(tmp_path / f"{i}.png")
    files = [(path.name, path) for path in folder.image_files(tmp_path)]
    every = folder.collect(files, 8, 3, "refuse", "here")
    assert every.names == [f"{i}.png" for i in range(9)]
    assert torch.equal(
        every.images, torch.cat([folder.collect([file], 8, 3, "refuse", "here").images for file in files])
    )
