"""Replicates of the DDS experiments: functions of their seed alone."""

from types import SimpleNamespace

import torch

from lib.ground import diffusion
from lib.papers.dds import experiments
from lib.papers.dds.gaussian import disc_world

P = SimpleNamespace(omega=7.5, iterations=3, size=8, lambdas=[0.3], adam_eta=0.02, adam_etas=[0.05])
SCHEDULE = diffusion.scaled_linear()


def test_a_replicate_is_a_function_of_its_seed():
    world, region = disc_world(SCHEDULE, P.size)
    unequal, _ = disc_world(SCHEDULE, P.size, variance=(0.7, 0.98))
    torch.manual_seed(1)
    first = experiments.gaussian(4, P, world, region, unequal)
    torch.manual_seed(2)
    again, other = (experiments.gaussian(seed, P, world, region, unequal) for seed in (4, 5))
    assert first.keys() == again.keys()
    assert all(torch.equal(torch.as_tensor(first[key]), torch.as_tensor(again[key])) for key in first)
    assert first["dds_completed"] != other["dds_completed"]
    assert {"sds_lambda_0_3_spread", "dds_adam_0_05_share", "notebook"} <= first.keys()


def test_a_large_edit_takes_more_steps():
    world, region = disc_world(SCHEDULE, P.size)
    found = experiments.gaussian_steps(0, P, world, region, iterations=20)
    assert found["notebook"].shape == found["left_large"].shape == (21,)
    assert found["notebook"][0] == 0
    # The share that is left does not depend on the size of the edit.
    torch.testing.assert_close(found["left_large"] / 8, found["left_small"], rtol=0, atol=1e-4)
    assert found["steps_small"] <= found["steps_large"]


def test_runs_have_keys_of_their_names():
    assert experiments.key_of("SDS, lambda 0.3") == "sds_lambda_0_3"
    assert experiments.key_of("no warm-up") == "no_warm_up"
