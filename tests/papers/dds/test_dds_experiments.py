"""Replicates of the DDS experiments: functions of their seed alone."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from lib.ground import diffusion
from lib.papers.dds import digit_experiments, experiments
from lib.papers.dds.gaussian import GaussianWorld, disc_world
from lib.worlds import prompts
from lib.worlds.judge import HANDWRITTEN, PRINTED, train_classifier

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


# ----------------------------------------------------------------------------------------- digits, with an exact score

DIGITS = SimpleNamespace(
    seed=0, device="cpu", images=4, source_digit=3, target_digit=8, omega=1.0, iterations=60, iterations_long=40,
    small_eta=0.2, sgd_etas=[1e-4, 0.2, 0.4], adam_etas=[0.05, 0.1], sweep_seeds=1, lambdas=[0.3], omegas=[1.0],
)  # fmt: skip


@pytest.fixture(scope="module")
def exact():
    """A world of Gaussian digits in the place of a network, its schedule, and a judge."""
    means = torch.cat([prompts.mean_images(domain) for domain in (PRINTED, HANDWRITTEN)])
    means = torch.cat([means, means.mean(0, keepdim=True)])
    schedule = diffusion.linear()
    world = GaussianWorld(means, torch.full_like(means, 0.2), schedule)

    class Network:
        device = torch.device("cpu")

        def __call__(self, z_t, t, y):
            return SimpleNamespace(sample=world(z_t, t, y))

    return Network(), schedule, train_classifier(16, 150, 0, "cpu", None)


def test_arms_are_compared_when_as_many_inputs_read_as_the_target(exact):
    found = digit_experiments.optimisers(0, DIGITS, *exact)
    assert np.isnan(found["sgd_step"]).tolist() == [True, False, False]  # the first rate does not come so far
    assert found["sgd_step"][1] > found["sgd_step"][2]
    for arm in digit_experiments.ARMS:
        finite = np.isfinite(found[f"{arm}_step"])
        assert (found[f"{arm}_outside"][finite] > 0).all()
        assert (found[f"{arm}_outside"][finite] < 2).all()
        assert found[f"{arm}_z"].shape == (4, 1, 16, 16)
        assert found[f"{arm}_maps"].shape == (2, 2, 16, 16)
    assert np.nanmin(found["sds_outside"]) > np.nanmin(found["sgd_outside"])  # SDS pulls all to the mean image
    assert abs(found["share_noise"]) < 0.02


def test_success_is_counted_after_every_step(exact):
    found = digit_experiments.lengths(0, DIGITS, *exact)
    for kind in ("small", "large"):
        assert found[f"{kind}_success"].shape == (41,)
        assert found[f"{kind}_success"][0] == 0
        assert found[f"{kind}_success"][-1] > 0.7
        assert 0 < found[f"steps_{kind}"] < 40


def test_every_run_of_the_digits_is_measured(exact):
    found = digit_experiments.digit_edits(0, DIGITS, *exact)
    assert {"dds_success", "sds_spread", "sds_lambda_0_3_outside", "written_dds_success"} <= found.keys()
    assert found["dds_spread"] > 2 * found["sds_spread"]
    assert "sds_lambda_0_3_outside" not in digit_experiments.digit_edits(1, DIGITS, *exact)  # swept on the first seed
