"""The spread between machines is that of equal replicates, over those that both have."""

import math

import pytest

from tools.machines import spread


def judged(**checks):
    return {"T1": {"checks": [{"name": name, "values": values} for name, values in checks.items()]}}


def test_spread_is_the_standard_deviation_between_two_machines():
    found = spread(judged(a=[1.0, 2.0, 9.0], b=[1.0, 1.0]), judged(a=[1.2, 2.2], c=[0.0, 0.0]))
    assert found == {"T1": {"a": pytest.approx(0.2 / math.sqrt(2))}}


def test_a_claim_that_only_one_machine_judged_has_none():
    assert spread(judged(a=[1.0, 2.0]), {}) == {}
