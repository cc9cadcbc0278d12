"""A job from a folder of images and a model to a folder of results: whole, resumed, refused, and its cost before it."""

import inspect
import json
import math

import numpy as np
import pytest
import torch
import yaml
from diffusers import DDPMPipeline, DDPMScheduler
from PIL import Image
from safetensors.torch import load_file

from lib.ground import finetune, folder
from lib.ground.nets import parameter_count, small_unet
from lib.jobs import estimate, finetuning, hub, job, load, methods, report, watch
from lib.jobs.settings import KINDS, METHODS, settings
from lib.measures import distances as image_metrics
from lib.record.files import ROOT, UserError
from lib.record.parameters import ParameterError
from tests.test_notebooks import parameters

pytestmark = pytest.mark.usefixtures("nothing_is_downloaded")
JOBS = sorted((ROOT / "notebooks" / "own_images" / "jobs").glob("[as]*.yaml"))  # ant-, sdft-


@pytest.fixture(scope="module")
def given(tmp_path_factory):
    """A 32 x 32 RGB model, ten images, and settings that take seconds."""
    place = tmp_path_factory.mktemp("job")
    torch.manual_seed(0)
    unet = small_unet(32, (8, 32), image_channels=3)
    DDPMPipeline(unet, DDPMScheduler(num_train_timesteps=100)).save_pretrained(place / "source")
    (place / "images").mkdir()
    rng = np.random.default_rng(0)
    for i in range(10):
        Image.fromarray(rng.integers(0, 256, (40, 48, 3), dtype=np.uint8)).save(place / "images" / f"{i}.png")
    small = {"classifier_steps": 2, "classifier_batch": 4, "classifier_images": 4, "J": 2}
    small |= {"steps": 3, "batch": 4, "lr": 1e-3, "samples": 6, "sampling_steps": 2, "shown": 3, "save_every": 1}
    return small | {"source": str(place / "source"), "images": str(place / "images")}


@pytest.fixture(scope="module")
def whole(given, nothing_is_downloaded, tmp_path_factory):
    """A finished job of SDFT: its folder and what `run` returned."""
    out = tmp_path_factory.mktemp("whole")
    return out, job.run(settings(method="SDFT", out=str(out), reference=given["images"], **given))


def weights(place):
    return DDPMPipeline.from_pretrained(place / "model").unet.state_dict()


def equal(a, b):
    return all(torch.equal(value, b[name]) for name, value in a.items())


def test_all_outputs_are_there_and_load(given, whole):
    out, metrics = whole
    assert metrics == json.loads((out / "metrics.json").read_text())
    for name in ("intra_lpips", "fid", "kid", "precision", "recall"):
        assert metrics[name] is None
        assert "cannot be downloaded" in metrics["missing"][name]
    assert "6 samples of 3 x 32 x 32, ddim, 2 steps" in metrics["protocol"]
    assert metrics["images"]["n"] == 10
    assert 0 < metrics["nearest_training_distance"]["least"] <= metrics["nearest_training_distance"]["mean"] < 2
    before, after = hub.source(given["source"]), hub.source(out / "model")
    assert not equal(before.unet.state_dict(), after.unet.state_dict())
    assert equal(weights(out), after.unet.state_dict())
    torch.testing.assert_close(before.schedule.alpha_bar, after.schedule.alpha_bar)
    assert len(list((out / "samples").glob("*.png"))) == 6
    assert Image.open(out / "samples.png").size[0] > 200
    assert load_file(out / report.SHEET)["student"].shape == (3, 3, 32, 32)
    assert list((out / "logs").glob("events*"))
    assert not list(out.glob(".model*"))


def test_sheet_compares_equal_noise(given, tmp_path):
    """A student that learned next to nothing draws what the source draws."""
    s = settings(method="naive", out=str(tmp_path), **given | {"lr": 1e-12, "samples": 40, "sampler": "ancestral"})
    job.run(s)
    rows = load_file(tmp_path / report.SHEET)
    torch.testing.assert_close(rows["student"], rows["source"], rtol=0, atol=1e-3)


def stopping(loop, step):
    """Return a training loop that is interrupted, as by Ctrl-C, after a step."""

    def interrupted(*args, **kwargs):
        call = inspect.signature(loop).bind(*args, **kwargs)
        after = call.arguments["on_step"]

        def stop(i, history):
            after(i, history)
            if i == step:
                raise KeyboardInterrupt

        call.arguments["on_step"] = stop
        return loop(*call.args, **call.kwargs)

    return interrupted


def test_interrupted_job_goes_on(given, whole, tmp_path, monkeypatch):
    stopped, loop = tmp_path / "stopped", finetune.train
    monkeypatch.setattr(finetune, "train", stopping(loop, 3))
    with pytest.raises(KeyboardInterrupt):
        job.run(settings(method="SDFT", out=str(stopped), **given))
    assert not (stopped / "model").exists()
    assert list((stopped / "checkpoints").glob("step-000003"))
    monkeypatch.setattr(finetune, "train", loop)
    job.run(settings(method="SDFT", out=str(stopped), **given))
    assert equal(weights(whole[0]), weights(stopped))


def test_finished_job_is_not_done_again_and_more_steps_go_on(given, tmp_path, monkeypatch, capsys):
    first = job.run(settings(method="naive", out=str(tmp_path), **given))
    monkeypatch.setattr(job, "_work", None)
    assert job.run(settings(method="naive", out=str(tmp_path), **given)) == first
    assert "this job is finished" in capsys.readouterr().out
    monkeypatch.undo()
    loss, calls = methods.sdft.loss, []
    monkeypatch.setattr(methods.sdft, "loss", lambda *batch, **weights: calls.append(1) or loss(*batch, **weights))
    more = job.run(settings(method="naive", out=str(tmp_path), **given | {"steps": 4}))
    assert more["training"]["steps"] == 4
    assert len(calls) == 1  # the one step that was missing
    for change in ({"lr": 1e-4}, {"batch": 8}, {"seed": 1}, {"method": "SDFT"}):
        name, value = next(iter(change.items()))
        with pytest.raises(UserError, match=f"^{name}: '{name}' is {value!r} now, but the job in .* was started with"):
            job.run(settings(**{"method": "naive", "out": str(tmp_path)} | given | change))


def test_other_images_in_the_same_folder_are_refused(given, tmp_path):
    place = tmp_path / "images"
    place.mkdir()
    Image.new("RGB", (32, 32), "red").save(place / "a.png")
    values = given | {"images": str(place), "out": str(tmp_path / "out"), "method": "naive", "samples": 1, "shown": 1}
    job.run(settings(**values))
    Image.new("RGB", (32, 32), "blue").save(place / "a.png")
    with pytest.raises(UserError, match="'checksum' is"):
        job.run(settings(**values))


@pytest.mark.parametrize("method", ["adaptor", "ANT"])
def test_methods_with_an_adaptor(given, tmp_path, method):
    cost = estimate.estimate(settings(method=method, out=str(tmp_path), **given))
    job.run(settings(method=method, out=str(tmp_path), **given))
    source, adapted = hub.source(given["source"]), hub.source(tmp_path / "model")
    assert equal(weights(tmp_path), source.unet.state_dict())  # diffusers alone loads the source
    x, t = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0)), torch.tensor([3, 90])
    with torch.no_grad():
        assert not torch.allclose(source.unet(x, t).sample, adapted.unet(x, t).sample, atol=1e-6)
    about = json.loads((tmp_path / "model" / "adaptor.json").read_text())
    assert (about["source"], about["method"]) == (given["source"], method)
    assert (tmp_path / finetuning.CLASSIFIER).exists() == (method == "ANT")
    values = given | {"source": str(tmp_path / "model"), "out": str(tmp_path / "again"), "method": "naive"}
    with pytest.raises(UserError, match="holds an adaptor"):
        job.run(settings(**values))
    model, checkpoint = (
        sum(path.stat().st_size for path in (tmp_path / name).rglob("*") if path.is_file())
        for name in ("model", "checkpoints")
    )
    assert model == pytest.approx(4 * cost.parameters, rel=0.15)
    assert checkpoint == pytest.approx(cost.checkpoint_bytes, rel=0.5)  # many small tensors, each with its name


def test_averaged_weights_accumulation_and_checkpointing(given, tmp_path):
    values = given | {"method": "naive", "samples": 1, "shown": 1, "dropout": 0.0}
    savings = {"ema": 0.5, "accumulate": 2, "gradient_checkpointing": True}
    mean = job.run(settings(out=str(tmp_path / "mean"), **values | savings))
    last = job.run(settings(out=str(tmp_path / "last"), **values))
    assert not equal(weights(tmp_path / "mean"), weights(tmp_path / "last"))
    # Two passes of two images are a batch of four, and the losses are those of the weights in training.
    assert mean["training"]["losses"] == pytest.approx(last["training"]["losses"], rel=1e-4)


def test_bf16_is_close_and_the_result_is_float32(given, whole, tmp_path):
    s = settings(method="SDFT", out=str(tmp_path), precision="bf16", **given | {"samples": 1, "shown": 1})
    found = job.run(s)["training"]["losses"]["simple"]
    assert {value.dtype for value in weights(tmp_path).values()} == {torch.float32}
    exact = whole[1]["training"]["losses"]["simple"]
    assert exact != found == pytest.approx(exact, rel=0.03)


def test_metrics_with_features(given, tmp_path, monkeypatch):
    """Any network in Inception's place: the reference compared with itself is at distance 0 and fully covered."""

    def features(images):  # (n, 3, 299, 299) in [0, 255]
        return torch.nn.functional.adaptive_avg_pool2d(images.float(), 2).flatten(1) / 255

    monkeypatch.setattr(image_metrics, "inception", lambda device: features)
    s = settings(method="naive", out=str(tmp_path), **given | {"reference": given["images"]})
    report.write_images(tmp_path / "samples", folder.images(given["images"], 32))
    values = dict(report._distances(s, hub.source(s.source), folder.images(given["images"], 32)))
    assert values["fid"]["value"] == pytest.approx(0, abs=1e-6)
    assert (values["precision"]["value"], values["recall"]["value"]) == (1.0, 1.0)
    assert "10 generated, 10 reference" in values["kid"]["protocol"]
    assert {path.name for path in tmp_path.iterdir()} == {"samples"}


# ---------------------------------------------------------------------------------------------------- the cost


def test_the_best_model_is_kept_beside_the_last(given, tmp_path, monkeypatch):
    scores = iter([0.3, 0.1, 0.2])
    monkeypatch.setattr(report, "scorer", lambda *_: lambda: next(scores))
    made = settings(out=str(tmp_path), reference=given["images"], score_every=1, **given)
    found = job.run(made)
    assert found["best"] == {"step": 2, "kid": 0.1, "samples": 500}
    kept = DDPMPipeline.from_pretrained(tmp_path / "best").unet.state_dict()
    assert equal(kept, watch.best(tmp_path / "checkpoints")[0])
    assert not equal(kept, weights(tmp_path))


def test_score_is_the_kernel_distance_to_the_reference(given, tmp_path, monkeypatch):
    monkeypatch.setattr(image_metrics, "inception", lambda device: None)
    monkeypatch.setattr(image_metrics, "folder_features", lambda place, *_: folder.images(place, 4).flatten(1))
    made = settings(out=str(tmp_path), reference=given["images"], score_every=1, score_samples=5, **given)
    source = hub.source(made.source)
    score = report.scorer(made, source, source.unet, folder.images(given["images"], 32))
    assert score() == score()
    drawn = methods.sample(made, source, source.unet, methods.noise(made, source, 5))
    report.write_images(tmp_path / "drawn", drawn)
    report.write_images(tmp_path / "real", folder.images(given["images"], 32))
    pair = [folder.images(tmp_path / name, 4).flatten(1) for name in ("drawn", "real")]
    assert score() == pytest.approx(image_metrics.kernel_distance(*pair, seed=made.seed))
    assert {path.name for path in tmp_path.iterdir()} == {"drawn", "real"}


def test_a_score_wants_a_reference(given, tmp_path):
    with pytest.raises(ParameterError, match="score_every: there is no reference"):
        settings(out=str(tmp_path), score_every=1, **given)


def test_cost_is_that_of_closed_forms(given):
    s = settings(method="SDFT", out="unused", **given)
    source = hub.source(s.source)
    cost = estimate.estimate(s, source)
    assert cost.images_seen == 12
    assert (cost.forwards, cost.backwards) == (12 * 4, 12 * 2)
    x, t = torch.zeros(1, 3, 32, 32), torch.zeros(1, dtype=torch.long)
    assert cost.flops == 12 * (4 + 2 * 2) * load.operations(source.unet, x, t)
    assert cost.parameters == parameter_count(source.unet)
    assert cost.checkpoint_bytes == 3 * 4 * cost.parameters
    assert cost.hours == pytest.approx(3 * cost.seconds_per_step / 3600)
    assert "images; passes of one image: 48 forward, 24 backward" in str(cost)


def test_operations_are_counted_by_hand():
    """One 3x3 convolution: 2 operations a multiplication, 9 x channels x channels x pixels of them."""
    image = torch.zeros(1, 1, 16, 16)
    first = load.operations(torch.nn.Conv2d(1, 8, 3, padding=1), image)
    assert first == 2 * 9 * 1 * 8 * 16**2
    unet = small_unet(16, (8, 32))
    assert load.operations(unet, image, torch.zeros(1, dtype=torch.long)) > 2 * parameter_count(unet)


# -------------------------------------------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"method": "DDPM"}, "method: 'DDPM' given"),
        ({"stpes": 3}, "stpes: no such parameter; did you mean 'steps'?"),
        ({"precision": "fp16"}, "precision: 'fp16' given; it should be 'no' or 'bf16'"),
        ({"batch": 6, "processes": 2, "accumulate": 2}, "batch: 6 given; a multiple of processes x accumulate = 4"),
        ({"ema": 1.0}, "ema: 1.0 given"),
        ({"lr": math.nan}, "lr: nan given"),
        ({"images": ""}, "images: '' given"),
    ],
)
def test_wrong_settings_are_named(given, change, message):
    with pytest.raises(ParameterError) as error:
        settings(**{"out": "unused"} | given | change)
    assert str(error.value).startswith(message)


def test_missing_places_are_one_line(given, tmp_path, capsys):
    for name, message in (("images", "images: folder "), ("source", "source: folder ")):
        values = given | {"out": str(tmp_path / "out"), "method": "naive", name: str(tmp_path / "nowhere")}
        (tmp_path / "job.json").write_text(json.dumps(values))
        assert job.main([str(tmp_path / "job.json")]) == 1
        line = capsys.readouterr().err
        assert line.startswith(message)
        assert line.count("\n") == 1
    assert job.main([str(tmp_path / "none.json")]) == 1
    assert "none.json: missing; name a JSON file of settings" in capsys.readouterr().err
    assert job.main([]) == 1
    assert not (tmp_path / "out" / "job.json").exists()


# ------------------------------------------------------------------------------------------------ ready-made job files


def test_there_is_a_job_for_every_task():
    tasks = {
        "sdft-metfaces",
        "sdft-aahq",
        "ant-babies",
        "ant-sunglasses",
        "ant-raphael",
        "ant-haunted",
        "ant-landscape",
    }
    assert {path.stem for path in JOBS} == tasks


@pytest.mark.parametrize("path", JOBS, ids=lambda path: path.stem)
def test_job_files_name_parameters_of_the_notebook_and_good_settings(path):
    values = yaml.safe_load(path.read_text(encoding="utf-8"))
    assert values.pop("profile") == "paper"
    assert set(values) <= set(parameters("67_own_images"))
    made = settings(out="unused", **values)
    assert made.method in METHODS
    assert made.source in ("google/ddpm-ema-celebahq-256", "google/ddpm-ema-church-256")
    table = {"babies": (5e-6, 8, 3, 160), "sunglasses": (5e-5, 8, 15, 200), "raphael": (5e-5, 8, 10, 500)}
    table |= {"haunted": (5e-5, 8, 10, 320), "landscape": (5e-5, 16, 10, 500)}
    if made.method == "ANT":
        assert (made.lr, made.d, made.gamma, made.steps) == table[path.stem.removeprefix("ant-")]
        assert (made.J, made.omega, made.batch) == (10, 0.02, 40)
    else:
        assert (made.lambda_distill, made.gamma_distill, made.gamma_aux) == (0.1, 3, 50)
        assert made.lambda_aux == {"sdft-metfaces": 0.1, "sdft-aahq": 0.3}[path.stem]


def test_what_may_change_are_settings():
    folders = {"source": "a", "images": "b", "source_images": "a", "target_images": "b"}
    for method, kind in KINDS.items():
        given = {name: value for name, value in folders.items() if name in kind.model_fields}
        assert set(kind.FREE) < set(settings(method=method, out="c", **given).model_dump())
