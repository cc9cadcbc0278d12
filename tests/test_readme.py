"""The README's example runs as printed, and its tables are those of the committed results."""

import re

import torch
from diffusers import DDPMPipeline, DDPMScheduler
from PIL import Image

from lib.ground.nets import small_unet
from lib.jobs.stable_diffusion.tiny import tiny_pipeline
from lib.record.files import ROOT
from tools import readme

README = (ROOT / "README.md").read_text(encoding="utf-8")


def example(word):
    """Return the Python block of the README in which a word occurs."""
    (found,) = [code for code in re.findall(r"```python\n(.*?)```", README, flags=re.S) if word in code]
    return found


def run(code, changes):
    for printed, used in changes.items():
        assert code.count(printed) == 1, printed
        code = code.replace(printed, used)
    exec(compile(code, "README.md", "exec"), {})


def test_example_edits_a_photograph(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tiny_pipeline().save_pretrained("tiny")
    Image.new("RGB", (70, 64), (80, 120, 200)).save("house.jpg")
    run(
        example("zero_shot"),
        {
            '"stable-diffusion-v1-5/stable-diffusion-v1-5", device="cuda"': '"tiny"',
            '"House.")': '"House.", iterations=3)',
        },
    )
    assert Image.open("igloo.png").size == (64, 64)


def test_example_fine_tunes_a_model_on_a_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    unet = small_unet(8, (32, 32))
    DDPMPipeline(unet, DDPMScheduler()).save_pretrained("path/to/a/ddpm")
    (tmp_path / "path/to/your/images").mkdir(parents=True)
    for i in range(3):
        Image.new("RGB", (20 + i, 30), (80 * i, 0, 0)).save(tmp_path / "path/to/your/images" / f"{i}.jpg")
    run(example("sdft"), {"steps=10_000": "steps=2"})
    adapted = DDPMPipeline.from_pretrained("my-model").unet
    assert any(not torch.equal(a, b) for a, b in zip(adapted.parameters(), unet.parameters(), strict=True))


def test_generated_tables_are_current():
    assert readme.updated(README) == README


def test_pictures_and_links_exist():
    for target in re.findall(r"\]\((?!http)([^)#]+)\)|(?:src|srcset)=\"([^\"]+)\"", README):
        target = "".join(target)
        assert (ROOT / target).exists(), target
