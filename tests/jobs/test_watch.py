"""What is seen of a training on the way: averaged weights, curves, pictures, and the best of the scores."""

from contextlib import closing

import numpy as np
import pytest
import torch
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from lib.ground.checkpoint import newest
from lib.jobs.watch import Watch, best
from lib.record.files import UserError
from tests.ground.test_finetune import IMAGES, Net, same, tune, weights


def watched(net, place, steps=6, also=None, look=None, **options):
    """Train with a watch in `place` that has the options of `look`; return the history."""
    watch = Watch(net, place, place / "logs", steps, **(look or {}))

    def on_step(i, history):
        if also:
            also(i)
        watch(i, history)

    with closing(watch):
        return tune(net, steps, on_step=on_step, folder=place, **options)


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

    looks = {"grid": lambda: look("grid", IMAGES[:3]), "grid_every": 2}
    looks |= {"score": lambda: look("score", 1.0), "score_every": 3}
    history = watched(net, tmp_path, 5, on_step, looks, ema=0.7)
    assert len(seen["step"]) == 5
    assert len(seen["grid"]) == 3  # 2, 4 and the last
    assert len(seen["score"]) == 2  # 3 and the last
    assert same(weights(net), seen["step"][-1])
    assert not same(weights(net), history.ema["student"])
    torch.testing.assert_close(history.ema["student"], average)
    assert same(best(tmp_path)[0], seen["score"][0])


def test_lowest_score_is_kept_beside_the_last_checkpoint_also_over_a_restart(tmp_path):
    net, states = Net(), {}
    given = {1: 3.0, 2: float("nan"), 3: 1.0, 4: 2.0, 5: 1.5, 6: 0.5, 7: 0.9}

    def run(steps):
        state = {"i": 0}

        def note(i):
            state["i"] = i
            states[i] = weights(net)

        return watched(net, tmp_path, steps, note, {"score": lambda: given[state["i"]]})

    run(4)
    kept, step, score = best(tmp_path)
    assert (step, score) == (3, 1.0)
    assert same(kept, states[3])
    assert newest(tmp_path).name == "step-000004"
    run(5)
    assert best(tmp_path)[1:] == (3, 1.0)  # 1.5 is the lowest since the restart only
    run(7)
    kept, step, score = best(tmp_path)
    assert (step, score) == (6, 0.5)
    assert same(kept, states[6])
    assert sorted(p.name for p in tmp_path.glob("[!.]*")) == ["best", "logs", "step-000007"]


def test_a_new_run_forgets_the_best_of_one_that_never_came_to_a_checkpoint(tmp_path):
    def fail(i):
        if i == 3:
            raise RuntimeError("power cut")

    with pytest.raises(RuntimeError):
        watched(Net(), tmp_path, also=fail, look={"score": lambda: 0.1, "score_every": 2})
    assert best(tmp_path)[2] == 0.1
    watched(Net(), tmp_path, look={"score": lambda: 0.2}, lr=1e-3)
    assert best(tmp_path)[2] == 0.2
    path = tmp_path / "best" / "student.safetensors"
    path.write_bytes(path.read_bytes()[:50])
    with pytest.raises(UserError, match=r"best/student.safetensors: truncated or damaged"):
        best(tmp_path)
    path.unlink()
    with pytest.raises(UserError, match=r"best/student.safetensors: missing; a run with a score writes it"):
        best(tmp_path)


def test_pictures_and_curves_are_written(tmp_path):
    grid = torch.tensor([-1.0, 1.0, 5.0, 0.0]).view(4, 1, 1, 1).expand(4, 1, 6, 6)
    values = iter([0.5, 0.25, 0.125])
    look = {"grid": lambda: grid, "grid_every": 2, "score": lambda: next(values), "score_every": 2}
    history = watched(Net(), tmp_path, 2, look=look)
    again = watched(Net(), tmp_path, 13, look=look | {"grid_every": 9, "score_every": 9})  # goes on in the same curves
    pictures = sorted((tmp_path / "samples").iterdir())
    assert [p.name for p in pictures] == [f"step-{i:06d}.png" for i in (2, 9, 13)]
    picture = np.asarray(Image.open(pictures[0]))
    assert picture.shape == (18, 18, 3)  # two rows of two, with 2 pixels around each
    assert [picture[y, x, 0] for y in (5, 13) for x in (5, 13)] == [0, 255, 255, 127]
    curves = EventAccumulator(str(tmp_path / "logs")).Reload()
    assert curves.Tags()["images"] == ["samples"]
    losses = curves.Scalars("loss")
    assert [e.step for e in losses] == list(range(1, 14))
    assert [e.value for e in losses] == pytest.approx(again.values["loss"])
    assert again.values["loss"][:2] == history.values["loss"]
    assert [(e.step, e.value) for e in curves.Scalars("score")] == [(2, 0.5), (9, 0.25), (13, 0.125)]


def test_a_stopped_run_has_its_whole_curve(tmp_path):
    def stop(i):
        if i == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        watched(Net(), tmp_path, also=stop, save_every=3)
    watched(Net(), tmp_path, save_every=3)
    losses = EventAccumulator(str(tmp_path / "logs")).Reload().Scalars("loss")
    assert [e.step for e in losses] == [1, 2, 3, 4, 5, 6]


def test_looking_does_not_change_the_training(tmp_path):
    plain, net = Net(dropout=0.4), Net(dropout=0.4)
    tune(plain)
    watched(net, tmp_path, look={"grid": lambda: torch.randn(2, 1, 4, 4), "score": torch.rand(3).sum})
    assert same(weights(plain), weights(net))
