"""The two domains share the coarse structure, differ in the fine one, and are the same on every call."""

import pytest
import torch

from lib.record.files import UserError
from lib.worlds import digits as data


@pytest.fixture(scope="module")
def domains():
    return data.handwritten(), data.printed()


def test_shapes_range_and_balance(domains):
    handwritten, printed = domains
    assert handwritten.images.shape == (1797, 1, 16, 16)
    assert printed.images.shape == (2100, 1, 16, 16)
    assert torch.bincount(printed.labels).tolist() == [210] * 10
    for images, labels in domains:
        assert images.dtype == torch.float32
        assert labels.dtype == torch.int64
        assert images.min() == -1
        assert images.max() == 1


def test_native_size_is_the_data_set():
    from sklearn.datasets import load_digits

    native = data.handwritten(8).images[:, 0]
    torch.testing.assert_close((native + 1) * 8, torch.tensor(load_digits().images, dtype=torch.float32))


def test_coarse_structure_agrees(domains):
    gap = data.coarse_gap(domains[0].images, domains[1].images)
    assert gap.mean < 0.11
    assert abs(gap.spread) < 0.05


def test_plain_centred_glyphs_do_not_agree(domains):
    gap = data.coarse_gap(domains[0].images, data.plain().images)
    assert gap.mean > 0.3
    assert gap.spread < -0.3


def test_fine_structure_differs(domains):
    def edges(images):
        return (images[..., 1:] - images[..., :-1]).abs().amax((1, 2, 3)).mean()

    assert edges(domains[1].images) > 1.2 * edges(domains[0].images)


def test_coarse_gap_by_hand():
    ones, halves = torch.ones(2, 1, 8, 8), torch.zeros(2, 1, 8, 8)
    ones[1], halves[1] = -1, -0.5  # block values 1, 0 and 0.5, 0.25 on the [0, 1] scale
    gap = data.coarse_gap(ones, halves)
    assert gap.mean == pytest.approx(0.125)
    assert gap.spread == pytest.approx(-0.75)


def test_printed_is_deterministic_and_not_shared():
    first, again = data.printed(8, variants=2), data.printed(8, variants=2)
    first.images.zero_()
    data._printed.cache_clear()
    fresh = data.printed(8, variants=2)
    assert torch.equal(again.images, fresh.images)
    assert len(torch.unique(fresh.images.flatten(1), dim=0)) == len(fresh.images) == 420


def test_ink_matches(domains):
    ink = [((images + 1) / 2).mean().item() for images, _ in domains]
    assert ink[1] == pytest.approx(ink[0], rel=0.03)


def test_split_is_stratified_and_disjoint(domains):
    kept, held = data.split(domains[1])
    assert torch.bincount(held.labels).tolist() == [42] * 10
    assert len(kept.labels) + len(held.labels) == 2100
    assert torch.equal(held.images, data.split(domains[1])[1].images)
    seen = {image.numpy().tobytes() for image in kept.images}
    assert sum(image.numpy().tobytes() in seen for image in held.images) < 5


def test_limited_lacks_five_classes(domains):
    target = data.limited(domains[0], 100, seed=1)
    assert torch.bincount(target.labels, minlength=10).tolist() == [20] * 5 + [0] * 5
    assert torch.equal(target.images, data.limited(domains[0], 100, seed=1).images)
    assert not torch.equal(target.images, data.limited(domains[0], 100, seed=2).images)
    uneven = data.limited(domains[0], 11, classes=(7, 9), seed=1)
    assert torch.bincount(uneven.labels, minlength=10)[[7, 9]].tolist() == [6, 5]


def test_bad_input(domains, monkeypatch, tmp_path):
    with pytest.raises(UserError, match="size = 12: give a multiple of 8"):
        data.handwritten(12)
    with pytest.raises(UserError, match="class 12 has 0 images, 50 are needed"):
        data.limited(domains[0], 100, classes=(1, 12))
    monkeypatch.setattr(data.mpl, "get_data_path", lambda: str(tmp_path))
    with pytest.raises(UserError, match=r"font file .*DejaVuSans\.ttf is missing"):
        data.plain()


def test_slant_of_drawn_strokes():
    upright, leaning = -torch.ones(2, 1, 1, 9, 9)
    upright[..., 4] = 1
    leaning[0, 0, range(9), range(8, -1, -1)] = 1  # from bottom left to top right: one pixel right for each one up
    images = torch.cat([upright, leaning, leaning.flip(3)])
    torch.testing.assert_close(data.slant(images), torch.tensor([0.0, 1.0, -1.0]), atol=1e-5, rtol=0)
