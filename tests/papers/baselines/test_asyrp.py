"""Editing in h-space: closed forms on a toy network, invariants on a tiny diffusers U-Net."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from lib.ground import diffusion, nets
from lib.papers.baselines import asyrp
from lib.record.files import UserError
from tests.rounding import assert_same

HOW = {"steps": 10, "start": 700}
LEVELS = [(700, 600), (600, 500)]  # of the walk with t_edit = 600


@pytest.fixture(scope="module")
def schedule() -> diffusion.Schedule:
    return diffusion.linear()


@pytest.fixture(scope="module")
def unet() -> nn.Module:
    torch.manual_seed(0)
    return nets.small_unet(size=8, channels=(8, 32), groups=4).double().eval()


@pytest.fixture
def noise() -> Tensor:
    return torch.randn(6, 1, 8, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


class Linear(nn.Module):
    """eps = a x + b h, where the middle block makes h = x + temb: enough of a U-Net to compute by hand."""

    def __init__(self, a: float = 0.3, b: float = 0.5) -> None:
        super().__init__()
        self.a, self.b = nn.Parameter(torch.tensor(a)), nn.Parameter(torch.tensor(b))
        self.mid_block = self.Middle()
        self.config = {"in_channels": 1, "block_out_channels": (1,), "norm_num_groups": 1}
        self.time_embedding = nn.Module()
        self.time_embedding.linear_2 = nn.Linear(1, 1)  # unused; its size is read

    class Middle(nn.Module):
        def forward(self, x: Tensor, temb: Tensor) -> Tensor:
            return x + temb[:, :, None, None]

    def forward(self, x: Tensor, t: Tensor):
        output = nn.Identity()
        output.sample = self.a * x + self.b * self.mid_block(x, t.to(x)[:, None] / 1000)
        return output


def linear_delta(h: Tensor, temb: Tensor, t: int) -> Tensor:
    return 0.2 * h + 1.0


def test_strength_zero_is_ddim(unet, schedule, noise):
    block = asyrp.delta_block(unet).double()
    plain = diffusion.sample_ddim(nets.eps_model(unet), schedule, noise, **HOW)
    assert_same(asyrp.edit(unet, schedule, noise, block, 0.0, t_edit=500, **HOW), plain, steps=8)
    assert (asyrp.edit(unet, schedule, noise, block, 1.0, t_edit=500, **HOW) - plain).abs().max() > 1e-3


def test_only_steps_from_t_edit_upwards_are_edited(unet, schedule, noise):
    block, calls = asyrp.delta_block(unet).double(), []

    def counted(h: Tensor, temb: Tensor, t: int) -> Tensor:
        calls.append(t)
        return block(h, temb, t)

    asyrp.edit(unet, schedule, noise, counted, 1.0, t_edit=500, **HOW)
    assert calls == [700, 600, 500]
    plain = diffusion.sample_ddim(nets.eps_model(unet), schedule, noise, **HOW)
    assert_same(asyrp.edit(unet, schedule, noise, block, 1.0, t_edit=800, **HOW), plain, steps=8)


def test_asymmetric_step_of_a_linear_network_is_the_formula(schedule):
    net, x = Linear().double(), torch.tensor([[[[0.7]]], [[[-1.2]]]], dtype=torch.float64)
    a, a_prev, c = float(schedule.alpha_bar[600]), float(schedule.alpha_bar[500]), 1.5
    result = asyrp.edited_eps(net, x, 600, linear_delta, c)
    eps = nets.eps_model(net)(x, torch.tensor([600, 600]))
    stepped, clean = asyrp.asymmetric_step(schedule, x, eps, result, (600, 500))
    for i in range(2):
        v = x[i].item()
        eps = 0.3 * v + 0.5 * (v + 0.6)
        edited = 0.3 * v + 0.5 * (v + 0.6 + c * (0.2 * (v + 0.6) + 1.0))
        p_t = (v - (1 - a) ** 0.5 * edited) / a**0.5
        assert clean[i].item() == pytest.approx(p_t, rel=1e-6)  # the network's constants are float32
        assert stepped[i].item() == pytest.approx(a_prev**0.5 * p_t + (1 - a_prev) ** 0.5 * eps, rel=1e-6)


def test_symmetric_change_of_both_terms_would_differ(schedule):
    net, x, t = Linear().double(), torch.tensor([[[[0.7]]]], dtype=torch.float64), torch.tensor([600])
    eps, edited = nets.eps_model(net)(x, t), asyrp.edited_eps(net, x, 600, linear_delta)
    asymmetric = asyrp.asymmetric_step(schedule, x, eps, edited, (600, 500))[0]
    symmetric = asyrp.asymmetric_step(schedule, x, edited, edited, (600, 500))[0]
    shift = (1 - float(schedule.alpha_bar[500])) ** 0.5 * (edited - eps)
    assert_same(symmetric - asymmetric, shift)
    assert shift.abs().item() > 0.1


def test_hook_is_removed_also_after_an_exception(unet, schedule, noise):
    t = torch.full((6,), 500)
    before = unet(noise, t).sample
    asyrp.edit(unet, schedule, noise, asyrp.delta_block(unet).double(), 1.0, t_edit=500, **HOW)
    assert torch.equal(unet(noise, t).sample, before)

    def broken(h: Tensor, temb: Tensor, t: int) -> Tensor:
        raise RuntimeError("broken")

    with pytest.raises(RuntimeError, match="broken"):
        asyrp.edit(unet, schedule, noise, broken, 1.0, t_edit=500, **HOW)
    assert torch.equal(unet(noise, t).sample, before)
    assert not unet.mid_block._forward_hooks


def test_mean_difference_of_a_constructed_case(schedule):
    images = torch.cat([torch.full((3, 1, 1, 1), 2.0), torch.full((5, 1, 1, 1), -1.0)]).double()
    levels = [*LEVELS, (500, 400)]
    direction = asyrp.mean_difference(Linear().double(), schedule, images, torch.arange(8) < 3, levels)
    deltas = {t: direction(images, images, t)[0].item() for t, _ in levels}
    assert deltas[700] == pytest.approx(3.0)  # h = x + t / 1000: the shift by t cancels
    gap = 3.0
    for t, previous in LEVELS:  # eps = 0.8 x + const: the gap shrinks by a known factor a step
        a, a_prev = float(schedule.alpha_bar[t]), float(schedule.alpha_bar[previous])
        gap *= (a_prev / a) ** 0.5 * (1 - 0.8 * (1 - a) ** 0.5) + 0.8 * (1 - a_prev) ** 0.5
        assert deltas[previous] == pytest.approx(gap, rel=1e-6)


def test_random_direction_has_the_same_length(unet):
    h, temb = (torch.randn(shape, dtype=torch.float64) for shape in ((3, 32, 4, 4), (3, 32)))
    block = asyrp.delta_block(unet).double()
    ours, other = block(h, temb), asyrp.random_like(block, seed=1)(h, temb, 0)
    assert_same(other.flatten(1).norm(dim=1), ours.flatten(1).norm(dim=1))
    cosine = nn.functional.cosine_similarity(ours.flatten(1), other.flatten(1))
    assert cosine.abs().max() < 0.3
    assert not torch.equal(other, asyrp.random_like(block, seed=2)(h, temb, 0))


def darker(edited: Tensor, original: Tensor) -> Tensor:
    return (edited + 5).square().mean()


def learned(net, schedule, images, objective=darker, walks=100, lambda_l1=0.1):
    noisy = diffusion.invert_ddim(nets.eps_model(net), schedule, images, 10, stop=700)
    settings = {"walks": walks, "batch": 3, "lambda_l1": lambda_l1, "seed": 3}
    rule = {"optimizer": lambda p: torch.optim.Adam(p, lr=1e-2)}
    return asyrp.learn(net, schedule, images, noisy, objective, LEVELS, **settings, **rule)


def test_learning_moves_the_attribute_and_repeats(schedule, noise):
    net = Linear()
    images = noise.float().clamp(-1, 1)
    block, history = learned(net, schedule, images)
    again, _ = learned(net, schedule, images)
    assert all(torch.equal(a, b) for a, b in zip(block.parameters(), again.parameters(), strict=True))
    first, last = history.values["attribute"][0], history.values["attribute"][-1]
    assert last < first / 2
    inverted = diffusion.invert_ddim(nets.eps_model(net), schedule, images, 10, stop=700)
    plain, edited = (asyrp.edit(net, schedule, inverted, block, c, t_edit=600, **HOW) for c in (0, 1))
    assert edited.mean() < plain.mean() - 0.2


def test_classifier_objective_is_the_negative_log_probability():
    x = torch.tensor([0.5, -1.5]).view(2, 1, 1, 1)
    value = asyrp.toward(lambda x: 2 * x.flatten())(x, x).item()
    assert value == pytest.approx(-sum(math.log(1 / (1 + math.exp(-z))) for z in (1.0, -3.0)) / 2, rel=1e-5)


def test_the_distance_weighs_with_the_cosine_of_the_texts():
    features = {"smiling face": torch.tensor([0.6, 0.8]), "face": torch.tensor([1.0, 0.0])}

    class Texts:
        images = None

        def text(self, prompt: str, templates: object = None) -> Tensor:
            return features[prompt]

    assert asyrp.text_terms(Texts(), "smiling face", "face")[1] == pytest.approx(3 * 0.6)
    assert asyrp.text_terms(Texts(), "smiling face", "face", lambda_l1=1.0)[1] == pytest.approx(0.6)


def test_only_the_block_learns(schedule, noise):
    net, noise = Linear(), noise.float()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    learned(net, schedule, noise, walks=2)
    assert all(p.grad is None and p.requires_grad for p in net.parameters())
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    block = asyrp.delta_block(net, seed=3)
    trained, _ = learned(net, schedule, noise, walks=2)
    assert all(not torch.equal(a, b) for a, b in zip(block.parameters(), trained.parameters(), strict=True))


def test_large_l1_weight_keeps_the_image(schedule, noise):
    def indifferent(edited: Tensor, original: Tensor) -> Tensor:
        return 0 * edited.mean()

    values = learned(Linear(), schedule, noise.float(), indifferent, lambda_l1=1.0)[1].values["l1"]
    assert values[-1] < values[0] / 2


def test_sizes_of_the_official_block():
    block = asyrp.DeltaBlock(512, 512, 32)
    assert nets.parameter_count(block) == 3 * (512 * 512 + 512) + 2 * 2 * 512  # 0.79 million, as the paper says


def test_a_network_without_a_middle_block_is_refused():
    with pytest.raises(UserError, match="unet: Linear has no mid_block"):
        asyrp.hooked(nn.Linear(2, 2), linear_delta)
