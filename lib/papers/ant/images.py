"""ANT on images (Wang et al., ICML 2024): fine-tuning a U-Net or its adaptor, and the measures of Figs. 1 and 4."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from lib.ground import finetune as finetuning
from lib.ground.diffusion import Schedule
from lib.ground.nets import eps_model
from lib.ground.train import History
from lib.measures.distances import nearest
from lib.papers.ant.adaptor import Adaptor
from lib.papers.ant.method import Guidance, loss
from lib.record.files import UserError

TRANSFERRED = 0.8  # share of handwritten samples at which an arm counts as transferred (claim A5)


class Student(NamedTuple):
    """A fine-tuned copy of a source model."""

    unet: Any  # the whole net, in evaluation mode
    adaptor: Adaptor | None  # attached to it; None after full fine-tuning
    history: History


def finetune(
    source: nn.Module,
    schedule: Schedule,
    images: Tensor,
    steps: int,
    batch: int = 10,
    lr: float = 5e-5,
    seed: int = 0,
    adaptor: dict[str, Any] | None = None,
    guidance: Guidance | None = None,
    gamma: float = 5.0,
    omega: float = 0.02,
    J: int = 10,
    power: int = 2,
    sign: int = -1,
    on_step: Callable[[int, Any], None] | None = None,
    progress: bool = True,
    **options: Any,
) -> Student:
    """Fine-tune a copy of `source` on few `images` by the loss of ANT, eq. (8), with any of its parts left out.

    Images, timesteps and noises come from `seed` alone: all arms with the same seed and batch see the same ones, up to
    what the adversarial ascent does to the noise. The paper trains for about 300 iterations of batch 40.

    Parameters
    ----------
    source
        diffusers U-Net that predicts the noise; left as it is.
    schedule
        Its noise schedule.
    images
        Target images, (n, c, h, w) in [-1, 1], on the device of `source`.
    steps, batch, lr
        Length of the training, images a step (drawn with replacement), learning rate of AdamW.
    adaptor
        Train an adaptor with these settings (c, d, heads of :meth:`lib.papers.ant.adaptor.Adaptor.attach`; {} for the
        paper's) and freeze the net; None: train the net.
    guidance
        Gradient of log p(y = target | x_t), from :func:`lib.papers.ant.method.classifier_guidance`; None without
        guidance.
    gamma, power, sign
        Strength and form of the guidance, see :func:`lib.papers.ant.method.guided_noise`.
    omega, J
        Step size and number of the adversarial ascents, see :func:`lib.papers.ant.method.adversarial_noise`; J = 0
        without.
    on_step
        ``on_step(i, unet)`` after step i = 1, ..., steps; the net is in evaluation mode inside it.
    **options
        Further ones of :func:`lib.ground.finetune.finetune`.

    Returns
    -------
    Student
        The net, its adaptor, and the history of the losses ``plain`` and ``shift``.
    """
    unet: Any = copy.deepcopy(source).to(memory_format=torch.channels_last).requires_grad_(True)  # faster on a CPU
    attached = None
    if adaptor is not None:
        unet.eval()  # dropout, if there is any, belongs to the trained part
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            attached = Adaptor.attach(unet, **adaptor)
    model = eps_model(unet)

    def total(x0: Tensor, t: Tensor, eps: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        return loss(model, guidance, schedule, x0, t, eps, gamma, omega, J, power=power, sign=sign)

    after = None if on_step is None else lambda i: on_step(i, unet)
    trained = unet if attached is None else attached
    history = finetuning.finetune(
        trained, schedule, images, total, steps, batch, lr, seed, on_step=after, progress=progress, **options
    )
    return Student(unet, attached, history)


def evaluations(steps: int | Tensor, J: int) -> int | Tensor:
    """Return the network evaluations (forward and backward) of so many ANT steps: J ascents and one update each.

    The classifier of the guidance is not counted: one pass a step of a net about half as large.
    """
    return steps * (J + 1)


def first_handwritten(handwritten: Tensor, iterations: Sequence[int]) -> Tensor:
    """Return the first iteration at which each noise's sample is handwritten (claim A5).

    Parameters
    ----------
    handwritten
        Whether the sample from noise j at checkpoint i is, (k, n), bool.
    iterations
        Of the k checkpoints, rising from 1 or more.

    Returns
    -------
    Tensor
        (n,), float64; twice the last iteration for a noise that has not become handwritten: its time is at least the
        last iteration, and on the log scale of :func:`spread` this is one unit more.

    Raises
    ------
    UserError
        If shapes do not fit or the iterations do not rise from 1 or more.
    """
    times = list(iterations)
    if handwritten.ndim != 2 or len(handwritten) != len(times):
        text = f"shape {tuple(handwritten.shape)} given; it should be ({len(times)}, n), one row for each iteration"
        raise UserError(f"handwritten: {text}")
    if not times or times[0] < 1 or times != sorted(set(times)):
        raise UserError(f"iterations: {times} given; they should rise from 1 or more")
    grid = torch.tensor([*times, 2 * times[-1]], dtype=torch.float64)
    never = torch.ones_like(handwritten[:1])  # (1, n)
    return grid[torch.cat([handwritten, never]).int().argmax(0)]  # argmax: the first of the largest


def spread(times: Tensor) -> float:
    """Return the standard deviation of log2 of positive times (n,): 1 means that they differ by factors of about 2."""
    return times.log2().std().item()


def first_transferred(shares: Sequence[float], threshold: float = TRANSFERRED) -> int | None:
    """Return the index of the first checkpoint at which the share of handwritten samples reaches the threshold."""
    return next((i for i, share in enumerate(shares) if share >= threshold), None)


def copy_radius(shots: Tensor, real: Tensor, quantile: float = 0.01) -> float:
    """Return the distance to the nearest shot below which a sample counts as a copy of it (claim A5).

    Parameters
    ----------
    shots
        Training images, (k, c, h, w).
    real
        Images of the target domain, (n, c, h, w); the shots may be among them and are left out.
    quantile
        Share of the other real images that are nearer to a shot than this distance.

    Returns
    -------
    float
        Root-mean-square pixel distance, as in :func:`lib.measures.distances.nearest`.

    Raises
    ------
    UserError
        If all real images are shots.
    """
    distance, _ = nearest(real, shots)
    others = distance[distance > 1e-4]  # the rounding of cdist stays below
    if len(others) == 0:
        raise UserError("real: every image is one of the shots; give further images of the target domain")
    return torch.quantile(others, quantile).item()


def copies(samples: Tensor, shots: Tensor, radius: float) -> float:
    """Return the share of samples (n, c, h, w) that are nearer than `radius` to a training image (k, c, h, w)."""
    return (nearest(samples, shots)[0] < radius).float().mean().item()
