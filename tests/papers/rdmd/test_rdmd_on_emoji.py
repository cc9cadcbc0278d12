"""RDMD on emoji: what seeds train, curves read at a cost by hand, measures that have the answers they should have."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from lib.ground import diffusion, nets
from lib.papers.rdmd import images as rdmd, on_emoji, start
from lib.worlds import emoji, emoji_judge, emoji_measures, sources
from tools.replicate import started

SCHEDULE = diffusion.linear()


@pytest.fixture(scope="module")
def world():
    unet = nets.seeded(0, lambda: nets.small_unet(32, (16, 32), image_channels=3)).eval()
    drawn = emoji.drawings("twemoji")
    features = torch.randn(len(drawn.emoji), 1280, generator=torch.Generator().manual_seed(0))
    axes = torch.linalg.qr(torch.randn(1280, 64, generator=torch.Generator().manual_seed(1)))[0]
    space = emoji_measures.Space({"twemoji": features}, torch.zeros(1280), axes)
    return emoji_measures.World(unet, SCHEDULE, emoji_judge.load(), space)


def test_a_seed_trains_the_judged_lambda_and_one_of_the_others_in_turn():
    p = SimpleNamespace(seed=10, lambda_judged=0.2, lambdas=[1.0, 0.0])
    assert [on_emoji.lambdas(p, seed) for seed in (10, 11, 12)] == [[0.2, 1.0], [0.2, 0.0], [0.2, 1.0]]
    p.lambdas = []
    assert on_emoji.lambdas(p, 11) == [0.2]


def test_pictures_are_of_one_part_and_every_emoji_comes_alike_often():
    drawn = emoji.drawings("noto", "source")
    pictures = on_emoji.pictures("noto", "source", 0)
    same = torch.cdist(pictures.flatten(1), drawn.images.flatten(1)).argmin(1)
    counts = drawn.emoji[same].unique(return_counts=True)[1]
    assert len(counts) == 373
    assert counts.max() < 3 * on_emoji.DRAWN / 373
    assert not torch.equal(pictures, on_emoji.pictures("noto", "source", 1))


def test_inputs_and_truth_are_of_one_emoji_and_one_tone(world):
    inputs = emoji_measures.Inputs(50, 3, world, toned=True)
    noto, twemoji = (emoji.drawings(house, "test") for house in emoji.HOUSES)
    pairs, drawn = (torch.cat(both, 1).flatten(1) for both in ((inputs.x, inputs.truth), (noto.images, twemoji.images)))
    distance, at = torch.cdist(pairs, drawn, compute_mode="donot_use_mm_for_euclid_dist").min(1)
    assert distance.max() == 0
    assert (noto.tones[at] > 0).any()
    assert len(noto.emoji[at].unique()) == 50


def test_measures_of_the_input_itself(world):
    task = on_emoji.Task(0, SimpleNamespace(inputs=8), world)
    measured = dict(zip(on_emoji.MEASURES, task.measure(task.inputs.x), strict=True))
    assert measured["input"] == 0
    assert measured["ssim"] == pytest.approx(1)
    assert measured["truth"] > 0.2
    assert dict(zip(on_emoji.MEASURES, task.measure(task.inputs.truth), strict=True))["truth"] == 0


def test_a_curve_is_read_at_a_cost():
    def row(cost, frechet):
        values = dict.fromkeys(on_emoji.MEASURES, 0.0) | {"input": cost, "frechet": frechet}
        return list(values.values())

    found = {"input": np.array([row(0, 10)] * 3)}
    found |= {name: np.array([[row(0.4, 30), row(0.2, 20)]] * 3) for name in ("SDEdit", "ILVR")}
    cost = np.array([0.1, 0.3, 0.9])
    assert on_emoji.at_cost(found, "SDEdit", "frechet", cost) == pytest.approx([15, 25, 30])
    read = on_emoji.at_cost(found, "ILVR", "frechet", cost)  # does not begin at the input
    assert np.isnan(read[0])
    assert read[1:] == pytest.approx([25, 30])


def test_every_method_translates_and_says_what_it_calls(world):
    settings = {"sampling_steps": 10, "starts": [0.3], "ranges": [0.2], "cycle_starts": [0.5], "cycle_eta": 1.0}
    settings |= {"left": 8, "lambda_s": 500.0, "lambda_i": 2.0, "iterations": 2, "inputs": 3, "sigma": 1.0}
    p = SimpleNamespace(**settings, classifier_steps=1, classifier_batch=4, classifier_lr=1e-3)
    generators = {0.2: on_emoji.held(p, world.unet, SCHEDULE)}
    found = on_emoji.translators(0, p, world, world.unet, generators)
    calls = {name: found[f"{name} calls"] for name in ("RDMD", "SDEdit", "ILVR", "EGSDE", "DDIB", "CycleDiffusion")}
    assert calls == {"RDMD": [1], "SDEdit": [4], "ILVR": [10], "EGSDE": [12], "DDIB": [30], "CycleDiffusion": [12]}
    np.testing.assert_allclose(found["RDMD"][0], found["start"], rtol=1e-4, atol=1e-4)  # it is not trained
    # Source and target are one network here, with which CycleDiffusion gives the input back.
    assert found["CycleDiffusion"][0][on_emoji.COST] == pytest.approx(0, abs=1e-5)


def test_the_translator_in_models_is_found_and_draws_like_twemoji(world, monkeypatch):
    p = started("11_rdmd_images", "record").parameters
    monkeypatch.setattr(rdmd, "train_translator", None)  # nothing is trained
    unet, schedule = sources.load(p.target)
    translator = on_emoji.translator(p, p.seed, p.lambda_judged, unet, schedule)
    inputs = emoji_measures.Inputs(40, 0, world, toned=True)
    with torch.no_grad():
        translated = translator(inputs.x)
    realism = [world.judge.like_twemoji(images).float().mean() for images in (inputs.x, translated)]
    assert realism[0] < 0.2 < 0.5 < realism[1]


def test_starts_are_measured_before_and_after_a_training(world, monkeypatch):
    monkeypatch.setattr(sources, "load", lambda *_: (world.unet, SCHEDULE))
    monkeypatch.setattr(on_emoji, "quick_model", nets.eps_model)  # in float32 everywhere
    small = {"lambda_": 0.2, "steps": 1, "batch": 2, "lr": 1e-2, "fake_lr": 1e-2, "fake_updates": 1, "ema": 0.5}
    p = SimpleNamespace(target="", device="cpu", sigmas=[0.01, 2.0], inputs=16, **small)
    found = start.held_at(0, p, *world)
    cost = [np.array(found[name])[:, on_emoji.COST] for name in ("before", "after")]
    assert cost[0][0] < 0.02 < cost[0][1]  # at little noise the denoiser leaves the input alone
    assert (cost[0] != cost[1]).all()
    assert found["before images"].shape == found["after images"].shape == (2, on_emoji.SHOWN, 3, 32, 32)
    x = found["input images"]
    with torch.no_grad():
        held = diffusion.denoiser(nets.eps_model(world.unet), SCHEDULE)(x, torch.full((len(x),), 2.0)).clamp(-1, 1)
    torch.testing.assert_close(found["before images"][1], held, rtol=0, atol=1e-3)
