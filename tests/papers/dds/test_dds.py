"""DDS, SDS and regularised SDS against autograd, torch's optimisers, and the closed forms of a Gaussian world."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from lib.ground import diffusion
from lib.papers.dds import (
    fast,
    gaussian as dds_gaussian,
    measures as dds_measures,
    method as dds,
    optimizers as dds_optimizers,
)
from lib.record.files import UserError
from tests.rounding import assert_same

SCHEDULE = diffusion.scaled_linear()
NULL, SOURCE, TARGET = torch.arange(3).split(1)
OMEGA = 7.5


def net(z_t: Tensor, t: Tensor, y: Tensor) -> Tensor:
    """Return a smooth denoiser with a prompt embedding (b, c) that is nothing like a Gaussian's."""
    return torch.tanh(1.3 * z_t + y[:, :, None, None] + z_t.roll(1, -1) * (t / 1000).to(z_t)[:, None, None, None])


def embeddings(dtype: torch.dtype = torch.float32) -> list[Tensor]:
    """Return target, source and null embedding, (1, 4) each."""
    return list(torch.randn(3, 1, 4, generator=torch.Generator().manual_seed(5), dtype=dtype))


def latents(n: int = 2, size: int = 8, dtype: torch.dtype = torch.float32) -> Tensor:
    """Return inputs (n, 4, size, size)."""
    return torch.randn(n, 4, size, size, generator=torch.Generator().manual_seed(3), dtype=dtype)


def world(variance: tuple[float, float] = (1.0, 1.0), mean: bool = False) -> tuple[dds_gaussian.GaussianWorld, Tensor]:
    """Return a small float64 world and its region; with `mean`, all three prompts have means of their own."""
    made, region = dds_gaussian.disc_world(SCHEDULE, size=8, variance=variance)
    shift = 0.3 * torch.randn(3, 3, 8, 8, generator=torch.Generator().manual_seed(1)) if mean else 0.0
    return dds_gaussian.GaussianWorld((made.mean + shift).double(), made.variance.double(), SCHEDULE), region


def inputs(made: dds_gaussian.GaussianWorld, n: int = 2) -> Tensor:
    """Return source images of a world, (n, 3, 8, 8)."""
    return made.sample(1, n, torch.Generator().manual_seed(2))


def edit_world(made: dds_gaussian.GaussianWorld, z_hat: Tensor, y: Tensor = TARGET, **options) -> dds.Edit:
    """Edit source images of a world."""
    return dds.edit(made, SCHEDULE, z_hat, y, SOURCE, NULL, **options)


def reference_edit(optimizer, z_hat: Tensor, prompts: list[Tensor], n: int, surrogate, **options) -> Tensor:
    """Edit with one model call a prompt, a surrogate loss, autograd and torch's optimiser."""
    y, y_hat, null = (e.expand(len(z_hat), -1) for e in prompts)
    t, eps = dds.draw(SCHEDULE, z_hat, n, dds.T_RANGE, 11)
    z = z_hat.clone().requires_grad_()
    stepper = optimizer([z], **options)
    for k in range(n):
        with torch.no_grad():
            z_t, hat_t = SCHEDULE.add_noise(z, eps[k], t[k]), SCHEDULE.add_noise(z_hat, eps[k], t[k])
            moved = net(z_t, t[k], null) + OMEGA * (net(z_t, t[k], y) - net(z_t, t[k], null))
            kept = net(hat_t, t[k], null) + OMEGA * (net(hat_t, t[k], y_hat) - net(hat_t, t[k], null))
        stepper.zero_grad()
        surrogate(z, moved - kept).backward()
        stepper.step()
    return z.detach()


@pytest.mark.parametrize(
    ("name", "optimizer", "eta"), [("sgd", torch.optim.SGD, 200 / 4096), ("adam", torch.optim.Adam, 0.02)]
)
def test_update_equals_that_of_a_surrogate_loss(name, optimizer, eta):
    z_hat, prompts = latents(dtype=torch.float64), embeddings(torch.float64)
    ours = dds.edit(net, SCHEDULE, z_hat, *prompts, iterations=30, optimizer=name, eta=eta, seed=11).z
    theirs = reference_edit(optimizer, z_hat, prompts, 30, lambda z, g: (z * g).sum(), lr=eta)
    assert (ours - z_hat).abs().max() > 0.01
    assert_same(ours, theirs, steps=30)


def test_notebook_preset_is_the_official_loss_scale_and_learning_rate():
    z_hat, prompts = latents(1, size=64, dtype=torch.float64), embeddings(torch.float64)
    ours = dds.edit(net, SCHEDULE, z_hat, *prompts, iterations=5, seed=11).z
    theirs = reference_edit(
        torch.optim.SGD, z_hat, prompts, 5, lambda z, g: 2000 * (z * g).sum() / (64 * 64), lr=0.1
    )  # fmt: skip
    assert_same(ours, theirs, steps=5)


def test_adam_by_hand():
    z_hat, prompts = latents(1, dtype=torch.float64), embeddings(torch.float64)
    ours = dds.edit(net, SCHEDULE, z_hat, *prompts, iterations=8, optimizer="adam", eta=0.02, seed=4).z
    t, eps = dds.draw(SCHEDULE, z_hat, 8, dds.T_RANGE, 4)
    z, m, v = z_hat.clone(), torch.zeros_like(z_hat), torch.zeros_like(z_hat)
    y, y_hat, null = prompts
    for k in range(1, 9):
        z_t, hat_t = (SCHEDULE.add_noise(x, eps[k - 1], t[k - 1]) for x in (z, z_hat))
        g = dds.dds_direction(net, z_t, hat_t, y, y_hat, null, OMEGA, t[k - 1])
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g**2
        z = z - 0.02 * (m / (1 - 0.9**k)) / ((v / (1 - 0.999**k)).sqrt() + 1e-8)
    torch.testing.assert_close(ours, z, rtol=0, atol=1e-12)


def test_supplement_preset_decays_every_20_iterations():
    steps = dds_optimizers.step_sizes("supplement", 41)
    first = 200 / 4096
    assert steps[[0, 19, 20, 39, 40]].tolist() == pytest.approx([first, first, 0.9 * first, 0.9 * first, 0.81 * first])
    assert dds_optimizers.step_sizes("literal", 1).item() == 2.0


@pytest.mark.parametrize("omega", [1.0, 5.0])
def test_guidance_of_two_branches_at_once(omega):
    z, z_hat = latents(dtype=torch.float64) + 0.2, latents(dtype=torch.float64)
    y, y_hat, null = (prompt.expand(2, -1) for prompt in embeddings(torch.float64))
    t = torch.tensor([100, 700])
    found = dds.predict(net, t, null, (z, y, omega), (z_hat, y_hat, 1.0))
    assert_same(found[0], net(z, t, null) + omega * (net(z, t, y) - net(z, t, null)))
    assert_same(found[1], net(z_hat, t, y_hat))


def test_dds_is_the_difference_of_two_sds_directions():
    z, z_hat = latents(dtype=torch.float64) + 0.2, latents(dtype=torch.float64)
    y, y_hat, null = embeddings(torch.float64)
    t, eps = torch.tensor([100, 700]), torch.randn_like(z)
    z_t, hat_t = (SCHEDULE.add_noise(x, eps, t) for x in (z, z_hat))
    moved = dds.sds_direction(net, z_t, y, null, OMEGA, t, eps)
    kept = dds.sds_direction(net, hat_t, y_hat, null, OMEGA, t, eps)
    both = dds.dds_direction(net, z_t, hat_t, y, y_hat, null, OMEGA, t)
    torch.testing.assert_close(both, moved - kept, rtol=0, atol=1e-12)


class Counted:
    """The network, with the number of latents of every call."""

    def __init__(self) -> None:
        self.calls: list[int] = []

    def __call__(self, z_t: Tensor, t: Tensor, y: Tensor) -> Tensor:
        assert len(z_t) == len(t) == len(y)
        self.calls.append(len(z_t))
        return net(z_t, t, y)


def test_one_call_of_four_or_two_evaluations_an_iteration():
    counted = Counted()
    done = dds.edit(counted, SCHEDULE, latents(3), *embeddings(), iterations=4)
    assert counted.calls == [12] * 4
    assert done.evaluations == 48
    dds.edit(counted, SCHEDULE, latents(3), *embeddings(), iterations=2, method="sds")
    assert counted.calls[4:] == [6] * 2


Y, Y_HAT, EMPTY = embeddings(torch.float64)


@pytest.mark.parametrize(
    ("prompts", "options", "given", "calls"),
    [
        ((Y, Y_HAT), {}, False, [4, 8, 8, 8]),
        ((Y, EMPTY), {}, False, [4, 6, 6, 6]),
        ((EMPTY, Y_HAT), {}, False, [4, 6, 6, 6]),
        ((Y, Y_HAT), {"omega": 1.0}, False, [4, 4, 4, 4]),
        ((Y, Y_HAT), {"optimizer": "adam", "eta": 0.02}, False, [4, 8, 8, 8]),
        ((Y, Y_HAT), {}, True, [2, 4, 4, 4]),
        ((Y, EMPTY), {"lambda_id": 0.3}, True, [2, 4, 4, 4]),
        ((Y, Y_HAT), {"omega": 1.0}, True, [2, 2, 2, 2]),
        ((Y, Y_HAT), {"method": "sds"}, False, [4, 4, 4, 4]),
        ((Y, Y_HAT), {"method": "sds", "omega": 1.0}, False, [2, 2, 2, 2]),
    ],
)
def test_savings_equal_the_plain_form(prompts, options, given, calls):
    z_hat, (y, y_hat) = latents(2, dtype=torch.float64), prompts
    counted = Counted()
    shared = fast.reference(net, SCHEDULE, z_hat, y_hat, EMPTY, iterations=4, seed=7) if given else None
    arguments = {"iterations": 4, "seed": 7, **options}
    ours = fast.edit(counted, SCHEDULE, z_hat, y, y_hat, EMPTY, shared, **arguments)
    plain = dds.edit(net, SCHEDULE, z_hat, y, y_hat, EMPTY, **arguments)
    assert counted.calls == calls
    assert ours.evaluations == sum(calls)
    assert (plain.z - z_hat).abs().max() > 0.01
    assert_same(ours.trajectory, plain.trajectory, steps=4)
    assert (ours.z - plain.z).norm() < 1e-6 * (plain.z - z_hat).norm()


def test_savings_hold_over_a_whole_edit():
    z_hat = latents(2, dtype=torch.float64)
    shared = fast.reference(net, SCHEDULE, z_hat, Y_HAT, EMPTY, seed=7, batch=5)
    plain = dds.edit(net, SCHEDULE, z_hat, Y, Y_HAT, EMPTY, seed=7).z
    for given in (None, shared):
        ours = fast.edit(net, SCHEDULE, z_hat, Y, Y_HAT, EMPTY, given, seed=7).z
        assert (ours - plain).norm() < 1e-6 * (plain - z_hat).norm()


def test_reference_serves_targets_guidance_and_shorter_edits():
    z_hat = latents(2, dtype=torch.float64)
    counted = Counted()
    shared = fast.reference(counted, SCHEDULE, z_hat, Y_HAT, EMPTY, iterations=6, seed=7, batch=5)
    assert sum(counted.calls) == 2 * 6 * 2
    assert max(counted.calls) == 5
    for y, options in ((Y, {}), (EMPTY, {}), (Y, {"omega": 3.0}), (Y, {"iterations": 3})):
        arguments = {"iterations": 6, "seed": 7, **options}
        ours = fast.edit(net, SCHEDULE, z_hat, y, Y_HAT, EMPTY, shared, **arguments).z
        assert_same(ours, dds.edit(net, SCHEDULE, z_hat, y, Y_HAT, EMPTY, **arguments).z, steps=6)


def test_reference_of_the_empty_prompt_is_computed_once():
    counted = Counted()
    fast.reference(counted, SCHEDULE, latents(2), EMPTY, EMPTY, iterations=6)
    assert sum(counted.calls) == 6 * 2


def test_one_image_with_equal_prompts_in_a_batch_stays_bit_equal():
    z_hat = latents(2, dtype=torch.float64)
    y = torch.cat([Y, Y_HAT])
    shared = fast.reference(net, SCHEDULE, z_hat, Y_HAT, EMPTY, iterations=20, batch=7)
    for given in (None, shared):
        done = fast.edit(net, SCHEDULE, z_hat, y, Y_HAT, EMPTY, given, iterations=20).z
        assert torch.equal(done[1], z_hat[1])
        assert not torch.equal(done[0], z_hat[0])


def test_reference_of_another_edit_is_refused():
    z_hat = latents(2, dtype=torch.float64)
    shared = fast.reference(net, SCHEDULE, z_hat, Y_HAT, EMPTY, iterations=3)
    with pytest.raises(UserError, match=r"reference: shape \(3, 2, 4, 8, 8\) given; this edit takes \(4, 2, 4, 8, 8\)"):
        fast.edit(net, SCHEDULE, z_hat, Y, Y_HAT, EMPTY, shared, iterations=4)


@pytest.mark.parametrize("optimizer", [{}, {"optimizer": "adam", "eta": 0.02}])
def test_equal_prompts_leave_the_image_bit_equal(optimizer):
    z_hat, (y, _, null) = latents(), embeddings()
    assert torch.equal(fast.edit(net, SCHEDULE, z_hat, y, y, null, iterations=20, **optimizer).z, z_hat)
    assert not torch.equal(fast.edit(net, SCHEDULE, z_hat, y, y, null, iterations=20, method="sds").z, z_hat)


def test_half_precision_model_keeps_the_latent_in_its_own_type():
    def half(z_t: Tensor, t: Tensor, y: Tensor) -> Tensor:
        return net(z_t, t, y).bfloat16()

    z_hat, prompts = latents(), embeddings()
    done = dds.edit(half, SCHEDULE, z_hat, *prompts, iterations=5).z
    assert done.dtype == torch.float32
    torch.testing.assert_close(done, dds.edit(net, SCHEDULE, z_hat, *prompts, iterations=5).z, rtol=0, atol=0.02)


def test_first_infinite_iteration_is_named():
    def breaks(z_t: Tensor, t: Tensor, y: Tensor) -> Tensor:
        return net(z_t, t, y) / (z_t.abs().amax() < 4.2)

    y, y_hat, null = embeddings()
    with pytest.raises(UserError, match=r"not finite from iteration \d+ on \(eta 0.5, omega 7.5\); lower eta or omega"):
        dds.edit(breaks, SCHEDULE, latents(), y, y_hat, null, eta=0.5, iterations=60)


def test_input_is_not_changed():
    z_hat = latents()
    before = z_hat.clone()
    dds.edit(net, SCHEDULE, z_hat, *embeddings(), iterations=3)
    assert torch.equal(z_hat, before)


def test_world_is_the_exact_score():
    made, _ = world((0.5, 1.4), mean=True)
    t, alpha, sigma = 300, SCHEDULE.signal[300], SCHEDULE.noise[300]
    z_t = inputs(made, 1).requires_grad_()
    density = torch.distributions.Normal(alpha * made.mean[2], (alpha**2 * made.variance[2] + sigma**2).sqrt())
    (score,) = torch.autograd.grad(density.log_prob(z_t).sum(), z_t)
    eps = made(z_t.detach(), torch.tensor([t]), TARGET)
    torch.testing.assert_close(eps, -sigma * score, rtol=1e-12, atol=1e-12)


def test_noise_cancels_in_dds_and_not_in_sds():
    made, _ = world(mean=True)
    z_hat, t = inputs(made), torch.tensor([200, 600])
    one, two = torch.randn(2, *z_hat.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    noisy = [SCHEDULE.add_noise(z_hat, e, t) for e in (one, two)]
    delta = [dds.dds_direction(made, z_t, z_t, TARGET, SOURCE, NULL, OMEGA, t) for z_t in noisy]
    torch.testing.assert_close(delta[0], delta[1], rtol=0, atol=1e-12)
    sds = [dds.sds_direction(made, z_t, TARGET, NULL, OMEGA, t, e) for z_t, e in zip(noisy, (one, two), strict=True)]
    assert (sds[0] - sds[1]).abs().mean() > 0.1


def test_dds_fixed_point():
    made, _ = world(mean=True)
    z_hat = inputs(made)
    end = z_hat + OMEGA * (made.mean[2] - made.mean[1])
    torch.testing.assert_close(made.end_point(z_hat, 2, 1, OMEGA), end, rtol=0, atol=1e-10)
    eps = torch.randn_like(z_hat)
    for t in (50, 500, 948):
        times = torch.full((2,), t)
        z_t, hat_t = (SCHEDULE.add_noise(x, eps, times) for x in (end, z_hat))
        g = dds.dds_direction(made, z_t, hat_t, TARGET, SOURCE, NULL, OMEGA, times)
        assert g.abs().max() < 1e-10
    torch.testing.assert_close(edit_world(made, z_hat, iterations=1500).z, end, rtol=0, atol=1e-8)


@pytest.mark.parametrize(("method", "lambda_id"), [("dds", 0.0), ("sds", 0.0), ("sds", 0.7)])
def test_end_point_is_the_zero_of_the_expected_direction(method, lambda_id):
    made, _ = world((0.6, 0.9), mean=True)
    z_hat, low, high = inputs(made, 1), *dds.T_RANGE
    z = made.end_point(z_hat, 2, 1, OMEGA, method, lambda_id)
    total = torch.zeros_like(z)
    for t in range(low, high + 1):  # linear in the noise, so zero noise gives its expectation
        times, eps = torch.tensor([t]), torch.zeros_like(z)
        z_t, hat_t = (SCHEDULE.add_noise(x, eps, times) for x in (z, z_hat))
        if method == "dds":
            total += dds.dds_direction(made, z_t, hat_t, TARGET, SOURCE, NULL, OMEGA, times)
        else:
            total += dds.sds_direction(made, z_t, TARGET, NULL, OMEGA, times, eps)
    expected = total / (high - low + 1) + lambda_id * (z - z_hat)
    assert expected.abs().max() < 1e-10
    assert (z - z_hat).abs().max() > 0.1


@pytest.mark.parametrize("lambda_id", [0.0, 0.3, 3.0])
def test_regularised_sds_ends_at_the_closed_form(lambda_id):
    made, _ = world(mean=True)
    z_hat = inputs(made, 1).expand(100, -1, -1, -1)
    ends = edit_world(made, z_hat, method="sds", lambda_id=lambda_id, iterations=300).z
    pull = (SCHEDULE.signal * SCHEDULE.noise)[50:949].mean()  # E[alpha M], variance 1
    mu = made.mean[0] + OMEGA * (made.mean[2] - made.mean[0])
    closed = (pull * mu + lambda_id * z_hat[0]) / (pull + lambda_id)
    share = 1 - (1 - 200 / 4096 * (pull + lambda_id)) ** 300  # of the way after 300 steps, on average
    expected = z_hat[0] + share * (closed - z_hat[0])
    error = (ends.mean(dim=0) - expected) / (ends.std(dim=0) / 100**0.5)
    assert error.square().mean().sqrt() < 1.3  # in standard errors
    assert (expected - closed).abs().max() < 0.01 * (closed - z_hat[0]).abs().max()
    torch.testing.assert_close(made.end_point(z_hat[:1], 2, 1, OMEGA, "sds", lambda_id)[0], closed)


def test_share_completed_by_the_presets():
    made, region = world()
    rate = made.drift(2, OMEGA)[0].mean()
    share = {
        name: dds_gaussian.expected_share(rate, dds_optimizers.step_sizes(name, 400)) for name in dds_optimizers.PRESETS
    }
    assert share["notebook"][199].item() == pytest.approx(0.966, abs=0.002)
    assert share["notebook"][399].item() == pytest.approx(0.9989, abs=0.0002)
    assert share["supplement"][199].item() == pytest.approx(0.891, abs=0.002)
    z_hat = inputs(made, 30)
    done = dds_measures.completed(edit_world(made, z_hat).z, z_hat, made.end_point(z_hat, 2, 1, OMEGA), region)
    assert done.mean().item() == pytest.approx(share["notebook"][199].item(), abs=0.004)


def test_same_seed_same_edit_and_every_image_has_its_own():
    z_hat, prompts = latents(3), embeddings()
    batch = dds.edit(net, SCHEDULE, z_hat, *prompts, iterations=10, seed=20)
    assert torch.equal(batch.z, dds.edit(net, SCHEDULE, z_hat, *prompts, iterations=10, seed=20).z)
    assert not torch.equal(batch.z, dds.edit(net, SCHEDULE, z_hat, *prompts, iterations=10, seed=21).z)
    t, eps = dds.draw(SCHEDULE, z_hat, 10, (50, 948), 20)
    t_last, eps_last = dds.draw(SCHEDULE, z_hat[2:], 10, (50, 948), 22)
    assert torch.equal(t[:, 2:], t_last)
    assert torch.equal(eps[:, 2:], eps_last)


def test_timesteps_fill_the_range_and_nothing_else():
    t, _ = dds.draw(SCHEDULE, latents(1, size=1), 3000, (7, 12), 0)
    assert t.unique().tolist() == [7, 8, 9, 10, 11, 12]
    t, _ = dds.draw(SCHEDULE, latents(1, size=1), 3, (999, 999), 0)
    assert t.flatten().tolist() == [999] * 3


def test_saliency_maps():
    z_hat = latents()
    done = dds.edit(net, SCHEDULE, z_hat, *embeddings(), iterations=6)
    assert done.trajectory.shape == (7, *z_hat.shape)
    assert torch.equal(done.trajectory[0], z_hat)
    assert torch.equal(done.trajectory[-1], done.z)
    for k in range(6):
        step, far = done.trajectory[k + 1] - done.trajectory[k], done.trajectory[k + 1] - z_hat
        torch.testing.assert_close(done.update[k], step.square().sum(dim=1).sqrt())
        torch.testing.assert_close(done.accumulated[k], far.square().sum(dim=1).sqrt())


def test_texture_has_unit_variance():
    soft = dds_gaussian.texture(16, torch.Generator().manual_seed(0))
    assert soft.shape == (1, 3, 16, 16)
    assert soft.mean(dim=(2, 3)).abs().max() < 1e-6
    assert soft.std(dim=(2, 3)).flatten().tolist() == pytest.approx([1.0] * 3)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"method": "pds"}, "method: unknown 'pds'"),
        ({"optimizer": "adamw"}, "optimizer: unknown 'adamw'"),
        ({"eta": "paper"}, "eta: 'paper' is not a step size; give a positive number or one of notebook, supplement"),
        ({"eta": -0.1}, "eta: -0.1 is not a step size"),
        ({"eta": float("nan")}, "eta: nan is not a step size"),
        ({"optimizer": "adam", "eta": 0.0}, "eta: 0.0 is not a step size"),
        ({"optimizer": "adam"}, "eta: preset 'notebook' is a step size for sgd"),
        ({"iterations": 0}, "iterations: 0"),
        ({"t_range": (50, 1000)}, "t_range: \\(50, 1000\\)"),
        ({"t_range": (-1, 20)}, "t_range: \\(-1, 20\\)"),
        ({"t_range": (300, 200)}, "t_range: \\(300, 200\\)"),
        ({"lambda_id": -1.0}, "lambda_id: -1.0 given; give a weight from 0 to below 41"),
        ({"method": "sds", "lambda_id": 41.0}, "lambda_id: 41.0 given; give a weight from 0 to below 41"),
        ({"eta": 1e200, "iterations": 3}, "edit: the latent is not finite"),
    ],
)
def test_bad_options_are_refused_in_one_line(options, words):
    made, _ = world()
    with pytest.raises(UserError, match=words) as caught:
        edit_world(made, inputs(made), **options)
    assert "\n" not in str(caught.value)


def test_bad_shapes_are_refused_by_name():
    y, y_hat, null = embeddings()
    with pytest.raises(UserError, match=r"z_hat: shape \(4, 8, 8\)"):
        dds.edit(net, SCHEDULE, latents()[0], y, y_hat, null)
    with pytest.raises(UserError, match=r"y_hat: shape \(3, 4\); a prompt is \(1, ...\) or \(2, ...\)"):
        dds.edit(net, SCHEDULE, latents(), y, y_hat.expand(3, -1), null)
