"""Prompts of the digit model: their numbers, the null prompt's share, the folder, and that training heeds them."""

import json
from types import SimpleNamespace

import pytest
import torch
from diffusers.models.unets.unet_2d import UNet2DModel

from lib.ground import nets
from lib.papers.dds import fast as dds
from lib.record.files import UserError
from lib.worlds import digits as data, judge as metrics, prompts as digit_prompts, sources as source
from tests.rounding import assert_same

TINY = {"size": 8, "channels": (8, 32), "steps": 3, "batch": 2}


@pytest.fixture(autouse=True)
def few_pictures(monkeypatch):
    whole = data.printed
    monkeypatch.setattr(data, "printed", lambda size: whole(size, variants=1))


@pytest.fixture(scope="module")
def untrained():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return digit_prompts.with_prompts(nets.small_unet(8, (8, 32))).eval()


def test_prompts_are_numbered_by_domain_then_digit():
    numbers = [digit_prompts.prompt(digit, domain).item() for domain in (0, 1) for digit in range(10)]
    assert numbers == list(range(20))
    assert digit_prompts.prompt(3, metrics.HANDWRITTEN).item() == 13
    assert digit_prompts.null().item() == digit_prompts.NULL == 20
    assert digit_prompts.null().dtype == digit_prompts.prompt(0, 0).dtype == torch.long
    assert digit_prompts.null().shape == digit_prompts.prompt(0, 0).shape == (1,)


def test_training_set_has_the_prompts_of_its_images_and_no_held_out_one():
    images, prompts = digit_prompts.training_set(8)
    for domain, digits in ((metrics.PRINTED, data.printed(8)), (metrics.HANDWRITTEN, data.handwritten(8))):
        kept, held = data.split(digits)
        mine = prompts // 10 == domain
        assert torch.equal(images[mine], kept.images)
        assert torch.equal(prompts[mine] % 10, kept.labels)
        assert len(kept.labels) + len(held.labels) == len(digits.labels)
    assert len(prompts) == len(data.split(data.printed(8))[0].labels) + len(data.split(data.handwritten(8))[0].labels)


def test_null_prompt_replaces_the_asked_share():
    prompts, generator = torch.arange(20).repeat(1000), torch.Generator().manual_seed(0)
    assert torch.equal(digit_prompts.dropped(prompts, 0.0, generator), prompts)
    assert (digit_prompts.dropped(prompts, 1.0, generator) == digit_prompts.NULL).all()
    some = digit_prompts.dropped(prompts, 0.15, generator)
    changed = some != prompts
    assert (some[changed] == digit_prompts.NULL).all()
    assert changed.float().mean().item() == pytest.approx(0.15, abs=0.01)  # 4 standard deviations of 20,000 draws
    by_prompt = changed.view(1000, 20).float().mean(0)
    assert by_prompt.min() > 0.1  # every prompt is dropped, not only some
    assert by_prompt.max() < 0.2


def test_network_differs_from_the_plain_one_by_its_prompts_alone(untrained):
    plain = nets.small_unet(8, (8, 32))
    more = set(untrained.state_dict()) - set(plain.state_dict())
    assert more == {"class_embedding.weight"}
    assert len(untrained.class_embedding.weight) == digit_prompts.NULL + 1
    for name, value in plain.state_dict().items():
        assert untrained.state_dict()[name].shape == value.shape


def test_prompt_model_reads_each_images_own_prompt(untrained):
    model = digit_prompts.prompt_model(untrained)
    z, t = torch.randn(1, 1, 8, 8, generator=torch.Generator().manual_seed(1)).expand(3, -1, -1, -1), torch.tensor(500)
    y = torch.cat([digit_prompts.prompt(3, 1), digit_prompts.null(), digit_prompts.prompt(3, 1)])
    with torch.no_grad():
        first, nothing, again = model(z, t.expand(3), y)
        alone = model(z[:1], t.expand(1), digit_prompts.null())[0]
    assert_same(first, again)
    assert_same(nothing, alone)
    assert not torch.allclose(first, nothing, atol=1e-3)


def test_training_teaches_every_prompt_it_sees(tmp_path):
    """With all prompts dropped only the null prompt's embedding moves; with none, it alone stays."""
    embedding = "class_embedding.weight"
    options = TINY | {"steps": 6, "batch": 32, "ema": 0.0}
    start, _ = digit_prompts.class_model(tmp_path / "start", **options | {"steps": 1, "lr": 0.0})
    only, _ = digit_prompts.class_model(tmp_path / "only", **options, drop=1.0)
    none, _ = digit_prompts.class_model(tmp_path / "none", **options, drop=0.0)
    before = start.state_dict()[embedding]
    moved = [(unet.state_dict()[embedding] != before).any(1) for unet in (only, none)]
    assert moved[0].nonzero().flatten().tolist() == [digit_prompts.NULL]
    assert moved[1].nonzero().flatten().tolist() == list(range(digit_prompts.NULL))


def test_after_a_few_steps_prompts_pull_apart(tmp_path):
    """An edit towards another prompt moves the image, one towards its own prompt does not."""
    unet, schedule = digit_prompts.class_model(tmp_path / "prompts", **TINY)
    model, z_hat = digit_prompts.prompt_model(unet), data.handwritten(8).images[:2]
    three, eight = digit_prompts.prompt(3, 1), digit_prompts.prompt(8, 1)
    options = {"iterations": 3, "seed": 1}
    moved = dds.edit(model, schedule, z_hat, eight, three, digit_prompts.null(), **options).z
    same = dds.edit(model, schedule, z_hat, three, three, digit_prompts.null(), **options).z
    assert torch.equal(same, z_hat)
    assert (moved - z_hat).abs().amax((1, 2, 3)).min() > 1e-3


def test_folder_is_trained_once_then_loaded(tmp_path, monkeypatch):
    first, schedule = digit_prompts.class_model(tmp_path / "prompts", **TINY)
    plain = UNet2DModel.from_pretrained(tmp_path / "prompts", subfolder="unet")
    monkeypatch.setattr(source, "train", None)
    second, _ = digit_prompts.class_model(tmp_path / "prompts", **TINY)
    loaded, again = digit_prompts.load(tmp_path / "prompts")
    assert torch.equal(schedule.alpha_bar, again.alpha_bar)
    for name, value in first.state_dict().items():
        for other in (second, loaded, plain):
            assert torch.equal(value, other.state_dict()[name]), name


def test_other_share_of_null_prompts_trains_anew(tmp_path):
    digit_prompts.class_model(tmp_path / "prompts", **TINY)
    digit_prompts.class_model(tmp_path / "prompts", **TINY, drop=0.5)
    assert json.loads((tmp_path / "prompts" / source.SETTINGS).read_text())["drop"] == 0.5


def test_interrupted_training_is_resumed(tmp_path, monkeypatch):
    whole, _ = digit_prompts.class_model(tmp_path / "whole", **TINY)
    train = source.train

    def stop(i, values):
        if i == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(source, "train", lambda *args, **kw: train(*args, **kw | {"save_every": 1, "on_step": stop}))
    with pytest.raises(KeyboardInterrupt):
        digit_prompts.class_model(tmp_path / "prompts", **TINY)
    assert not (tmp_path / "prompts").exists()
    monkeypatch.setattr(source, "train", train)
    resumed, _ = digit_prompts.class_model(tmp_path / "prompts", **TINY)
    for name, value in whole.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name


def test_impossible_channels(tmp_path):
    with pytest.raises(UserError, match="multiples of 8, the last one of 32"):
        digit_prompts.class_model(tmp_path / "prompts", **TINY | {"channels": (8, 16)})


def test_bad_folders_are_refused_in_one_line(tmp_path):
    with pytest.raises(UserError, match=r"model with prompts .*config\.json is missing; run 41_dds_digits first"):
        digit_prompts.load(tmp_path / "nowhere")
    source.source_model(tmp_path / "plain", **TINY)
    with pytest.raises(UserError, match=r"plain: no classes; 21 are needed, .*; name a folder made by 41_dds_digits"):
        digit_prompts.load(tmp_path / "plain")
    digit_prompts.class_model(tmp_path / "prompts", **TINY)
    weights = tmp_path / "prompts/unet/diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(
        UserError,
        match=r"truncated or damaged \(\w+\); model with prompts: delete the folder and run 41_dds_digits again",
    ):
        digit_prompts.load(tmp_path / "prompts")


def asked(artefacts, source="", steps=1, profile="cpu"):
    """Parameters of a notebook with prompts."""
    given = {"source": source, "prompt_steps": steps, "judge_steps": steps, "profile": profile}
    return SimpleNamespace(artefacts=artefacts, device="cpu", **given)


def test_shared_trains_what_is_missing_and_then_loads_it(tmp_path, monkeypatch):
    unet, schedule, judge = digit_prompts.shared(asked(tmp_path), 3)
    assert (unet.config["sample_size"], judge.size, schedule.T) == (16, 16, 1000)
    monkeypatch.setattr(source, "train", None)
    monkeypatch.setattr(metrics, "train", None)
    again, _, judge_again = digit_prompts.shared(asked(tmp_path, steps=7), 3)  # what is there is not replaced
    assert torch.equal(unet.class_embedding.weight, again.class_embedding.weight)
    assert torch.equal(judge.digit.weight, judge_again.digit.weight)


@pytest.mark.parametrize("profile", ["gpu", "paper"])
def test_shared_trains_no_model_whose_size_it_does_not_know(tmp_path, profile):
    with pytest.raises(UserError, match=rf"no model in .*3; at profile {profile} run 41_dds_digits first"):
        digit_prompts.shared(asked(tmp_path, profile=profile), 3)
    assert not list(tmp_path.iterdir())


def test_each_seed_has_a_model_and_a_judge_of_its_own(tmp_path):
    (unet, _, judge), (other, _, other_judge) = (digit_prompts.shared(asked(tmp_path), seed) for seed in (3, 4))
    assert not torch.equal(unet.class_embedding.weight, other.class_embedding.weight)
    assert not torch.equal(judge.digit.weight, other_judge.digit.weight)


def test_shared_refuses_a_model_of_other_images(tmp_path):
    source.classifier(tmp_path / "judges" / "0", 16, 1)
    digit_prompts.class_model(tmp_path / "small", **TINY)
    with pytest.raises(UserError, match=r"images 1 x 8 x 8 given; the classifier takes 1 x 16 x 16"):
        digit_prompts.shared(asked(tmp_path, tmp_path / "small"), 0)


def test_mean_images_and_the_farthest_pair():
    means = digit_prompts.mean_images(metrics.HANDWRITTEN, 16)
    kept = data.split(data.handwritten(16))[0]
    torch.testing.assert_close(means[3], kept.images[kept.labels == 3].mean(0))
    distances = {(a, b): (means[a] - means[b]).norm().item() for a in range(10) for b in range(a + 1, 10)}
    assert digit_prompts.farthest_pair(metrics.HANDWRITTEN, 16) == max(distances, key=distances.get) == (6, 7)


def test_reads_asks_for_digit_and_domain_of_every_image():
    class Told(metrics.Classifier):
        """Reads the digit in the first pixel, tenths, and the domain in the second."""

        def features(self, images):
            return images[:, 0, 0, :2]

        def digit(self, features):
            return -(features[:, :1] * 10 - torch.arange(10)).abs()

        def domain(self, features):
            return torch.stack([1 - features[:, 1], features[:, 1]], 1)

    told = Told.__new__(Told)
    torch.nn.Module.__init__(told)
    told.register_parameter("nothing", torch.nn.Parameter(torch.zeros(1)))
    images = torch.zeros(3, 2, 1, 8, 8)
    images[..., 0, 0, 0] = torch.tensor([[0.3, 0.8], [0.8, 0.8], [0.8, 0.3]])
    images[..., 0, 0, 1] = torch.tensor([[1.0, 1.0], [0.0, 1.0], [1.0, 1.0]])
    read = digit_prompts.reads(told, images, 8, metrics.HANDWRITTEN)
    assert read.tolist() == [[False, True], [False, True], [True, False]]
    own = digit_prompts.reads(told, images[0], torch.tensor([3, 3]), metrics.HANDWRITTEN)
    assert own.tolist() == [True, False]
