"""A prepared U-Net predicts what the plain one does, and the loop as published ends where ours does."""

from __future__ import annotations

import copy
import shutil
from contextlib import nullcontext

import pytest
import torch
from diffusers.models.unets.unet_2d import UNet2DModel
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from lib.ground import diffusion
from lib.jobs.stable_diffusion import fast_unet, speed as dds_speed
from lib.papers.dds import fast, method as dds
from lib.record.files import UserError
from tests.rounding import assert_same

CPU = torch.device("cpu")
TINY = {
    "sample_size": 8,
    "block_out_channels": (8, 16),
    "layers_per_block": 1,
    "cross_attention_dim": 8,
    "norm_num_groups": 4,
    "attention_head_dim": 2,
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
}


@pytest.fixture(autouse=True)
def _tiny(monkeypatch):
    monkeypatch.setitem(dds_speed.GEOMETRIES, "tiny", TINY)


@pytest.fixture
def unet():
    return dds_speed.random_unet("tiny", seed=1)


@pytest.fixture
def given():
    return dds_speed.draw_inputs("tiny", 5, CPU, seed=3)


def batch(given: dds_speed.Inputs, n: int = 3) -> tuple[Tensor, Tensor, Tensor]:
    """Return inputs of one call with n latents, each with a timestep and a text of its own."""
    return given.eps[:n, 0], given.t[:n, 0], torch.cat([given.y, given.y_hat, given.null])[:n]


def relative(a: Tensor, b: Tensor) -> float:
    return float((a - b).norm() / b.norm())


def test_channels_last_changes_nothing_but_rounding(unet, given):
    plain = unet(*batch(given)).sample
    fast = fast_unet.prepare(copy.deepcopy(unet))
    found = fast(*batch(given)).sample
    assert fast.dtype == torch.float32  # on a CPU unless asked
    assert fast.unet.conv_in.weight.is_contiguous(memory_format=torch.channels_last)
    assert not fast.unet.conv_in.weight.is_contiguous()
    assert not fast.unet.training
    assert relative(found, plain) < 1e-5
    assert found.is_contiguous()
    assert not any(p.requires_grad for p in fast.unet.parameters())


@pytest.mark.parametrize(("dtype", "most"), [(torch.bfloat16, 2e-2), (torch.float16, 3e-3)])
def test_weights_of_16_bit_are_close_and_converted_once(unet, given, dtype, most):
    plain = unet(*batch(given)).sample
    fast = fast_unet.prepare(copy.deepcopy(unet), dtype)
    assert {p.dtype for p in fast.unet.parameters()} == {dtype}
    found = fast(*batch(given)).sample
    assert found.dtype == torch.float32
    assert 1e-5 < relative(found, plain) < most
    with torch.autocast("cpu", dtype=torch.bfloat16):  # does not reach inside
        assert torch.equal(fast(*batch(given)).sample, found)


def test_float16_is_nearer_than_bfloat16(unet, given):
    plain = unet(*batch(given)).sample
    apart = {
        dtype: relative(fast_unet.prepare(copy.deepcopy(unet), dtype)(*batch(given)).sample, plain)
        for dtype in (torch.float16, torch.bfloat16)
    }
    assert 3 * apart[torch.float16] < apart[torch.bfloat16]


def test_classes_in_the_order_of_the_network():
    torch.manual_seed(0)
    kinds = {"down_block_types": ("DownBlock2D",) * 2, "up_block_types": ("UpBlock2D",) * 2}
    net = UNet2DModel(8, 1, 1, block_out_channels=(8, 16), norm_num_groups=4, num_class_embeds=5, **kinds).eval()
    x, t, y = torch.randn(2, 1, 8, 8), torch.tensor([3, 700]), torch.tensor([0, 4])
    with torch.no_grad():
        plain = net(x, t, y).sample
    assert_same(fast_unet.prepare(net)(x, t, y).sample, plain)


def test_bad_input_is_refused(unet):
    with pytest.raises(UserError, match="mode: unknown 'fast'; one of plain, compile, graph"):
        fast_unet.prepare(unet, mode="fast")
    with pytest.raises(UserError, match="mode: 'graph' needs a GPU and the network is on 'cpu'"):
        fast_unet.prepare(unet, mode="graph")
    with pytest.raises(UserError, match="geometry: unknown 'sd3'; one of sd15, small"):
        dds_speed.random_unet("sd3")


def test_the_whole_network_is_one_graph(unet, given):
    """No part of it falls back to Python; the tracer alone needs no C++ compiler."""
    fast = fast_unet.prepare(copy.deepcopy(unet))
    traced = torch.compile(fast._plain, fullgraph=True, dynamic=False, backend="eager")
    fast._run, plain = traced, fast(*batch(given)).sample
    assert_same(fast(*batch(given)).sample, plain)


class Smooth(torch.nn.Module):
    """The smallest network that is called like a U-Net: compiling a true one takes most of a minute."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.config = torch.nn.Conv2d(4, 4, 3, padding=1), {}

    def forward(self, sample: Tensor, timestep: Tensor, text: Tensor, return_dict: bool = True) -> tuple[Tensor]:
        return (torch.tanh(self.conv(sample)) * timestep[:, None, None, None] / 1000 + text.mean(),)


@pytest.mark.skipif(not shutil.which("g++"), reason="torch.compile on a CPU needs the compiler g++, which is not here")
def test_compiled(given, monkeypatch, tmp_path):
    # A cache of its own: PyTorch's does not notice that ATEN_CPU_CAPABILITY has changed, and then results are wrong.
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    torch.manual_seed(0)
    net, inputs = Smooth(), batch(given)
    plain = net(*inputs)[0].detach()
    fast = fast_unet.prepare(net, mode="compile")
    first = fast(*inputs).sample
    assert relative(first, plain) < 1e-5
    assert torch.equal(fast(*inputs).sample, first)


def test_a_graph_for_every_shape_and_results_that_stay(unet, given, monkeypatch):
    """Stand-in for a CUDA graph that, like one, has one output memory: what is returned must not be that memory."""
    captured = []

    def graphed(run, inputs, pool):
        captured.append([tuple(value.shape) for value in inputs])
        output = run(*inputs)
        return lambda *inputs: output.copy_(run(*inputs))

    monkeypatch.setattr(torch.cuda, "make_graphed_callables", graphed)
    monkeypatch.setattr(torch.cuda, "device", nullcontext)
    fast = fast_unet.FastUNet(unet, torch.float32, "graph")
    z, t, y = batch(given)
    first = fast(z, t, y).sample
    kept = first.clone()
    fast(2 * z, t, y)
    assert torch.equal(first, kept)
    fast(z[:2], t[:2], y[:2])
    assert captured == [[(n, 4, 8, 8), (n,), (n, 77, 8)] for n in (3, 2)]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="CUDA graphs need a GPU")
@pytest.mark.parametrize("mode", ["plain", "graph"])
def test_on_a_gpu(unet, given, mode):
    plain = unet(*batch(given)).sample
    fast = fast_unet.prepare(copy.deepcopy(unet).cuda(), torch.float32, mode)
    for _ in range(2):
        found = [fast(*(value[:n].cuda() for value in batch(given))).sample.cpu() for n in (3, 2, 3)]
        assert all(relative(one, plain[: len(one)]) < 1e-2 for one in found)  # convolutions in TF32


def model_of(unet, counts: list[int] | None = None) -> dds.Model:
    def model(z_t: Tensor, t: Tensor, y: Tensor) -> Tensor:
        if counts is not None:
            counts.append(len(z_t))
        return unet(z_t, t, y).sample

    return model


def test_published_loop_is_the_plain_edit(unet, given):
    counts: list[int] = []
    given = given._replace(**{name: getattr(given, name).double() for name in ("z_hat", "y", "y_hat", "null", "eps")})
    z = dds_speed.published(model_of(unet.double(), counts), given)
    plain = dds.edit(model_of(unet), diffusion.scaled_linear(), *given[:4], iterations=5, seed=3)
    assert counts == [4] * 5
    assert plain.evaluations == 20
    assert relative(z - given.z_hat, plain.z - given.z_hat) < 1e-10  # of the edit, which is small beside the latent
    assert (z - given.z_hat).norm() > 0.01  # the prompts do something


def test_published_loop_refuses_what_is_not_finite(given):
    with pytest.raises(UserError, match="model: a prediction is not finite"):
        dds_speed.published(lambda z_t, t, y: z_t / 0, given)


class HostReads(TorchDispatchMode):
    """Counts how often a number is read from a tensor, for which a GPU would be waited for."""

    NAMES = ("_local_scalar_dense", "is_nonzero", "equal", "nonzero", "masked_select")

    def __init__(self) -> None:
        super().__init__()
        self.found = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.found += func.overloadpacket.__name__ in self.NAMES
        return func(*args, **(kwargs or {}))


def test_our_loop_reads_no_number_the_published_one_does(unet):
    reads: dict[str, list[int]] = {"ours": [], "published": []}
    model = model_of(fast_unet.prepare(copy.deepcopy(unet)))
    for n in (3, 7):
        given = dds_speed.draw_inputs("tiny", n, CPU, seed=3)
        with HostReads() as ours:
            fast.edit(model, diffusion.scaled_linear(), *given[:4], iterations=n, seed=3)
        with HostReads() as published:
            dds_speed.published(model_of(unet), given)
        reads["ours"].append(ours.found)
        reads["published"].append(published.found)
    assert reads["ours"][0] == reads["ours"][1]
    assert reads["published"][1] - reads["published"][0] >= 4


def test_geometry_of_stable_diffusion():
    unet = dds_speed.random_unet("sd15", "meta")
    assert unet.num_parameters() == 859_520_964
    assert dds_speed.operations("sd15") / 1e12 == pytest.approx(0.803, abs=0.01)


def test_random_weights_are_the_same_and_answer_to_the_prompt(given):
    a, b = dds_speed.random_unet("tiny", seed=4), dds_speed.random_unet("tiny", seed=4)
    state = torch.get_rng_state()
    dds_speed.random_unet("tiny", seed=5)
    assert torch.equal(torch.get_rng_state(), state)
    z, t, y = batch(given)
    assert torch.equal(a(z, t, y).sample, b(z, t, y).sample)
    assert relative(a(z, t, y).sample, a(z, t, y.flip(0)).sample) > 0.01


def test_measure_counts_and_compares():
    found = dds_speed.measure(CPU, geometry="tiny", iterations=3, rounds=1)
    published, ours, empty = found.rows
    n = 3
    assert [row["evaluations"] for row in found.rows] == [4 * n, 4 * n - 2, 3 * n - 1]
    assert published["TFLOP"] == pytest.approx(4 * n * dds_speed.operations("tiny") / 1e12)
    assert published["TFLOP/s"] == pytest.approx(published["TFLOP"] / published["seconds"])
    assert published["share of matrix rate"] == pytest.approx(published["TFLOP/s"] / found.matrix_rate)
    assert published["speedup"] == 1.0
    assert ours["speedup"] == pytest.approx(published["seconds"] / ours["seconds"])  # of one round
    assert (found.seconds_plain, found.speedup) == (published["seconds"], ours["speedup"])
    assert found.difference == ours["difference"] < 1e-4
    assert empty["difference"] < 1e-4
    assert "GB" not in ours
    assert found.setting == "tiny, 64 x 64, 3 iterations, plain, torch.float32"
