"""The classifier is good enough to measure with, and distances are what their definitions say."""

import numpy as np
import pytest
import torch

from lib.measures import distances as image_metrics
from lib.record.files import UserError
from lib.worlds import digits as data, judge as metrics
from tests.rounding import assert_same


@pytest.fixture(scope="module")
def judge():
    return metrics.train_classifier(16, 400, 0, "cpu", None)


@pytest.mark.parametrize("domain", [metrics.PRINTED, metrics.HANDWRITTEN])
def test_classifier_on_held_out_images(judge, domain):
    held = data.split((data.printed, data.handwritten)[domain]())[1]
    digit, right_domain = metrics.accuracy(judge, held, domain)
    assert digit > 0.93  # 0.98 and more are measured
    assert right_domain > 0.93


def test_classifier_bears_noise(judge):
    held = data.split(data.handwritten())[1]
    noise = 0.1 * torch.randn(held.images.shape, generator=torch.Generator().manual_seed(0))
    assert min(metrics.accuracy(judge, data.Digits(held.images + noise, held.labels), metrics.HANDWRITTEN)) > 0.9


def test_classifier_file_round_trip(judge, tmp_path):
    metrics.save_classifier(judge, tmp_path)
    loaded = metrics.load_classifier(tmp_path)
    images = data.handwritten().images[:50]
    assert torch.equal(metrics.judge(judge, images).features, metrics.judge(loaded, images).features)


def test_classifier_file_errors(judge, tmp_path):
    with pytest.raises(UserError, match="missing; delete it and run the notebook 50_source"):
        metrics.load_classifier(tmp_path)
    metrics.save_classifier(judge, tmp_path)
    path = tmp_path / metrics.FILE
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match="truncated or damaged"):
        metrics.load_classifier(tmp_path)
    path.write_bytes(whole.replace(b'\\"size\\": 16', b'\\"size\\": 32'))
    with pytest.raises(UserError, match="weights have other shapes"):
        metrics.load_classifier(tmp_path)


def test_judge_does_not_depend_on_the_batch(judge):
    images = data.printed().images[:70]
    one, many = metrics.judge(judge, images), metrics.judge(judge, images, batch=16)
    assert_same(one.features, many.features)


def test_training_leaves_global_random_numbers_alone():
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    metrics.train_classifier(8, 1, 0, "cpu", None)
    assert torch.equal(torch.rand(3), expected)


def test_shares():
    features = torch.zeros(4, 2)
    a = metrics.Verdicts(torch.tensor([5, 5, 1, 9]), torch.tensor([1, 0, 1, 1]), features)
    assert metrics.realism(a) == 0.75
    assert metrics.realism(a, metrics.PRINTED) == 0.25
    assert metrics.histogram(a).tolist() == [0, 0.25, 0, 0, 0, 0.5, 0, 0, 0, 0.25]


def test_nearest():
    reference = torch.stack([torch.zeros(1, 4, 4), torch.ones(1, 4, 4)])
    distance, index = image_metrics.nearest(torch.full((1, 1, 4, 4), 0.75), reference)
    assert distance.item() == pytest.approx(0.25)
    assert index.item() == 1


def test_frechet_distance_of_diagonal_gaussians():
    def sample(mean, std):  # mean and covariance exact: +- each axis
        x = np.concatenate([np.eye(3), -np.eye(3)])
        return mean + std * x / x.std(0, ddof=1)

    expected = np.square([1.0, 0.0, 2.0]).sum() + np.square(np.array([1, 2, 3]) - np.array([2, 2, 1])).sum()
    found = image_metrics.frechet_distance(
        sample(0, np.array([1, 2, 3])), sample(np.array([1, 0, 2]), np.array([2, 2, 1]))
    )
    assert found == pytest.approx(expected, rel=1e-3)


def test_frechet_distance_of_singular_features():
    x = np.random.default_rng(0).normal(size=(20, 64))  # fewer rows than columns
    x[:, :10] = 3.0
    assert image_metrics.frechet_distance(x, x) < 0.05 * np.trace(np.cov(x, rowvar=False))
    assert np.isfinite(image_metrics.frechet_distance(x, x + 1))


def test_kernel_distance():
    generator = torch.Generator().manual_seed(0)
    a, b, c = (torch.randn(400, 8, generator=generator) + shift for shift in (0, 0, 0.5))
    state = np.random.get_state()[1].copy()
    assert abs(image_metrics.kernel_distance(a, b)) < 0.1 * image_metrics.kernel_distance(a, c)
    assert image_metrics.kernel_distance(a, c) == image_metrics.kernel_distance(a, c)
    assert np.array_equal(state, np.random.get_state()[1])


def test_bad_features():
    good = torch.randn(5, 3, generator=torch.Generator().manual_seed(0))
    with pytest.raises(UserError, match="equal d"):
        image_metrics.frechet_distance(good, good[:, :2])
    with pytest.raises(UserError, match="not finite"):
        image_metrics.kernel_distance(good, good / 0.0)
