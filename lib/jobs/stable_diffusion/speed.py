"""What DDS costs: the loop as published (official notebook of Hertz et al., ICCV 2023) against `lib.papers.dds.edit`.

Both get the same latent, embeddings, timesteps and noises, and a U-Net of the true shape with random weights: time does
not depend on what the weights are. Counted are evaluations of the U-Net, and its operations on the meta device.
"""

from __future__ import annotations

import copy
import statistics
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from lib.ground import diffusion
from lib.jobs.stable_diffusion.fast_unet import prepare
from lib.papers.dds import method as dds
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
    """Return a U-Net of a geometry with the weights that diffusers begins training with; they are frozen.

    Raises
    ------
    UserError
        `geometry` is unknown.
    """
    if geometry not in GEOMETRIES:
        raise UserError(f"geometry: unknown '{geometry}'; one of {', '.join(GEOMETRIES)}")
    with torch.random.fork_rng(devices=[]), torch.device("meta" if str(device) == "meta" else "cpu"):
        torch.manual_seed(seed)
        unet: Any = UNet2DConditionModel(**GEOMETRIES[geometry])
    return unet.to(device).eval().requires_grad_(False)


@torch.no_grad()
def operations(geometry: str = "sd15", side: int | None = None) -> int:
    """Return the floating-point operations of one evaluation with latents of `side` positions; computes nothing."""
    unet = random_unet(geometry, "meta")
    side = side or unet.config["sample_size"]
    z, text = torch.zeros(1, 4, side, side), torch.zeros(1, TOKENS, unet.config["cross_attention_dim"])
    with FlopCounterMode(display=False) as counter:
        unet(z.to("meta"), torch.zeros(1, device="meta"), text.to("meta"))
    return counter.get_total_flops()


def draw_inputs(geometry: str, side: int, iterations: int, device: torch.device | str, seed: int = 0) -> Inputs:
    """Draw a latent and three embeddings, and the timesteps and noises that DDS draws for this seed."""
    generator = torch.Generator().manual_seed(seed)
    z_hat = torch.randn(1, 4, side, side, generator=generator).to(device)
    features = GEOMETRIES[geometry]["cross_attention_dim"]
    y, y_hat, null = torch.randn(3, 1, TOKENS, features, generator=generator).to(device)
    t, eps = dds.draw(diffusion.scaled_linear(), z_hat, iterations, dds.T_RANGE, seed)
    return Inputs(z_hat, y, y_hat, null, t, eps)


def published(model: dds.Model, inputs: Inputs, omega: float = 7.5, autocast: torch.dtype | None = None) -> Tensor:
    """Edit as the official notebook does, and return z: what it costs is what this module measures.

    Every iteration makes the four evaluations in one call, looks whether they are finite (a GPU is waited for), and
    moves z by a surrogate loss, autograd and SGD. Its loss scale of 2000 belongs to latents of 64 x 64; here it follows
    the size, so that the step on the direction is the notebook's at every size.

    Parameters
    ----------
    model
        ``eps = model(z_t, t, y)``, with weights of 32 bit.
    autocast
        Type inside the model: the notebook's is float16 on a GPU.

    Raises
    ------
    UserError
        A prediction is not finite.
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


class Counted:
    """A model `eps = model(z_t, t, y)` from a U-Net, that counts the images it is given."""

    def __init__(self, unet: Callable[..., Any]) -> None:
        self.unet, self.images = unet, 0

    def __call__(self, z_t: Tensor, t: Tensor, y: Tensor) -> Tensor:
        """Call the U-Net; (b, c, h, w)."""
        self.images += len(z_t)
        return self.unet(z_t, t, y).sample


class _Loop:
    """A loop to be measured: the first run is kept apart from the clock, and gives result, count and memory."""

    def __init__(self, run: Callable[[], Tensor], model: Counted, weights: int, device: torch.device) -> None:
        self.run = run
        before = self._memory(device, reset=True)
        result: list[Tensor] = []
        self.first_seconds = seconds(lambda: result.append(run()), device)
        self.z, self.evaluations = result[0], model.images
        peak = self._memory(device)
        self.gigabytes = None if peak is None or before is None else (peak - before + weights) / 1024**3

    @staticmethod
    def _memory(device: torch.device, reset: bool = False) -> int | None:
        if device.type != "cuda":
            return None
        if reset:
            torch.cuda.reset_peak_memory_stats(device)
        return torch.cuda.max_memory_allocated(device)


def measure(
    device: torch.device,
    size: int | None = None,
    iterations: int = 200,
    geometry: str = "sd15",
    dtype: torch.dtype | None = None,
    mode: str | None = None,
    rounds: int = 3,
    seed: int = 0,
) -> Speed:
    """Time the loop as published and ours on the same inputs, in turns; compiling and capturing come before the clock.

    Parameters
    ----------
    size
        Pixels of the image's side; the geometry's own unless given (`sd15` 512, `small` 128).
    geometry
        `sd15` or `small`.
    dtype, mode
        Of `lib.jobs.stable_diffusion.fast_unet.prepare`, for ours; mode is `graph` on a GPU and `plain` on a CPU unless
        given.
    rounds
        Turns; times are medians over them.

    Raises
    ------
    UserError
        A parameter is unknown or out of range; as `lib.jobs.stable_diffusion.fast_unet.prepare`.
    """
    net = random_unet(geometry, device, seed)
    side = _side(geometry, size)
    if iterations < 1 or rounds < 1:
        raise UserError(f"iterations, rounds: {iterations} and {rounds}; give at least 1 of each")
    given = draw_inputs(geometry, side, iterations, device, seed)
    fast = prepare(copy.deepcopy(net), dtype, mode or ("graph" if device.type == "cuda" else "plain"))
    autocast = torch.float16 if device.type == "cuda" else None
    schedule = diffusion.scaled_linear()

    def usual(inputs: Inputs) -> _Loop:
        model = Counted(net)
        return _Loop(lambda: published(model, inputs, autocast=autocast), model, _bytes(net), device)

    def ours(inputs: Inputs) -> _Loop:
        model, (z_hat, y, y_hat, null, *_) = Counted(fast), inputs

        def run() -> Tensor:
            return dds.edit(model, schedule, z_hat, y, y_hat, null, iterations=iterations, seed=seed).z

        return _Loop(run, model, _bytes(fast.unet), device)

    empty = given._replace(y_hat=given.null)
    loops = {"as published": usual(given), "ours": ours(given), "ours, empty source prompt": ours(empty)}
    same = {"ours": loops["as published"].z, "ours, empty source prompt": usual(empty).z}
    large = (8192, 16) if device.type == "cuda" else (512, 8)  # side of the matrices, and products of them
    products, done = matrix_products(device, *large, fast.dtype)
    products()  # the loops have run already
    runs = {"products": products, **{name: loop.run for name, loop in loops.items()}}
    times = interleaved(runs, rounds, device, warm_up=False)
    rate, each = done / statistics.median(times["products"]) / 1e12, operations(geometry, side) / 1e12
    rows: list[dict[str, Any]] = []
    for name, loop in loops.items():
        took, work = statistics.median(times[name]), loop.evaluations * each
        row: dict[str, Any] = {"loop": name, "seconds": took, "speedup": ratio(times["as published"], times[name])}
        row |= {"evaluations": loop.evaluations, "TFLOP": work, "TFLOP/s": work / took}
        row |= {"share of matrix rate": work / took / rate, "first run, seconds": loop.first_seconds}
        if name in same:
            row["difference"] = float((loop.z - same[name]).norm() / (same[name] - given.z_hat).norm())
        if loop.gigabytes is not None:
            row["GB"] = loop.gigabytes
        rows.append(row)
    words = f"{geometry}, {side * SCALE} x {side * SCALE}, {iterations} iterations, {fast.mode}, {fast.dtype}"
    return Speed(
        rows, rows[0]["seconds"], rows[1]["speedup"], rows[1]["difference"], rate, each, net.num_parameters(), words
    )


def _side(geometry: str, size: int | None) -> int:
    """Return the side of the latents for images of `size` pixels."""
    config = GEOMETRIES[geometry]
    halvings = len(config.get("block_out_channels", range(4))) - 1
    side = config["sample_size"] if size is None else size // SCALE
    if side < 1 or side % 2**halvings or (size or 0) % SCALE:
        raise UserError(f"size: {size} given; geometry '{geometry}' takes a multiple of {SCALE * 2**halvings} pixels")
    return side


def _bytes(unet: torch.nn.Module) -> int:
    """Return the size of the weights."""
    return sum(p.numel() * p.element_size() for p in unet.parameters())
