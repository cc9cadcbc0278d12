"""CLIP on a tiny random model whose files the test writes itself; no network."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPTokenizer

from lib.ground import folder as folders
from lib.measures import clip as clips
from lib.record.files import UserError
from tests.rounding import assert_same

SIZE = 16


def write_tiny_clip(folder) -> None:
    """Save a CLIP of a few thousand random weights, with a tokenizer that knows single letters."""
    letters = "abcdefghijklmnopqrstuvwxyz0123456789-"
    words = [*letters, *(letter + "</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    CLIPTokenizer({word: i for i, word in enumerate(words)}, []).save_pretrained(folder)
    size = {"crop_size": {"height": SIZE, "width": SIZE}, "size": {"shortest_edge": SIZE}}
    CLIPImageProcessor(**size).save_pretrained(folder)
    small = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    text = {**small, "vocab_size": len(words), "bos_token_id": len(words) - 2, "eos_token_id": len(words) - 1}
    text |= {"pad_token_id": len(words) - 1, "max_position_embeddings": 40}
    torch.manual_seed(0)
    vision = {**small, "image_size": SIZE, "patch_size": 8}
    CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=8)).save_pretrained(folder)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("clip")
    write_tiny_clip(path)
    return path


@pytest.fixture(scope="module")
def clip(folder) -> clips.Clip:
    return clips.load(str(folder))


@pytest.fixture
def images() -> torch.Tensor:
    return torch.rand(3, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(1)) * 2 - 1


def test_image_features_equal_those_of_the_processor_and_model(clip, folder, images):
    processor = CLIPImageProcessor.from_pretrained(folder)
    pixels = processor(images=(images + 1) / 2, do_rescale=False, return_tensors="pt")["pixel_values"]
    expected = F.normalize(clip.model.get_image_features(pixel_values=pixels).pooler_output, dim=1)
    assert_same(clip.images(images), expected)


def test_similarity_is_the_cosine_that_clip_itself_reports(clip, images):
    pixels = ((images + 1) / 2 - clip.mean) / clip.std
    tokens = clip.tokenizer(["a red face"], return_tensors="pt")
    output = clip.model(pixel_values=pixels, **tokens)
    expected = output.logits_per_image[:, 0] / clip.model.logit_scale.exp()
    assert_same(clips.similarity(clip, images, "a red face"), expected)


def test_prompts_are_averaged_over_templates(clip):
    single = [clip.text("face", [template]) for template in ("{}", "a {}")]
    assert_same(clip.text("face", ("{}", "a {}")), F.normalize(sum(single) / 2, dim=0))
    assert not torch.equal(single[0], single[1])


def test_grey_and_larger_images_are_adapted(clip, images):
    grey = images[:, :1]
    assert_same(clip.images(grey), clip.images(grey.expand(-1, 3, -1, -1)))
    assert clip.images(F.interpolate(images, size=40)).shape == (3, 8)
    assert_same(clip.images(images), torch.cat([clip.images(x[None]) for x in images]))


def test_objective_against_its_formula(clip, images):
    edited = (0.5 * images).requires_grad_()
    value = clips.toward(clip, "young face", "face")(edited, images)
    text = clip.text("young face") - clip.text("face")
    change = clip.images(edited) - clip.images(images)
    cosines = [(a @ text / (a.norm() * text.norm())).item() for a in change]
    assert value.item() == pytest.approx(sum(-math.log((1 + c) / 2) for c in cosines) / 3, rel=1e-3)
    value.backward()
    assert edited.grad is not None
    assert edited.grad.abs().sum() > 0
    assert all(p.grad is None for p in clip.model.parameters())
    unchanged = clips.toward(clip, "young face", "face")(images, images)
    assert unchanged.item() == pytest.approx(math.log(2), rel=1e-4)  # no direction: the cosine is 0


def test_folder_is_scored_in_parts_and_sorted(clip, images, tmp_path, monkeypatch):
    monkeypatch.setattr(folders, "CHUNK", 2)
    for name, x in zip("cab", images, strict=True):
        Image.fromarray(((x + 1) * 127.5).round().byte().permute(1, 2, 0).numpy()).save(tmp_path / f"{name}.png")
    expected = dict(zip("cab", clips.similarity(clip, images, "face").tolist(), strict=True))
    files, scores = clips.score_folder(clip, tmp_path, "face")
    assert [file.stem for file in files] == sorted(expected, key=expected.get, reverse=True)
    assert scores.tolist() == pytest.approx(sorted(expected.values(), reverse=True), abs=2e-3)  # 8-bit files
    with pytest.raises(UserError, match="does not exist"):
        clips.score_folder(clip, tmp_path / "none", "face")


def test_errors_name_what_is_wrong(clip, images, tmp_path):
    with pytest.raises(UserError, match=r"clip: cannot load .*openai/clip-vit-base-patch16.*MIT"):
        clips.load(str(tmp_path))
    with pytest.raises(UserError, match="prompt"):
        clips.similarity(clip, images, " ")
    with pytest.raises(UserError, match="target"):
        clips.toward(clip, "face", "face")
