from __future__ import annotations

import pytest
import torch
from diffusers.models.attention_processor import Attention

from lib.ground import diffusion, nets
from lib.record.files import UserError
from tests.rounding import assert_same


def batch(n: int = 5, seed: int = 0) -> torch.Tensor:
    return torch.randn(n, 2, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("level", ["t", "sigma"])
def test_mlp_takes_one_level_or_one_per_point(level):
    net, x = nets.MLP(level=level), batch()
    expected = net(x, torch.full((5,), 3.0))
    assert expected.shape == (5, 2)
    for given in (3.0, torch.tensor(3.0), torch.full((5, 1), 3.0)):
        torch.testing.assert_close(net(x, given), expected)


def test_mlp_distinguishes_neighbouring_levels():
    time, sigma = nets.MLP(level="t"), nets.MLP(level="sigma")
    for net, levels in ((time, torch.arange(1000)), (sigma, torch.logspace(-3, 2, 200))):
        codes = net.embed(levels, torch.zeros(len(levels), 2))
        distances = torch.cdist(codes, codes) + torch.eye(len(levels)) * 9
        assert distances.min() > 0.02
        assert codes.shape == (len(levels), 32)


def test_mlp_sizes():
    net = nets.MLP(dim=3, width=7, depth=2, frequencies=4)
    assert net(torch.zeros(2, 3), 1.0).shape == (2, 3)
    assert nets.parameter_count(net) == (3 + 8) * 7 + 7 + 7 * 7 + 7 + 7 * 3 + 3


def test_stacked_networks_equal_single_ones_in_value_and_gradient():
    torch.manual_seed(0)
    single = [nets.EDM(nets.MLP(width=16, level="sigma").double()) for _ in range(3)]
    stack = nets.Stack(single)
    x, sigma = batch(15).double(), torch.linspace(0.1, 2.0, 15).double()
    out = stack(x.unflatten(0, (3, 5)), sigma.unflatten(0, (3, 5)))  # (3, 5, 2)
    out.square().mean((1, 2)).sum().backward()
    torch.testing.assert_close(stack.rows(x, sigma), out.flatten(0, 1))
    for i, net in enumerate(single):
        own = net(x[5 * i : 5 * i + 5], sigma[5 * i : 5 * i + 5])
        torch.testing.assert_close(out[i], own)
        own.square().mean().backward()
        for name, values in zip(stack.names, stack.members, strict=True):
            torch.testing.assert_close(values.grad[i], net.get_parameter(name).grad)


def test_stack_selects_copies_of_its_members():
    stack = nets.Stack([nets.MLP(width=4, depth=1) for _ in range(3)])
    chosen = stack.select([2, 0, 2])
    assert (len(stack), len(chosen)) == (3, 3)
    x, t = batch(6).unflatten(0, (3, 2)), torch.full((3, 2), 5.0)
    torch.testing.assert_close(chosen(x, t)[1], stack(x[[1, 0, 0]], t)[0])
    chosen.members[0].data.zero_()
    assert stack.members[0].abs().min() >= 0
    assert stack.members[0].abs().max() > 0
    assert all(p.requires_grad for p in chosen.parameters())


def test_a_predicted_variance_is_dropped():
    unet = nets.small_unet(8, (16, 32))
    unet.conv_out = torch.nn.Conv2d(16, 2, 3, padding=1)
    x, t = torch.randn(2, 1, 8, 8), torch.tensor([3, 700])
    torch.testing.assert_close(nets.eps_model(unet)(x, t), unet(x, t).sample[:, :1])


def test_edm_keeps_a_sample_without_noise_and_forgets_one_of_noise_only():
    net = nets.EDM(nets.MLP(level="sigma"), sigma_data=0.5)
    x = batch()
    torch.testing.assert_close(net(x, 1e-6), x, rtol=0, atol=1e-4)
    bare = nets.EDM(torch.nn.Module(), sigma_data=0.5)
    bare.net.forward = lambda scaled, sigma: torch.zeros_like(scaled)  # F = 0 leaves c_skip x
    torch.testing.assert_close(bare(x, 0.5), x / 2)
    torch.testing.assert_close(bare(x, torch.full((5, 1), 0.5)), x / 2)


def test_edm_network_sees_and_returns_unit_variance():
    seen = {}

    class Probe(torch.nn.Module):
        def forward(self, x, sigma):
            seen["std"] = x.std().item()
            return torch.ones_like(x)

    x0, eps = torch.randn(2, 20000, 2, generator=torch.Generator().manual_seed(0))
    x0 = x0 * 0.5
    for sigma in (0.1, 1.0, 20.0):
        out = nets.EDM(Probe(), 0.5)(x0 + sigma * eps, sigma)
        assert seen["std"] == pytest.approx(1, abs=0.02)
        target = (x0 - (out - (c_out := sigma * 0.5 / (sigma**2 + 0.25) ** 0.5))) / c_out  # what F should say
        assert target.std().item() == pytest.approx(1, abs=0.02)


@pytest.mark.parametrize(("size", "channels"), [(16, (16, 32, 64)), (8, (16, 32))])
def test_unet_predicts_noise_of_the_image_shape(size, channels):
    unet = nets.small_unet(size, channels)
    x, t = torch.zeros(3, 1, size, size), torch.tensor([0, 500, 999])
    eps = nets.eps_model(unet)(x, t)
    assert eps.shape == x.shape
    assert not torch.equal(eps[0], eps[2])  # the timestep matters


def test_default_unet_has_about_600_thousand_parameters():
    assert 500_000 < nets.parameter_count(nets.small_unet()) < 750_000


def test_unet_attends_at_the_lowest_resolution_only():
    unet, sizes = nets.small_unet(16), set()
    for module in unet.modules():
        if isinstance(module, Attention):
            module.register_forward_pre_hook(lambda _, inputs: sizes.add(tuple(inputs[0].shape[2:])))
    unet(torch.zeros(1, 1, 16, 16), 0)
    assert sizes == {(4, 4)}


def test_unet_refuses_a_size_that_does_not_halve():
    for size, channels in ((10, (16, 32, 64)), (8, (16, 16)), (8, (12, 32)), (8, ())):
        with pytest.raises(UserError, match=f"at size = {size}: give multiples of 8, the last one of 32"):
            nets.small_unet(size, channels)


def test_parameter_count_of_the_trained_ones():
    net = nets.MLP(width=8, depth=1)
    net.net[0].requires_grad_(False)
    assert nets.parameter_count(net, trainable=True) == 8 * 2 + 2


def test_the_native_weight_makes_an_error_of_the_noise_one_of_the_velocity():
    schedule = diffusion.linear()
    unet = nets.seeded(0, lambda: nets.small_unet(8, (16, 32)))
    assert nets.native_weight(unet, schedule) is None
    x0, eps = torch.randn(2, 4, 1, 8, 8, generator=torch.Generator().manual_seed(0)).double()
    t = torch.tensor([1, 300, 700, 999])
    x_t = schedule.add_noise(x0, eps, t)
    velocity = unet(x_t.float(), t).sample.double()
    nets.noise_from_velocity(unet, schedule)
    weight = schedule.at(nets.native_weight(unet, schedule), t, eps)
    predicted = schedule.eps_from_v(x_t, velocity, t)
    ours = weight * (predicted - eps).square()
    assert_same(ours, (velocity - schedule.v_from_eps(x0, eps, t)).square())
