"""The README's example runs as printed, and its tables are those of the committed results."""

import re

import torch
from diffusers import DDPMPipeline, DDPMScheduler
from PIL import Image

from lib.nets import small_unet
from lib.results import ROOT
from tools import readme

README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_example_fine_tunes_a_model_on_a_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    unet = small_unet(8, (32, 32))
    DDPMPipeline(unet, DDPMScheduler()).save_pretrained("path/to/a/ddpm")
    (tmp_path / "path/to/your/images").mkdir(parents=True)
    for i in range(3):
        Image.new("RGB", (20 + i, 30), (80 * i, 0, 0)).save(tmp_path / "path/to/your/images" / f"{i}.jpg")
    code = re.search(r"```python\n(.*?)```", README, flags=re.S).group(1)
    assert "steps=10_000" in code
    exec(compile(code.replace("steps=10_000", "steps=2"), "README.md", "exec"), {})
    adapted = DDPMPipeline.from_pretrained("my-model").unet
    assert any(not torch.equal(a, b) for a, b in zip(adapted.parameters(), unet.parameters(), strict=True))


def test_generated_tables_are_current():
    assert readme.updated(README) == README


def test_pictures_and_links_exist():
    for target in re.findall(r"\]\((?!http)([^)#]+)\)|(?:src|srcset)=\"([^\"]+)\"", README):
        target = "".join(target)
        assert (ROOT / target).exists(), target
