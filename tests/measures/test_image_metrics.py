"""Measures on images against closed forms, and against clean-fid's own route for folders."""

import math
import warnings

import numpy as np
import pytest
import torch
from PIL import Image

from lib.measures import distances as image_metrics
from lib.record.files import UserError


def images(n, seed=0, size=16, channels=1):
    return torch.rand(n, channels, size, size, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def test_protocol_is_one_line():
    line = image_metrics.protocol("FID", {"samples": 10000, "paintings": 1326}, "Inception", "bicubic 299", seed=3)
    assert line == "FID: 10,000 samples, 1,326 paintings; features: Inception; resize: bicubic 299; seed = 3"


def test_psnr_of_a_constant_error():
    a = torch.zeros(2, 3, 16, 16)
    b = a + torch.tensor([0.2, 0.02]).view(2, 1, 1, 1)  # 0.1 and 0.01 of a range of 1
    torch.testing.assert_close(image_metrics.psnr(a, b), torch.tensor([20.0, 40.0]), rtol=1e-4, atol=0)
    assert image_metrics.psnr(a, a).isinf().all()
    assert torch.equal(image_metrics.psnr(a + 3, a + 1), image_metrics.psnr(a + 1, a + 1))  # clamped


def test_ssim():
    a = images(3)
    torch.testing.assert_close(image_metrics.ssim(a, a), torch.ones(3))
    flat = torch.full((2, 1, 16, 16), -0.2), torch.full((2, 1, 16, 16), 0.4)  # 0.4 and 0.7 without any structure
    expected = (2 * 0.4 * 0.7 + 1e-4) / (0.4**2 + 0.7**2 + 1e-4)
    torch.testing.assert_close(image_metrics.ssim(*flat), torch.full((2,), expected), rtol=1e-4, atol=1e-4)
    assert image_metrics.ssim(a, images(3, seed=1)).abs().max() < 0.5


def test_bad_pairs():
    with pytest.raises(UserError, match=r"sets \(n, c, h, w\) of pairs"):
        image_metrics.psnr(images(2), images(3))
    with pytest.raises(UserError, match="sides of 11 or more"):
        image_metrics.ssim(images(2, size=8), images(2, size=8))


def test_precision_and_recall_of_known_sets(monkeypatch):
    monkeypatch.setattr(image_metrics, "ROWS", 70)  # several blocks
    generator = torch.Generator().manual_seed(0)
    real = torch.randn(300, 2, generator=generator)
    assert image_metrics.precision_recall(real, real) == (1, 1)
    assert image_metrics.precision_recall(real + 100, real) == (0, 0)
    same = torch.randn(300, 2, generator=generator)
    assert min(image_metrics.precision_recall(same, real)) > 0.85
    half = image_metrics.precision_recall(same[same[:, 0] > 0], real)  # generates only one side
    assert half.precision > 0.85
    assert 0.4 < half.recall < 0.7


def test_precision_counts_by_hand():
    real = torch.tensor([[0.0], [1.0], [3.0]])  # balls with k = 1: 1, 1 and 2
    generated = torch.tensor([[-0.9], [-1.1], [4.9], [5.1]])  # in, out, in, out; balls 0.2
    assert image_metrics.precision_recall(generated, real, k=1) == (0.5, 0.0)


def test_bad_features():
    a = torch.zeros(4, 2)
    with pytest.raises(UserError, match="k: 4 given with 4 and 4 images"):
        image_metrics.precision_recall(a, a, k=4)
    with pytest.raises(UserError, match="equal d"):
        image_metrics.precision_recall(a, a[:, :1])
    with pytest.raises(UserError, match="not finite"):
        image_metrics.precision_recall(a / 0, a)


@pytest.fixture
def folders(tmp_path):
    generator = np.random.default_rng(0)
    for name, n, top in (("a", 6, 256), ("b", 8, 128)):
        (tmp_path / name / "sub").mkdir(parents=True)
        for i in range(n):
            pixels = generator.integers(0, top, (20 + i, 24, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / name / ("sub" if i % 2 else "") / f"{i}.png")
    return tmp_path / "a", tmp_path / "b"


class Pooled(torch.nn.Module):
    """Stands for Inception: means of 12 patches, and counts its images."""

    seen = 0

    def forward(self, x):
        assert x.shape[1:] == (3, 299, 299)
        self.seen += len(x)
        return torch.nn.functional.adaptive_avg_pool2d(x, 2).flatten(1)


def test_folder_distances_are_clean_fids(folders, monkeypatch):
    model = Pooled()
    monkeypatch.setattr(image_metrics, "inception", lambda device: model)
    found = image_metrics.folder_distances(*folders)
    assert model.seen == 14  # every image once for both numbers
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = image_metrics.fid.compute_fid(
            *map(str, folders),
            mode="clean",
            num_workers=0,
            device=torch.device("cpu"),
            verbose=False,
            use_dataparallel=False,
            custom_feat_extractor=model,
        )
    assert found.fid == pytest.approx(expected, rel=1e-4)
    assert math.isfinite(found.kid)
    assert found.kid == image_metrics.folder_distances(*folders).kid
    assert found.protocol == (
        "FID and KID by clean-fid: 6 generated, 8 reference; features: Inception 2015-12-05, 2,048; "
        "resize: bicubic 299; KID = 100 subsets of up to 6, seed 0"
    )


def test_missing_inception_and_folders(folders, monkeypatch, tmp_path):
    def no_network(*_, **__):
        raise OSError("no network")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "hub"))
    monkeypatch.setattr("torch.hub.download_url_to_file", no_network)
    with pytest.raises(UserError, match=r"inception-2015-12-05\.pt, and they cannot be downloaded \(no network"):
        image_metrics.folder_distances(*folders)
    with pytest.raises(UserError, match="0 images found; FID and KID need two"):
        image_metrics.folder_distances(folders[0], tmp_path / "nothing")
    file = tmp_path / "hub" / "hub" / "checkpoints" / image_metrics.INCEPTION
    file.write_bytes(b"not a network")
    with pytest.raises(UserError, match=r"inception.* cannot be read .*delete it"):
        image_metrics.inception()
