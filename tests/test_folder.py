"""Own images of any size and mode become one tensor; trouble is named file by file."""

import pytest
import torch
from PIL import Image

from lib import folder
from lib.parameters import UserError


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


def test_damaged_files_are_all_named(tmp_path):
    Image.new("L", (8, 8)).save(tmp_path / "good.png")
    (tmp_path / "bad.png").write_bytes(b"no image")
    data = (tmp_path / "good.png").read_bytes()
    (tmp_path / "cut.png").write_bytes(data[: len(data) // 2])
    with pytest.raises(UserError, match=r"2 of 3 files .* bad\.png, cut\.png"):
        folder.images(tmp_path, 8)


def test_empty_or_missing_folder(tmp_path):
    with pytest.raises(UserError, match="holds no image"):
        folder.images(tmp_path, 8)
    with pytest.raises(UserError, match="does not exist"):
        folder.images(tmp_path / "nowhere", 8)
