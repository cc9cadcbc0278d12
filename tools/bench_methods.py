"""Measure what a step of ANT, of SDFT and of RDMD costs, and count the network calls in them.

A plain step is naive fine-tuning of the same network on the same batch with the same optimizer. The unit of ANT's
ascent is one forward and one backward pass to the input; J of them come before the plain step. A step of RDMD is held
against the network calls that it cannot do without.
"""

from __future__ import annotations

import copy
import statistics
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from lib.ground import diffusion, nets
from lib.ground.finetune import Options
from lib.ground.noised_classifier import NoisedClassifier
from lib.papers.ant import method as ant
from lib.papers.ant.adaptor import Adaptor
from lib.papers.rdmd import images as rdmd
from lib.papers.sdft import method as sdft
from lib.record.timing import interleaved, ratio
from tools.bench_tools import Counted, Row, network, row

TITLE = "Steps of the methods, in plain fine-tuning steps"
Batch = tuple[Tensor, Tensor, Tensor]  # x0, t, eps


def draw(unet: Any, schedule: diffusion.Schedule, batch: int, seed: int = 0) -> Batch:
    """Draw a batch for a U-Net."""
    generator = torch.Generator().manual_seed(seed)
    side, channels = unet.config["sample_size"], unet.config["in_channels"]
    x0, eps = torch.randn(2, batch, channels, side, side, generator=generator)
    t = torch.randint(schedule.T, (batch,), generator=generator)
    return x0.to(unet.device), t.to(unet.device), eps.to(unet.device)


def stepper(net: torch.nn.Module, loss: Callable[[], tuple[Tensor, Any]]) -> Callable[[], None]:
    """Return one training step: loss, backward, AdamW on the parameters that are trained."""
    optimizer = torch.optim.AdamW([p for p in net.parameters() if p.requires_grad], lr=1e-5, fused=True)

    def step() -> None:
        optimizer.zero_grad()
        loss()[0].backward()
        optimizer.step()

    return step


def ascent_unit(model: ant.Model, x0: Tensor, t: Tensor) -> Callable[[], None]:
    """Return one forward pass and one backward pass to the input, nothing else."""
    weight = torch.randn_like(x0)

    def unit() -> None:
        x = x0.detach().requires_grad_()
        torch.autograd.grad(model(x, t), x, weight)

    return unit


def measure_ant(unet: Any, device: torch.device, batch: int, J: int, rounds: int) -> list[Row]:
    """ANT on a frozen U-Net with the adaptor, with and without the classifier."""
    net = copy.deepcopy(unet)
    adaptor = Adaptor.attach(net)
    classifier = NoisedClassifier(unet).requires_grad_(False).eval()
    schedule = diffusion.linear()
    x0, t, eps = draw(net, schedule, batch)
    model = nets.eps_model(net)
    guidance = ant.classifier_guidance(classifier)
    runs = {
        "unit": ascent_unit(model, x0, t),
        "plain": stepper(adaptor, lambda: ant.loss(model, None, schedule, x0, t, eps, J=0)),
        "ascents": stepper(adaptor, lambda: ant.loss(model, None, schedule, x0, t, eps, J=J)),
        "ant": stepper(adaptor, lambda: ant.loss(model, guidance, schedule, x0, t, eps, J=J)),
    }
    times = interleaved(runs, rounds, device)
    each = [(a - p) / (J * u) for a, p, u in zip(times["ascents"], times["plain"], times["unit"], strict=True)]
    network, judge = Counted(model), Counted(classifier)
    ant.loss(network, ant.classifier_guidance(judge), schedule, x0, t, eps, J=J)[0].backward()
    counts = f"network calls of one step: U-Net {network.text()}; classifier {judge.text()}"
    alone, whole = (ratio(times[name], times["plain"]) for name in ("ascents", "ant"))
    most, unit, note = 1 + 1.1 * J, "plain steps", "unit: one forward, one backward to the input"
    return [
        row(f"ANT without classifier, J = {J}, batch {batch}", alone, unit, most),
        row("one ascent of ANT", statistics.median(each), "units", 1.1, note=note),
        row(f"ANT with classifier, J = {J}, batch {batch}", whole, unit, most, note=counts),
    ]


def measure_sdft(unet: Any, device: torch.device, batch: int, rounds: int) -> list[Row]:
    """SDFT on all weights of a U-Net, its two inputs in one call."""
    student, teacher = copy.deepcopy(unet).train(), copy.deepcopy(unet).requires_grad_(False).eval()
    models = nets.eps_model(student), nets.eps_model(teacher)
    schedule = diffusion.linear()
    x0, t, eps = draw(unet, schedule, batch)
    plain = {"lambda_distill": 0.0, "lambda_aux": 0.0}
    runs = {
        "plain": stepper(student, lambda: sdft.loss(*models, schedule, x0, t, eps, **plain)),
        "sdft": stepper(student, lambda: sdft.loss(*models, schedule, x0, t, eps)),
    }
    times = interleaved(runs, rounds, device)
    counted = [Counted(model) for model in models]
    sdft.loss(*counted, schedule, x0, t, eps)[0].backward()
    counts = f"network calls of one step: student {counted[0].text()}; teacher {counted[1].text()}"
    cost = ratio(times["sdft"], times["plain"])
    return [row(f"SDFT, batch {batch}, both inputs in one call", cost, "plain steps", 2.7, note=counts)]


def measure_rdmd(
    unet: Any, device: torch.device, batch: int, rounds: int, steps: int = 10, updates: int = 2
) -> list[Row]:
    """A step of RDMD's generator, `updates` of the fake included."""
    schedule = diffusion.linear()
    x, t, eps = draw(unet, schedule, batch)
    teacher, fake, net = (copy.deepcopy(unet).requires_grad_(i > 0) for i in range(3))
    frozen, model = nets.eps_model(teacher), nets.eps_model(fake)
    learn = stepper(fake, lambda: ((model(x, t) - eps).square().mean(), None))
    generate = stepper(net, lambda: ((nets.eps_model(net)(x, t) - eps).square().mean(), None))

    def ideal() -> None:
        for _ in range(steps):
            generate()
            for _ in range(updates):
                learn()
            with torch.no_grad():
                frozen(x, t)
                model(x, t)

    def denoise(one: Any) -> Any:
        return diffusion.denoiser(nets.eps_model(one), schedule)

    def train() -> None:
        rdmd.train_translator(unet, denoise, schedule.sigma, x, 0.2, steps, Options(batch), fake_updates=updates)

    times = interleaved({"ideal": ideal, "rdmd": train}, rounds, device)
    note = f"ideal: one training step of the generator, {updates} of the fake, a forward pass of teacher and fake"
    return [row(f"RDMD, batch {batch}", ratio(times["rdmd"], times["ideal"]), "ideal steps", 1.1, note=note)]


def measure(device: torch.device, rounds: int = 7, batch: int = 16, J: int = 10, unet: Any = None) -> list[Row]:
    """Return the rows of this section."""
    net = unet or network(device)
    rows = measure_ant(net, device, batch, J, rounds) + measure_sdft(net, device, batch, 2 * rounds + 1)
    return rows + measure_rdmd(net, device, batch, rounds)
