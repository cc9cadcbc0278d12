"""LaDiffGAN's two losses, what they are trained on, and the whole of it in the plane."""

from functools import partial
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from lib.ground.diffusion import linear
from lib.ground.finetune import Options
from lib.ground.nets import seeded
from lib.papers.baselines import two_player
from lib.papers.baselines.ugatit import UGATIT
from lib.papers.ladiffgan import latent, method, points
from lib.papers.ladiffgan.method import Domain, Supervision
from tests.rounding import assert_same

SCHEDULE = linear()


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def exact(z, t, c):
    """The noise in latents of a domain that holds one point, c."""
    return SCHEDULE.eps_from_x0(z, c, t)


def supervised(reading="source", domains=None, **options):
    """Supervision in the plane with a condition that is the whole input, and critics that say their input's mean."""

    class Mean(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.ones(()))

        def forward(self, z_t, t):
            return self.scale * z_t.mean(1, keepdim=True) + t[:, None]

    domains = domains or {name: Domain(lambda x: x, exact) for name in "sd"}
    return Supervision(domains, lambda x: x, Mean, SCHEDULE, reading=reading, **options)


def test_denoising_loss_pulls_a_translation_to_what_the_denoiser_expects():
    """Of a denoiser that knows its domain to be the point c, the loss is (alpha_bar / (1 - alpha_bar)) |z - c|^2."""
    z, c = torch.randn(5, 2, dtype=torch.float64, requires_grad=True), torch.randn(5, 2, dtype=torch.float64)
    t, eps = torch.tensor([50, 200, 400, 700, 990]), torch.randn(5, 2, dtype=torch.float64)
    loss = method.conditional_denoising(exact, z, c, t, eps, SCHEDULE)
    weight = SCHEDULE.snr[t][:, None]
    assert_same(loss, (weight * (z - c).square()).mean(), steps=10)
    (gradient,) = torch.autograd.grad(loss, z)
    assert_same(gradient, 2 * weight * (z - c) / z.numel(), steps=10)


def test_latent_gan_loss_is_least_squares_on_noised_latents():
    z, eps, t = torch.ones(2, 3), torch.full((2, 3), 2.0), torch.tensor([0, 999])
    seen = []

    def D(z_t, t):
        seen.append(z_t)
        return z_t[:, :1] * 0 + t[:, None]

    assert method.latent_diffusion_gan(D, z, t, eps, SCHEDULE, 1.0) == (1 + 998**2) / 2
    assert_same(seen[0], SCHEDULE.add_noise(z, eps, t))


@pytest.mark.parametrize(
    ("reading", "latents", "seen"), [("source", "y", "x"), ("self", "y", "y"), ("cross", "x", "y")]
)
def test_readings_differ_in_whose_latent_is_denoised_and_what_is_seen(reading, latents, seen):
    calls = []

    def denoise(name, z_t, t, c):
        calls.append((name, z_t, c))
        return torch.zeros_like(z_t)

    domains = {name: Domain(lambda x: x, partial(denoise, name)) for name in "sd"}
    x, y = torch.full((400, 2), 3.0), torch.full((400, 2), 7.0)
    supervised(reading, domains).losses({"s": x}, {"d": y}, rng())
    ((name, z_t, c),) = calls
    assert name == ("s" if reading == "cross" else "d")
    assert torch.equal(c, {"x": x, "y": y}[seen])
    generator = rng()  # the first draws are the GAN loss's
    for _ in range(2):
        t, eps = torch.randint(1000, (400,), generator=generator), torch.randn(400, 2, generator=generator)
    assert_same(z_t, SCHEDULE.add_noise({"x": x, "y": y}[latents], eps, t))


def test_gradients_reach_translations_and_never_what_is_frozen():
    net = nn.Linear(2, 2).requires_grad_(False)
    domains = {name: Domain(net, lambda z, t, c: net(z) + c) for name in "sd"}
    for reading in method.READINGS:
        y = torch.randn(4, 2, requires_grad=True)
        one = supervised(reading, domains)
        losses = one.losses({"s": torch.randn(4, 2)}, {"d": y}, rng())
        for loss in losses.values():
            (gradient,) = torch.autograd.grad(loss, y, retain_graph=True)
            assert gradient.abs().sum() > 0, reading
        one.discriminators_loss({"d": torch.randn(4, 2)}, {"d": y}, rng()).backward()
        assert y.grad is None
        assert all(p.grad is None for p in net.parameters()), "what is frozen"


def test_latent_discriminators_are_told_the_timestep_or_not():
    x, y = {"s": torch.zeros(3, 2), "d": torch.zeros(3, 2)}, {"d": torch.zeros(3, 2), "s": torch.zeros(3, 2)}
    told, not_told = (supervised(timed=timed).losses(x, y, rng())["LDG"] for timed in (True, False))
    assert told > 1000  # the critic of `supervised` adds t to what it says
    assert not_told < 20


P = SimpleNamespace(
    width=8, denoiser_steps=3, steps=4, batch=8, lr=1e-3, kimg=1.0, reading="source", points=60, examples=20,
    cycle=1.0, identity=0.5, cam=10.0,
)  # fmt: skip


def players(one):
    return {f"{player}.{k}": v for player in "GD" for k, v in getattr(one, player).state_dict().items()}


def test_at_weights_0_the_game_is_the_base_bit_for_bit(monkeypatch):
    domains = {name: points.domain(P, 0, name, SCHEDULE) for name in points.LAWS}
    base, _ = points.trained(P, 0, "U-GAT-IT", domains)
    monkeypatch.setattr(points, "ARMS", points.ARMS | {"off": (1e-30, 1e-30)})  # too little for float32 to notice
    off, _ = points.trained(P, 0, "off", domains)
    on, _ = points.trained(P, 0, "LaDiffGAN", domains)
    base, off, on = (players(one) for one in (base, off, on))
    assert all(torch.equal(base[name], off[name]) for name in base)
    assert not all(torch.equal(base[name], on[name]) for name in base)


def test_latent_discriminators_are_trained_and_resumed(tmp_path):
    domains = {name: points.domain(P, 0, name, SCHEDULE) for name in points.LAWS}
    images = {name: law.sample(50, rng()) for name, law in points.LAWS.items()}
    begun = []

    def train(steps, folder):
        one = seeded(0, lambda: UGATIT(partial(points.Generator, 8), lambda: [points.Critic(8)]))
        more = seeded(1, lambda: Supervision(domains, points.condition, partial(points.LatentCritic, 8), SCHEDULE))
        before = {k: v.clone() for k, v in more.D.state_dict().items()}
        seen = []

        def look(i, history):
            seen.append(i)
            if i == steps < 6:
                raise KeyboardInterrupt

        options = Options(8, 1e-3, folder=folder, save_every=1)
        try:
            two_player.train_game(one, images, 6, options, more, on_step=look)
        except KeyboardInterrupt:
            return None
        after = more.D.state_dict()
        begun.append(seen[0])
        assert any(not torch.equal(before[k], after[k]) for k in before)
        return players(one) | after

    whole = train(6, tmp_path / "whole")
    train(3, tmp_path / "halves")
    again = train(6, tmp_path / "halves")
    assert begun == [1, 3]
    assert all(torch.equal(whole[k], again[k]) for k in whole)


def test_a_latent_discriminator_of_one_set_on_both_sides_learns_nothing():
    """Its best answer is 1/2 everywhere, so the generator has no gradient to follow."""
    D = seeded(0, lambda: points.LatentCritic(16))
    optimizer, generator = torch.optim.Adam(D.parameters(), 1e-2), rng()
    for _ in range(300):
        z = points.LAWS["d"].sample(256, generator)
        t, eps = torch.randint(1000, (256,), generator=generator), torch.randn(256, 2, generator=generator)
        loss = sum(method.latent_diffusion_gan(D, z, t, eps, SCHEDULE, goal) for goal in (1.0, 0.0))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    z_t = SCHEDULE.add_noise(z, eps, t)
    assert (D(z_t, t) - 0.5).abs().mean() < 0.1


def test_right_answers_of_the_plane_have_the_targets_law():
    x = points.LAWS["s"].sample(1500, rng())
    y = points.right(x)
    assert (points.nearest("d", y) == points.nearest("s", x)).float().mean() > 0.98  # modes overlap a little
    k = points.nearest("d", y)
    assert (y - points.LAWS["d"].means[k]).std().item() == pytest.approx(points.LAWS["d"].std, rel=0.05)
    scores = points.measures(x, y, points.LAWS["d"].sample(1500, rng(1)))
    assert scores[2] > 0.98
    assert scores[3] == 0
    assert points.measures(x, x, points.LAWS["d"].sample(1500, rng(1)))[0] > 2 * scores[0]


def test_autoencoder_and_denoiser_learn_and_latents_are_normal():
    images = torch.rand(6, 3, 16, 16, generator=rng()) * 2 - 1
    net = seeded(0, lambda: latent.autoencoder(16, 4))
    history = latent.train_autoencoder(net, images, lambda x: [x], 12, Options(4, 2e-3))
    assert history.values["L1"][-1] < history.values["L1"][0]
    assert history.values["perceptual"][0] > history.values["L1"][0]  # four scales, one of them the picture itself
    latents = latent.Latents(net.requires_grad_(False))
    latents.normalise(images)
    with torch.no_grad():
        z = latents.encode(images)
        assert_same(latents.decode(z), net(images).sample, steps=10)
    assert z.shape == (6, 4, 4, 4)
    assert_same(z.mean((0, 2, 3)), torch.zeros(4))
    assert_same(z.std((0, 2, 3)), torch.ones(4))
    condition, channels = latent.CONDITIONS["grey"]
    unet = seeded(0, lambda: latent.denoiser(4, 4, channels, 32))
    history = latent.train_denoiser(unet, latents, SCHEDULE, images, condition, 8, Options(4, 2e-3))
    assert history.values["loss"][-1] < history.values["loss"][0]
    eps = latent.unconditional(unet)(z, torch.full((6,), 10))
    assert eps.shape == z.shape
    assert torch.equal(eps, latent.noise_in(unet)(z, torch.full((6,), 10), torch.zeros(6, 1, 4, 4)))


def test_conditions_hold_less_than_the_picture():
    x = torch.rand(2, 3, 16, 16)
    for condition, channels in latent.CONDITIONS.values():
        assert condition(x).shape == (2, channels, 4, 4)
    assert_same(latent.grey(x), latent.grey(x[:, [2, 0, 1]]))
    assert latent.small(x).unique().numel() == 2 * 3 * 4


def test_perceptual_loss_is_l1_of_layers_at_four_scales():
    x, y = torch.zeros(1, 3, 16, 16), torch.ones(1, 3, 16, 16)
    sides = []

    def layers(images):
        sides.append(images.shape[-1])
        return [images, 2 * images]

    assert latent.perceptual(layers, x, y) == pytest.approx(4 * 3)
    assert sides == [16, 16, 8, 8, 4, 4, 2, 2]
    assert latent.perceptual(layers, x, x) == 0


def test_discriminator_of_latents_is_told_the_time():
    D = latent.LatentDiscriminator(4, 16).eval()
    z = torch.randn(3, 4, 8, 8)
    outputs = D(z, torch.tensor([0, 0, 0])), D(z, torch.tensor([500, 500, 500]))
    assert outputs[0].shape == (3, 1, 4, 4)
    assert not torch.allclose(*outputs)


def test_fields_point_away_from_the_gradient():
    domains = {name: Domain(lambda x: x, lambda z, t, c: SCHEDULE.eps_from_x0(z, c.expand_as(z), t)) for name in "sd"}
    game = UGATIT(partial(points.Generator, 8), lambda: [points.Critic(8)])
    more = Supervision(domains, points.condition, partial(points.LatentCritic, 8), SCHEDULE)
    found = points.fields(game, more, seed=0, draws=8)
    assert found.keys() == {"GAN field", "LDG field", "HCD field"}
    for mode, field in zip(points.INPUTS, found["HCD field"], strict=True):
        towards = points.LAWS["s"].means[mode, 0] - points.grid()  # the denoisers above expect (c, c)
        assert ((field * towards).sum(1) >= 0).all()


def test_a_supervised_translator_is_as_large_as_the_base():
    found = points.plane(0, P)
    assert found["LaDiffGAN size"] == found["U-GAT-IT size"] > 0
    assert found["thrown away"] > 0
