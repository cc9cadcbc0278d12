from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from lib.ground import diffusion
from lib.papers.sdft import experiments
from lib.worlds import sources


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


def test_selected_share_is_at_least_one_image():
    assert [experiments.selected(share, 1797) for share in (1e-9, 0.057, 5.0)] == [1, 102, 1797]


def test_selection_finds_the_class_of_its_prompt_and_not_of_the_next():
    p = SimpleNamespace(steps=60, share=0.057, device="cpu")
    found = experiments.selection(0, p)
    assert found["precision"].mean() > 0.5 > 0.2 > found["next"].mean()
    assert found["purity"].shape == (1797, 10)
    assert found["purity"][-1] == pytest.approx(np.full(10, 0.1), abs=0.01)  # all of the collection
