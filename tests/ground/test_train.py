from __future__ import annotations

import functools
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import nn

from lib.ground import train as loop
from lib.record.files import UserError

STEPS = 20


class Job:
    """A small training run with two networks, dropout (torch's own random numbers) and a moving average."""

    def __init__(self, width: int = 4, optimizer=torch.optim.Adam):
        generator = torch.Generator().manual_seed(5)
        self.first = nn.Sequential(nn.Linear(3, width), nn.Dropout(0.3), nn.SiLU(), nn.Linear(width, 3))
        self.second = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
        for p in [*self.first.parameters(), *self.second.parameters()]:
            p.data = torch.randn(p.shape, generator=generator)
        self.modules = {"first": self.first, "second": self.second}
        self.optimizers = {name: optimizer(net.parameters(), 0.01) for name, net in self.modules.items()}

    def sample(self, generator):
        return torch.randn(8, 3, generator=generator)

    def update(self, name, loss):
        self.optimizers[name].zero_grad()
        loss.backward()
        self.optimizers[name].step()
        return loss.detach()

    def step(self, x):
        a = self.update("first", (self.first(x) - x).square().mean())
        b = self.update("second", (self.second(self.first(x).detach()) - 1).square().mean())
        return {"a": a, "b": float(b)}

    def train(self, steps=STEPS, **options):
        options = {"ema": {"first": 0.9}, **options}
        step = options.pop("step", self.step)
        return loop.train(step, self.sample, self.modules, self.optimizers, steps, **options)

    def weights(self):
        return {f"{n}.{k}": v.clone() for n, m in self.modules.items() for k, v in m.state_dict().items()}


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def assert_same_run(job, history, other, expected):
    assert same(job.weights(), other.weights())
    assert same(history.ema["first"], expected.ema["first"])
    assert history.values == expected.values


@pytest.fixture(scope="module")
def whole():
    """An uninterrupted run."""
    job = Job()
    return job, job.train()


@pytest.fixture
def interrupts():
    """Python's usual answer to Ctrl-C, which a background process may lack."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield lambda: os.kill(os.getpid(), signal.SIGINT)
    signal.signal(signal.SIGINT, before)


def stop_at(n, error):
    def on_step(i, history):
        if i == n:
            raise error

    return on_step


def partial(folder, n=10):
    """A checkpoint of step n, of a run stopped there."""
    Job().train(n, folder=folder)
    return folder / f"step-{n:06d}"


# --- what a run does ---


def test_history_holds_every_value_and_the_steps_are_counted_from_one():
    seen = []
    history = Job().train(on_step=lambda i, history: seen.append((i, len(history.values.get("a", [])))))
    assert [i for i, _ in seen] == list(range(1, STEPS + 1))
    assert [known for _, known in seen] == [i // 10 * 10 for i, _ in seen]  # read every ten steps
    assert len(history.values["a"]) == STEPS
    assert len(history.values["b"]) == STEPS
    assert history.seconds > 0


def test_training_learns():
    target = torch.tensor([1.0, -2.0, 0.5])
    weight = nn.Linear(3, 1, bias=False)
    optimizer = torch.optim.Adam(weight.parameters(), 0.1)

    def step(x):
        loss = (weight(x)[:, 0] - x @ target).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return {"loss": loss}

    loop.train(step, lambda g: torch.randn(32, 3, generator=g), {"w": weight}, {"w": optimizer}, 300)
    torch.testing.assert_close(weight.weight.data[0], target, rtol=0, atol=1e-2)


def test_equal_seeds_give_equal_runs_and_outer_random_numbers_are_left_alone(whole):
    job = Job()
    torch.manual_seed(77)
    before = torch.get_rng_state()
    assert_same_run(job, job.train(), *whole)
    assert torch.equal(torch.get_rng_state(), before)
    other = Job()
    other.train(seed=1)
    assert not same(other.weights(), job.weights())


def test_moving_average_is_the_formula():
    job = Job()
    expected = {k: v.detach().clone() for k, v in job.first.named_parameters()}

    def on_step(i, history):
        for key, value in job.first.named_parameters():
            expected[key] = 0.9 * expected[key] + 0.1 * value.detach()

    history = job.train(on_step=on_step)
    for key, value in expected.items():
        torch.testing.assert_close(history.ema["first"][key], value)
    Job().first.load_state_dict(history.ema["first"])  # fits the network
    assert not same(history.ema["first"], job.first.state_dict())


def test_progress_bar_shows_the_running_loss(capsys, monkeypatch):
    monkeypatch.setattr(loop, "tqdm", functools.partial(loop.tqdm, disable=False))
    job = Job()

    def slow(batch):
        time.sleep(0.06)
        return job.step(batch)

    job.train(step=slow)
    shown = capsys.readouterr().err
    assert "/20 [" in shown
    assert "a=" in shown


# --- checkpoints and resume ---


@pytest.mark.parametrize("stop", [1, 9, 10, 19])
def test_a_longer_run_continues_a_shorter_one_bit_for_bit(tmp_path, whole, stop):
    Job().train(stop, folder=tmp_path)
    job = Job()
    for p in [*job.first.parameters(), *job.second.parameters()]:
        p.data.zero_()  # all of it must come from the checkpoint
    assert_same_run(job, job.train(folder=tmp_path), *whole)
    assert [p.name for p in tmp_path.glob("[!.]*")] == ["step-000020"]


def test_saving_changes_nothing_in_the_run(tmp_path, whole):
    job = Job()
    assert_same_run(job, job.train(folder=tmp_path, save_every=3), *whole)


def test_weights_are_safetensors_that_fit_the_network(tmp_path):
    path = partial(tmp_path)
    assert sorted(p.name for p in path.iterdir()) == [
        ".companion.json",
        "first.ema.safetensors",
        "first.safetensors",
        "second.safetensors",
        "state.pt",
    ]
    Job().first.load_state_dict(safetensors.torch.load_file(path / "first.safetensors"))


def test_finished_run_returns_at_once(tmp_path, whole):
    Job().train(folder=tmp_path)

    def never(batch):
        raise AssertionError("trained again")

    job = Job()
    history = job.train(folder=tmp_path, step=never)
    assert_same_run(job, history, *whole)


def test_other_memory_layout_is_kept_and_resumes_exactly(tmp_path):
    def conv_job():
        net = nn.Conv2d(2, 3, 3)
        for p in net.parameters():
            p.data = torch.linspace(-1, 1, p.numel()).reshape(p.shape)
        net = net.to(memory_format=torch.channels_last)
        optimizer = torch.optim.Adam(net.parameters(), 0.01, fused=True)

        def step(x):
            loss = net(x).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            return {"loss": loss}

        def sample(g):
            return torch.randn(4, 2, 6, 6, generator=g)

        return net, lambda n, folder=None: loop.train(step, sample, {"c": net}, {"c": optimizer}, n, folder=folder)

    net, run = conv_job()
    run(8)
    conv_job()[1](4, tmp_path)
    again, run_again = conv_job()
    run_again(8, tmp_path)
    assert torch.equal(net.weight, again.weight)
    assert again.weight.is_contiguous(memory_format=torch.channels_last)


KILLER = """
import os, random, signal, sys, time
from pathlib import Path
import torch
torch.set_num_threads(1)
sys.path.insert(0, {tests!r})
from test_train import Job

def start(folder):
    pid = os.fork()
    if pid == 0:
        try:
            job = Job()
            history = job.train(120, folder=folder, save_every=2)
            result = [job.weights(), history.ema, history.values]
            torch.save(result, folder.with_suffix(".unfinished"))
            folder.with_suffix(".unfinished").rename(folder.with_suffix(".result"))
        finally:
            os._exit(0)
    return pid

Job()  # what torch imports late is imported once, before the forks
root = Path(sys.argv[1])
began = time.time()
os.waitpid(start(root / "whole"), 0)
seconds = time.time() - began
for trial in range(4):
    folder, draw, steps = root / f"killed{{trial}}", random.Random(), []
    for attempt in range(4):
        pid = start(folder)
        time.sleep(draw.uniform(0.05, 0.6) * seconds)
        os.kill(pid, signal.SIGKILL)
        status = os.waitpid(pid, 0)[1]
        if not os.WIFSIGNALED(status):
            break
        steps.append(max((int(p.name[5:]) for p in folder.glob("step-*") if not p.suffix), default=0))
    os.waitpid(start(folder), 0)
    print(folder.name, *steps)
"""


def test_runs_killed_at_random_moments_end_with_the_same_weights(tmp_path):
    script = KILLER.format(tests=str(Path(__file__).parent))
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path)], capture_output=True, text=True, cwd=root, timeout=900
    )
    assert done.returncode == 0, done.stderr
    lines = [line.split() for line in done.stdout.splitlines()]
    kept = [int(step) for line in lines for step in line[1:]]
    assert len(lines) == 4
    assert sum(0 < step < 120 for step in kept) >= 3, f"too few kills in the middle of a run: {kept}"
    weights, ema, values = torch.load(tmp_path / "whole.result", weights_only=True)
    assert len(values["a"]) == 120
    for name, *_ in lines:
        others = torch.load(tmp_path / f"{name}.result", weights_only=True)
        assert same(others[0], weights)
        assert same(others[1]["first"], ema["first"])
        assert others[2] == values


class Crash(BaseException):
    """Stands for a kill at one exact file operation."""


OPERATIONS = [(os, "fsync"), (os, "open"), (Path, "mkdir"), (Path, "rename"), (shutil, "rmtree")]


def crash_at(monkeypatch, n):
    """Make the n-th file operation of the checkpoints fail; returns the list of those that ran."""
    ran: list[str] = []

    def wrap(name, original):
        def wrapped(*args, **kwargs):
            ran.append(name)
            if len(ran) == n:
                if name == "rmtree":  # dies half way
                    for path in list(Path(args[0]).glob("*"))[:1]:
                        path.unlink()
                raise Crash(name)
            return original(*args, **kwargs)

        return wrapped

    for owner, name in OPERATIONS:
        monkeypatch.setattr(owner, name, wrap(name, getattr(owner, name)))
    return ran


def test_a_crash_at_any_file_operation_leaves_a_loadable_state(tmp_path, whole):
    crashes = 0
    for n in range(1, 200):
        folder = tmp_path / str(n)
        partial(folder, 4)
        with pytest.MonkeyPatch.context() as patch:
            crash_at(patch, n)
            try:
                Job().train(8, folder=folder, save_every=4)
            except Crash:
                crashes += 1
            else:
                break
        job = Job()
        assert_same_run(job, job.train(folder=folder, save_every=4), *whole)
    assert crashes >= 12


def test_what_others_put_beside_the_checkpoints_stays(tmp_path, whole):
    partial(tmp_path, 4)
    shutil.copytree(tmp_path / "step-000004", tmp_path / "step-000004-copy")
    (tmp_path / "step-notes").write_text("mine")
    (tmp_path / "step-000004" / "notes.txt").write_text("mine")
    job = Job()
    assert_same_run(job, job.train(folder=tmp_path, save_every=4), *whole)
    assert (tmp_path / "step-000004" / "notes.txt").read_text() == "mine"
    assert (tmp_path / "step-notes").exists()
    assert (tmp_path / "step-000004-copy" / "state.pt").exists()


def test_a_step_is_saved_before_it_is_looked_at_and_looked_at_again_after_a_resume(tmp_path):
    seen = []

    def look(i, history):
        seen.append(i)
        if i == 4 and seen.count(4) == 1:
            assert loop.checkpoint.newest(tmp_path).name == "step-000004"
            raise OSError("the score cannot be had")

    with pytest.raises(OSError, match="cannot be had"):
        Job().train(6, folder=tmp_path, save_every=4, on_step=look)
    Job().train(6, folder=tmp_path, save_every=4, on_step=look)
    assert seen == [1, 2, 3, 4, 4, 5, 6]


def test_slow_steps_are_saved_by_the_clock(tmp_path, monkeypatch):
    whole = Job()
    history = whole.train(25)
    monkeypatch.setattr(loop, "LATEST", 0.0)

    def die(i, history):
        if i == 15:
            raise OSError

    with pytest.raises(OSError):  # noqa: PT011
        Job().train(25, folder=tmp_path, save_every=1000, on_step=die)
    assert loop.checkpoint.newest(tmp_path).name == "step-000010"
    job = Job()
    found = job.train(25, folder=tmp_path, save_every=1000)
    assert found.values == history.values
    assert same(job.first.state_dict(), whole.first.state_dict())


def test_no_process_shares_its_random_numbers_with_one_of_another_seed():
    drawn = [loop.stream(seed, rank) for seed in range(30) for rank in range(8)]
    assert len(set(drawn)) == len(drawn)
    assert [loop.stream(seed, 0) for seed in range(3)] == [0, 1, 2]


# --- what stops a run ---


def test_ctrl_c_finishes_the_step_saves_and_goes_on_later(tmp_path, whole, interrupts):
    job = Job()

    def step(batch):
        values = {"a": job.update("first", (job.first(batch) - batch).square().mean())}
        if len(calls) == 6:
            interrupts()  # between the updates of the two networks
        calls.append(1)
        b = job.update("second", (job.second(job.first(batch).detach()) - 1).square().mean())
        return values | {"b": float(b)}

    calls: list[int] = []
    with pytest.raises(KeyboardInterrupt):
        job.train(step=step, folder=tmp_path)
    assert [p.name for p in tmp_path.glob("[!.]*")] == ["step-000007"]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    again = Job()
    assert_same_run(again, again.train(folder=tmp_path), *whole)


def test_ctrl_c_without_a_folder_just_stops(interrupts):
    steps = []

    def on_step(i, history):
        steps.append(i)
        if i == 3:
            interrupts()

    with pytest.raises(KeyboardInterrupt):
        Job().train(on_step=on_step)
    assert steps == [1, 2, 3]


def test_second_ctrl_c_stops_inside_the_step(tmp_path, interrupts):
    def step(batch):
        interrupts()
        interrupts()
        raise AssertionError("not reached")

    with pytest.raises(KeyboardInterrupt):
        Job().train(step=step, folder=tmp_path)
    assert not list(tmp_path.glob("[!.]*"))


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), torch.tensor(float("nan"))])
def test_loss_that_is_not_finite_stops_when_it_is_read_and_keeps_the_last_good_checkpoint(tmp_path, whole, bad):
    job, seen = Job(), []

    def step(batch):
        seen.append(1)
        values = job.step(batch)
        if len(seen) == 7:
            job.first[0].weight.data.fill_(float("nan"))
            values["b"] = bad
        return values

    with pytest.raises(UserError, match=r"step 7: 'b' is (nan|inf); .* last good checkpoint is .*step-000006") as error:
        job.train(step=step, folder=tmp_path, save_every=3)
    assert len(seen) == 9  # values are read before the next checkpoint
    assert "\n" not in str(error.value)
    again = Job()
    assert_same_run(again, again.train(folder=tmp_path), *whole)


def test_bad_weights_behind_a_finite_loss_are_never_saved(tmp_path, whole):
    job, seen = Job(), []

    def step(batch):
        seen.append(1)
        if len(seen) < 9:
            return job.step(batch)
        job.second[0].bias.data[0] = float("inf")
        return {"a": 0.0, "b": 0.0}

    with pytest.raises(UserError, match=r"step 9: weight '0.bias' of second.safetensors is not finite; .*step-000006"):
        job.train(step=step, folder=tmp_path, save_every=3)
    again = Job()
    assert_same_run(again, again.train(folder=tmp_path), *whole)
    with pytest.raises(UserError, match=r"step 20: weight .* there is no checkpoint yet"):
        job.train(step=lambda batch: {"a": 0.0})


def test_error_in_a_step_keeps_the_last_checkpoint(tmp_path, whole):
    with pytest.raises(RuntimeError, match="boom"):
        Job().train(folder=tmp_path, save_every=4, on_step=stop_at(10, RuntimeError("boom")))
    assert [p.name for p in tmp_path.glob("[!.]*")] == ["step-000008"]
    job = Job()
    assert_same_run(job, job.train(folder=tmp_path), *whole)


# --- what a run refuses ---


def refused(match, job=None, **options):
    """The run is refused in one line, without a step and without a change to the networks."""
    job = job or Job()
    before = job.weights()

    def never(batch):
        raise AssertionError("trained")

    with pytest.raises(UserError, match=match) as error:
        job.train(step=never, **options)
    assert "\n" not in str(error.value)
    assert same(job.weights(), before)


@pytest.mark.parametrize("name", ["state.pt", "first.safetensors", "first.ema.safetensors", "second.safetensors"])
def test_missing_and_truncated_files_are_refused(tmp_path, name):
    path = partial(tmp_path) / name
    data = path.read_bytes()
    for size in (len(data) - 1, len(data) // 2, 5, 0):
        path.write_bytes(data[:size])
        refused(rf"step-000010/{name}: truncated or damaged .* delete .*step-000010 to start anew", folder=tmp_path)
    path.unlink()
    refused(rf"step-000010/{name}: missing; restore it, or delete", folder=tmp_path)


def test_weights_of_another_shape_are_refused(tmp_path):
    partial(tmp_path)
    text = r"first.safetensors: weight '0.weight' is \(4, 3\), this network wants \(6, 3\)"
    refused(text, Job(width=6), folder=tmp_path)


def test_weights_of_another_network_are_refused(tmp_path):
    path = partial(tmp_path) / "second.safetensors"
    tensors = safetensors.torch.load_file(path)
    safetensors.torch.save_file(tensors | {"extra": torch.zeros(2)}, path)
    refused(r"weight 'extra' is \(2,\), this network wants absent", folder=tmp_path)
    tensors.pop("0.bias")
    safetensors.torch.save_file(tensors, path)
    refused(r"weight '0.bias' is absent, this network wants \(2,\)", folder=tmp_path)


def test_other_optimizers_are_refused(tmp_path):
    partial(tmp_path)
    text = "'optimizers' is {'first': 'SGD', .*} in this run, but the checkpoint was made with {'first': 'Adam', .*}"
    refused(text, Job(optimizer=torch.optim.SGD), folder=tmp_path)
    fewer = Job()
    fewer.optimizers.pop("second")
    refused("'optimizers' is {'first': 'Adam'} in this run", fewer, folder=tmp_path)


def test_optimizer_of_other_parameters_is_refused(tmp_path):
    partial(tmp_path)
    job = Job()
    job.optimizers["second"] = torch.optim.Adam(list(job.second.parameters())[:2])
    refused("state.pt: optimizer 'second' does not fit", job, folder=tmp_path)


def test_checkpoint_of_more_steps_is_refused(tmp_path):
    partial(tmp_path)
    refused("step-000010: holds 10 steps, more than steps=5", steps=5, folder=tmp_path)


def test_changed_parameters_are_refused_by_name_with_both_values(tmp_path):
    given = {"rate": 0.1, "steps": 10, "channels": (16, 32)}
    Job().train(10, folder=tmp_path, parameters=given)
    refused("'rate' is 0.2 in this run, but .* made with 0.1", folder=tmp_path, parameters=given | {"rate": 0.2})
    refused("'rate' is None in this run", folder=tmp_path, parameters={"channels": [16, 32]})
    refused("'more' is 1 in this run, but .* made with None", folder=tmp_path, parameters=given | {"more": 1})
    refused("'seed' is 4 in this run, but .* made with 0", folder=tmp_path, parameters=given, seed=4)
    refused("'ema' is {} in this run", folder=tmp_path, parameters=given, ema=None)
    Job().train(12, folder=tmp_path, parameters=given | {"steps": 12})


def test_folder_that_cannot_be_written_is_refused_before_training(tmp_path):
    file = tmp_path / "file"
    file.write_text("")
    refused("cannot write to folder .*file/inside: .*; choose another", folder=file / "inside")
    refused("cannot write to folder .*file: ", folder=file)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_folder_without_permission_is_refused(tmp_path):
    tmp_path.chmod(0o500)
    refused("cannot write to folder .*: Permission denied", folder=tmp_path)
