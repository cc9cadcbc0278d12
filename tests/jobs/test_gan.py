"""A job of a GAN from two folders to two translators: whole, resumed, refused, its cost before it, a collapse named."""

import inspect
import json
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from lib.ground import finetune, folder
from lib.ground.checkpoint import newest
from lib.ground.nets import parameter_count
from lib.jobs import estimate, gan, gate, job
from lib.jobs.settings import TRANSLATING, settings
from lib.papers.baselines import two_player
from lib.record.files import ROOT, UserError
from lib.record.parameters import ParameterError
from tests.jobs.test_job import equal, stopping
from tests.test_notebooks import parameters

pytestmark = pytest.mark.usefixtures("nothing_is_downloaded")
JOBS = sorted((ROOT / "notebooks" / "own_images" / "jobs").glob("ladiffgan-*.yaml"))


@pytest.fixture(scope="module")
def given(tmp_path_factory):
    """Two folders of pictures, and settings that take seconds."""
    place, rng = tmp_path_factory.mktemp("gan"), np.random.default_rng(0)
    for name, n in (("source", 5), ("target", 4)):
        (place / name).mkdir()
        for i in range(n):
            Image.fromarray(rng.integers(0, 256, (40, 44, 3), dtype=np.uint8)).save(place / name / f"{i}.png")
    small = {"size": 32, "width": 4, "blocks": 1, "light": True, "steps": 4, "batch": 2, "lr": 1e-3, "shown": 3}
    small |= {"ae_width": 8, "ae_steps": 2, "ae_batch": 2, "ldm_width": 32, "ldm_steps": 2, "ldm_batch": 2}
    small |= {"save_every": 1, "device": "cpu", "noised": True, "kimg": 0.1, "ema": 0.5}
    return small | {"source_images": str(place / "source"), "target_images": str(place / "target")}


def made(given, out, method="LaDiffGAN", **change):
    return settings(method, out=str(out), **given | change)


def weights(out, name="target"):
    return load_file(out / "translators" / name / gan.WEIGHTS)


@pytest.mark.parametrize("method", TRANSLATING)
def test_translators_there_and_back_are_left_and_load(method, given, tmp_path):
    metrics = job.run(made(given, tmp_path, method, grid_every=2))
    assert metrics == json.loads((tmp_path / "metrics.json").read_text())
    assert [row["name"] for row in metrics["translators"]] == ["target", "source"]
    for row, of in zip(metrics["translators"], ("source", "target"), strict=True):
        x = folder.images(given[f"{of}_images"], 32)
        y = gan.load(tmp_path / "translators" / row["name"])(x).clamp(-1, 1)
        files = folder.images(tmp_path / "translated" / row["name"], 32)
        torch.testing.assert_close(y, files, rtol=0, atol=1.001 / 255)  # rounded to bytes
        assert row["distance"] == pytest.approx((y - x).square().mean((1, 2, 3)).sqrt().mean().item(), rel=1e-4)
        assert row["varies"] == pytest.approx(gan.varies(x, y), rel=1e-4)
        assert row["fid"] is None
    assert "cannot be downloaded" in metrics["missing"]["fid"]
    assert Image.open(tmp_path / "translations.png").size[0] > 200
    logged = EventAccumulator(str(tmp_path / "logs"), {"images": 0}).Reload()
    assert [event.step for event in logged.Images("samples")] == [2, 4]
    assert ("LDG" in logged.Tags()["scalars"]) == (method == "LaDiffGAN")


def test_a_stopped_job_goes_on_as_if_it_had_not_been(given, tmp_path, monkeypatch):
    whole, halves = tmp_path / "whole", tmp_path / "halves"
    job.run(made(given, whole))
    loop = two_player.train
    monkeypatch.setattr(two_player, "train", stopping(loop, 2))
    with pytest.raises(KeyboardInterrupt):
        job.run(made(given, halves))
    assert newest(halves / "checkpoints").name == "step-000002"
    monkeypatch.setattr(two_player, "train", loop)
    models = sorted(halves.glob("latents-*/*.safetensors"))
    times = [path.stat().st_mtime_ns for path in models]
    assert job.main([str(halves / "job.json")]) == 0
    assert len(models) == 4
    assert [path.stat().st_mtime_ns for path in models] == times  # what supervises is not trained again
    for name in ("target", "source"):
        assert equal(weights(whole, name), weights(halves, name))
    assert not equal(weights(whole), weights(whole, "source"))


def test_the_latent_models_go_on_from_their_checkpoints(given, tmp_path, monkeypatch):
    loop, begun, stop = finetune.train, [], [True]

    def watched(*args, **kwargs):
        call = inspect.signature(loop).bind(*args, **kwargs)

        def look(i, history):
            begun.append(i)
            if stop and i == 2:  # the last of the first autoencoder
                raise KeyboardInterrupt

        call.arguments["on_step"] = look
        return loop(*call.args, **call.kwargs)

    monkeypatch.setattr(finetune, "train", watched)
    with pytest.raises(KeyboardInterrupt):
        job.run(made(given, tmp_path))
    assert begun == [1, 2]
    begun.clear(), stop.clear()
    job.run(made(given, tmp_path))
    assert begun[:2] == [2, 1]  # the autoencoder goes on at its end, then comes the denoiser


@pytest.mark.parametrize("off", ["lambda_ldg", "lambda_hcd"])
def test_each_of_the_two_losses_of_a_job_moves_its_translators(off, given, tmp_path):
    job.run(made(given, tmp_path / "with", **{off: 0.0}))
    job.run(made(given, tmp_path / "without", "U-GAT-IT"))
    assert not equal(weights(tmp_path / "with"), weights(tmp_path / "without"))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"size": 36}, "size.*8"),
        ({"size": 16}, "size.*32"),
        ({"warmup": 5}, "^warmup: two players"),
        ({"ae_width": 12}, "^ae_width: 12 given; a multiple of 8"),
        ({"perceptual": "VGG-19"}, "^perceptual: VGG-19 needs pictures of 128"),
        ({"lambda_hcd": -1}, "lambda_hcd"),
        ({"translated": 1}, "translated"),
        ({"betas": (0.5, 1.0)}, "betas"),
        ({"lr": float("nan")}, "lr"),
        ({"reading": "other"}, "reading"),
    ],
)
def test_settings_out_of_bounds_are_refused(given, change, said, tmp_path):
    with pytest.raises(ParameterError, match=said):
        made(given, tmp_path, **change)


def test_folders_that_will_not_do_are_refused(given, tmp_path):
    (tmp_path / "one").mkdir()
    Image.new("RGB", (32, 32)).save(tmp_path / "one" / "1.png")
    with pytest.raises(UserError, match=r"^target_images: 1 pictures in .*; give 2 or more$"):
        gate.check(made(given, tmp_path / "out", target_images=str(tmp_path / "one")))
    with pytest.raises(UserError, match=r"^target_images: folder .* does not exist"):
        gate.check(made(given, tmp_path / "out", target_images=str(tmp_path / "none")))
    assert not (tmp_path / "out").exists()
    with pytest.raises(UserError, match=r"translator\.json"):
        gan.load(tmp_path / "one")


def test_other_steps_are_another_job(given, tmp_path):
    """The rate falls to 0 at the last step, so a longer training is not this one's continuation."""
    job.run(made(given, tmp_path, "U-GAT-IT"))
    with pytest.raises(UserError, match=r"^steps: 'steps' is 5 now"):
        job.run(made(given, tmp_path, "U-GAT-IT", steps=5))


def test_cost_is_counted_from_the_losses_themselves(given, tmp_path):
    s = made(given, tmp_path)
    opened = gate.check(s)
    cost, base = estimate.estimate(s, opened.source), estimate.estimate(made(given, tmp_path, "U-GAT-IT"))
    assert cost.how == "measured"
    assert cost.parameters == base.parameters == parameter_count(gan.build(s).G)
    assert cost.trained > base.trained  # latent discriminators
    assert cost.flops > base.flops
    assert (base.images_seen, cost.images_seen) == (8, 8 + 2 * (2 * 2 + 2 * 2))
    twice = made(given, tmp_path, "U-GAT-IT", batch=4)
    assert estimate.estimate(twice).flops == 2 * base.flops
    assert "memory" in str(cost)


def test_operations_of_a_step_are_those_of_its_passes(given, tmp_path):
    """Of U-GAT-IT: both generators see both domains and translations, forward and backward; discriminators the rest."""
    s = made(given, tmp_path, "U-GAT-IT")
    start = gan.begin(s, torch.device("cpu"))
    x, (whole, local) = torch.zeros(1, 3, 32, 32, device="meta"), start.game.D["d"]
    G, D = gan.operations(start.game.G["d"], x), gan.operations(whole, x) + gan.operations(local, x)
    with torch.device("meta"):
        flops, kept = gan._step(s, start.game, None)
    passes = 6 * 3 * G + 2 * D * (3 + 3 + 2)  # real and fake, there and back; fake again, weights unchanged
    assert flops == pytest.approx(passes, rel=0.1)  # the first layers need no gradient of their input
    assert kept > 0


def test_a_collapse_is_named_as_soon_as_it_is_measured(given, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(gan, "translate", lambda translator, x: torch.full_like(x, 0.3))
    job.run(made(given, tmp_path, "U-GAT-IT", grid_every=2))
    said = [line for line in capsys.readouterr().out.splitlines() if ": a collapse" in line]
    assert [line.split(":")[0] for line in said] == ["step 2", "step 2", "step 4", "step 4"]
    assert "into the source" in said[0]
    assert "into the target" in said[1]


@pytest.mark.parametrize("path", JOBS, ids=lambda path: path.stem)
def test_job_files_name_parameters_of_the_notebook_and_the_papers_settings(path):
    values = yaml.safe_load(path.read_text(encoding="utf-8"))
    assert values.pop("profile") == "paper"
    assert set(values) <= set(parameters("69_own_gan"))
    s = settings(source_images="selfies", target_images="anime", out="unused", **values)
    assert (s.method, s.size, s.steps, s.batch, s.light) == ("LaDiffGAN", 256, 1_000_000, 1, False)
    cost = gan.count(s, gan.begin(s, torch.device("cpu")))
    assert cost.parameters == 2 * 278_959_808
    assert 1e18 < cost.images * cost.flops < 1e19
    assert Path(path).name in (ROOT / "book" / "own_images.md").read_text(encoding="utf-8")
