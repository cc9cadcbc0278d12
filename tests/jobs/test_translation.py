"""A job of RDMD from two folders to translators: whole, resumed, extended, refused, and its cost before it."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from diffusers import DDPMPipeline, DDPMScheduler
from PIL import Image
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from lib.ground import folder
from lib.ground.checkpoint import newest
from lib.ground.nets import parameter_count, small_unet
from lib.jobs import estimate, gate, job, translation
from lib.jobs.settings import settings
from lib.measures import distances
from lib.papers.rdmd import images as rdmd
from lib.record.files import ROOT, UserError
from lib.record.parameters import ParameterError
from tests.jobs.test_job import equal, stopping
from tests.rounding import assert_same
from tests.test_notebooks import parameters

pytestmark = pytest.mark.usefixtures("nothing_is_downloaded")


@pytest.fixture(scope="module")
def given(tmp_path_factory):
    """A 16 x 16 RGB model, two folders of pictures, and settings that take seconds."""
    place = tmp_path_factory.mktemp("job")
    torch.manual_seed(0)
    unet = small_unet(16, (8, 32), image_channels=3)
    DDPMPipeline(unet, DDPMScheduler(num_train_timesteps=100)).save_pretrained(place / "model")
    rng = np.random.default_rng(0)
    for name, n in (("source", 5), ("target", 104)):
        (place / name).mkdir()
        for i in range(n):
            pixels = rng.integers(0, 256, (20, 24, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(place / name / f"{i}.png")
    small = {"steps": 3, "batch": 2, "lr": 1e-3, "fake_lr": 1e-3, "shown": 3, "save_every": 1, "device": "cpu"}
    folders = {"source_images": str(place / "source"), "target_images": str(place / "target")}
    return small | folders | {"target_model": str(place / "model"), "lambdas": [0.2, 3.0]}


def made(given, out, **change):
    return settings("RDMD", out=str(out), **given | change)


@pytest.fixture(scope="module")
def whole(given, nothing_is_downloaded, tmp_path_factory):
    """A finished job: its folder and what `run` returned."""
    out = tmp_path_factory.mktemp("whole")
    return out, job.run(made(given, out, grid_every=2))


def weights(out, lambda_="0.2"):
    return load_file(out / "translators" / lambda_ / "unet" / "diffusion_pytorch_model.safetensors")


def test_translators_pictures_and_measures_are_there(given, whole):
    out, metrics = whole
    assert metrics == json.loads((out / "metrics.json").read_text())
    assert [row["lambda"] for row in metrics["translators"]] == [0.2, 3.0]
    x = folder.images(given["source_images"], 16)
    for row in metrics["translators"]:
        name = f"{row['lambda']:g}"
        y = translation.load(out / "translators" / name)(x).detach().clamp(-1, 1)
        files = folder.images(out / "translated" / name, 16)
        torch.testing.assert_close(y, files, rtol=0, atol=1.001 / 255)  # rounded to bytes
        assert row["distance"] == pytest.approx((y - x).square().mean((1, 2, 3)).sqrt().mean().item(), rel=1e-5)
        assert row["fid"] is None
        assert np.isfinite([row["psnr"], row["kernel"], *row["losses"].values()]).all()
    assert "cannot be downloaded" in metrics["missing"]["fid"]
    assert not equal(weights(out), weights(out, "3"))
    shown = load_file(out / translation.SHEET)
    assert_same(shown["input"], x[:3])
    assert Image.open(out / "translations.png").size[0] > 200
    logged = EventAccumulator(str(out / "logs" / "0.2"), {"images": 0}).Reload()
    assert [event.step for event in logged.Scalars("cost")] == [1, 2, 3]
    assert [event.step for event in logged.Images("samples")] == [2, 3]


def test_fid_and_kid_are_there_with_their_weights(given, tmp_path, monkeypatch):
    of_folder = {name: np.random.default_rng(i).normal(size=(20, 4)) for i, name in enumerate(("0.2", "3", "real"))}
    asked = []

    def features(place, network, device):
        name = place.name if place.parent.name == "translated" else "real"
        asked.append(name)
        return of_folder[name]

    monkeypatch.setattr(distances, "inception", lambda device: None)
    monkeypatch.setattr(distances, "folder_features", lambda place, *more: features(Path(place), *more))
    x = torch.rand(4, 3, 16, 16)
    found = translation.measured(made(given, tmp_path), x, x, {"0.2": x / 2, "3": x / 3}, torch.device("cpu"))
    assert sorted(asked) == ["0.2", "3", "real"]  # the real ones once
    for row in found["translators"]:
        right = distances.distances_of(of_folder[row["name"]], of_folder["real"])
        assert (row["fid"], row["kid"]) == (right.fid, right.kid)
    assert found["missing"] == {}


def test_a_stopped_job_goes_on_as_if_it_had_not_been(given, whole, tmp_path, monkeypatch):
    loop = rdmd.train
    s = made(given, tmp_path, lambdas=[0.2])
    monkeypatch.setattr(rdmd, "train", stopping(loop, 2))
    with pytest.raises(KeyboardInterrupt):
        job.run(s)
    assert newest(tmp_path / "checkpoints" / "0.2").name == "step-000002"
    monkeypatch.setattr(rdmd, "train", loop)
    job.run(s)
    assert equal(weights(whole[0]), weights(tmp_path))
    assert job.main([str(tmp_path / "job.json")]) == 0  # as several processes and the command line start it
    more = job.run(made(given, tmp_path))  # another lambda: the first one is not trained again
    assert [row["lambda"] for row in more["translators"]] == [0.2, 3.0]
    assert newest(tmp_path / "checkpoints" / "0.2").name == "step-000003"
    assert equal(weights(whole[0], "3"), weights(tmp_path, "3"))


def test_a_model_is_trained_on_the_target_first(given, tmp_path):
    own = {"size": 16, "channels": [8, 32], "model_steps": 2, "model_batch": 2, "cost": "LPIPS", "lambdas": [1.0]}
    s = made({name: value for name, value in given.items() if name != "target_model"}, tmp_path / "out", **own)
    opened = gate.check(s)
    assert "to be trained on target_images: 3 x 16 x 16" in str(opened)
    cost = estimate.estimate(s, opened.source)
    assert cost.images_seen == 3 * 2 + 2 * 2
    assert (cost.forwards, cost.backwards) == (6 * 4 + 4, 6 * 2 + 4)
    metrics = job.run(s, opened)
    (model,) = (tmp_path / "out").glob("target_model-*")
    before = (model / "seconds.json").stat().st_mtime_ns
    translator = translation.load(tmp_path / "out" / "translators" / "1")
    assert parameter_count(translator) == cost.parameters
    assert job.run(s) == metrics
    job.run(made(s.model_dump(exclude={"out", "method"}), tmp_path / "out", steps=4))
    assert (model / "seconds.json").stat().st_mtime_ns == before  # it was not trained again


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"lambdas": [-0.1]}, r"^lambdas\[0\]: -0.1 given; it should be greater than or equal to 0"),
        ({"lambdas": [0.1, float("nan")]}, r"^lambdas\[1\]: nan given; it should be a finite number"),
        ({"lambdas": []}, "^lambdas: "),
        ({"lambdas": [0.1, 0.1]}, "^lambdas: .*given twice"),
        ({"cost": "L1"}, "^cost: 'L1' given"),
        ({"accumulate": 2}, "^accumulate: no such parameter"),
        ({"source_images": ""}, "^source_images: .*name a folder"),
        ({"processes": 3}, "batch: 2 given; a multiple of processes = 3 is needed"),
    ],
)  # fmt: skip
def test_wrong_settings_are_refused_by_name(given, tmp_path, change, message):
    with pytest.raises(ParameterError, match=message):
        made(given, tmp_path, **change)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"size": 64}, "^size: 64 given, but .*model has pictures of 16 x 16; leave it out"),
        ({"target_model": "typo"}, "^target_model: folder typo does not exist"),
        ({"source_images": "ONE"}, "^source_images: 1 pictures in .*; give 2 or more$"),
        ({"target_model": "", "target_images": "ONE"}, "^target_images: 1 pictures in .*; give 100 or more, or name a"),
        ({"target_images": "nowhere"}, "^target_images: folder nowhere does not exist"),
        ({"out": "SOURCE/out"}, "^out: .* lies inside what is to be read .source_images"),
    ],
)
def test_wrong_folders_are_refused_before_anything_is_written(given, tmp_path, change, message):
    (tmp_path / "one").mkdir()
    Image.new("RGB", (20, 20)).save(tmp_path / "one" / "a.png")
    places = {"ONE": str(tmp_path / "one"), "SOURCE/out": f"{given['source_images']}/out"}
    change = {name: places.get(value, value) for name, value in change.items()}
    s = made(given, **{"out": tmp_path / "out"} | change)
    with pytest.raises(UserError, match=message) as error:
        job.run(s)
    assert "\n" not in str(error.value)
    assert not s.out.exists()


def test_other_pictures_or_another_cost_need_another_folder(given, tmp_path):
    pictures, out = tmp_path / "pictures", tmp_path / "out"
    shutil.copytree(given["source_images"], pictures)
    s = made(given, out, source_images=str(pictures), lambdas=[0.2])
    job.run(s)
    with pytest.raises(UserError, match=r"^cost: 'cost' is 'LPIPS' now, but the job in .* was started with 'L2'"):
        job.run(s.model_copy(update={"cost": "LPIPS"}))
    Image.new("RGB", (20, 20)).save(pictures / "0.png")
    with pytest.raises(UserError, match="checksum"):
        job.run(s.model_copy(update={"steps": 4}))


def test_a_folder_that_is_no_translator_is_refused(given):
    with pytest.raises(UserError, match=r"translator\.json: missing; name a folder that a job of RDMD left"):
        translation.load(given["target_model"])


def test_the_job_file_names_parameters_of_the_notebook_and_good_settings():
    values = yaml.safe_load((ROOT / "notebooks/own_images/jobs/rdmd-cat-wild.yaml").read_text(encoding="utf-8"))
    assert values.pop("profile") == "paper"
    assert set(values) <= set(parameters("68_own_translator"))
    s = settings(source_images="cat", target_images="wild", out="unused", **values)
    assert len(s.lambdas) == 5  # the paper's number
    assert (s.size, s.sigma, s.cost, s.fake_updates, s.batch, s.clip) == (64, 1.0, "L2", 5, 280, 10)
    translation.untrained(s, torch.device("meta"))
