"""LPIPS as a squared distance of embeddings is the lpips package's, and Intra-LPIPS is the mean over pairs."""

import itertools

import numpy as np
import pytest
import torch

from lib.measures import perceptual
from lib.record.files import UserError
from lib.worlds import judge as metrics
from tests.rounding import assert_same

SIZE = 32


def images(n, channels=1, seed=0, size=SIZE):
    return torch.rand(n, channels, size, size, generator=torch.Generator().manual_seed(seed)) * 2 - 1


@pytest.fixture(scope="module", params=["squeeze", "alex"])
def net(request):
    size = 64 if request.param == "alex" else SIZE  # its strides leave nothing of less
    return perceptual.lpips_features(request.param, size, random=True), request.param, size


@pytest.fixture(scope="module")
def small():
    return perceptual.lpips_features("squeeze", SIZE, random=True)


@pytest.fixture(scope="module")
def package():
    return perceptual.lpips_model("squeeze", random=True)


def naive(package, samples, training, cap=None, seed=0):
    """The definition, one pair a call, by the package: means over pairs, one a cluster."""

    def distance(a, b):
        return package(a[None].expand(-1, 3, -1, -1), b[None].expand(-1, 3, -1, -1)).item()

    cluster = [int(np.argmin([distance(x, y) for y in training])) for x in samples]
    means = []
    for i in range(len(training)):
        members = [x for x, c in zip(samples, cluster, strict=True) if c == i]
        if len(members) > 1:
            means.append(np.mean([distance(a, b) for a, b in itertools.combinations(members, 2)]))
    return means, [cluster.count(i) for i in range(len(training))]


@pytest.mark.parametrize("channels", [1, 3])
def test_embedding_gives_the_packages_distances(net, channels):
    embedding, name, size = net
    x = images(4, channels, size=size)
    found = perceptual.pairwise_lpips(embedding(x))
    model, colour = perceptual.lpips_model(name, random=True), x.expand(-1, 3, -1, -1)
    expected = torch.stack([model(colour, other.expand(4, -1, -1, -1)).flatten() for other in colour])
    torch.testing.assert_close(found, expected.double(), rtol=1e-5, atol=1e-12)


def test_pairwise_between_two_sets_in_blocks(monkeypatch):
    a, b = (torch.randn(n, 1000, generator=torch.Generator().manual_seed(n)) for n in (5, 3))
    expected = torch.cdist(a.double(), b.double()).square()
    torch.testing.assert_close(perceptual.pairwise_lpips(a, b), expected)
    monkeypatch.setattr(perceptual, "BLOCK", 1000)  # 125 columns at a time
    torch.testing.assert_close(perceptual.pairwise_lpips(a, b), expected)
    near = a + 1e-4 * torch.randn(a.shape, generator=torch.Generator().manual_seed(9))
    exact = (a.double() - near.double()).square().sum(1)
    torch.testing.assert_close(perceptual.pairwise_lpips(a, near).diagonal(), exact, rtol=1e-7, atol=0)


class Points:
    """Points as they are in place of embeddings."""

    name = "points"

    def __call__(self, x, batch=64):
        return x


def test_intra_lpips_is_the_mean_over_pairs(small, package):
    samples, training = images(12), images(3, seed=1)
    samples = 0.5 * samples + 0.5 * training[torch.arange(12) % 3]  # so that every cluster has some
    means, counts = naive(package, samples, training)
    found = perceptual.intra_lpips(small, iter(samples.split(5)), training)
    assert found.value == pytest.approx(np.mean(means), rel=1e-4)
    assert found.spread == pytest.approx(np.std(means), rel=1e-3)
    assert list(found.counts) == counts
    assert found.protocol.startswith("Intra-LPIPS, LPIPS squeeze with a random trunk 32 px: 12 samples, 3 training")
    capped = perceptual.intra_lpips(small, iter(samples.split(5)), training, cap=12)  # all of them, kept as images
    assert capped.value == pytest.approx(found.value, rel=1e-4)


def test_identical_samples_have_no_diversity(small):
    same = images(1).expand(40, -1, -1, -1)
    assert perceptual.intra_lpips(small, [same], images(2, seed=1)).value == pytest.approx(0, abs=1e-9)


def test_clusters_without_a_pair():
    training = torch.tensor([[0.0, 0.0], [10.0, 0.0], [20.0, 0.0]])
    samples = torch.tensor([[0.0, 1.0], [0.0, -1.0], [0.0, 0.0], [10.0, 0.0]])  # pairs of the first: 4, 1, 1
    found = perceptual.intra_lpips(Points(), samples.split(3), training)
    assert found[:3] == (2.0, 0.0, (3, 1, 0))
    assert found.protocol.endswith("all members of a cluster, 2 of 3 clusters without a pair left out")
    assert np.isnan(perceptual.intra_lpips(Points(), [samples[2:]], training).value)


def test_cap_takes_random_members():
    samples = torch.randn(400, 3, generator=torch.Generator().manual_seed(0))
    training = torch.zeros(1, 3)

    def value(**options):
        return perceptual.intra_lpips(Points(), samples.split(100), training, **options)

    values = [value(cap=2, seed=seed).value for seed in range(100)]
    every = value().value
    assert np.mean(values) == pytest.approx(every, abs=4 * np.std(values) / 100**0.5)  # unbiased
    assert np.std(values) > 1
    capped = value(cap=50, seed=3)
    assert capped.counts == (400,)
    assert capped == value(cap=50, seed=3)
    assert "at most 50 random members a cluster (seed 3)" in capped.protocol
    assert value(cap=400).value == pytest.approx(every)


def test_digit_features_have_the_form_of_lpips():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        judge = metrics.Classifier(16)
    x = images(3, size=16)
    found = perceptual.pairwise_lpips(metrics.digit_features(judge)(x))
    layers, y = [], x
    for layer in judge.body[:8]:
        y = layer(y)
        layers += [y] if isinstance(layer, torch.nn.SiLU) else []
    assert [f.shape[1] for f in layers] == [16, 32, 64]
    expected = torch.zeros(3, 3)
    for f in layers:
        unit = torch.nn.functional.normalize(f, dim=1)
        expected += (unit[:, None] - unit).square().sum(2).mean((2, 3))
    assert_same(found.float(), expected)
    assert metrics.digit_features(judge).name == "digit features 16 px"


def test_batches_and_clamping_do_not_matter(small):
    x = images(5)
    assert_same(small(x, batch=2), small(x))
    assert torch.equal(small(3 * x), small((3 * x).clamp(-1, 1)))


def test_resizing_and_equal_seeds():
    small, large = (perceptual.lpips_features("squeeze", size, random=True) for size in (SIZE, 2 * SIZE))
    assert large(images(1)).shape[1] > small(images(1)).shape[1]
    again = perceptual.lpips_features("squeeze", SIZE, random=True)
    assert torch.equal(small(images(2)), again(images(2)))


def test_missing_weights_are_named(monkeypatch, tmp_path):
    def no_network(*_, **__):
        raise OSError("no network")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr("torch.hub.download_url_to_file", no_network)
    with pytest.raises(UserError, match=r"vgg16-397923af\.pth, .*cannot be downloaded.* at .*BSD-3-Clause"):
        perceptual.lpips_features("vgg")


def test_bad_input(small):
    z = torch.zeros(3, 2)
    with pytest.raises(UserError, match="net: 'resnet' given; one of vgg"):
        perceptual.lpips_features("resnet")
    with pytest.raises(UserError, match="not finite"):
        perceptual.intra_lpips(Points(), [z / 0], z)
    with pytest.raises(UserError, match=r"3 x 16 x 16 given.*takes 1 x 16 x 16"):
        metrics.digit_features(metrics.Classifier(16))(images(1, 3, size=16))


def test_a_negative_head_is_refused(monkeypatch, package):
    import copy

    bad = copy.deepcopy(package)
    with torch.no_grad():
        bad.lins[0].model[-1].weight[0, 0] = -1
    monkeypatch.setattr(perceptual, "lpips_model", lambda *_: bad)
    with pytest.raises(UserError, match="negative weight"):
        perceptual.lpips_features("squeeze")
