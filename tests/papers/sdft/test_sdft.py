from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from lib.ground import diffusion, nets
from lib.ground.finetune import Options
from lib.measures import distances as image_metrics
from lib.papers.sdft import method as sdft
from lib.record.files import UserError
from tests.rounding import assert_same


class Affine(nn.Module):
    """eps = a x + b t / 1000: small enough to compute its loss by hand."""

    def __init__(self, a: float, b: float) -> None:
        super().__init__()
        self.a = nn.Parameter(torch.tensor(a, dtype=torch.float64))
        self.b = nn.Parameter(torch.tensor(b, dtype=torch.float64))
        self.calls: list[int] = []

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        self.calls.append(len(x))
        return self.a * x + self.b * t.to(x).view(-1, *[1] * (x.ndim - 1)) / 1000


@pytest.fixture
def schedule() -> diffusion.Schedule:
    return diffusion.linear()


@pytest.fixture
def batch() -> tuple[Tensor, Tensor, Tensor]:
    g = torch.Generator().manual_seed(0)
    x0 = torch.randn(6, 1, 4, 4, generator=g, dtype=torch.float64)
    eps = torch.randn(6, 1, 4, 4, generator=g, dtype=torch.float64)
    return x0, torch.tensor([0, 100, 393, 650, 900, 999]), eps


def test_parts_equal_the_hand_computation():
    schedule = diffusion.Schedule(torch.tensor([0.9, 0.2], dtype=torch.float64))
    x0 = torch.tensor([[1.0, -1.0], [0.5, 2.0]], dtype=torch.float64)
    eps = torch.tensor([[0.3, 0.7], [-1.0, 0.0]], dtype=torch.float64)
    t = torch.tensor([0, 1])
    student, source = Affine(0.5, 100.0), Affine(-0.25, 300.0)
    simple = distill = aux = 0.0
    for i, abar in enumerate([0.9, 0.2]):
        for j in range(2):
            noise = eps[i, j].item()
            x_t = math.sqrt(abar) * x0[i, j].item() + math.sqrt(1 - abar) * noise
            of_student, of_source = 0.5 * x_t + 0.1 * i, -0.25 * x_t + 0.3 * i
            simple += (of_student - noise) ** 2 / 4
            distill += (1 - abar) ** 3 * (of_source - of_student) ** 2 / 4
            aux += (1 - abar) ** 5 * (-0.25 * noise + 0.3 * i - 0.5 * noise - 0.1 * i) ** 2 / 4
    total, parts = sdft.loss(student, source, schedule, x0, t, eps, 0.2, 3, 0.7, 5)
    assert {name: part.item() for name, part in parts.items()} == pytest.approx(
        {"simple": simple, "distill": distill, "aux": aux}, abs=1e-12
    )
    assert total.item() == pytest.approx(simple + 0.2 * distill + 0.7 * aux, abs=1e-12)


def test_no_gradient_is_denormal():
    schedule = diffusion.linear()
    t = torch.arange(0, 1000, 10)
    eps = torch.randn(100, 4, generator=torch.Generator().manual_seed(0))
    output = torch.zeros(200, 4, requires_grad=True)  # on x_t and on the noise, in one call
    total, _ = sdft.loss(lambda x, t: output, lambda x, t: torch.ones_like(x), schedule, eps, t, eps, 0.1, 3, 0.1, 50)
    of_noise = torch.autograd.grad(total, output)[0][100:].abs()
    assert sdft.weight(schedule, 50)[t].float().min() < torch.finfo(torch.float32).tiny  # the case exists
    assert (of_noise == 0).any()
    assert of_noise[of_noise > 0].min() > torch.finfo(torch.float32).tiny
    kept = sdft.weight(schedule, 50)[t] > sdft.NEGLIGIBLE
    assert torch.equal(kept, of_noise[:, 0] > 0)


def test_lambda_zero_is_naive_fine_tuning(schedule, batch):
    x0, t, eps = batch
    student, source = Affine(0.7, 0.1), Affine(0.9, -0.2)
    naive = nn.functional.mse_loss(student(schedule.add_noise(x0, eps, t), t), eps)
    wanted = torch.autograd.grad(naive, list(student.parameters()))
    total, parts = sdft.loss(student, source, schedule, x0, t, eps, lambda_distill=0, lambda_aux=0)
    found = torch.autograd.grad(total, list(student.parameters()))
    assert_same(total, naive)
    for ours, theirs in zip(found, wanted, strict=True):
        assert_same(ours, theirs)
    assert list(parts) == ["simple"]
    assert source.calls == []


@pytest.mark.parametrize(
    ("lambdas", "student_calls", "source_calls"),
    [((0.1, 0.0), [6], [6]), ((0.0, 0.1), [12], [6]), ((0.1, 0.1), [12], [12])],
)
def test_a_term_with_lambda_zero_is_not_computed(schedule, batch, lambdas, student_calls, source_calls):
    student, source = Affine(0.7, 0.1), Affine(0.9, -0.2)
    _, parts = sdft.loss(student, source, schedule, *batch, lambda_distill=lambdas[0], lambda_aux=lambdas[1])
    assert (student.calls, source.calls) == (student_calls, source_calls)
    assert set(parts) == {"simple"} | {name for name, v in zip(("distill", "aux"), lambdas, strict=True) if v}


def test_only_the_student_gets_a_gradient(schedule, batch):
    student, source = Affine(0.7, 0.1), Affine(0.9, -0.2)
    total, parts = sdft.loss(student, source, schedule, *batch)
    total.backward()
    assert all(p.grad is not None and p.grad.abs() > 0 for p in student.parameters())
    assert all(p.grad is None for p in source.parameters())
    assert not any(part.requires_grad for part in parts.values())


def test_the_auxiliary_input_is_the_noise_itself_at_the_same_timestep(schedule, batch):
    x0, t, eps = batch
    seen = []

    def source(x: Tensor, at: Tensor) -> Tensor:
        seen.append((x, at))
        return x

    sdft.loss(Affine(0.7, 0.1), source, schedule, x0, t, eps, lambda_distill=0)
    assert torch.equal(seen[0][0], eps)
    assert torch.equal(seen[0][1], t)


def plain_loss(student, source, schedule, x0, t, eps, lambda_distill, gamma_distill, lambda_aux, gamma_aux):
    """The loss as the paper writes it: four calls, and no weight left out."""
    x_t = schedule.add_noise(x0, eps, t)
    w_distill, w_aux = ((1 - schedule.alpha_bar[t]) ** gamma for gamma in (gamma_distill, gamma_aux))
    simple = (eps - student(x_t, t)).square().mean()
    distill = (w_distill * (source(x_t, t).detach() - student(x_t, t)).square().mean((1, 2, 3))).mean()
    aux = (w_aux * (source(eps, t).detach() - student(eps, t)).square().mean((1, 2, 3))).mean()
    return simple + lambda_distill * distill + lambda_aux * aux


@pytest.mark.parametrize("terms", [(0.1, 3, 0.1, 50), (3, 0, 0, 0), (0, 0, 0.5, 5)])
def test_one_call_equals_separate_calls(schedule, batch, terms):
    torch.manual_seed(0)
    layers = [
        (nn.Conv2d(1, 8, 3, padding=1), nn.GroupNorm(2, 8), nn.SiLU(), nn.Conv2d(8, 1, 3, padding=1)) for _ in "ab"
    ]
    student, source = (nn.Sequential(*net).double() for net in layers)
    results = []
    for form in (sdft.loss, plain_loss):
        student.zero_grad()
        total = form(lambda x, t: student(x), lambda x, t: source(x), schedule, *batch, *terms)
        total = total[0] if isinstance(total, tuple) else total
        total.backward()
        results.append([total.detach(), *(p.grad.clone() for p in student.parameters())])
    for one, two in zip(*results, strict=True):
        torch.testing.assert_close(one, two, rtol=0, atol=1e-7)  # what negligible weights amount to


@pytest.mark.parametrize("make", [diffusion.linear, diffusion.cosine])
@pytest.mark.parametrize("gamma", [0, 1, 3, 50])
def test_weight_is_a_power_of_one_plus_snr(make, gamma):
    schedule = make()
    w = sdft.weight(schedule, gamma)
    torch.testing.assert_close(w, (1 + schedule.snr) ** -float(gamma), rtol=1e-9, atol=1e-12)
    assert w.shape == (1000,)
    assert (w.diff() >= 0).all()
    if gamma == 0:
        assert (w == 1).all()


def test_weight_of_a_variance_exploding_schedule():
    sigma = torch.logspace(-2, 2, 50, dtype=torch.float64)
    w = sdft.weight(diffusion.Schedule(1 / (1 + sigma**2)), 3)
    torch.testing.assert_close(w, (sigma**2 / (1 + sigma**2)) ** 3, rtol=1e-8, atol=1e-12)


@pytest.mark.parametrize(("gamma", "t"), [(0, 0), (1, 259), (3, 393), (10, 515), (50, 650), (100, 700)])
def test_half_weight_timesteps_of_the_linear_schedule(schedule, gamma, t):
    assert sdft.half_weight_timestep(schedule, gamma) == t


def test_weight_refuses_a_negative_gamma(schedule):
    with pytest.raises(UserError, match=r"^gamma: -1"):
        sdft.weight(schedule, -1)


@pytest.fixture(scope="module")
def unet():
    torch.manual_seed(0)
    return nets.small_unet(size=8, channels=(16, 32))


def run_three_steps(unet, seed=0, **terms):
    images = torch.linspace(-1, 1, 5 * 64).view(5, 1, 8, 8)
    seen = []
    options = Options(batch=4, lr=1e-3, seed=seed)
    look = {"on_step": lambda i, net: seen.append((i, net.training))}
    student, history = sdft.finetune(unet, diffusion.linear(), images, 3, options, **look, **terms)
    return student, history, seen


def test_finetune_moves_the_student_and_leaves_the_source(unet):
    before = {name: value.clone() for name, value in unet.state_dict().items()}
    student, history, seen = run_three_steps(unet)
    assert seen == [(1, False), (2, False), (3, False)]
    assert set(history.values) == {"simple", "distill", "aux"}
    assert max(history.values["distill"][0], history.values["aux"][0]) < 1e-9  # the student begins as the source
    assert history.values["distill"][2] > 1e-7
    assert all(torch.equal(value, before[name]) for name, value in unet.state_dict().items())
    assert not torch.equal(student.conv_out.weight, unet.conv_out.weight)
    assert not student.training


def test_finetune_is_paired_and_repeatable(unet):
    naive = run_three_steps(unet, lambda_distill=0, lambda_aux=0)[1]
    ours, again, other_seed = (run_three_steps(unet, seed=seed)[1] for seed in (0, 0, 1))
    assert naive.values["simple"][0] == pytest.approx(ours.values["simple"][0], rel=1e-4)  # same images and noises
    assert ours.values == again.values
    assert ours.values["simple"] != other_seed.values["simple"]


def test_a_large_lambda_holds_the_student_near_the_source(unet):
    x, t = torch.randn(8, 1, 8, 8, generator=torch.Generator().manual_seed(0)), torch.full((8,), 950)
    nets_moved = [run_three_steps(unet, lambda_distill=factor, lambda_aux=factor)[0] for factor in (0, 100)]
    with torch.no_grad():
        moved = [(net(x, t).sample - unet(x, t).sample).square().mean() for net in nets_moved]
    assert moved[1] < moved[0]


def test_gain_at_equal_realism_of_two_straight_curves():
    ours = torch.tensor([[0.9, 0.5], [0.5, 0.9]])  # agreement 1.4 - realism
    other = torch.tensor([[0.3, 0.9], [0.7, 0.5], [0.8, 0.4]])  # agreement 1.2 - realism
    assert image_metrics.gain_at_equal_realism(ours, other) == pytest.approx(0.2, abs=1e-6)
    assert image_metrics.gain_at_equal_realism(other, ours) == pytest.approx(-0.2, abs=1e-6)


def test_gain_at_equal_realism_without_common_realism_is_not_a_number():
    assert math.isnan(
        image_metrics.gain_at_equal_realism(torch.tensor([[0.1, 1.0]]), torch.tensor([[0.5, 0.5], [0.6, 0.4]]))
    )
