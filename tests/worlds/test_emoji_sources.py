"""The models of emoji that the repository holds: what their cards say, and good enough to start from."""

import hashlib
import json

import pytest
import torch

from lib.worlds import emoji, sources


@pytest.mark.parametrize("house", emoji.HOUSES)
def test_the_source_models_are_what_their_cards_say(house):
    folder = sources.MODELS / house
    weights = folder / "unet" / "diffusion_pytorch_model.safetensors"
    assert weights.stat().st_size < 6_000_000
    digest = hashlib.sha256(weights.read_bytes()).hexdigest()
    assert digest == json.loads((folder / sources.SETTINGS).read_text())["digest"]
    assert digest in (folder / "README.md").read_text()
    unet, schedule = sources.load(house)
    drawn = emoji.drawings(house, "test")
    x0, eps = drawn.images[::20], torch.randn(drawn.images[::20].shape, generator=torch.Generator().manual_seed(0))
    for t, most in ((100, 0.15), (500, 0.02), (900, 0.002)):  # mean squared error of the noise, on pictures never seen
        with torch.no_grad():
            error = (unet(schedule.add_noise(x0, eps, t), torch.full((len(x0),), t)).sample - eps).square().mean()
        assert error < most
