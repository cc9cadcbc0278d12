from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from lib.ground import diffusion, nets
from lib.papers.sdft import experiments, traits
from lib.record.replicates import stacked
from lib.worlds import sources


@pytest.fixture(scope="module")
def unet():
    torch.manual_seed(0)
    return nets.small_unet(size=8, channels=(16, 32))


def test_arms_differ_in_their_terms_only():
    p = SimpleNamespace(lambda_sdft=3.0, gamma_distill=3.0, gamma_aux=50.0, lambdas_more=[0.1])
    arms = experiments.arms(p)
    assert list(arms) == ["naive", "distill", "aux", "SDFT", "gamma 0", "SDFT, 0.1"]
    assert [(a["lambda_distill"], a["lambda_aux"]) for a in arms.values()] == [
        (0, 0), (3, 0), (0, 3), (3, 3), (3, 3), (0.1, 0.1)
    ]  # fmt: skip
    assert all((a["gamma_distill"], a["gamma_aux"]) == (3, 50) for name, a in arms.items() if name != "gamma 0")
    assert (arms["gamma 0"]["gamma_distill"], arms["gamma 0"]["gamma_aux"]) == (0, 0)


def test_a_student_is_looked_at_at_its_checkpoints(unet):
    p, images = SimpleNamespace(batch=2, lr=1e-3), torch.zeros(2, 1, 8, 8)
    looks = []
    x, t = torch.ones(1, 1, 8, 8), torch.tensor([500])
    net, seen = experiments.student(
        unet, diffusion.linear(), images, p, 0, [1, 3], lambda model: looks.append(1) or model(x, t).detach()
    )
    assert (len(seen), len(looks)) == (2, 2)
    assert torch.equal(seen[1], nets.eps_model(net)(x, t).detach())
    assert not torch.equal(seen[0], seen[1])


def test_pure_noise_trains_a_source_a_seed(tmp_path, monkeypatch):
    p = SimpleNamespace(images=2, every=100, source_steps=2, artefacts=tmp_path, device="cpu")
    one, again, other = (experiments.pure_noise(seed, p) for seed in (0, 0, 1))
    assert one["noise"].shape == one["images"].shape == one["untrained"].shape == (9,)
    assert np.array_equal(one["noise"], again["noise"])
    assert not np.array_equal(one["noise"], other["noise"])
    assert {path.name for path in tmp_path.glob("source-*")} == {"source-0", "source-1"}

    class Echo:
        config = {"sample_size": 16, "in_channels": 1}  # noqa: RUF012

        def __call__(self, x, t):
            return SimpleNamespace(sample=x)

    monkeypatch.setattr(sources, "source_model", lambda *_, **__: (Echo(), diffusion.linear()))
    assert experiments.pure_noise(0, p)["noise"].max() == 0


def test_slant_is_that_of_a_sheared_bar():
    bar = -torch.ones(1, 1, 16, 16, dtype=torch.float64)
    for row in range(16):
        bar[0, 0, row, 11 - row // 2] = 1
    assert traits.slant(bar).item() == pytest.approx(0.5, abs=0.02)
    assert traits.slant(bar).item() == pytest.approx(-traits.slant(bar.flip(3)).item())


def test_levels_are_steps_of_the_trajectory_as_in_the_paper():
    schedule = diffusion.linear()
    for steps in (8, 16, 40):
        grid = [t for t, _ in diffusion.trajectory(schedule, steps)]
        assert {experiments._level(share, steps) for share in (0.5, 0.625)} <= set(grid)
    assert experiments._level(0.5, 40) == 500
    assert experiments._level(0.625, 40) == 625


def test_selected_share_is_at_least_one_image():
    assert [experiments.selected(share, 1797) for share in (1e-9, 0.057, 5.0)] == [1, 102, 1797]


def test_selection_finds_the_class_of_its_prompt_and_not_of_the_next():
    p = SimpleNamespace(steps=60, share=0.057, device="cpu")
    found = experiments.selection(0, p)
    assert found["precision"].mean() > 0.5 > 0.2 > found["next"].mean()
    assert found["purity"].shape == (1797, 10)
    assert found["purity"][-1] == pytest.approx(np.full(10, 0.1), abs=0.01)  # all of the collection


def test_matched_keeps_seeds_apart():
    curve = np.array([[0.3, 0.9], [0.7, 0.5]])
    ours = stacked([{"a": curve}, {"a": curve + np.array([0, 0.1])}])["a"]
    assert experiments.matched(ours, np.stack([curve, curve])) == pytest.approx([0, 0.1])
