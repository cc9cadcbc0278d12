"""The emoji: both houses draw the same, parts share no family, and the sheets are what the packages give."""

import os
from collections import Counter
from pathlib import Path

import pytest
import torch

from lib.record.files import UserError
from lib.worlds import emoji
from tools import emoji as tool

TABLE = emoji.table()


def test_both_houses_draw_the_same_emoji_each_in_its_own_way():
    noto, twemoji = (emoji.drawings(house) for house in emoji.HOUSES)
    assert noto.images.shape == twemoji.images.shape == (2425, 3, 32, 32)
    assert torch.equal(noto.emoji, twemoji.emoji)
    assert torch.equal(noto.tones, twemoji.tones)
    paired = (noto.images - twemoji.images).square().mean().sqrt()
    apart = (noto.images - twemoji.images.roll(700, 0)).square().mean().sqrt()
    assert paired < 0.8 * apart
    assert noto.images.amin() == -1
    assert noto.images.amax() == 1


def test_the_drawings_are_what_the_table_says():
    hearts = {one.name: number for number, one in enumerate(TABLE) if one.kind == "heart"}
    for house in emoji.HOUSES:
        drawn = emoji.drawings(house)
        red, blue = (drawn.images[drawn.emoji == hearts[name]].mean((0, 2, 3)) for name in ("heart", "blue_heart"))
        assert red[0] > red[2]
        assert blue[2] > blue[0]
        hands = [number for number, one in enumerate(TABLE) if one.name == "wave"]
        tones = drawn.images[drawn.emoji == hands[0]].mean((1, 2, 3))
        assert (tones[1:-1] > tones[2:]).all()  # from light to dark


def test_no_family_is_in_two_parts_and_every_kind_in_all():
    rows = [{"code": one.code, "kind": one.kind} for one in TABLE]
    assert tool.parts(rows) == [one.part for one in TABLE]
    assert {one.part for one in TABLE if one.name in ("judge", "male-judge", "female-judge")} == {"test"}
    counts = Counter(one.part for one in TABLE)
    assert 0.14 < counts["test"] / len(TABLE) < 0.18
    assert abs(counts["source"] - counts["target"]) < 0.05 * len(TABLE)
    for category in emoji.CATEGORIES:
        assert {one.part for one in TABLE if one.category == category} == set(emoji.PARTS)


def test_the_limited_target_lacks_what_it_should():
    seen = emoji.limited()
    assert 100 < len(seen.emoji) < 400
    assert not seen.tones.any()
    assert {TABLE[number].category for number in seen.emoji.tolist()} == {"Smileys & Emotion", "People & Body"}
    assert {TABLE[number].part for number in seen.emoji.tolist()} == {"target"}
    assert not any("hand" in TABLE[number].kind.split("-") for number in seen.emoji.tolist() if number > 168)


@pytest.mark.parametrize("kind", emoji.KINDS)
def test_ten_pictures_of_one_kind(kind):
    first, again, other = (emoji.ten(kind, seed) for seed in (0, 0, 1))
    assert len(first.emoji) == len(set(first.emoji.tolist())) == 10
    assert torch.equal(first.images, again.images)
    assert set(first.emoji.tolist()) != set(other.emoji.tolist()) or kind == "hearts"  # there are just ten hearts
    assert all(emoji.KINDS[kind](TABLE[number]) and TABLE[number].part == "target" for number in first.emoji.tolist())


def test_every_emoji_weighs_alike():
    drawn = emoji.drawings("noto", "source")
    weights = emoji.balanced(drawn)
    sums = torch.zeros(len(TABLE)).index_add(0, drawn.emoji, weights)
    torch.testing.assert_close(sums[sums > 0], torch.full_like(sums[sums > 0], 1 / (sums > 0).sum()))


def test_unknown_names_are_refused():
    with pytest.raises(UserError, match="house = 'apple', part = ''"):
        emoji.drawings("apple")
    with pytest.raises(UserError, match="kind = 'cars': one of faces"):
        emoji.ten("cars", 0)


def test_another_package_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"emoji-datasource-google-16.0.0.tgz: missing, or not the file"):
        tool.build(tmp_path)


@pytest.mark.skipif("EMOJI_PACKAGES" not in os.environ, reason="EMOJI_PACKAGES names no folder with both packages")
def test_the_sheets_are_what_the_packages_give():
    for name, content in tool.build(Path(os.environ["EMOJI_PACKAGES"])).items():
        assert (emoji.FOLDER / name).read_bytes() == content, name


def test_a_model_learns_the_velocity_and_returns_the_noise(tmp_path):
    small = {"channels": (8, 32), "steps": 2, "batch": 2, "bf16": False}
    unet, schedule = emoji.source_model(tmp_path / "noto", "noto", **small)
    x, t = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 999])
    with torch.no_grad():
        eps = unet(x, t).sample
        velocity = type(unet).from_pretrained(tmp_path / "noto" / "unet").eval()(x, t).sample
    torch.testing.assert_close(eps, schedule.eps_from_v(x, velocity, t), atol=1e-5, rtol=1e-4)
    assert not torch.allclose(eps, velocity, atol=0.1)
