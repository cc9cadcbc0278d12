from __future__ import annotations

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn

from lib.ground import diffusion, finetune, nets
from lib.ground.checkpoint import newest
from lib.record.files import UserError

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


def tune(net, steps=6, dtype=torch.float32, **options):
    options = {"batch": 4, "lr": 1e-2, "progress": False, **options}
    return finetune.finetune(net, SCHEDULE, IMAGES, loss_of(net, dtype), steps, **options)


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
        optimizer.param_groups[0]["lr"] = 1e-2 * min(1, (i + 1) / 4)
        optimizer.step()
    torch.testing.assert_close(weights(net), weights(bare), rtol=1e-4, atol=1e-6)
    assert history.values["grad_norm"] == pytest.approx(norms, rel=1e-5)
    assert min(norms) > 0.05  # so that clipping had something to do


def test_accumulated_batches_equal_a_large_one():
    many, one = Net(dtype=torch.float64), Net(dtype=torch.float64)
    a = tune(many, dtype=torch.float64, batch=4, accumulate=3)
    b = tune(one, dtype=torch.float64, batch=12)
    torch.testing.assert_close(weights(many), weights(one), rtol=0, atol=1e-6)
    assert a.values["loss"] == pytest.approx(b.values["loss"], abs=1e-9)
    assert not same(weights(one), weights(Net(dtype=torch.float64)))


def test_flip_mirrors_about_half_the_images_and_leaves_the_other_draws():
    net, seen = Net(), []

    def loss(x0, t, eps):
        seen.append((x0, t, eps))
        total = net(x0, t).square().mean()
        return total, {"loss": total.detach()}

    for flip in (False, True):
        finetune.finetune(net, SCHEDULE, IMAGES, loss, 1, batch=400, flip=flip, progress=False)
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
    options = {"batch": 2, "accumulate": 2, "progress": False}
    history = finetune.finetune(unet, SCHEDULE, images, loss, 3, accelerator=accelerator("bf16"), **options)
    inner.remove()
    assert kinds == [torch.bfloat16, torch.float32] * 6
    assert {p.dtype for p in unet.parameters()} == {p.grad.dtype for p in unet.parameters()} == {torch.float32}
    assert all(map(math.isfinite, history.values["loss"]))
    assert not same(before, weights(unet))
    assert not unet._forward_hooks  # as it was
    unet.load_state_dict(before)
    plain = finetune.finetune(unet, SCHEDULE, images, loss, 3, **options)
    assert plain.values["loss"] == pytest.approx(history.values["loss"], rel=0.02)
    assert plain.values != history.values


def test_other_precisions_are_refused():
    stub = SimpleNamespace(mixed_precision="fp16")
    with pytest.raises(UserError, match="mixed_precision: 'fp16' given; choose no or bf16"):
        tune(Net(), accelerator=stub)


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

        finetune.finetune(unet, SCHEDULE, torch.zeros(4, 1, 16, 16), loss, 1, batch=2, progress=False)
        gradients.append([p.grad for p in unet.parameters()])
        assert len(calls) == 1 + checkpointed  # once more in the backward pass
    torch.testing.assert_close(gradients[1], gradients[0], rtol=1e-5, atol=1e-7)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_images_may_stay_on_the_cpu():
    results = []
    for images in (IMAGES.pin_memory(), IMAGES.cuda()):
        net = Net().cuda()
        finetune.finetune(net, SCHEDULE, images, loss_of(net), 3, batch=4, flip=True, progress=False)
        results.append(weights(net))
    torch.testing.assert_close(*results, rtol=0, atol=0)


# --- what it shows and keeps ---


def test_grid_and_score_see_the_averaged_weights_and_on_step_the_trained_ones(tmp_path):
    net, seen = Net(), {"step": [], "grid": [], "score": []}
    average = {k: p.detach().clone() for k, p in net.named_parameters()}

    def on_step(i):
        seen["step"].append(weights(net))
        for key, value in net.named_parameters():
            average[key] = 0.7 * average[key] + 0.3 * value.detach()
        assert not net.training

    def look(kind, result):
        seen[kind].append(weights(net))
        assert not net.training
        torch.testing.assert_close(weights(net), average)
        return result

    history = tune(
        net,
        steps=5,
        ema=0.7,
        on_step=on_step,
        folder=tmp_path,
        grid=lambda: look("grid", IMAGES[:3]),
        grid_every=2,
        score=lambda: look("score", 1.0),
        score_every=3,
    )
    assert len(seen["step"]) == 5
    assert len(seen["grid"]) == 3  # 2, 4 and the last
    assert len(seen["score"]) == 2  # 3 and the last
    assert same(weights(net), seen["step"][-1])
    assert not same(weights(net), history.ema["student"])
    torch.testing.assert_close(history.ema["student"], average)
    assert same(finetune.best(tmp_path)[0], seen["score"][0])


def test_lowest_score_is_kept_beside_the_last_checkpoint_also_over_a_restart(tmp_path):
    net, states = Net(), {}
    given = {1: 3.0, 2: float("nan"), 3: 1.0, 4: 2.0, 5: 1.5, 6: 0.5, 7: 0.9}

    def run(steps):
        state = {"i": 0}
        return tune(
            net,
            steps,
            on_step=lambda i: (state.update(i=i), states.update({i: weights(net)})),
            folder=tmp_path,
            score=lambda: given[state["i"]],
            score_every=1,
        )

    run(4)
    kept, step, score = finetune.best(tmp_path)
    assert (step, score) == (3, 1.0)
    assert same(kept, states[3])
    assert newest(tmp_path).name == "step-000004"
    run(5)
    assert finetune.best(tmp_path)[1:] == (3, 1.0)  # 1.5 is the lowest since the restart only
    run(7)
    kept, step, score = finetune.best(tmp_path)
    assert (step, score) == (6, 0.5)
    assert same(kept, states[6])
    assert sorted(p.name for p in tmp_path.iterdir()) == ["best", "step-000007"]


def test_a_new_run_forgets_the_best_of_one_that_never_came_to_a_checkpoint(tmp_path):
    def fail(i):
        if i == 3:
            raise RuntimeError("power cut")

    with pytest.raises(RuntimeError):
        tune(Net(), folder=tmp_path, score=lambda: 0.1, score_every=2, on_step=fail)
    assert finetune.best(tmp_path)[2] == 0.1
    tune(Net(), lr=1e-3, folder=tmp_path, score=lambda: 0.2)
    assert finetune.best(tmp_path)[1:] == (6, 0.2)
    path = tmp_path / "best" / "student.safetensors"
    path.write_bytes(path.read_bytes()[:50])
    with pytest.raises(UserError, match=r"best/student.safetensors: truncated or damaged"):
        finetune.best(tmp_path)
    path.unlink()
    with pytest.raises(UserError, match=r"best/student.safetensors: missing; a run with a score writes it"):
        finetune.best(tmp_path)


def test_pictures_and_curves_are_written(tmp_path):
    grid = torch.tensor([-1.0, 1.0, 5.0, 0.0]).view(4, 1, 1, 1).expand(4, 1, 6, 6)
    values = iter([0.5, 0.25])
    options = {"folder": tmp_path / "run", "logs": tmp_path / "logs", "grid_every": 2, "score_every": 2}
    options |= {"grid": lambda: grid, "score": lambda: next(values)}
    history = tune(Net(), 2, **options)
    tune(Net(), 3, **options)  # a restart goes on in the same curves
    pictures = sorted((tmp_path / "run" / "samples").iterdir())
    assert [p.name for p in pictures] == ["step-000002.png", "step-000003.png"]
    picture = np.asarray(Image.open(pictures[0]))
    assert picture.shape == (18, 18, 3)  # two rows of two, with 2 pixels around each
    assert [picture[y, x, 0] for y in (5, 13) for x in (5, 13)] == [0, 255, 255, 127]
    curves = EventAccumulator(str(tmp_path / "logs")).Reload()
    assert curves.Tags()["images"] == ["samples"]
    losses = curves.Scalars("loss")
    assert [e.step for e in losses] == [1, 2, 3]
    assert [e.value for e in losses[:2]] == pytest.approx(history.values["loss"])
    assert [(e.step, e.value) for e in curves.Scalars("score")] == [(2, 0.5), (3, 0.25)]


def test_looking_does_not_change_the_training(tmp_path):
    plain, watched = Net(dropout=0.4), Net(dropout=0.4)
    tune(plain)
    tune(watched, folder=tmp_path, grid=lambda: torch.randn(2, 1, 4, 4), grid_every=1, score=torch.rand(3).sum)
    assert same(weights(plain), weights(watched))


# --- what it refuses ---


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"accumulate": 0}, "accumulate: 0 given; it should be 1 or larger"),
        ({"grid_every": 0}, "grid_every: 0 given"),
        ({"warmup": -1}, "warmup: -1 given; it should be 0 or larger"),
        ({"clip": -2.0}, "clip: -2 given"),
        ({"ema": 1.0}, "ema: 1 given; a decay from 0 to below 1, such as 0.999"),
        ({"score": lambda: 0.0}, "folder: none given; `score` and `grid` need one"),
        ({"grid": lambda: IMAGES}, "folder: none given"),
    ],
)
def test_arguments_out_of_range_are_refused(options, text):
    with pytest.raises(UserError, match=text):
        tune(Net(), **options)


def test_network_without_anything_to_train_is_refused():
    with pytest.raises(UserError, match="student: no parameter requires a gradient"):
        tune(Net().requires_grad_(False))


@pytest.mark.parametrize("changed", [{"batch": 5}, {"clip": 1.0}, {"flip": True}, {"parameters": {"gamma": 2}}])
def test_changed_settings_are_refused_at_resume(tmp_path, changed):
    tune(Net(), 2, folder=tmp_path)
    with pytest.raises(UserError, match=f"'{next(iter(changed.get('parameters', changed)))}' is .* in this run, but"):
        tune(Net(), 4, folder=tmp_path, **changed)
