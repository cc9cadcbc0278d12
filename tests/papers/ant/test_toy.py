"""ANT's toy of Fig. 2: the first gradient in two readings, own seeds, sampling, both experiments at tiny size."""

from __future__ import annotations

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import Tensor

from lib.ground import diffusion, nets
from lib.ground.nets import Stack
from lib.papers.ant import method as ant, toy
from tests.exact import exact_denoiser
from tests.rounding import assert_same

NETWORK = exact_denoiser(toy.SCHEDULE, toy.SOURCE)
P = SimpleNamespace(
    shots=10,
    draws=2,
    device=torch.device("cpu"),
    width=8,
    source_steps=20,
    classifier_steps=10,
    batch=60,
    timestep=250,
    sweep_batch=40,
    sweep_timesteps=[500],
    gamma=5.0,
    omega=0.02,
    sweep_omegas=[1.0],
    ascents=2,
    transfer_steps=12,
    transfer_batch=8,
    transfer_lr=0.0003,
    sweep_lrs=[0.001],
    samples=30,
    sweep_gammas=[0.0],
)


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def target_batch(*shape: int, t: int | None = None, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Return target samples, timesteps and noise in float64."""
    g = rng(seed)
    x0, eps = (torch.randn(*shape, generator=g, dtype=torch.float64) for _ in range(2))
    times = torch.randint(1000, shape[:-1], generator=g)
    return x0 - 1, times if t is None else torch.full(shape[:-1], t), eps


def bias_gradient(guidance: ant.Guidance | None, x0: Tensor, t: Tensor, eps: Tensor, **options: float) -> Tensor:
    """Return the gradient in the output bias for the exact source network, (n, 2)."""
    weight = torch.zeros(len(x0), 2, 1, dtype=x0.dtype, requires_grad=True)  # acts as a second bias

    def model(x_t: Tensor, t: Tensor) -> Tensor:
        return NETWORK(x_t, t) + weight.mT

    bias, other = toy.output_gradients(model, guidance, x0, t, eps, weight, **options)
    torch.testing.assert_close(bias, other)
    return bias


# ---------------------------------------------------------------------------------------------------- first gradients


@pytest.mark.parametrize("t", [20, 250, 800])
def test_bias_gradient_of_the_exact_source(t: int) -> None:
    # Parallel to sqrt(abar (1 - abar)) (mean x0 - mu_S) - abar mean eps, with the same sign.
    x0, times, eps = target_batch(4, 50, 2, t=t)
    abar = float(toy.SCHEDULE.alpha_bar[t])
    closed = math.sqrt(abar * (1 - abar)) * (x0.mean(1) - toy.SOURCE.mean) - abar * eps.mean(1)
    found = bias_gradient(None, x0, times, eps, J=0)
    torch.testing.assert_close(found / found.norm(), closed / closed.norm(), rtol=1e-9, atol=1e-12)


def test_output_gradients_are_those_of_the_output_layer() -> None:
    torch.manual_seed(0)
    alone = [nets.MLP(width=16, depth=2, frequencies=4).double() for _ in range(3)]
    stack = Stack(alone)
    x0, t, eps = target_batch(3, 40, 2, t=300)
    found = toy.output_gradients(stack, toy.EXACT, x0, t, eps, stack.members[-2], J=0)
    for i, net in enumerate(alone):
        value, _ = ant.loss(net, toy.EXACT, toy.SCHEDULE, x0[i], t[i], eps[i], J=0)
        value.backward()
        layer = net.net[-1]
        torch.testing.assert_close(found[0, i] * 3, layer.bias.grad, rtol=1e-7, atol=1e-10)
        torch.testing.assert_close(found[1, i] * 3, layer.weight.grad.mean(-1), rtol=1e-7, atol=1e-10)


def mean_error(guidance: ant.Guidance | None, gamma: float = 5, draws: int = 200) -> tuple[float, float]:
    """Return mean angle error and its standard error for the exact network."""
    shots = torch.randn(draws, 10, 2, generator=rng(5), dtype=torch.float64) - 1
    reference = torch.randn(1, 2000, 2, generator=rng(6), dtype=torch.float64) - 1
    eps = torch.randn(1, 2000, 2, generator=rng(7), dtype=torch.float64)
    t = torch.full((draws, 2000), 250)
    aim = bias_gradient(None, reference, t[:1], eps, J=0)
    x0, eps = shots.repeat(1, 200, 1), eps.expand(draws, -1, -1)
    found = toy.angle(bias_gradient(guidance, x0, t, eps, J=0, gamma=gamma), aim)
    return float(found.mean()), float(found.std() / draws**0.5)


def test_exact_guidance_turns_the_gradient_and_a_flipped_sign_worsens_it() -> None:
    # Over 200 draws of ten shots, by a margin of four standard errors; plain fine-tuning has its known error.
    plain, guided, flipped = mean_error(None), mean_error(toy.EXACT), mean_error(toy.EXACT, gamma=-5)
    spread = math.degrees(1 / math.sqrt(10) / math.sqrt(8))  # of a normal angle, mean error spread * sqrt(2 / pi)
    assert plain[0] == pytest.approx(spread * math.sqrt(2 / math.pi), abs=4 * plain[1])
    assert guided[0] + 4 * guided[1] < plain[0] - 4 * plain[1]
    assert flipped[0] - 4 * flipped[1] > plain[0] + 4 * plain[1]


def test_angle() -> None:
    a = torch.tensor([[1.0, 0.0], [1.0, 1.0], [-1.0, 0.0], [1.0, 2.0]], dtype=torch.float64)
    b = torch.tensor([[0.0, -2.0], [3.0, 3.0], [1.0, 0.0], [1.0, 2.0]], dtype=torch.float64)
    expected = torch.tensor([90.0, 0.0, 180.0, 0.0], dtype=torch.float64)
    torch.testing.assert_close(toy.angle(a, b), expected)


# ----------------------------------------------------------------------------------------------------------- own seeds


def test_a_batch_takes_only_the_shots_of_its_own_draw() -> None:
    shots = toy.draw(toy.TARGET, [4, 5, 6], 10, "shots")
    x0, t, eps = toy.batch(shots, 200, [rng(seed) for seed in range(3)])
    distance = (x0[:, :, None] - shots[:, None]).abs().sum(-1)  # (3, 200, 10)
    assert (distance.min(-1).values == 0).all()
    assert (distance.min(1).values == 0).all()  # each shot occurs
    assert 0 <= int(t.min()) <= int(t.max()) <= 999
    again = toy.batch(shots[1:2], 200, [rng(1)])
    assert all(torch.equal(a[1:2], b) for a, b in zip((x0, t, eps), again, strict=True))


def test_every_purpose_and_seed_has_its_own_random_numbers() -> None:
    seeds = {toy.stream(seed, purpose).initial_seed() for purpose in toy.STREAMS for seed in (0, 1, 9999)}
    assert len(seeds) == 3 * len(toy.STREAMS)


def test_sampling_is_ancestral_sampling() -> None:
    stack = toy.networks([3], "source", P)
    g = toy.stream(8, "samples")
    start = toy.noise(6, [g])[0]
    expected = diffusion.sample_ddpm(stack.rows, toy.SCHEDULE, start, 40, g)
    path = toy.sampled(stack, [8], 6, 40)
    assert path.shape == (41, 1, 6, 2)
    assert_same(path[-1, 0], expected, steps=40)


def test_classifiers_learn_to_tell_target_from_source() -> None:
    settings = SimpleNamespace(**vars(P) | {"classifier_steps": 150, "width": 32})
    known = toy.draw(toy.TARGET, [0, 1], 100, "many")
    stack = toy.classifiers([0, 1], known, settings)
    t = torch.full((2, 500), 100)
    with torch.no_grad():
        told = [stack(toy.SCHEDULE.add_noise(toy.draw(d, [0, 1], 500, "fresh"), toy.noise(500, [rng(), rng(1)]), t), t)
                for d in (toy.SOURCE, toy.TARGET)]  # fmt: skip
    assert float((told[0].argmax(-1) == 0).double().mean()) > 0.7
    assert float((told[1].argmax(-1) == 1).double().mean()) > 0.7


def test_the_numbers_of_a_seed_do_not_depend_on_the_others() -> None:
    sources = toy.source_networks([3, 4], P)
    both, one = (toy.adapted(seeds, P) for seeds in ([3, 4], [4]))
    assert both.keys() == one.keys()
    for key in (key for key in both if both[key].dtype.kind == "f"):  # no counts of cells: rounding moves a point
        pair = (torch.as_tensor(found[key], dtype=torch.float32) for found in (both, one))
        assert_same(next(pair)[1:], next(pair), steps=P.source_steps + 2 * P.transfer_steps + 200)
    assert_same(toy.sampled(sources, [3, 4], 5, 40)[:, 1:], toy.sampled(sources.select([1]), [4], 5, 40), steps=40)


def test_steps_to_a_level_are_read_off_straight_lines() -> None:
    start, curves = np.array([3.0, 3.0, 1.0]), np.array([[2.0, 1.0], [2.5, 2.0], [0.5, 0.4]])
    np.testing.assert_allclose(toy.steps_to(1.5, [10, 30], start, curves), [20, np.nan, 0])


def test_first_gradients_hold_all_arms_and_their_controls() -> None:
    found = toy.first_gradient([0, 1, 2], P, toy.source_networks([0, 1, 2], P))
    assert all(values.shape == (3, 2) for values in found.values())
    assert all(((values >= 0) & (values <= 180)).all() for values in found.values())
    assert {"DDPM", "ANT", "flipped, exact", "references", "t 500: ANT", "sweep: DDPM", "omega 1 all"} <= found.keys()
    assert {"2 -1 10 shots", "1 +1 exact"} <= found.keys()


def test_transfer_moves_the_samples_towards_the_target(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(toy, "checkpoints", lambda p: [p.transfer_steps // 2, p.transfer_steps])
    changes = {"source_steps": 300, "transfer_steps": 60, "transfer_lr": 0.003, "width": 32, "sweep_lrs": []}
    settings = SimpleNamespace(**vars(P) | changes)
    found = toy.transfer([0, 1], settings, toy.source_networks([0, 1], settings))
    assert (found["10,000 samples w2"] < found["source w2"] - 0.5).all()
    assert (found["DDPM mean"] < found["source mean"]).all()
    assert found["ANT curve"].shape == (2, 2)
    assert found["ANT counts"].shape == (2, 201, 90)
    assert found["ANT path"].shape == (2, 201)
    assert found["gamma 0 points"].shape == (2, 30, 2)
