"""Measures of an edit at known values."""

import pytest
import torch

from lib.papers.dds import measures
from lib.worlds import digits, prompts as digit_prompts
from lib.worlds.judge import HANDWRITTEN


def test_measures_at_known_values():
    region = torch.zeros(8, 8)
    region[:2] = 1
    assert measures.energy_share(torch.ones(5, 3, 8, 8), region).tolist() == [0.25] * 3
    assert measures.energy_share(region.expand(5, 1, 8, 8), region).tolist() == [1.0]
    assert measures.gini(torch.ones(10)) == pytest.approx(0.0)
    assert measures.gini(torch.eye(1, 10)) == pytest.approx(0.9)
    assert measures.gini(torch.tensor([1.0, 3.0])) == pytest.approx(0.25)
    z_hat, goal = torch.zeros(2, 3, 8, 8), torch.ones(2, 3, 8, 8)
    half = torch.where(region > 0, 0.5, 9.0) * goal  # what happens outside the region does not count
    found = measures.completed(torch.stack([z_hat, half, goal]), z_hat, goal, region)
    torch.testing.assert_close(found, torch.tensor([[0, 0], [0.5, 0.5], [1, 1]]))


def test_strokes_are_where_the_mean_images_differ():
    means = digit_prompts.mean_images(HANDWRITTEN, 16)
    region = measures.strokes(means[3], means[8])
    difference = (means[3] - means[8])[0].abs()
    assert difference[region == 1].min() > 0.4 >= difference[region == 0].max()
    assert torch.equal(region, measures.strokes(means[8], means[3]))


def test_first_row_that_is_read():
    read = torch.tensor([[False, True], [False, True], [True, False]])
    assert measures.first_read(read).tolist() == [2, 0]
    assert measures.first_read(torch.zeros(5, 2, dtype=torch.bool)).tolist() == [4, 4]


def test_change_outside_sees_pictures_not_latents():
    inputs, region = torch.zeros(2, 1, 4, 4), torch.zeros(4, 4)
    region[0] = 1
    images = inputs.clone()
    images[0, :, 0] = 1  # inside
    images[1, :, 1:] = 0.5
    assert measures.change_outside(images, inputs, region).tolist() == [0, 0.5]
    assert measures.change_outside(9 * images, inputs, region).tolist() == [0, 1]


def test_kept_spread_of_known_pictures():
    inputs = digits.handwritten(8).images[:20]
    assert measures.kept_spread(inputs, inputs) == pytest.approx(1)
    assert measures.kept_spread(inputs[:1].expand(20, -1, -1, -1), inputs) == pytest.approx(0, abs=1e-6)
    assert measures.kept_spread(inputs.mean(0) + 0.5 * (inputs - inputs.mean(0)), inputs) == pytest.approx(0.5)


def test_kept_detail_sees_blur_and_not_brightness():
    inputs = digits.handwritten(16).images[:20]
    assert measures.kept_detail(inputs, inputs) == pytest.approx(1)
    blurred = torch.nn.functional.avg_pool2d(inputs, 3, stride=1, padding=1, count_include_pad=False)
    assert measures.kept_detail(blurred, inputs) < 0.5
    assert measures.kept_detail(0.5 * inputs, inputs) == pytest.approx(0.25)
    flat = torch.zeros(2, 1, 16, 16)
    assert measures.kept_detail(flat, inputs) == 0
    shifted = (0.5 * inputs + 0.25, 0.5 * inputs)
    assert measures.kept_detail(*shifted) == pytest.approx(1)
