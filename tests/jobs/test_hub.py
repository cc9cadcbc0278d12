"""Models and data sets by name: every layout, the hub's cache without network, and one line for whatever is missing."""

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

from lib.ground import diffusion
from lib.ground.nets import eps_model, small_unet
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
    (place / hub.WEIGHTS[0]).unlink()
    torch.save(UNet2DModel.from_pretrained(tiny / "unet").state_dict(), place / hub.WEIGHTS[1])
    found = hub.source(place)
    assert isinstance(found.scheduler, DDPMScheduler)
    assert found.schedule.T == 50
    assert equal(found.unet, DDPMPipeline.from_pretrained(tiny).unet)


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


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        ("config.json", {"_class_name": "UNet2DConditionModel"}, "latent or conditional"),
        ("config.json", {"num_class_embeds": 10}, "conditioned on classes"),
        ("config.json", {"in_channels": 4, "out_channels": 4}, "a map from 4 to 4 channels"),
        ("scheduler_config.json", {"prediction_type": "v_prediction"}, "predicts 'v_prediction'"),
        ("scheduler_config.json", {"num_train_timesteps": None, "beta_schedule": None}, "noise levels of another kind"),
    ],
)
def test_other_kinds_of_models_are_refused(tiny, tmp_path, file, change, message):
    place = flat(tiny, tmp_path / "other")
    config = json.loads((place / file).read_text()) | change
    (place / file).write_text(json.dumps({key: value for key, value in config.items() if value is not None}))
    with pytest.raises(UserError, match=f"^base: .*{message}"):
        hub.source(place, parameter="base")


def test_missing_and_damaged_files(tiny, tmp_path):
    place = flat(tiny, tmp_path / "m")
    whole = (place / hub.WEIGHTS[0]).read_bytes()
    (place / hub.WEIGHTS[0]).write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match="truncated or damaged"):
        hub.source(place)
    (place / hub.WEIGHTS[0]).unlink()
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
        torch.testing.assert_close(found.images[:, 0, 4, 4], wanted)
        assert found.names[0] == "row 0"
    assert len(list((tmp_path / "cache").iterdir())) == 3
    with pytest.raises(UserError, match="no split 'train'"):
        target(tmp_path / "parts", tmp_path)
    with pytest.raises(UserError, match=r"column: 'name' given.*image columns: picture"):
        target(tmp_path / "saved", tmp_path, column="name")
    with pytest.raises(UserError, match=r"^reference: folder .* does not exist"):
        target(tmp_path / "nowhere", tmp_path, parameter="reference")
