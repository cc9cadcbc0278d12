"""Several processes, and kills. The file is also the program that the tests start: see `main`.

Importing torch takes seconds, so one process does that, once, and forks the processes of each run; it has no threads.
"""

from __future__ import annotations

import json
import os
import random
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from torch import nn

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))  # as a program

from lib.ground import diffusion, finetune  # noqa: E402
from lib.ground.train import stream  # noqa: E402
from lib.record.files import UserError  # noqa: E402

STEPS, BATCH = 40, 4
SCHEDULE = diffusion.linear()
IMAGES = torch.linspace(-1, 1, 12 * 2 * 4 * 4).sin().reshape(12, 2, 4, 4)


class Net(nn.Module):
    def __init__(self, dropout: float = 0.0) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(2, 4, 3, padding=1), nn.SiLU(), nn.Dropout(dropout), nn.Conv2d(4, 2, 1))
        for k, p in enumerate(self.parameters()):
            p.data = torch.linspace(-0.5, 0.6, p.numel()).roll(k).reshape(p.shape)

    def forward(self, x, t):
        return self.layers(x) * (1 + t.view(-1, 1, 1, 1) / 1000)


def loss_of(net, dtype=torch.float32):
    """A loss that calls the network twice, as that of SDFT."""

    def loss(x0, t, eps):
        x0, eps = x0.to(dtype), eps.to(dtype)
        x_t = SCHEDULE.add_noise(x0, eps, t)
        total = (net(x_t, t) - eps).square().mean() + 0.1 * net(eps, t).square().mean()
        return total, {"loss": total.detach()}

    return loss


# --- what the started processes do; each gets the accelerator and a folder ---


def pair(accelerator, folder):
    """Both processes in float64; their networks are unequal before the training, and laid out unusually."""
    net = Net().double().to(memory_format=torch.channels_last)
    if not accelerator.is_main_process:
        net.layers[0].weight.data.zero_()
    history = finetune.finetune(
        net, SCHEDULE, IMAGES, loss_of(net, torch.float64), 5, finetune.Options(BATCH, 1e-3), accelerator=accelerator
    )
    torch.save([net.state_dict(), history.values], folder / f"result-{accelerator.process_index}.pt")


def job(accelerator, folder, lr=1e-2, steps=STEPS, term=0, nan=0, slow=0.0):
    """All that a checkpoint has to hold: random numbers of three kinds, averages, a warm-up, accumulation."""
    net, calls = Net(dropout=0.3), []
    plain = loss_of(net)

    def loss(x0, t, eps):
        total, parts = plain(x0, t, eps)
        calls.append(1)
        time.sleep(slow)
        here = accelerator.process_index == accelerator.num_processes - 1
        if here and len(calls) == 2 * term:  # accumulate is 2
            os.kill(os.getpid(), signal.SIGTERM)
        return total, {"loss": parts["loss"] * (float("nan") if here and len(calls) == 2 * nan else 1)}

    saving = {"folder": folder / "run", "save_every": 2}
    options = finetune.Options(BATCH, lr, ema=0.9, warmup=20, accumulate=2, flip=True, **saving)
    history = finetune.finetune(net, SCHEDULE, IMAGES, loss, steps, options, accelerator=accelerator)
    result = folder / f"result-{accelerator.process_index}.pt"
    torch.save([net.state_dict(), history.ema["student"], history.values], result)


def work(scenario, folder, options):
    """One process of a run; what ends it becomes the exit code and one line."""
    import accelerate

    torch.set_num_threads(1)
    try:
        globals()[scenario](accelerate.Accelerator(cpu=True), Path(folder), **options)
        return 0
    except UserError as error:
        print(f"UserError: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("KeyboardInterrupt", file=sys.stderr)
        return 3


def fork(rank, processes, port, scenario, folder, options):
    if pid := os.fork():
        return pid
    code = 1
    try:
        log = os.open(Path(folder) / f"log-{rank}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(log, 1)
        os.dup2(log, 2)
        if processes > 1:
            os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(processes)}
            os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        code = work(scenario, folder, options)
        sys.stderr.flush()
    finally:
        os._exit(code)


def main():
    """With arguments, one process of a run; without, the host: starts the run of each line read and prints its end."""
    if sys.argv[1:]:
        scenario, folder, options = sys.argv[1:]
        sys.exit(work(scenario, folder, json.loads(options)))
    import accelerate.utils  # noqa: F401  all slow imports once, before the forks

    torch.optim.AdamW(Net().parameters())  # imports more

    for line in sys.stdin:
        scenario, folder, processes, kill_after, options = json.loads(line)
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        pids = [fork(rank, processes, port, scenario, folder, options) for rank in range(processes)]
        ends, limit = {}, time.time() + 120
        while len(ends) < processes:
            saved = max((int(p.name[5:]) for p in Path(folder).glob("run/step-*") if not p.suffix), default=0)
            if time.time() > limit or (kill_after and saved >= kill_after):
                time.sleep(random.uniform(0, 0.02))
                for pid in set(pids) - set(ends):
                    os.kill(pid, signal.SIGKILL)
                kill_after = 0
            for pid in set(pids) - set(ends):
                done, status = os.waitpid(pid, os.WNOHANG)
                if done:
                    ends[pid] = "late" if time.time() > limit else os.waitstatus_to_exitcode(status)
            time.sleep(0.002)
        print(json.dumps([ends[pid] for pid in pids]), flush=True)


# --- the tests ---


@pytest.fixture(scope="module")
def host():
    environment = os.environ | {"OMP_NUM_THREADS": "1", "TQDM_DISABLE": ""}
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True, "cwd": ROOT, "env": environment}
    with subprocess.Popen([sys.executable, __file__], **pipes) as process:
        yield process
        process.stdin.close()


@pytest.fixture
def run(host, tmp_path):
    """Start a run; returns the exit codes and what each process printed."""

    def start(scenario, processes=2, name="a", kill_after=0, **options):
        folder = tmp_path / name
        folder.mkdir(exist_ok=True)
        host.stdin.write(json.dumps([scenario, str(folder), processes, kill_after, options]) + "\n")
        host.stdin.flush()
        codes = json.loads(host.stdout.readline())
        return codes, [(folder / f"log-{rank}").read_text() for rank in range(processes)]

    return start


def result(folder, rank=0):
    return torch.load(folder / f"result-{rank}.pt", weights_only=True)


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def assert_same_results(folder, other, processes):
    for rank in range(processes):
        (weights, ema, values), expected = result(folder, rank), result(other, rank)
        assert same(weights, expected[0])
        assert same(ema, expected[1])
        assert values == expected[2]


def test_two_processes_equal_one_that_gets_both_their_batches(run, tmp_path):
    codes, logs = run("pair")
    assert codes == [0, 0], logs
    assert "/5 [" in logs[0]
    assert "/5 [" not in logs[1]  # one bar
    net = Net().double()
    loss = loss_of(net, torch.float64)
    optimizer = torch.optim.AdamW(net.parameters(), 1e-3, weight_decay=0)
    generators = [torch.Generator().manual_seed(stream(0, rank)) for rank in range(2)]
    losses = []
    for _ in range(5):
        total = 0
        for g in generators:
            index = torch.randint(len(IMAGES), (BATCH,), generator=g)
            t = torch.randint(SCHEDULE.T, (BATCH,), generator=g)
            total = total + loss(IMAGES[index], t, torch.randn(BATCH, 2, 4, 4, generator=g))[0] / 2
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
        losses.append(total.item())
    for rank in range(2):
        weights, values = result(tmp_path / "a", rank)
        torch.testing.assert_close(weights, net.state_dict(), rtol=0, atol=1e-6)
        assert values["loss"] == pytest.approx(losses, abs=1e-9)
    assert (net.layers[0].weight - Net().double().layers[0].weight).abs().max() > 1e-3


@pytest.mark.parametrize("processes", [1, 2])
def test_killed_at_random_steps_and_resumed_ends_with_the_same_bits(run, tmp_path, processes):
    codes, logs = run("job", processes, "whole")
    assert codes == [0] * processes, logs
    weights, ema, values = result(tmp_path / "whole")
    assert len(values["loss"]) == STEPS
    assert not same(weights, ema)
    for after in sorted(random.sample(range(4, STEPS - 16, 2), 2)):
        codes, logs = run("job", processes, "killed", kill_after=after, slow=0.02)
        assert codes == [-signal.SIGKILL] * processes, logs
    codes, logs = run("job", processes, "killed")
    assert codes == [0] * processes, logs
    assert_same_results(tmp_path / "killed", tmp_path / "whole", processes)
    if processes == 2:
        assert same(result(tmp_path / "whole", 1)[0], weights)


def one_line(log):
    lines = [line for line in re.split("[\r\n]", log) if line.startswith("UserError")]
    assert len(lines) == 1, log
    return lines[0]


def test_nan_in_one_process_stops_both_and_keeps_the_last_good_checkpoint(run, tmp_path):
    codes, logs = run("job", nan=7)
    assert codes == [2, 2], logs
    for log in logs:
        assert re.search(r"step 7: 'loss' is nan in process 1; .* last good checkpoint is .*step-000006", one_line(log))
    assert [p.name for p in (tmp_path / "a" / "run").glob("[!.]*")] == ["step-000006"]


def test_sigterm_to_one_process_stops_both_at_the_same_step_and_other_settings_are_refused(run, tmp_path):
    codes, logs = run("job", term=5)
    assert codes == [3, 3], logs
    saved = [p.name for p in (tmp_path / "a" / "run").glob("[!.]*")]
    assert saved in (["step-000005"], ["step-000006"])  # caught before or after the processes talk in step 5
    codes, logs = run("job", lr=2e-2)
    assert codes == [2, 2], logs
    assert all("'lr' is 0.02 in this run, but the checkpoint was made with 0.01" in one_line(log) for log in logs)
    codes, logs = run("job", processes=1)
    assert codes == [2], logs
    text = "'processes' is 1 in this run, but the checkpoint was made with 2; use that value or another folder"
    assert text in one_line(logs[0])
    assert [p.name for p in (tmp_path / "a" / "run").glob("[!.]*")] == saved
    codes, logs = run("job")
    assert codes == [0, 0], logs
    run("job", name="whole")
    assert_same_results(tmp_path / "a", tmp_path / "whole", 2)


if __name__ == "__main__":
    main()
