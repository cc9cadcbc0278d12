"""The judges of emoji: ours knows the houses on pictures it never saw, the neutral one finds partners."""

import pytest
import torch
from safetensors.torch import save_file

from lib.measures import neutral
from lib.worlds import emoji, emoji_judge as judges, emoji_measures as measures


def test_the_judge_knows_houses_and_categories_of_the_test_part():
    judge = judges.load()
    for number, house in enumerate(emoji.HOUSES):
        drawn = emoji.drawings(house, "test")
        seen = judge.judge(drawn.images)
        assert (seen.house == number).double().mean() >= 0.95
        assert (seen.category == judges.categories(drawn)).double().mean() >= 0.85


def test_training_a_judge_lowers_its_losses(monkeypatch):
    histories = []
    train = judges.train
    monkeypatch.setattr(judges, "train", lambda *given, **options: histories.append(train(*given, **options)))
    judges.train_judge(steps=60, seed=1)
    category = histories[0].values["category"]
    assert sum(category[-10:]) < 0.9 * sum(category[:10])


def test_the_neutral_judge_finds_partners_and_does_not_mind_the_batch(monkeypatch):
    food = [emoji.drawings(house, "test", lambda one: one.category == "Food & Drink") for house in emoji.HOUSES]
    noto, twemoji = food
    features = neutral.features(noto.images)
    assert features.shape == (len(noto.emoji), 1280)
    share = measures.found(features, neutral.features(twemoji.images), torch.arange(len(features)), first=3)
    assert share > 3 * 3 / len(features)
    monkeypatch.setattr(neutral, "BATCH", 5)
    torch.testing.assert_close(neutral.features(noto.images[:7]), features[:7], rtol=1e-3, atol=1e-3)


def test_ranks_by_hand():
    candidates = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, -1.0]])
    style = torch.tensor([5.0, 5.0])  # that all share
    assert measures.ranks(candidates + style, candidates, torch.tensor([0, 1, 2])).tolist() == [0, 0, 0]
    assert measures.ranks(candidates + style, candidates, torch.tensor([1, 0, 0])).tolist() == [1, 1, 1]
    partners = torch.tensor([1, 1, 0])
    assert measures.found(candidates + style, candidates, partners) == pytest.approx(1 / 3)
    assert measures.found(candidates + style, candidates, partners, first=2) == 1


def test_the_space_is_kept_and_its_distances_are_zero_for_equal_sets(tmp_path):
    generator = torch.Generator().manual_seed(0)
    drawn = len(emoji.drawings("noto").emoji)
    kept = {house: torch.randn(drawn, 80, generator=generator) for house in emoji.HOUSES}
    save_file(kept, tmp_path / "emoji-features.safetensors")
    space = measures.space(tmp_path)
    torch.testing.assert_close(space.axes.T @ space.axes, torch.eye(measures.AXES), atol=1e-5, rtol=0)
    first, other = kept["noto"][:200], kept["noto"][200:400] + 1
    assert space.frechet(first, first) == pytest.approx(0, abs=1e-3)
    assert space.frechet(first, other) > 10
    assert space.kernel(first, other) > space.kernel(first, kept["noto"][200:400])
