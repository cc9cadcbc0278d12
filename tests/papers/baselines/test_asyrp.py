"""Editing in h-space: closed forms on a toy network, invariants on a tiny diffusers U-Net."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from lib.ground import diffusion, nets
from lib.papers.baselines import asyrp
from lib.record.files import UserError

HOW = {"steps": 10, "start": 700}


@pytest.fixture(scope="module")
def schedule() -> diffusion.Schedule:
    return diffusion.linear()


@pytest.fixture(scope="module")
def unet() -> nn.Module:
    torch.manual_seed(0)
    return nets.small_unet(size=8, channels=(8, 32), groups=4).eval()


@pytest.fixture
def noise() -> Tensor:
    return torch.randn(6, 1, 8, 8, generator=torch.Generator().manual_seed(1))


class Linear(nn.Module):
    """eps = a x + b h, where the middle block makes h = x + temb: enough of a U-Net to compute by hand."""

    def __init__(self, a: float = 0.3, b: float = 0.5) -> None:
        super().__init__()
        self.a, self.b = nn.Parameter(torch.tensor(a)), nn.Parameter(torch.tensor(b))
        self.mid_block = self.Middle()
        self.config = {"block_out_channels": (1,), "norm_num_groups": 1}
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


def test_strength_zero_is_ddim_bit_for_bit(unet, schedule, noise):
    block = asyrp.delta_block(unet)
    plain = diffusion.sample_ddim(nets.eps_model(unet), schedule, noise, **HOW)
    assert torch.equal(asyrp.edit(unet, schedule, noise, block, 0.0, **HOW), plain)
    assert not torch.equal(asyrp.edit(unet, schedule, noise, block, 1.0, **HOW), plain)
    clipped = diffusion.sample_ddim(nets.eps_model(unet), schedule, noise, clip=True, **HOW)
    assert torch.equal(asyrp.edit(unet, schedule, noise, block, 0.0, clip=True, **HOW), clipped)


def test_only_steps_from_t_edit_upwards_are_edited(unet, schedule, noise):
    block, calls = asyrp.delta_block(unet), []

    def counted(h: Tensor, temb: Tensor, t: int) -> Tensor:
        calls.append(t)
        return block(h, temb, t)

    asyrp.edit(unet, schedule, noise, counted, t_edit=500, **HOW)
    assert calls == [700, 600, 500]
    plain = diffusion.sample_ddim(nets.eps_model(unet), schedule, noise, **HOW)
    assert torch.equal(asyrp.edit(unet, schedule, noise, block, t_edit=800, **HOW), plain)


def test_asymmetric_step_of_a_linear_network_is_the_formula(schedule):
    net, x = Linear(), torch.tensor([[[[0.7]]], [[[-1.2]]]])
    a, a_prev, c = float(schedule.alpha_bar[600]), float(schedule.alpha_bar[500]), torch.tensor([1.5, -2.0])
    result = asyrp.edited_eps(net, x, 600, linear_delta, c)
    stepped, clean = asyrp.asymmetric_step(
        schedule, x, nets.eps_model(net)(x, torch.tensor([600, 600])), result, 600, 500
    )
    for i in range(2):
        v, strength = x[i].item(), c[i].item()
        eps = 0.3 * v + 0.5 * (v + 0.6)
        edited = 0.3 * v + 0.5 * (v + 0.6 + strength * (0.2 * (v + 0.6) + 1.0))
        p_t = (v - (1 - a) ** 0.5 * edited) / a**0.5
        assert clean[i].item() == pytest.approx(p_t, rel=1e-5)
        assert stepped[i].item() == pytest.approx(a_prev**0.5 * p_t + (1 - a_prev) ** 0.5 * eps, rel=1e-5)


def test_symmetric_change_of_both_terms_would_differ(schedule):
    net, x, t = Linear(), torch.tensor([[[[0.7]]]]), torch.tensor([600])
    eps, edited = nets.eps_model(net)(x, t), asyrp.edited_eps(net, x, 600, linear_delta)
    asymmetric = asyrp.asymmetric_step(schedule, x, eps, edited, 600, 500)[0]
    symmetric = asyrp.asymmetric_step(schedule, x, edited, edited, 600, 500)[0]
    shift = (1 - float(schedule.alpha_bar[500])) ** 0.5 * (edited - eps)
    torch.testing.assert_close(symmetric - asymmetric, shift)


def test_hook_is_removed_also_after_an_exception(unet, schedule, noise):
    t = torch.full((6,), 500)
    before = unet(noise, t).sample
    asyrp.edit(unet, schedule, noise, asyrp.delta_block(unet), **HOW)
    assert torch.equal(unet(noise, t).sample, before)

    def broken(h: Tensor, temb: Tensor, t: int) -> Tensor:
        raise RuntimeError("broken")

    with pytest.raises(RuntimeError, match="broken"):
        asyrp.edit(unet, schedule, noise, broken, **HOW)
    assert torch.equal(unet(noise, t).sample, before)
    assert not unet.mid_block._forward_hooks


def test_mean_difference_of_a_constructed_case(schedule):
    images = torch.cat([torch.full((3, 1, 1, 1), 2.0), torch.full((5, 1, 1, 1), -1.0)])
    table = asyrp.mean_difference(Linear(), schedule, images, torch.arange(8) < 3, steps=10, start=700, t_edit=500)
    assert sorted(table.deltas) == [500, 600, 700]
    assert table.deltas[700].item() == pytest.approx(3.0)  # h = x + t / 1000: the shift by t cancels
    gap = 3.0
    for t, previous in ((700, 600), (600, 500)):  # eps = 0.8 x + const: the gap shrinks by a known factor a step
        a, a_prev = float(schedule.alpha_bar[t]), float(schedule.alpha_bar[previous])
        gap *= (a_prev / a) ** 0.5 * (1 - 0.8 * (1 - a) ** 0.5) + 0.8 * (1 - a_prev) ** 0.5
        assert table.deltas[previous].item() == pytest.approx(gap, rel=1e-4)


def test_random_direction_has_the_same_length(unet):
    h, temb = torch.randn(3, 32, 4, 4), torch.randn(3, 32)
    block = asyrp.delta_block(unet)
    ours, other = block(h, temb), asyrp.random_like(block, seed=1)(h, temb, 0)
    torch.testing.assert_close(other.flatten(1).norm(dim=1), ours.flatten(1).norm(dim=1))
    cosine = nn.functional.cosine_similarity(ours.flatten(1), other.flatten(1))
    assert cosine.abs().max() < 0.3
    assert not torch.equal(other, asyrp.random_like(block, seed=2)(h, temb, 0))


def darker(edited: Tensor, original: Tensor) -> Tensor:
    return (edited + 5).square().mean()


def learned(net, schedule, images, objective=darker, **more):
    settings = {"walks": 100, "batch": 3, "lambda_l1": 0.1, "seed": 3, "progress": False, "t_edit": 600} | more
    rule = {"optimizer": lambda p: torch.optim.Adam(p, lr=1e-2)}
    return asyrp.learn(net, schedule, images, objective, **HOW, **settings, **rule)


def test_learning_moves_the_attribute_and_repeats(schedule, noise):
    net = Linear()
    images = noise.clamp(-1, 1)
    block, history = learned(net, schedule, images)
    again, _ = learned(net, schedule, images)
    assert all(torch.equal(a, b) for a, b in zip(block.parameters(), again.parameters(), strict=True))
    first, last = history.values["attribute"][0], history.values["attribute"][-1]
    assert last < first / 2
    inverted = diffusion.invert_ddim(nets.eps_model(net), schedule, images, 10, stop=700)
    plain, edited = asyrp.sweep(net, schedule, inverted, block, [0, 1], t_edit=600, **HOW)
    assert edited.mean() < plain.mean() - 0.2


def test_classifier_objective_is_the_negative_log_probability():
    x = torch.tensor([0.5, -1.5]).view(2, 1, 1, 1)
    value, opposite = (asyrp.toward(lambda x: 2 * x.flatten(), sign)(x, x).item() for sign in (1, -1))
    assert value == pytest.approx(-sum(math.log(1 / (1 + math.exp(-z))) for z in (1.0, -3.0)) / 2, rel=1e-5)
    assert opposite == pytest.approx(-sum(math.log(1 / (1 + math.exp(z))) for z in (1.0, -3.0)) / 2, rel=1e-5)


def test_only_the_block_learns(schedule, noise):
    net = Linear()
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

    first, last = (learned(Linear(), schedule, noise, indifferent, lambda_l1=1.0)[1].values["l1"][i] for i in (0, -1))
    assert last < first / 2


def test_sizes_of_the_official_block():
    block = asyrp.DeltaBlock(512, 512, 32)
    assert nets.parameter_count(block) == 3 * (512 * 512 + 512) + 2 * 2 * 512  # 0.79 million, as the paper says


def test_strengths_share_their_noise_and_one_image_one_strength(unet, schedule, noise):
    block = asyrp.delta_block(unet)
    boosted = asyrp.sweep(unet, schedule, noise, block, [0, 0, 1], seed=5, t_boost=300, **HOW)
    assert torch.equal(boosted[0], boosted[1])
    assert not torch.equal(boosted[0], asyrp.sweep(unet, schedule, noise, block, [0], seed=6, t_boost=300, **HOW)[0])
    each = asyrp.edit(unet, schedule, noise, block, torch.tensor([0.0, 1, 1, 1, 1, 1]), **HOW)
    plain, edited = asyrp.sweep(unet, schedule, noise, block, [0, 1], **HOW)
    torch.testing.assert_close(each, torch.cat([plain[:1], edited[1:]]))


def test_boosting_adds_noise_only_below_t_boost(schedule):
    x = torch.ones(1, 1, 1, 1)
    eps = torch.zeros_like(x)
    with pytest.raises(UserError, match="generator"):
        asyrp.asymmetric_step(schedule, x, eps, eps, 200, 100, eta=1.0)
    z = torch.randn(1, 1, 1, 1, generator=torch.Generator().manual_seed(0)).item()
    noisy, clean = asyrp.asymmetric_step(schedule, x, eps, eps, 200, 100, 1.0, torch.Generator().manual_seed(0))
    a, a_prev = float(schedule.alpha_bar[200]), float(schedule.alpha_bar[100])
    variance = (1 - a_prev) / (1 - a) * (1 - a / a_prev)  # posterior variance of DDPM
    assert noisy.item() == pytest.approx(a_prev**0.5 * clean.item() + variance**0.5 * z, rel=1e-5)


def test_errors_name_what_is_wrong(unet, schedule, noise):
    block = asyrp.delta_block(unet)
    with pytest.raises(UserError, match="unet: Linear has no mid_block"):
        asyrp.edit(nn.Linear(2, 2), schedule, noise, block)
    with pytest.raises(UserError, match="start: timestep 710"):
        asyrp.edit(unet, schedule, noise, block, steps=10, start=710)
    with pytest.raises(UserError, match="t_edit: 900"):
        learned(Linear(), schedule, noise, t_edit=900)
    with pytest.raises(UserError, match="lambda_l1"):
        learned(Linear(), schedule, noise, lambda_l1=-1.0)
    with pytest.raises(UserError, match="noisy: shape"):
        learned(Linear(), schedule, noise, noisy=noise[:2])
    with pytest.raises(UserError, match="labels: 6 of 6"):
        asyrp.mean_difference(unet, schedule, noise, torch.ones(6), **HOW)
    with pytest.raises(UserError, match="direction: timestep 650"):
        asyrp.Table({700: noise[:1]})(noise, noise, 650)
