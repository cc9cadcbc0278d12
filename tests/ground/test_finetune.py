from __future__ import annotations

import math

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from torch import nn

from lib.ground import diffusion, nets
from lib.ground.finetune import Options, finetune
from lib.record.files import UserError
from tests.rounding import assert_same

SCHEDULE = diffusion.linear()
IMAGES = torch.randn(10, 1, 4, 4, generator=torch.Generator().manual_seed(3)).clamp(-1, 1)


class Net(nn.Module):
    def __init__(self, dropout=0.0, dtype=torch.float32):
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(1, 3, 3, padding=1), nn.SiLU(), nn.Dropout(dropout), nn.Conv2d(3, 1, 1))
        for k, p in enumerate(self.parameters()):
            p.data = torch.linspace(-0.5, 0.6, p.numel(), dtype=dtype).roll(k).reshape(p.shape)

    def forward(self, x, t):
        return self.layers(x)


def loss_of(net, dtype=torch.float32):
    def loss(x0, t, eps):
        x0, eps = x0.to(dtype), eps.to(dtype)
        total = (net(SCHEDULE.add_noise(x0, eps, t), t) - eps).square().mean()
        return total, {"loss": total.detach()}

    return loss


def tune(net, steps=6, dtype=torch.float32, on_step=None, accelerator=None, **options):
    chosen = Options(**{"batch": 4, "lr": 1e-2, **options})
    return finetune(net, SCHEDULE, IMAGES, loss_of(net, dtype), steps, chosen, on_step, accelerator)


def weights(net):
    return {k: v.clone() for k, v in net.state_dict().items()}


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def draws(seed, steps, batch=4):
    g = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        index = torch.randint(len(IMAGES), (batch,), generator=g)
        t = torch.randint(SCHEDULE.T, (batch,), generator=g)
        yield IMAGES[index], t, torch.randn(batch, *IMAGES.shape[1:], generator=g)


@pytest.fixture
def accelerator():
    """Accelerators of any precision, one after the other."""
    AcceleratorState._reset_state(True)
    yield lambda precision="no": Accelerator(cpu=True, mixed_precision=precision)
    AcceleratorState._reset_state(True)


# --- the training ---


@pytest.mark.parametrize("accelerated", [False, True])
def test_by_default_it_is_the_bare_loop_bit_for_bit(accelerator, accelerated):
    net, bare = Net(), Net()
    history = tune(net, seed=2, accelerator=accelerator() if accelerated else None)
    optimizer, losses = torch.optim.AdamW(bare.parameters(), 1e-2, weight_decay=0.0, fused=True), []
    for batch in draws(2, 6):
        loss, _ = loss_of(bare)(*batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert same(weights(net), weights(bare))
    assert history.values == {"loss": losses}
    assert not net.training


def test_warmup_and_clipping_are_the_formulas():
    net, bare = Net(), Net()
    history = tune(net, seed=2, warmup=4, clip=0.05)
    optimizer, norms = torch.optim.AdamW(bare.parameters(), weight_decay=0.0, fused=True), []
    for i, batch in enumerate(draws(2, 6)):
        optimizer.zero_grad()
        loss_of(bare)(*batch)[0].backward()
        norms.append(math.sqrt(sum(p.grad.square().sum().item() for p in bare.parameters())))
        for p in bare.parameters():
            p.grad *= min(1, 0.05 / norms[-1])
        optimizer.param_groups[0]["lr"] = 1e-2 * min(1, i / 4)
        optimizer.step()
    for name, value in weights(net).items():
        assert_same(value, weights(bare)[name], steps=6)
    assert history.values["grad_norm"] == pytest.approx(norms, rel=1e-4)
    assert min(norms) > 0.05  # so that clipping had something to do


def test_accumulated_batches_equal_a_large_one():
    many, one = Net(dtype=torch.float64), Net(dtype=torch.float64)
    a = tune(many, dtype=torch.float64, batch=4, accumulate=3)
    b = tune(one, dtype=torch.float64, batch=12)
    for name, value in weights(many).items():
        torch.testing.assert_close(value, weights(one)[name], rtol=0, atol=1e-6)  # AdamW divides tiny gradients
    assert a.values["loss"] == pytest.approx(b.values["loss"], abs=1e-9)
    assert not same(weights(one), weights(Net(dtype=torch.float64)))


def test_flip_mirrors_about_half_the_images_and_leaves_the_other_draws():
    net, seen = Net(), []

    def loss(x0, t, eps):
        seen.append((x0, t, eps))
        total = net(x0, t).square().mean()
        return total, {"loss": total.detach()}

    for flip in (False, True):
        finetune(net, SCHEDULE, IMAGES, loss, 1, Options(batch=400, flip=flip))
    (plain, t, eps), (flipped, same_t, same_eps) = seen
    assert torch.equal(t, same_t)
    assert torch.equal(eps, same_eps)
    mirrored = (flipped == plain.flip(3)).flatten(1).all(1)
    assert ((flipped == plain).flatten(1).all(1) ^ mirrored).all()
    assert 160 < mirrored.sum() < 240  # 4 standard deviations


def test_bf16_computes_in_it_and_keeps_everything_else_in_float32(accelerator):
    unet, kinds = nets.small_unet(16), []
    model = nets.eps_model(unet)
    inner = unet.conv_out.register_forward_hook(lambda module, inputs, output: kinds.append(output.dtype))

    def loss(x0, t, eps):
        output = model(SCHEDULE.add_noise(x0, eps, t), t)
        kinds.append(output.dtype)
        total = (output - eps).square().mean()
        return total, {"loss": total.detach()}

    images, before = torch.zeros(4, 1, 16, 16), weights(unet)
    options = Options(batch=2, accumulate=2)
    history = finetune(unet, SCHEDULE, images, loss, 3, options, accelerator=accelerator("bf16"))
    inner.remove()
    assert kinds == [torch.bfloat16, torch.float32] * 6
    assert {p.dtype for p in unet.parameters()} == {p.grad.dtype for p in unet.parameters()} == {torch.float32}
    assert all(map(math.isfinite, history.values["loss"]))
    assert not same(before, weights(unet))
    assert not unet._forward_hooks  # as it was
    unet.load_state_dict(before)
    plain = finetune(unet, SCHEDULE, images, loss, 3, options)
    assert plain.values["loss"] == pytest.approx(history.values["loss"], rel=0.02)
    assert plain.values != history.values


def test_gradient_checkpointing_gives_equal_gradients():
    gradients = []
    for checkpointed in (False, True):
        torch.manual_seed(0)
        unet = nets.small_unet(16)
        if checkpointed:
            unet.enable_gradient_checkpointing()
        model, calls = nets.eps_model(unet), []
        unet.down_blocks[0].resnets[0].conv1.register_forward_hook(lambda *_, calls=calls: calls.append(1))

        def loss(x0, t, eps, model=model):
            total = (model(SCHEDULE.add_noise(x0, eps, t), t) - eps).square().mean()
            return total, {"loss": total.detach()}

        finetune(unet, SCHEDULE, torch.zeros(4, 1, 16, 16), loss, 1, Options(batch=2))
        gradients.append([p.grad for p in unet.parameters()])
        assert len(calls) == 1 + checkpointed  # once more in the backward pass
    for with_, without in zip(*reversed(gradients), strict=True):
        assert_same(with_, without)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_images_may_stay_on_the_cpu():
    results = []
    for images in (IMAGES.pin_memory(), IMAGES.cuda()):
        net = Net().cuda()
        finetune(net, SCHEDULE, images, loss_of(net), 3, Options(batch=4, flip=True))
        results.append(weights(net))
    torch.testing.assert_close(*results, rtol=0, atol=0)


# --- what it refuses ---


def test_network_without_anything_to_train_is_refused():
    with pytest.raises(UserError, match="student: no parameter requires a gradient"):
        tune(Net().requires_grad_(False))


@pytest.mark.parametrize("changed", [{"batch": 5}, {"clip": 1.0}, {"flip": True}, {"parameters": {"gamma": 2}}])
def test_changed_settings_are_refused_at_resume(tmp_path, changed):
    tune(Net(), 2, folder=tmp_path)
    with pytest.raises(UserError, match=f"'{next(iter(changed.get('parameters', changed)))}' is .* in this run, but"):
        tune(Net(), 4, folder=tmp_path, **changed)
