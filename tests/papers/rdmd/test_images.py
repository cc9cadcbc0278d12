"""RDMD on images: the weight by hand, the generator's gradient against its definition, training, resuming."""

from functools import partial

import pytest
import torch
from torch import nn

from lib.ground import diffusion, nets
from lib.ground.finetune import Options
from lib.measures import perceptual
from lib.measures.perceptual import Embedding
from lib.papers.rdmd import images as rdmd
from lib.record.files import UserError
from tests.rounding import assert_same

SCHEDULE = diffusion.linear()


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def unet() -> nn.Module:
    return nets.seeded(0, lambda: nets.small_unet(16, (16, 32), image_channels=3)).eval()


def denoise(net: nn.Module):
    return diffusion.denoiser(nets.eps_model(net), SCHEDULE)


def train(lambda_: float, steps: int = 3, **more):
    pictures = torch.linspace(-1, 1, 5).view(-1, 1, 1, 1).expand(-1, 3, 16, 16)
    options = Options(batch=2, lr=1e-3, seed=1, **more)
    return rdmd.train_translator(unet(), denoise, SCHEDULE.sigma, pictures, lambda_, steps, options)


def test_the_gradient_at_a_picture_is_normalised_and_shares_the_costs_reduction() -> None:
    x, y, eps = (normal(2, 3, 4, 4, seed=i) for i in range(3))
    y.requires_grad_()
    sigma = torch.tensor([0.5, 7.0], dtype=torch.float64)
    fake, teacher = (lambda z, s, k=k: k * z for k in (0.6, 0.2))
    loss, cost = rdmd.generator_loss(x, y, fake, teacher, eps, sigma, 0.3)
    (found,) = torch.autograd.grad(loss, y)
    for i in range(2):
        noisy = y[i] + sigma[i] * eps[i]
        apart = (y[i] - 0.2 * noisy).abs().mean()
        expected = (0.6 - 0.2) * noisy / apart + 2 * 0.3 * (y[i] - x[i])
        assert_same(found[i], expected.detach() / (2 * 48))
    assert_same(cost, (x - y.detach()).square().mean())


def test_a_translator_is_the_denoiser_at_its_level() -> None:
    net, x = unet(), normal(2, 3, 16, 16).float()
    with torch.no_grad():
        assert_same(rdmd.Translator(net, denoise, 0.7)(x), denoise(net)(x, torch.full((2,), 0.7)))


def test_any_denoiser_can_be_the_teacher() -> None:
    # In EDM's form the network itself is D(x, sigma). With the target N(0, 1/4) and a heavy cost nothing moves far.
    class Gaussian(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.log_variance = nn.Parameter(torch.tensor(0.25).log())

        def forward(self, x: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
            variance = self.log_variance.exp()
            return variance / (variance + sigma.view(-1, 1, 1, 1) ** 2) * x

    pictures, levels = normal(50, 1, 4, 4).float(), diffusion.karras_sigmas(100)[:-1].flip(0)
    moved = [
        rdmd.train_translator(Gaussian(), lambda net: net, levels, pictures, lambda_, 300, Options(16, 0.03), 5)[0]
        for lambda_ in (0.0, 30.0)
    ]
    free, held = (one(pictures).std().item() for one in moved)
    assert free == pytest.approx(0.5, abs=0.15)
    assert held == pytest.approx(1, abs=0.1)


def test_a_larger_lambda_keeps_more_of_the_input() -> None:
    costs = [train(lambda_, 30)[1].values["cost"][-1] for lambda_ in (0.0, 20.0)]
    assert costs[1] < costs[0]


def test_the_fake_is_updated_as_often_as_it_is_told_and_the_teacher_never() -> None:
    calls = []

    def counted(net: nn.Module):
        D = denoise(net)
        calls.append(0)
        number = len(calls) - 1

        def call(x: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
            calls[number] += 1
            return D(x, sigma)

        return call

    teacher = unet()
    before = [value.clone() for value in teacher.state_dict().values()]
    pictures = normal(4, 3, 16, 16).float()
    rdmd.train_translator(teacher, counted, SCHEDULE.sigma, pictures, 0.1, 2, Options(2, 1e-3), fake_updates=3)
    generator, frozen, fake = calls
    assert (generator, frozen, fake) == (2, 2, 2 * (3 + 1))  # forward passes of two steps
    for value, kept in zip(teacher.state_dict().values(), before, strict=True):
        assert torch.equal(value, kept)


def test_a_stopped_training_goes_on_as_if_it_had_not_been(tmp_path) -> None:
    whole = train(0.2, 4, ema=0.9)[1]
    train(0.2, 2, ema=0.9, folder=tmp_path)
    rest = train(0.2, 4, ema=0.9, folder=tmp_path)[1]
    for name, value in whole.ema["G"].items():
        assert torch.equal(value, rest.ema["G"][name])
    assert whole.values == rest.values


def test_the_cost_may_be_an_lpips() -> None:
    layers = lambda images: [images.double(), images.double().square()]  # noqa: E731
    embedding = Embedding("two layers", layers, [torch.ones(3), torch.full((3,), 2.0)], torch.device("cpu"))
    x, y = (normal(2, 3, 4, 4, seed=i).tanh() for i in range(2))
    y.requires_grad_()
    cost = partial(perceptual.lpips_of_pairs, embedding)
    assert_same(cost(x, y).detach(), (embedding(x) - embedding(y)).square().sum(1))
    loss, paid = rdmd.generator_loss(
        x, y, *[lambda z, s: 0.5 * z] * 2, torch.zeros(2, 3, 4, 4), torch.ones(2), 2.0, cost
    )
    assert_same(loss.detach(), 2 * paid)  # the two models agree
    assert torch.autograd.grad(loss, y)[0].abs().sum() > 0


def test_the_learning_rates_rise_at_first_and_a_batch_in_parts_is_refused() -> None:
    still, moved = (train(0.2, 1, warmup=warmup)[0].net for warmup in (10, 0))
    for one, same in ((still, True), (moved, False)):
        pairs = zip(one.state_dict().values(), unet().state_dict().values(), strict=True)
        assert all(torch.equal(a, b) for a, b in pairs) == same
    with pytest.raises(UserError, match="accumulate: 2 given"):
        train(0.2, 1, accumulate=2)
