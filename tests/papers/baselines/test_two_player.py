"""U-GAT-IT, UNIT, Diffusion-GAN and the training that they share."""

import math
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lib.ground.finetune import Options
from lib.ground.nets import parameter_count, seeded
from lib.papers.baselines import diffusion_gan, two_player, ugatit
from lib.papers.baselines.diffusion_gan import Noise
from lib.papers.baselines.ugatit import UGATIT
from lib.papers.baselines.unit import UNIT
from lib.record.files import UserError
from tests.rounding import assert_same

OPTIONS = Options(batch=2, lr=1e-3, betas=(0.5, 0.999), weight_decay=1e-4, ema=0.9, flip=True)


def game(kind="U-GAT-IT"):
    """The same small untrained game at each call."""
    critics = lambda: [ugatit.Discriminator(2, 4), ugatit.Discriminator(1, 4)]  # noqa: E731
    makers = {
        "U-GAT-IT": lambda: UGATIT(partial(ugatit.Generator, 16, 4, 1, True), critics),
        "UNIT": lambda: UNIT(4, 1, 2, 2),
    }
    return seeded(0, makers[kind])


@pytest.fixture
def images():
    generator = torch.Generator().manual_seed(0)
    return {name: torch.rand(6, 3, 16, 16, generator=generator) * 2 - 1 for name in "sd"}


def weights(one):
    return {f"{player}.{k}": v for player in "GD" for k, v in getattr(one, player).state_dict().items()}


def test_sizes_are_those_of_the_authors():
    with torch.device("meta"):
        sizes = [parameter_count(ugatit.Generator(256, light=light)) for light in (False, True)]
        critics = [parameter_count(ugatit.Discriminator(halvings)) for halvings in (5, 3)]
    assert sizes == [278_959_808, 10_589_888]
    assert critics == [53_130_176, 3_290_560]


def test_normalisation_is_instance_norm_at_one_and_layer_norm_at_zero():
    a = torch.randn(2, 3, 5, 5, dtype=torch.float64)
    n = 25  # the authors' variance divides by n - 1
    instance = F.instance_norm(a, eps=ugatit.NORM_EPS * (n - 1) / n) * math.sqrt((n - 1) / n)
    layer = F.layer_norm(a, a.shape[1:], eps=ugatit.NORM_EPS * (3 * n - 1) / (3 * n)) * math.sqrt((3 * n - 1) / (3 * n))
    assert_same(ugatit.mixed_norm(a, torch.ones(3, dtype=a.dtype)), instance)
    assert_same(ugatit.mixed_norm(a, torch.zeros(3, dtype=a.dtype)), layer)


@pytest.mark.parametrize("spectral", [False, True])
def test_attention_weighs_each_channel_by_what_the_classifiers_make_of_it(spectral):
    cam = ugatit.CAM(3, nn.Identity(), spectral)
    both = [one.parametrizations.weight.original if spectral else one.weight for one in (cam.of_mean, cam.of_max)]
    with torch.no_grad():
        both[0].copy_(torch.tensor([[1.0, 0.0, 0.0]]))
        both[1].copy_(torch.tensor([[0.0, 0.0, 2.0]]))
        cam.mix.weight.copy_(torch.ones_like(cam.mix.weight))
        cam.mix.bias.zero_()
    a = torch.rand(2, 3, 4, 4)
    for _ in range(30):  # of the power iteration
        weighed, logits = cam(a)
    assert_same(weighed[:, 0], a[:, 0] + 2 * a[:, 2], steps=10)
    assert_same(logits, torch.stack([a[:, 0].mean((1, 2)), (1 if spectral else 2) * a[:, 2].amax((1, 2))], 1), steps=10)


def test_losses_of_known_generators_and_discriminators():
    """A generator that adds 1 and one that subtracts it: the cycle closes, the identity is off by 1."""

    class Adds(nn.Module):
        def __init__(self, step):
            super().__init__()
            self.step = step

        def forward(self, x):
            return x + self.step, x.new_zeros(len(x), 2)

    class Says(nn.Module):
        def forward(self, x):
            return [x.mean(1, keepdim=True), x[:, :1]]

    steps = iter([-1.0, 1.0])  # to the source, to the target
    one = UGATIT(lambda: Adds(next(steps)), lambda: [Says()])
    x = {"s": torch.zeros(3, 2), "d": torch.ones(3, 2)}
    y, losses = one.play(x)
    assert y["d"].eq(1).all()
    assert y["s"].eq(0).all()
    assert losses["cycle"] == 0
    assert losses["identity"] == 2
    assert losses["cam"] == pytest.approx(4 * math.log(2))
    see = lambda images: images  # noqa: E731
    assert one.adversarial(y, see) == 2  # both outputs of the source's critic say 0 of a translation, of the target's 1
    loss, real = one.discriminators_loss(x, y, see)
    assert loss == 2 * 1 + 2 * 1  # target: real 1 right, fake 1 wrong; source: real 0 wrong, fake 0 right
    assert sorted(real.tolist()) == [0, 0, 0, 1, 1, 1]


@pytest.mark.parametrize("kind", ["U-GAT-IT", "UNIT"])
def test_training_moves_both_players_and_resumes_bit_for_bit(kind, images, tmp_path):
    begun = []

    def train(steps, folder):
        one, noise, seen = game(kind), Noise(kimg=0.1), []
        noise.p.fill_(0.5)
        options = Options(**{**vars(OPTIONS), "folder": folder, "save_every": 2})
        stop = steps if steps < 8 else 0

        def look(i, history):
            seen.append(i)
            if i == stop:
                raise KeyboardInterrupt

        try:
            history = two_player.train_game(one, images, 8, options, augmentation=noise, on_step=look)
        except KeyboardInterrupt:
            return None
        begun.append(seen[0])
        return weights(one) | noise.state_dict() | {f"ema {k}": v for k, v in history.ema["G"].items()}

    whole = train(8, tmp_path / "whole")
    assert train(4, tmp_path / "halves") is None
    again = train(8, tmp_path / "halves")
    assert begun == [1, 4]
    assert whole.keys() == again.keys()
    assert all(torch.equal(whole[name], again[name]) for name in whole)
    before = weights(game(kind))
    assert any(not torch.equal(whole[k], v) for k, v in before.items() if k.startswith("G"))
    assert any(not torch.equal(whole[k], v) for k, v in before.items() if k.startswith("D"))
    assert whole["p"] != 0.5  # the augmentation has moved, too


def test_shares_stay_between_0_and_1(images):
    one = game()
    options = Options(**{**vars(OPTIONS), "lr": 0.5})
    two_player.train_game(one, images, 4, options)
    rho = torch.cat([p for name, p in one.G.named_parameters() if name.endswith("rho")])
    assert rho.min() >= 0
    assert rho.max() <= 1
    assert rho.unique().numel() > 2


def test_rate_is_constant_and_then_falls_to_0(images, monkeypatch):
    rates = []
    monkeypatch.setattr(two_player, "update", lambda optimizer, *_: rates.append(optimizer.param_groups[0]["lr"]) or {})
    two_player.train_game(game(), images, 4, OPTIONS)
    assert rates[::2] == rates[1::2] == pytest.approx([1e-3, 1e-3, 1e-3, 0.5e-3])


def test_noise_is_that_of_diffusion_gan():
    noise = Noise()
    assert noise.T == 10
    betas = torch.linspace(1e-4, 0.02, 10)
    assert_same(noise.alpha_bar()[:11], torch.cat([torch.ones(1), (1 - betas).cumprod(0)]), steps=10)
    noise.t.fill_(10)
    x = torch.full((4000, 1, 2, 2), 0.5)
    y = noise(x, torch.Generator().manual_seed(0))
    kept = noise.alpha_bar()[10]
    assert y.mean().item() == pytest.approx(0.5 * kept.sqrt().item(), abs=4 * 0.05 / math.sqrt(16000))
    assert y.std().item() == pytest.approx(0.05 * (1 - kept).sqrt().item(), rel=0.03)
    noise.t.zero_()
    assert torch.equal(noise(x, torch.Generator()), x)


def test_noise_grows_while_the_discriminator_is_sure_and_shrinks_when_it_is_not():
    noise, rng = Noise(kimg=1.0), torch.Generator().manual_seed(0)
    before = noise.t.clone()
    for i in range(8):
        noise.adapt(torch.tensor(0.9), batch=50, rng=rng)
        assert noise.p == pytest.approx(0.2 * ((i + 1) // diffusion_gan.EVERY))
    assert float(noise.T) == 406
    assert not torch.equal(noise.t, before)
    assert (noise.t == 0).sum() >= 32
    assert noise.t.max() <= noise.T
    for _ in range(4):
        noise.adapt(torch.tensor(0.5), batch=50, rng=rng)
    assert noise.p == pytest.approx(0.2)


def test_large_timesteps_are_drawn_as_often_as_they_are_large():
    noise = Noise()
    drawn = torch.cat([(noise._draw(torch.Generator().manual_seed(i)), noise.t[32:].clone())[1] for i in range(600)])
    share = drawn.bincount(minlength=11)[1:] / len(drawn)
    wanted = torch.arange(10) / 45  # as in the authors' code: t - 1
    assert (share - wanted).abs().max() < 5 * (wanted * (1 - wanted) / len(drawn)).sqrt().max()


def test_attention_is_told_which_pictures_are_foreign():
    """A generator's logit is to be positive on pictures of the other domain and negative on those it leads to."""

    class Knows(nn.Module):
        def __init__(self, own):
            super().__init__()
            self.own = own

        def forward(self, x):
            return x, torch.where(x[:, :1] == self.own, -20.0, 20.0).expand(-1, 2)

    own = iter([0.0, 1.0])  # the source's pictures are 0, the target's 1
    one = UGATIT(lambda: Knows(next(own)), lambda: [])
    _, losses = one.play({"s": torch.zeros(3, 2), "d": torch.ones(3, 2)})
    assert losses["cam"] < 1e-6


def test_each_domain_has_critics_of_its_own():
    """Translations into a domain are judged by its critic, beside its real pictures."""

    class Notes(nn.Module):
        def __init__(self):
            super().__init__()
            self.seen = []

        def forward(self, x):
            self.seen.append(sorted(x.unique().tolist()))
            return [x, x]

    one = UGATIT(nn.Identity, lambda: [Notes()])
    x, y = (
        {"s": torch.full((2, 1), 1.0), "d": torch.full((2, 1), 2.0)},
        {"s": torch.full((2, 1), 3.0), "d": torch.full((2, 1), 4.0)},
    )
    one.discriminators_loss(x, y, lambda images: images)
    one.adversarial(y, lambda images: images)
    assert one.D["s"][0].seen == [[1, 3], [3]]
    assert one.D["d"][0].seen == [[2, 4], [4]]


def test_losses_of_unit_with_known_coders(monkeypatch):
    """Coders that add to latents what they take away: without noise nothing is lost, and latents are what they are."""
    one, taken = UNIT(4, 1, 2, 2), {"s": 1.0, "d": 2.0}
    for domain, step in taken.items():
        monkeypatch.setattr(one.G[domain].encode, "forward", lambda x, step=step: x + step)
        monkeypatch.setattr(one.G[domain].decode, "forward", lambda h, step=step: h - step)
    x = {"s": torch.zeros(2, 3, 4, 4), "d": torch.ones(2, 3, 4, 4)}
    monkeypatch.setattr(torch, "randn_like", torch.zeros_like)
    y, losses = one.play(x)
    assert y["d"].eq(-1).all()  # 0 + 1 - 2
    assert y["s"].eq(2).all()
    assert losses["reconstruction"] == losses["cycle"] == 0
    assert losses["kl"] == losses["cycle_kl"] == 1 + 9  # latents 0 + 1 and 1 + 2, again after the translation
    monkeypatch.setattr(torch, "randn_like", torch.ones_like)
    y, losses = one.play(x)
    assert y["d"].eq(0).all()
    assert losses["reconstruction"] == 2  # the noise of 1 stays in the picture
    assert losses["cycle"] == 4  # noise of the first latent and of the second
    assert losses["kl"] == 10


def test_settings_that_two_players_cannot_follow_are_refused(images):
    with pytest.raises(UserError, match="warm-up and accumulation"):
        two_player.train_game(game(), images, 1, Options(accumulate=2))


def test_a_run_of_other_weights_does_not_resume(images, tmp_path):
    options = Options(**{**vars(OPTIONS), "folder": tmp_path})
    two_player.train_game(game(), images, 1, options, augmentation=Noise(1.0))
    with pytest.raises(UserError, match="kimg"):
        two_player.train_game(game(), images, 1, options, augmentation=Noise(2.0))


def test_unit_translates_by_the_other_domains_decoder(images):
    one = game("UNIT").eval()
    x = images["s"]
    assert torch.equal(one.translator()(x), one.G["d"].decode(one.G["s"].encode(x)))
    assert torch.equal(one.translator("s")(x), one.G["s"].decode(one.G["d"].encode(x)))
    assert [part.shape[-1] for part in one.D["d"](x)] == [4, 2]
