"""What DDS costs: the loop as published (official notebook of Hertz et al., ICCV 2023) against `lib.papers.dds.fast`.

Both get the same latent, embeddings, timesteps and noises, and a U-Net of the true shape with random weights: time does
not depend on what the weights are. Counted are evaluations of the U-Net, and its operations on the meta device.
"""

import copy
import statistics
from functools import partial
from typing import Any, NamedTuple

import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from torch import Tensor

from lib.ground import diffusion
from lib.ground.nets import seeded
from lib.jobs import load
from lib.jobs.stable_diffusion.fast_unet import prepare
from lib.papers.dds import fast, method as dds
from lib.papers.dds.optimizers import PRESETS
from lib.record.files import UserError
from lib.record.timing import interleaved, matrix_products, ratio, seconds

LEARNING_RATE = 0.1  # of the official notebook
TOKENS = 77  # of a text in Stable Diffusion
SCALE = 8  # pixels of an image a position of its latent

# Configuration of diffusers' U-Net; what is missing is its default, which is Stable Diffusion's.
GEOMETRIES: dict[str, dict[str, Any]] = {
    "sd15": {"sample_size": 64, "cross_attention_dim": 768},  # Stable Diffusion 1.5, images of 512 x 512
    "small": {
        "sample_size": 16,
        "block_out_channels": (64, 128, 128),
        "layers_per_block": 1,
        "cross_attention_dim": 64,
        "down_block_types": ("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
    },
}


class Inputs(NamedTuple):
    """What both loops are given."""

    z_hat: Tensor  # (1, 4, h, w)
    y: Tensor  # target embedding, (1, 77, features)
    y_hat: Tensor  # source
    null: Tensor
    t: Tensor  # (n, 1)
    eps: Tensor  # (n, 1, 4, h, w)


class Speed(NamedTuple):
    """What `measure` returns."""

    rows: list[dict[str, Any]]  # one for the loop as published, one for ours with and one without a source prompt
    seconds_plain: float  # of the loop as published, median over rounds
    speedup: float  # that loop over ours with a source prompt, median over rounds
    difference: float  # between their results, relative to the edit
    matrix_rate: float  # TFLOP/s of large matrix products in our type
    operations: float  # TFLOP of one evaluation
    parameters: int  # of the U-Net
    setting: str  # in words


def random_unet(geometry: str = "sd15", device: torch.device | str = "cpu", seed: int = 0) -> UNet2DConditionModel:
    """Return a frozen U-Net of a geometry, `sd15` or `small`, with the weights that diffusers begins training with."""
    if geometry not in GEOMETRIES:
        raise UserError(f"geometry: unknown '{geometry}'; one of {', '.join(GEOMETRIES)}")
    with torch.device("meta" if str(device) == "meta" else "cpu"):
        unet = seeded(seed, lambda: UNet2DConditionModel(**GEOMETRIES[geometry]))
    return unet.to(device).eval().requires_grad_(False)


def operations(geometry: str = "sd15") -> float:
    """Return the floating-point operations of one evaluation; computes nothing."""
    given = draw_inputs(geometry, 1, "cpu")
    z, t, y = (part.to("meta") for part in (given.z_hat, given.t[0], given.y))
    return load.operations(random_unet(geometry, "meta"), z, t, y)


def draw_inputs(geometry: str, iterations: int, device: torch.device | str, seed: int = 0) -> Inputs:
    """Draw a latent and three embeddings, and the timesteps and noises that DDS draws for this seed."""
    generator = torch.Generator().manual_seed(seed)
    side, features = (GEOMETRIES[geometry][name] for name in ("sample_size", "cross_attention_dim"))
    z_hat = torch.randn(1, 4, side, side, generator=generator).to(device)
    y, y_hat, null = torch.randn(3, 1, TOKENS, features, generator=generator).to(device)
    t, eps = dds.draw(diffusion.scaled_linear(), z_hat, iterations, dds.T_RANGE, seed)
    return Inputs(z_hat, y, y_hat, null, t, eps)


def published(model: dds.Model, inputs: Inputs, omega: float = 7.5, autocast: torch.dtype | None = None) -> Tensor:
    """Edit as the official notebook does, and return z: what it costs is what this module measures.

    Every iteration makes the four evaluations in one call of a model with weights of 32 bit, looks whether they are
    finite (a GPU is waited for), and moves z by a surrogate loss, autograd and SGD. Its loss scale of 2000 belongs to
    latents of 64 x 64; here it follows the size, so that the step on the direction is the notebook's at every size.
    `autocast` is the type inside the model: the notebook's is float16 on a GPU.
    """
    z_hat, y, y_hat, null, t, eps = inputs
    schedule = diffusion.scaled_linear()
    alpha, sigma = schedule.signal.to(z_hat), schedule.noise.to(z_hat)
    texts = torch.cat([null, null, y_hat, y])
    h, w = z_hat.shape[-2:]
    loss_scale = PRESETS["notebook"].eta * h * w / LEARNING_RATE
    z = z_hat.clone().requires_grad_()
    optimizer = torch.optim.SGD([z], lr=LEARNING_RATE)
    for t_k, eps_k in zip(t, eps, strict=True):
        with torch.inference_mode():
            z_t, hat_t = (alpha[t_k] * latent + sigma[t_k] * eps_k for latent in (z, z_hat))
            with torch.autocast(z.device.type, dtype=autocast, enabled=autocast is not None):
                predicted = model(torch.cat([hat_t, z_t, hat_t, z_t]), t_k.repeat(4), texts)
            hat_null, z_null, hat_text, z_text = predicted.chunk(4)
            if not torch.isfinite(predicted).all():
                raise UserError("model: a prediction is not finite; take weights or an autocast type of 32 bit")
            g = z_null + omega * (z_text - z_null) - (hat_null + omega * (hat_text - hat_null))
        optimizer.zero_grad()
        (loss_scale * (z * g.clone()).sum() / (h * w)).backward()
        optimizer.step()
    return z.detach()


def measure(
    device: torch.device, iterations: int = 200, geometry: str = "sd15", mode: str | None = None, rounds: int = 3
) -> Speed:
    """Time the loop as published and ours on the same inputs, in turns; compiling and capturing come before the clock.

    `mode` is that of `lib.jobs.stable_diffusion.fast_unet.prepare`, for ours: `graph` on a GPU and `plain` on a CPU
    unless given. Times are medians over the rounds.
    """
    on_gpu, schedule = device.type == "cuda", diffusion.scaled_linear()
    net: Any = random_unet(geometry, device)
    quick = prepare(copy.deepcopy(net), None, mode or ("graph" if on_gpu else "plain"))
    given = draw_inputs(geometry, iterations, device)
    empty = given._replace(y_hat=given.null)

    loops = {"as published": (net, given), "ours": (quick, given), "ours, empty source prompt": (quick, empty)}
    same = {"ours": "as published", "ours, empty source prompt": "published, empty source prompt"}
    asked = {**loops, "published, empty source prompt": (net, empty)}  # the last for its result alone
    results: dict[str, tuple[Tensor, int]] = {}  # the latent, and the evaluations it took

    def edit(name: str) -> None:
        unet, inputs = asked[name]

        def model(z_t: Tensor, t: Tensor, y: Tensor) -> Tensor:
            return unet(z_t, t, y).sample

        if unet is quick:
            done = fast.edit(model, schedule, *inputs[:4], iterations=iterations)
            results[name] = done.z, done.evaluations
        else:
            z = published(model, inputs, autocast=torch.float16 if on_gpu else None)
            results[name] = z, 4 * iterations

    firsts: dict[str, dict[str, float]] = {}  # of each loop's first run, before the clock
    for name, (unet, _) in asked.items():
        if on_gpu:
            torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device) if on_gpu else 0
        firsts[name] = {"first run, seconds": seconds(partial(edit, name), device)}
        if on_gpu:
            weights = sum(p.numel() * p.element_size() for p in (quick.unet if unet is quick else net).parameters())
            firsts[name]["GB"] = (torch.cuda.max_memory_allocated(device) - before + weights) / 1024**3
    large = (8192, 16) if on_gpu else (512, 8)  # side of the matrices, and products of them
    products, done = matrix_products(device, *large, quick.dtype)
    products()  # the loops have run already
    runs: dict[str, Any] = {"products": products, **{name: partial(edit, name) for name in loops}}
    times = interleaved(runs, rounds, device, warm_up=False)
    rate, each = done / statistics.median(times["products"]) / 1e12, operations(geometry) / 1e12
    rows: list[dict[str, Any]] = []
    for name in loops:
        took, (z, evaluations) = statistics.median(times[name]), results[name]
        work = evaluations * each
        row: dict[str, Any] = {"loop": name, "seconds": took, "speedup": ratio(times["as published"], times[name])}
        row |= {"TFLOP": work, "TFLOP/s": work / took, "share of matrix rate": work / took / rate}
        row |= {"evaluations": evaluations, **firsts[name]}
        if name in same:
            expected = results[same[name]][0]
            row["difference"] = float((z - expected).norm() / (expected - given.z_hat).norm())
        rows.append(row)
    side = SCALE * GEOMETRIES[geometry]["sample_size"]
    words = f"{geometry}, {side} x {side}, {iterations} iterations, {quick.mode}, {quick.dtype}"
    plain, ours = rows[:2]
    return Speed(rows, plain["seconds"], ours["speedup"], ours["difference"], rate, each, net.num_parameters(), words)
