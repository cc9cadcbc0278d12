"""The bench divides what it says it divides, its loop over pairs is the definition, calls of networks are exact."""

import json
import sys
from pathlib import Path

import pytest
import torch

from lib.ground import diffusion, nets
from lib.jobs.stable_diffusion import speed as dds_speed
from lib.measures import perceptual
from lib.papers.ant import method as ant
from lib.papers.sdft import method as sdft
from lib.record import timing
from lib.record.files import read_results
from lib.worlds.prompts import with_prompts
from tools import bench, bench_dds, bench_methods, bench_metrics, bench_sampling, bench_tools, bench_translation

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "book" / "_ext"))
import companion

CPU = torch.device("cpu")


def test_turns_and_ratio():
    order = []
    runs = {name: lambda name=name: order.append(name) for name in "abc"}
    times = timing.interleaved(runs, 4, CPU)
    assert "".join(order) == "abc" + "abc" + "bca" + "cab" + "abc"  # warm-up, then each round begins with another
    assert {len(values) for values in times.values()} == {4}
    assert timing.ratio([2.0, 9.0, 30.0], [1.0, 3.0, 10.0]) == 3.0  # median of 2, 3, 3, not 9 / 3 of the medians


def test_rows_know_whether_the_goal_is_met():
    assert bench_tools.row("a", 2.0, most=2.7)["met"] is True
    assert bench_tools.row("a", 2.8, most=2.7)["met"] is False
    assert bench_tools.row("a", 29.0, least=30)["met"] is False
    assert bench_tools.row("a", 1.0)["met"] is None
    text = bench.table("Title", [bench_tools.row("slow step", 2.8, "steps", most=2.7, note="counted")])
    assert "NOT MET" in text
    assert "counted" in text


@pytest.fixture
def unet():
    torch.manual_seed(0)
    return nets.small_unet(8, (8, 32))


def test_network_calls_of_an_ant_step(unet):
    schedule = diffusion.linear()
    x0, t, eps = bench_methods.draw(unet, schedule, 3)
    for J in (0, 4):
        network, judge = (
            bench_tools.Counted(nets.eps_model(unet)),
            bench_tools.Counted(lambda x, t: x.flatten(1)[:, :2]),
        )
        ant.loss(network, ant.classifier_guidance(judge), schedule, x0, t, eps, J=J)[0].backward()
        assert (network.forward, network.images, network.backward) == (J + 1, 3 * (J + 1), J + 1)
        assert (judge.forward, judge.images, judge.backward) == (1, 3, 1)
        assert network.text() == f"{J + 1} forward ({3 * (J + 1)} images), {J + 1} backward"


def test_ascents_leave_the_weights_alone(unet):
    schedule = diffusion.linear()
    x0, t, eps = bench_methods.draw(unet, schedule, 2)
    ant.adversarial_noise(nets.eps_model(unet), schedule, x0, t, eps, 0.02, 2)
    assert all(p.grad is None for p in unet.parameters())


def test_network_calls_of_an_sdft_step(unet):
    schedule = diffusion.linear()
    x0, t, eps = bench_methods.draw(unet, schedule, 3)
    student, teacher = (bench_tools.Counted(nets.eps_model(unet)) for _ in range(2))
    sdft.loss(student, teacher, schedule, x0, t, eps)[0].backward()
    assert (student.forward, student.images, student.backward) == (1, 6, 1)
    assert (teacher.forward, teacher.images, teacher.backward) == (1, 6, 0)
    plain = bench_tools.Counted(nets.eps_model(unet))
    sdft.loss(plain, teacher, schedule, x0, t, eps, lambda_distill=0, lambda_aux=0)[0].backward()
    asked = (plain.forward, plain.images, plain.backward, teacher.forward)
    assert asked == (1, 3, 1, 1)  # the teacher is not asked again


def test_loop_over_pairs_is_the_definition_and_counted():
    embedding = perceptual.lpips_features("squeeze", 32, random=True)
    model = perceptual.lpips_model("squeeze", random=True)
    samples, training = bench_metrics.data(7, 2, 32, CPU)
    seen = []
    value = bench_metrics.naive(lambda a, b: seen.append(1) or model(a, b), samples, training)
    found = perceptual.intra_lpips(embedding, [samples], training)
    assert value == pytest.approx(found.value, rel=1e-4)
    assert len(seen) == bench_metrics.evaluations(found.counts)
    assert bench_metrics.evaluations((3, 4)) == 7 * 2 + 3 + 6


def test_sections_on_tiny_sizes(unet, tmp_path):
    sections = {
        "metrics": bench_metrics.measure(CPU, 1, "squeeze", ((24, 2.0),), k=3, pairs=8),
        "methods": bench_methods.measure(CPU, 1, batch=2, J=2, unet=unet),
        "sampling": bench_sampling.measure(CPU, 1, steps=1, unet=unet),
    }
    assert sections["metrics"][0]["value"] < 1e-5  # the two values agree
    assert "extrapolated from 8 pairs a round" in sections["metrics"][1]["note"]
    assert "U-Net 3 forward (6 images), 3 backward; classifier 1 forward" in sections["methods"][2]["note"]
    translated = {row["what"].split(",")[0]: row for row in bench_translation.measure(CPU, 1, pictures=1)}
    assert translated["RDMD"]["value"] < min(row["value"] for name, row in translated.items() if name != "RDMD")
    assert translated["DDIB"]["what"] == "DDIB, calls a picture: 160"
    assert [row["what"] for row in sections["sampling"]][2:] == ["batch 1", "batch 8", "batch 64"]
    source = bench.provenance(CPU, 0.0)
    bench.write(tmp_path / "cpu.json", sections, source)
    assert read_results(tmp_path / "cpu.json")["sections"] == json.loads(json.dumps(sections))
    data = {"bench": {"cpu": {"sections": sections, "provenance": source}}, "results": {}, "cards": {}, "claims": {}}
    html = companion.fill("bench", data, "cpu")
    assert html.count("<table") == 3
    assert html.count("<tr>") == 3 + sum(map(len, sections.values()))
    assert "gpu</code>: not run for this edition" in companion.fill("bench", data, "gpu")


def test_operations_are_counted():
    class Net(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = torch.nn.Conv2d(1, 4, 3, padding=1)
            self.config = {"in_channels": 1, "sample_size": 8}
            self.device = CPU

        def forward(self, x, t):
            return self.layer(x)

    assert bench_sampling.operations(Net()) == 2 * 4 * 9 * 64


def test_evaluations_of_dds_that_are_saved(unet):
    rows = bench_dds.savings(CPU, targets=3, batch=2, iterations=4, rounds=1, unet=with_prompts(unet))
    n, K, b = 4, 3, 2
    plain = 4 * n * K * b
    saved = [4 * n - 2, 2 * n + K * (2 * n - 1), 3 * n - 1, n + K * (2 * n - 1)]  # the second and last: K edits at once
    counts = [saved[0] * K * b, saved[1] * b, saved[2] * K * b, saved[3] * b]
    assert [row["note"].split(";")[0] for row in rows] == [f"{m} evaluations in place of {plain}" for m in counts]
    apart = [float(row["note"].split("at most ")[1].split(" ")[0]) for row in rows]
    assert max(apart) < 1e-5


def test_dds_has_goals_on_a_gpu_alone():
    loops = [
        {"loop": name, "seconds": 2.5, "speedup": 3.5, "evaluations": 798, "TFLOP": 641.0, "TFLOP/s": 256.4}
        | {"share of matrix rate": 0.32, "first run, seconds": 9.0, "GB": 5.5}
        | ({"difference": 0.02} if name != "as published" else {})
        for name in ("as published", "ours", "ours, empty source prompt")
    ]
    found = dds_speed.Speed(loops, 2.5, 3.5, 0.02, 790.0, 0.803, 859_520_964, "sd15")
    rows = {row["what"]: row for row in bench_dds.speed_rows(found, goals=True)}
    assert (rows["ours: time"]["goal"], rows["ours: time"]["met"]) == ("at most 2", False)
    assert (rows["ours: speed"]["goal"], rows["ours: speed"]["met"]) == ("at least 3", True)
    assert "798 evaluations, 641 TFLOP, 2.564e+05 GFLOP/s: 32 %" in rows["ours: time"]["note"]
    assert "peak 5.5 GB" in rows["ours: time"]["note"]
    assert rows["ours: speed"]["note"] == "the results differ by 2 % of the edit"
    assert all(row["met"] is None for name, row in rows.items() if not name.startswith("ours: "))
    assert all(row["met"] is None for row in bench_dds.speed_rows(found))


def test_a_compiler_that_fails_leaves_the_other_rows(monkeypatch):
    def failing(device, mode, **named):
        if mode == "compile":
            raise RuntimeError("no compiler")
        return dds_speed.Speed([], 1.0, 1.0, 0.0, 1.0, 1.0, 1, "sd15")

    monkeypatch.setattr(dds_speed, "measure", failing)
    monkeypatch.setattr(bench_dds, "savings", lambda device, rounds: [])
    rows = bench_dds.measure(torch.device("cuda"))
    assert len(rows) == 1
    assert rows[0]["note"].endswith("compile failed here: RuntimeError")
