"""SDFT on emoji: students are paired, kept and found again; what is measured on them has the answers it should have."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from lib.ground import diffusion, nets
from lib.measures import distances
from lib.papers.sdft import edits, on_emoji, students
from lib.worlds import emoji, emoji_judge, emoji_measures
from tests.rounding import assert_same

SCHEDULE = diffusion.linear()


@pytest.fixture(scope="module")
def unet():
    return nets.seeded(0, lambda: nets.small_unet(32, (16, 32), image_channels=3)).eval()


@pytest.fixture
def p(tmp_path):
    tuning = {"shots": 8, "lambda_sdft": 1.0, "gamma_distill": 3.0, "gamma_aux": 50.0, "batch": 2, "lr": 1e-3}
    return SimpleNamespace(**tuning, checkpoints=[2, 1], artefacts=tmp_path, samples=6, sampling_steps=2)


def weights(net):
    return torch.cat([value.flatten() for value in net.state_dict().values()])


def test_terms_of_the_arms(p):
    lambdas = {arm: students.terms(p, arm)["lambda_aux"] for arm in (*students.ARMS, students.WEAK)}
    assert lambdas == {"naive": 0, "SDFT": 1, "naive again": 0, students.WEAK: pytest.approx(0.1)}


def test_a_target_is_a_draw_of_yellow_faces_and_people(p):
    shots, left = students.target(p, 3)
    assert (len(shots), len(shots) + len(left)) == (8, len(emoji.limited().images))
    assert (distances.nearest(left, shots)[0] > 0).all()
    assert torch.equal(students.target(p, 3)[0], shots)
    assert not torch.equal(students.target(p, 4)[0], shots)


def test_students_are_kept_and_found_again(unet, p, monkeypatch):
    trained = {arm: students.finetuned(p, 0, arm, unet, SCHEDULE) for arm in students.ARMS}
    assert [len(at) for at in trained.values()] == [2, 2, 2]
    first, last = map(weights, trained["naive"])
    assert not torch.equal(first, last)
    for arm in students.ARMS[1:]:
        assert not torch.equal(weights(trained[arm][-1]), last)
    monkeypatch.setattr(students.sdft, "finetune", None)  # nothing is trained again
    assert torch.equal(weights(students.finetuned(p, 0, "naive", unet, SCHEDULE)[-1]), last)
    p.lr = 2e-3
    with pytest.raises(TypeError):
        students.finetuned(p, 0, "naive", unet, SCHEDULE)


def test_the_average_is_half_way(unet):
    other = nets.seeded(1, lambda: nets.small_unet(32, (16, 32), image_channels=3))
    assert_same(weights(students.averaged(unet, other)), (weights(unet) + weights(other)) / 2)


def test_drift_is_none_from_a_network_to_itself(unet):
    other = nets.seeded(1, lambda: nets.small_unet(32, (16, 32), image_channels=3)).eval()
    assert on_emoji.drift(unet, unet, SCHEDULE, 0) == (0, 0)
    assert min(on_emoji.drift(unet, other, SCHEDULE, 0)) > 0


def test_what_is_measured_of_students(unet, p):
    drawn = emoji.drawings("twemoji")
    features = torch.randn(len(drawn.emoji), 1280, generator=torch.Generator().manual_seed(0))
    axes = torch.linalg.qr(torch.randn(1280, 64, generator=torch.Generator().manual_seed(1)))[0]
    space = emoji_measures.Space({"twemoji": features}, torch.zeros(1280), axes)
    arms = {arm: [unet] for arm in students.ARMS}
    p.checkpoints = [1]
    world = emoji_measures.World(unet, SCHEDULE, emoji_judge.load(), space)
    found = on_emoji.limited_data(0, p, world, arms)
    assert np.shape(found["naive"]) == np.shape(found[students.WEAK]) == (1, len(on_emoji.SAMPLED))
    np.testing.assert_equal(found["naive"][0], found["source"])  # the same network, the same noises
    assert found["source"][on_emoji.SAMPLED.index("agreement")] == 1
    assert found["real"][on_emoji.SAMPLED.index("realism")] > 0.8
    assert found["naive drift"] == [(0, 0)]


def test_skin_tones_are_told_by_colour():
    drawn = emoji.drawings("twemoji", "test")
    told = emoji_measures.toned(drawn.images).float()
    assert told[drawn.tones > 0].mean() > 0.8
    assert told[drawn.tones == 0].mean() < 0.05


def test_one_of_each_emoji_in_any_tone():
    drawn = emoji.drawings("twemoji")
    each = emoji.one_of_each(drawn, 0)
    assert drawn.emoji[each].tolist() == list(range(len(emoji.table())))
    toned = torch.isin(drawn.emoji[each], drawn.emoji[drawn.tones > 0])
    assert 0.7 < (drawn.tones[each][toned] > 0).float().mean() < 0.95  # five of six
    assert not torch.equal(each, emoji.one_of_each(drawn, 1))


def test_matched_keeps_seeds_apart():
    curve = np.array([[0.3, 0.9], [0.7, 0.5]])
    ours = np.stack([curve, curve + np.array([0, 0.1]), curve + np.array([0.35, 0])])
    found = on_emoji.matched(ours, np.stack([curve] * 3))
    assert found[:2] == pytest.approx([0, 0.1])
    assert np.isnan(found[2])  # of their realism too little is common


def test_starts_are_steps_of_the_trajectory_as_in_the_paper():
    for steps in (8, 16, 24, 40):
        grid = [t for t, _ in diffusion.trajectory(SCHEDULE, steps)]
        assert {on_emoji._level(share, steps) for share in (0.5, 0.625)} <= set(grid)
    assert [on_emoji._level(share, 40) for share in (0.5, 0.625)] == [500, 625]


def test_people_in_two_tones_are_the_same_people():
    yellow, dark = edits.people("test")
    nearest = distances.nearest(dark, yellow)[1]
    assert (nearest == torch.arange(len(dark))).float().mean() > 0.5  # though skin, hair and more have another colour
