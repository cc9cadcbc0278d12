"""A job on two processes, started as a notebook starts it; slow to start, so in a file of its own."""

import json
import os
import subprocess
import sys

import numpy as np
import torch
from diffusers import DDPMPipeline, DDPMScheduler
from PIL import Image

from lib.ground.nets import small_unet
from lib.jobs import hub
from lib.record.files import ROOT

CODE = "import sys; from lib.jobs import job, settings; job.run(settings.read_settings(sys.argv[1]))"


def test_two_processes_train_one_model(tmp_path):
    torch.manual_seed(0)
    hub.save(tmp_path / "source", small_unet(32, (8, 32), image_channels=3), DDPMScheduler(num_train_timesteps=100))
    (tmp_path / "images").mkdir()
    rng = np.random.default_rng(0)
    for i in range(4):
        Image.fromarray(rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(tmp_path / "images" / f"{i}.png")
    values = {"method": "naive", "source": str(tmp_path / "source"), "images": str(tmp_path / "images")}
    values |= {"out": str(tmp_path / "out"), "steps": 2, "batch": 4, "processes": 2, "device": "cpu", "lr": 1e-3}
    values |= {"samples": 4, "sampling_steps": 2, "shown": 2}
    (tmp_path / "job.json").write_text(json.dumps(values))
    nowhere = dict.fromkeys(("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"), "http://127.0.0.1:9")
    environment = os.environ | nowhere | {"TORCH_HOME": str(tmp_path / "torch"), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", CODE, str(tmp_path / "job.json")]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "2/2" in done.stdout  # the progress of the processes is passed on
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert metrics["settings"]["processes"] == 2
    assert "cannot be read or downloaded" in metrics["missing"]["intra_lpips"]
    before, after = (DDPMPipeline.from_pretrained(tmp_path / name).unet for name in ("source", "out/model"))
    assert any(not torch.equal(value, after.state_dict()[name]) for name, value in before.state_dict().items())
