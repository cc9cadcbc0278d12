"""The source model's folder: diffusers reads it, it is complete or absent, and every damage has one clear line."""

import json
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from diffusers import DDPMPipeline
from diffusers.models.unets.unet_2d import UNet2DModel

from lib.ground import diffusion
from lib.record.files import UserError
from lib.worlds import judge as metrics, sources as source
from tests.rounding import assert_same

TINY = {"size": 8, "channels": (8, 32), "steps": 3, "batch": 2}
WEIGHTS = "unet/diffusion_pytorch_model.safetensors"


@pytest.fixture(autouse=True)
def few_pictures(monkeypatch):
    whole = source.data.printed
    monkeypatch.setattr(source.data, "printed", lambda size: whole(size, variants=1))


def test_folder_is_a_diffusers_pipeline(tmp_path):
    unet, schedule = source.source_model(tmp_path / "source", **TINY)
    torch.testing.assert_close(schedule.alpha_bar, diffusion.linear().alpha_bar, rtol=1e-4, atol=1e-7)
    plain = UNet2DModel.from_pretrained(tmp_path / "source", subfolder="unet").eval()
    pipeline = DDPMPipeline.from_pretrained(tmp_path / "source")
    x, t = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(0)), torch.tensor([3, 900])
    for other in (plain, pipeline.unet):
        assert_same(unet(x, t).sample, other(x, t).sample)
    assert pipeline.scheduler.config.beta_schedule == "linear"
    assert not list(tmp_path.glob(".source.*/"))  # no draft and no checkpoint is left


def test_second_call_loads(tmp_path, monkeypatch):
    source.source_model(tmp_path / "source", **TINY)
    monkeypatch.setattr(source, "train", None)
    source.source_model(tmp_path / "source", **TINY)


def test_other_settings_train_anew(tmp_path):
    source.source_model(tmp_path / "source", **TINY)
    unet, _ = source.source_model(tmp_path / "source", **TINY | {"channels": (16, 32)})
    assert list(unet.config.block_out_channels) == [16, 32]
    assert json.loads((tmp_path / "source" / source.SETTINGS).read_text())["channels"] == [16, 32]


def test_averaged_weights_are_saved(tmp_path):
    last, _ = source.source_model(tmp_path / "last", **TINY | {"ema": 0.0})
    mean, _ = source.source_model(tmp_path / "mean", **TINY | {"ema": 1.0})  # an average that never moves: the start
    start, _ = source.source_model(tmp_path / "start", **TINY | {"steps": 1, "lr": 0.0})
    name = "conv_in.weight"
    assert torch.equal(mean.state_dict()[name], start.state_dict()[name])
    assert not torch.equal(mean.state_dict()[name], last.state_dict()[name])


def test_interrupted_training_is_resumed(tmp_path, monkeypatch):
    whole, _ = source.source_model(tmp_path / "whole", **TINY)
    train = source.train

    def interrupted(*args, **kwargs):
        def stop(i, values):
            if i == 2:
                raise KeyboardInterrupt

        return train(*args, **kwargs | {"save_every": 1, "on_step": stop})

    monkeypatch.setattr(source, "train", interrupted)
    with pytest.raises(KeyboardInterrupt):
        source.source_model(tmp_path / "source", **TINY)
    assert not (tmp_path / "source").exists()
    assert list((tmp_path / ".companion-source.training").glob("step-000002"))
    monkeypatch.setattr(source, "train", train)
    resumed, _ = source.source_model(tmp_path / "source", **TINY)
    for name, value in whole.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name


def test_two_at_once_share_one_artefact(tmp_path, monkeypatch):
    """Threads stand for processes: the lock belongs to an opened file, not to a process."""
    begun, train = [], source.train

    def counted(*args, **kwargs):
        begun.append(1)
        time.sleep(0.3)
        return train(*args, **kwargs)

    monkeypatch.setattr(source, "train", counted)
    with ThreadPoolExecutor(2) as pool:
        models = list(pool.map(lambda _: source.source_model(tmp_path / "source", **TINY)[0], range(2)))
    assert len(begun) == 1
    first, second = (model.state_dict()["conv_in.weight"] for model in models)
    assert torch.equal(first, second)


def test_missing_and_damaged_folders(tmp_path):
    with pytest.raises(UserError, match=r"unet/config\.json is missing; run 50_source first"):
        source.load(tmp_path / "nowhere")
    folder = tmp_path / "source"
    source.source_model(folder, **TINY)
    whole = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match=r"truncated or damaged .*; source model: delete the folder"):
        source.load(folder)
    with pytest.raises(UserError, match=r"truncated or damaged .*; source model: delete the folder"):
        source.source_model(folder, **TINY)
    (folder / WEIGHTS).write_bytes(whole)
    config = json.loads((folder / "unet/config.json").read_text())
    (folder / "unet/config.json").write_text(json.dumps(config | {"block_out_channels": [16, 32]}))
    with pytest.raises(UserError, match="weights have other shapes; source model: delete"):
        source.load(folder)
    (folder / "scheduler/scheduler_config.json").unlink()
    with pytest.raises(UserError, match=r"scheduler_config\.json is missing"):
        source.load(folder)


def test_a_foreign_folder_is_not_replaced(tmp_path):
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.txt").write_text("years of work")
    with pytest.raises(UserError, match=r"training\.json is missing or damaged"):
        source.source_model(tmp_path / "thesis", **TINY)
    assert (tmp_path / "thesis" / "chapter.txt").exists()


@pytest.mark.parametrize("channels", [(), (8, 16), (12, 32), (8, 8, 8, 8, 32)])
def test_impossible_channels(tmp_path, channels):
    with pytest.raises(UserError, match="multiples of 8, the last one of 32"):
        source.source_model(tmp_path / "source", **TINY | {"channels": channels})


def test_unwritable_place(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write to folder"):
        source.source_model(tmp_path / "file" / "source", **TINY)


def test_classifier_is_trained_once_then_loaded(tmp_path, monkeypatch):
    options = {"size": 8, "steps": 2}
    first = source.classifier(tmp_path / "classifier", **options)
    monkeypatch.setattr(metrics, "train", None)
    second = source.classifier(tmp_path / "classifier", **options)
    assert torch.equal(first.digit.weight, second.digit.weight)


def test_samples_come_from_the_seed(tmp_path):
    unet, schedule = source.source_model(tmp_path / "source", **TINY)
    first, again, other = (source.samples(unet, schedule, 5, seed=seed, steps=3) for seed in (1, 1, 2))
    assert first.shape == (5, 1, 8, 8)
    assert first.abs().max() <= 1
    assert torch.equal(first, again)
    assert not torch.allclose(first, other)


def test_what_a_folder_was_made_with(tmp_path):
    assert not source.made_with(tmp_path / "none", {"steps": 3})
    source.artefact(tmp_path / "it", {"steps": 3, "code": "a"}, lambda checkpoints, target: None)
    assert source.made_with(tmp_path / "it", {"steps": 3})
    assert not source.made_with(tmp_path / "it", {"steps": 4})
