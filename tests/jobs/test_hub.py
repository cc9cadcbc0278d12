"""Models and data sets by name: every layout, the hub's cache without network, and one line for whatever is missing."""

import copy
import http.server
import io
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from functools import partial

import datasets
import huggingface_hub
import pytest
import torch
from diffusers import DDIMScheduler, DDPMPipeline, DDPMScheduler, UNet2DModel
from PIL import Image
from safetensors.torch import load_file, save_file

from lib.ground import diffusion, folder
from lib.ground.nets import eps_model, small_unet
from lib.ground.pretrained import shape
from lib.jobs import hub
from lib.jobs.settings import settings
from lib.record.files import ROOT, UserError

CLOSED = "http://127.0.0.1:9"  # nothing listens on the discard port


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """A pipeline folder of a 16 x 16 RGB model."""
    place = tmp_path_factory.mktemp("tiny")
    torch.manual_seed(0)
    unet = small_unet(16, (8, 32), image_channels=3)
    scheduler = DDPMScheduler(num_train_timesteps=100, beta_schedule="squaredcos_cap_v2")
    DDPMPipeline(unet, scheduler).save_pretrained(place)
    return place


def flat(tiny, place):
    """The layout of google/ddpm-*: model and scheduler side by side at the top."""
    place.mkdir(parents=True)
    for file in (*(tiny / "unet").iterdir(), tiny / "scheduler" / "scheduler_config.json"):
        shutil.copy(file, place)
    return place


def cached(place, name, kind, fill):
    """A repository in the layout of the hub's cache, as copied from another machine."""
    folder = place / f"{kind}s--{name.replace('/', '--')}"
    fill(folder / "snapshots" / ("a" * 40))
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text("a" * 40)


@pytest.fixture
def closed(monkeypatch, tmp_path):
    """The hub at an address where nothing answers, with an empty cache of its own."""
    download = partial(huggingface_hub.snapshot_download, cache_dir=tmp_path / "cache", endpoint=CLOSED)
    monkeypatch.setattr(hub, "snapshot_download", download)
    return tmp_path / "cache"


def target(name, out, channels=3, parameter="images", **options):
    """The images that a job with these settings reads."""
    values = {"source": "none", "images": str(name), "out": str(out), parameter: str(name)}
    return hub.target(settings(**values | options), (channels, 8, 8), parameter)


def equal(unet, other):
    return all(torch.equal(value, other.state_dict()[name]) for name, value in unet.state_dict().items())


def test_every_layout_loads_the_same_model(tiny, tmp_path):
    plain = DDPMPipeline.from_pretrained(tiny).unet
    loaded = [hub.source(place) for place in (tiny, flat(tiny, tmp_path / "flat"))]
    for found in loaded:
        assert equal(found.unet, plain)
        assert not found.unet.training
        assert found.schedule.T == 100
        assert found.notes == []
        torch.testing.assert_close(found.schedule.alpha_bar, diffusion.cosine(100).alpha_bar, rtol=1e-3, atol=1e-5)
    bare = hub.source(tiny / "unet")
    assert equal(bare.unet, plain)
    assert "linear noise levels" in bare.notes[0]
    torch.testing.assert_close(bare.schedule.alpha_bar, diffusion.linear().alpha_bar, rtol=1e-4, atol=1e-7)


def test_a_ddim_scheduler_and_old_weights_are_read(tiny, tmp_path):
    place = flat(tiny, tmp_path / "old")
    DDIMScheduler(num_train_timesteps=50).save_pretrained(place)
    (place / "diffusion_pytorch_model.safetensors").unlink()
    torch.save(UNet2DModel.from_pretrained(tiny / "unet").state_dict(), place / "diffusion_pytorch_model.bin")
    found = hub.source(place)
    assert isinstance(found.scheduler, DDPMScheduler)
    assert found.schedule.T == 50
    assert equal(found.unet, DDPMPipeline.from_pretrained(tiny).unet)


def renamed(place, rename):
    """The model with other names in its file of weights; `rename` returns None for one that is to go."""
    file = place / "diffusion_pytorch_model.safetensors"
    names = {name: rename(name) for name in load_file(file)}
    save_file({names[name]: value for name, value in load_file(file).items() if names[name]}, file)


@pytest.mark.parametrize("prefix", ["_orig_mod.", "module.", "unet."])
def test_names_that_a_wrapper_has_changed_are_read(tiny, tmp_path, prefix):
    place = flat(tiny, tmp_path / "wrapped")
    renamed(place, lambda name: prefix + name)
    assert equal(hub.source(place).unet, DDPMPipeline.from_pretrained(tiny).unet)


@pytest.mark.parametrize(
    ("rename", "message"),
    [
        (lambda name: name if name != "conv_in.bias" else None, "lacks 1 weights (conv_in.bias)"),
        (lambda name: f"_orig_mod.{name}" if name != "conv_in.bias" else None, "and has besides"),
        (lambda name: f"net/{name}", "weights (conv_in.bias, conv_in.weight"),
    ],
)
def test_weights_that_are_missing_or_too_many_are_refused(tiny, tmp_path, rename, message, capfd):
    place = flat(tiny, tmp_path / "wrong")
    renamed(place, rename)
    with pytest.raises(UserError) as error:
        hub.source(place)
    assert message in str(error.value)
    assert str(error.value).startswith("source: ")
    assert capfd.readouterr().err == ""  # diffusers says nothing in ten lines of its own


def test_variants_and_shards(tiny, tmp_path):
    plain = DDPMPipeline.from_pretrained(tiny).unet
    plain.save_pretrained(tmp_path / "ema", variant="ema")
    plain.save_pretrained(tmp_path / "shards", max_shard_size="20KB")
    assert len(list((tmp_path / "shards").glob("*-of-*"))) > 2
    for name in ("ema", "shards"):
        assert equal(hub.source(tmp_path / name).unet, plain)
    plain.half().save_pretrained(tmp_path / "ema", variant="fp16")
    with pytest.raises(UserError, match=r"the variants .*ema.safetensors, .*fp16.safetensors; keep one, or download"):
        hub.source(tmp_path / "ema")
    next((tmp_path / "shards").glob("*-of-*")).unlink()
    with pytest.raises(UserError, match=r"^[^\n]*; source: download or copy it again$"):
        hub.source(tmp_path / "shards")


def test_a_rectangle_is_read_at_its_height_and_width(tiny, tmp_path):
    place = flat(tiny, tmp_path / "wide")
    config = json.loads((place / "config.json").read_text()) | {"sample_size": [16, 24]}
    (place / "config.json").write_text(json.dumps(config))
    assert hub.source(place).shape == (3, 16, 24)
    (tmp_path / "images").mkdir()
    Image.new("RGB", (48, 32)).save(tmp_path / "images" / "a.png")
    made = settings(source=str(place), images=str(tmp_path / "images"), out=str(tmp_path / "out"))
    assert hub.target(made, (3, 16, 24)).images.shape == (1, 3, 16, 24)


@pytest.mark.parametrize("name", ["model.safetensors", "model.zip", "one.png"])
def test_a_file_where_a_folder_belongs(tmp_path, name):
    (tmp_path / name).write_bytes(b"")
    what = "unpack it and name the folder" if name.endswith("zip") else "name the folder that"
    with pytest.raises(UserError, match=f"^source: .*{name} is a file; {what}"):
        hub.source(tmp_path / name)
    with pytest.raises(UserError, match=f"^images: .*{name} is a file; {what}"):
        target(tmp_path / name, tmp_path)


def test_a_device_that_is_not_there_is_refused_before_anything_is_loaded(tmp_path):
    with pytest.raises(UserError, match=r"^device: 'cuda' given, but this machine offers none"):
        hub.source(tmp_path / "nothing is here", "cuda")
    with pytest.raises(UserError, match=r"^device: 'gpu' given; give cpu or cuda"):
        hub.source(tmp_path / "nothing is here", "gpu")


def test_a_learned_variance_is_left_out(tmp_path):
    unet = UNet2DModel(
        sample_size=8, in_channels=1, out_channels=2, block_out_channels=(8,), norm_num_groups=8, layers_per_block=1,
        down_block_types=("DownBlock2D",), up_block_types=("UpBlock2D",), add_attention=False,
    )  # fmt: skip
    unet.save_pretrained(tmp_path)
    found = hub.source(tmp_path)
    assert "variance" in found.notes[-1]
    x, t = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(0)), torch.tensor([1, 9])
    torch.testing.assert_close(eps_model(found.unet)(x, t), found.unet(x, t).sample[:, :1])


def test_a_model_of_the_velocity_returns_the_noise_as_diffusers_reads_it(tiny, tmp_path):
    place = flat(tiny, tmp_path / "v")
    config = json.loads((place / "scheduler_config.json").read_text()) | {"prediction_type": "v_prediction"}
    (place / "scheduler_config.json").write_text(json.dumps(config))
    plain, found = hub.source(tiny), hub.source(place)
    x = torch.randn(2, *shape(found.unet), generator=torch.Generator().manual_seed(0))
    t = min(7, found.schedule.T - 1)
    ours = found.schedule.x0_from_eps(x, copy.deepcopy(eps_model(found.unet))(x, torch.tensor([t, t])), t)
    theirs = found.scheduler.step(plain.unet(x, t).sample, t, x, generator=torch.Generator()).pred_original_sample
    torch.testing.assert_close(ours.clamp(-1, 1), theirs, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        ("config.json", {"_class_name": "UNet2DConditionModel"}, "latent or conditional"),
        ("config.json", {"num_class_embeds": 10}, "conditioned on classes"),
        ("config.json", {"in_channels": 4, "out_channels": 4}, "a map from 4 to 4 channels"),
        ("config.json", {"sample_size": None}, "without a size"),
        ("config.json", {"sample_size": 17}, "images of 17, but halves them 1 times; its sample_size may be 16 or 18"),
        ("config.json", {"sample_size": [16, 9]}, "may be 8 or 10"),
        ("config.json", {"block_out_channels": [8, 64]}, "weights have other shapes"),
        ("scheduler_config.json", {"beta_schedule": "mine"}, "noise levels that diffusers does not know"),
        ("scheduler_config.json", {"prediction_type": "sample"}, "predicts 'sample'"),
        ("scheduler_config.json", {"num_train_timesteps": None, "beta_schedule": None}, "noise levels of another kind"),
    ],
)
def test_other_kinds_of_models_are_refused(tiny, tmp_path, file, change, message):
    place = flat(tiny, tmp_path / "other")
    config = json.loads((place / file).read_text()) | change
    (place / file).write_text(json.dumps({key: value for key, value in config.items() if value is not None}))
    with pytest.raises(UserError, match=f"source: .*{message}|{message}.*source: "):
        hub.source(place)


def test_missing_and_damaged_files(tiny, tmp_path):
    place = flat(tiny, tmp_path / "m")
    whole = (place / "diffusion_pytorch_model.safetensors").read_bytes()
    (place / "diffusion_pytorch_model.safetensors").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match="truncated or damaged"):
        hub.source(place)
    (place / "diffusion_pytorch_model.safetensors").unlink()
    with pytest.raises(UserError, match="holds no weights"):
        hub.source(place)
    (place / "config.json").unlink()
    with pytest.raises(UserError, match=r"config\.json: missing; source: expected a model in diffusers' layout"):
        hub.source(place)
    with pytest.raises(UserError, match=r"^source: folder \./nowhere does not exist"):
        hub.source("./nowhere")


def test_unreachable_hub_says_what_to_do(closed):
    began = time.perf_counter()
    with pytest.raises(UserError) as error:
        hub.source("google/ddpm-ema-church-256")
    text = str(error.value)
    for part in ("source: 'google/ddpm-ema-church-256'", "cannot be reached", "Apache-2.0", "hf download", "HF_HOME"):
        assert part in text
    assert "\n" not in text
    with pytest.raises(UserError, match=r"^images: 'huggan/metfaces'.*CC BY-NC 2\.0.*--repo-type dataset"):
        target("huggan/metfaces", closed)
    assert time.perf_counter() - began < 20


def test_the_cache_is_used_without_asking_the_hub(tiny, closed):
    cached(closed, "someone/tiny", "model", lambda place: flat(tiny, place))
    assert equal(hub.source("someone/tiny").unet, DDPMPipeline.from_pretrained(tiny).unet)

    def picture(place):
        place.mkdir(parents=True)
        Image.new("RGB", (9, 9), "red").save(place / "a.png")

    cached(closed, "someone/pictures", "dataset", picture)
    assert target("someone/pictures", closed).images.shape == (1, 3, 8, 8)


def test_unknown_id(monkeypatch, tmp_path):
    class Hub(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(404)
            self.send_header("X-Error-Code", "RepoNotFound")
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *args):
            """Keep quiet."""

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_port}"
    download = partial(huggingface_hub.snapshot_download, cache_dir=tmp_path, endpoint=address, token=False)
    monkeypatch.setattr(hub, "snapshot_download", download)
    with pytest.raises(UserError, match="knows no model of that name"):
        hub.source("someone/nothing")
    server.shutdown()


def test_offline_in_a_process_of_its_own(tiny, tmp_path):
    """The real environment variables: HF_HOME copied from elsewhere, HF_HUB_OFFLINE set."""
    cached(tmp_path / "hub", "someone/tiny", "model", lambda place: flat(tiny, place))
    code = (
        "from lib.jobs import hub; print(hub.source('someone/tiny').schedule.T); hub.source('google/ddpm-church-256')"
    )
    environment = os.environ | {"HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "1"}
    environment = {name: value for name, value in environment.items() if name != "HF_HUB_CACHE"}
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.stdout.strip() == "100"
    assert "HF_HUB_OFFLINE is set and it is not in the cache" in done.stderr.splitlines()[-1]


def rows(n=3):
    def png(value):
        buffer = io.BytesIO()
        Image.new("L", (10, 12), value).save(buffer, "png")
        return {"bytes": buffer.getvalue(), "path": None}

    features = datasets.Features({"name": datasets.Value("string"), "picture": datasets.Image()})
    columns = {"name": [str(i) for i in range(n)], "picture": [png(100 * i) for i in range(n)]}
    return datasets.Dataset.from_dict(columns, features=features)


def test_data_sets_on_disk(tmp_path):
    (tmp_path / "parquet").mkdir()
    rows().to_parquet(tmp_path / "parquet" / "train.parquet")
    rows().save_to_disk(tmp_path / "saved")
    datasets.DatasetDict({"test": rows()}).save_to_disk(tmp_path / "parts")
    wanted = torch.tensor([0, 100, 200]) / 127.5 - 1
    for name, split in (("parquet", "train"), ("saved", "train"), ("parts", "test")):
        found = target(tmp_path / name, tmp_path, 1, split=split)
        folder.keep(found)
        torch.testing.assert_close(found.images[:, 0, 4, 4], wanted)
        assert found.names[0] == "row 0"
    assert len(list((tmp_path / "cache").iterdir())) == 3
    with pytest.raises(UserError, match="no split 'train'"):
        target(tmp_path / "parts", tmp_path)
    with pytest.raises(UserError, match=r"column: 'name' given.*image columns: picture"):
        target(tmp_path / "saved", tmp_path, column="name")
    with pytest.raises(UserError, match=r"^reference: folder .* does not exist"):
        target(tmp_path / "nowhere", tmp_path, parameter="reference")
