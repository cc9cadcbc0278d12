"""A job on two processes, started as a notebook and as a terminal start it; slow to start, so in a file of its own."""

import json
import os
import signal
import subprocess
import sys
import time
from functools import partial

import numpy as np
import pytest
import torch
from diffusers import DDPMPipeline, DDPMScheduler
from PIL import Image

from lib.ground.checkpoint import newest
from lib.ground.nets import small_unet
from lib.record.files import ROOT

CODE = "import sys; from lib.jobs import job, settings; job.run(settings.read_settings(sys.argv[1]))"


@pytest.fixture
def job(tmp_path):
    """A function that writes a job file and starts a Python command on it."""
    torch.manual_seed(0)
    unet = small_unet(32, (8, 32), image_channels=3)
    DDPMPipeline(unet, DDPMScheduler(num_train_timesteps=100)).save_pretrained(tmp_path / "source")
    (tmp_path / "images").mkdir()
    rng = np.random.default_rng(0)
    for i in range(4):
        Image.fromarray(rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(tmp_path / "images" / f"{i}.png")
    images = str(tmp_path / "images")
    both = {"out": str(tmp_path / "out"), "batch": 4, "processes": 2, "device": "cpu", "lr": 1e-3, "save_every": 1}
    values = {
        "method": "naive",
        "source": str(tmp_path / "source"),
        "images": images,
        "samples": 4,
        "sampling_steps": 2,
    }
    gan = {"method": "LaDiffGAN", "source_images": images, "target_images": images, "size": 32, "width": 4, "blocks": 1}
    gan |= {"light": True, "noised": True, "ae_width": 8, "ae_steps": 2, "ldm_width": 32, "ldm_steps": 2}
    nowhere = dict.fromkeys(("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"), "http://127.0.0.1:9")
    environment = os.environ | nowhere | {"TORCH_HOME": str(tmp_path / "torch"), "OMP_NUM_THREADS": "1"}
    environment.pop("TQDM_DISABLE", None)

    def start(steps, *command, of):
        (tmp_path / "job.json").write_text(json.dumps(both | of | {"steps": steps, "shown": 2}))
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        # A shell starts what runs in its background with Ctrl-C ignored, and children inherit that.
        pipes["preexec_fn"] = lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)
        return subprocess.Popen(
            [sys.executable, *command, str(tmp_path / "job.json")], cwd=ROOT, env=environment, **pipes
        )

    return partial(start, of=values), partial(start, of=gan)


def test_two_processes_train_one_gan(job, tmp_path):
    started = job[1](6, "-m", "lib.jobs.job")
    out, errors = started.communicate(timeout=900)
    assert started.returncode == 0, out + errors
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert metrics["settings"]["processes"] == 2
    assert [row["name"] for row in metrics["translators"]] == ["target", "source"]
    assert len(list((tmp_path / "out").glob("latents-*"))) == 2


def test_two_processes_train_one_model_also_after_a_stop(job, tmp_path):
    job, checkpoints = job[0], tmp_path / "out" / "checkpoints"
    started = job(100_000, "-m", "lib.jobs.job")
    while newest(checkpoints) is None and started.poll() is None:
        time.sleep(0.1)
    started.send_signal(signal.SIGTERM)  # which acts as Ctrl-C does
    out, errors = started.communicate(timeout=900)
    assert started.returncode == 130, out + errors
    assert "stopped; the same command goes on from the checkpoint" in errors
    assert not (tmp_path / "out" / "model").exists()
    step = int(newest(checkpoints).name[5:]) + 1

    started = job(step, "-c", CODE)
    out, errors = started.communicate(timeout=900)
    assert started.returncode == 0, out + errors
    assert f"{step}/{step}" in errors  # the progress of the processes is shown
    assert newest(checkpoints).name == f"step-{step:06d}"
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert metrics["settings"]["processes"] == 2
    assert "cannot be downloaded" in metrics["missing"]["intra_lpips"]
    before, after = (DDPMPipeline.from_pretrained(tmp_path / name).unet for name in ("source", "out/model"))
    assert any(not torch.equal(value, after.state_dict()[name]) for name, value in before.state_dict().items())
