"""Intervals cover what they promise, verdicts err as rarely as they promise, at the numbers of replicates in use."""

import math

import numpy as np
import pytest
from scipy import stats

from lib.record import claims
from lib.record.files import ROOT
from lib.record.intervals import Shares, anytime, replicates_for, spread_bound, student, wilson

RUNS = 4000
SLACK = 4 * math.sqrt(0.05 * 0.95 / RUNS)  # four standard errors of a simulated 5 %
PLANNED = sorted({entry["n"] for entry in claims.load(ROOT / "claims.yaml").values() if entry.get("n", 1) > 1})


def simulated(n, mean=0.0, sd=1.0, seed=0):
    return np.random.default_rng(seed).normal(mean, sd, (RUNS, n))


@pytest.mark.parametrize("n", PLANNED)
def test_student_covers(n):
    found = [student(values) for values in simulated(n)]
    missed = np.mean([not x.low <= 0 <= x.high for x in found])
    assert missed == pytest.approx(0.05, abs=SLACK)


def test_student_is_scipys():
    values = np.array([1.0, 2.0, 4.0])
    low, high = stats.t.interval(0.95, 2, loc=values.mean(), scale=stats.sem(values))
    assert student(values)[1:] == pytest.approx((low, high))
    assert student(np.array([3.0]))[1:] == (-math.inf, math.inf)


@pytest.mark.parametrize(("share", "n"), [(0.5, 20), (0.9, 37), (0.97, 100), (0.02, 60)])
def test_wilson_covers_and_stays_a_share(share, n):
    counts = np.random.default_rng(0).binomial(n, share, RUNS)
    found = [wilson(count / n, n) for count in counts]
    assert np.mean([not x.low <= share <= x.high for x in found]) < 0.1  # an approximation: 95 % on average over shares
    assert all(0 <= x.low <= x.mean <= x.high <= 1 for x in found)
    missed = []
    for p in np.linspace(0.02, 0.98, 49):
        k = np.arange(n + 1)
        ends = [wilson(x / n, n) for x in k]
        missed.append(sum(stats.binom.pmf(k, n, p) * [not x.low <= p <= x.high for x in ends]))
    assert np.mean(missed) == pytest.approx(0.05, abs=0.012)


def test_wilson_of_all():
    assert wilson(1.0, 37)[1:] == pytest.approx((0.906, 1.0), abs=0.001)


def test_anytime_holds_for_who_stops_when_content():
    """Values are added until 0 is excluded: plain intervals err in every fifth case, these in one of twenty at most."""
    data, at = simulated(60)[:1000], range(5, 61)
    plain = np.mean([any(not x.low <= 0 <= x.high for x in (student(v[:n]) for n in at)) for v in data])
    grown = np.mean([any(not x.low <= 0 <= x.high for x in (anytime(v[:n]) for n in at)) for v in data])
    assert plain > 0.15
    assert grown < 0.05 + 4 * math.sqrt(0.05 * 0.95 / 1000)
    ten = anytime(data[0, :10])
    assert (ten.high - ten.mean) / stats.sem(data[0, :10]) == pytest.approx(3.87, abs=0.005)
    assert anytime(data[0, :4]).high == math.inf


@pytest.mark.parametrize("n", [8, 20])
def test_planned_replicates_have_their_power(n):
    """The n for a distance excludes it four times out of five."""
    distance = next(d for d in np.linspace(0.3, 3, 400) if replicates_for(d, 1.0) <= n)
    found = [student(values) for values in simulated(replicates_for(distance, 1.0))]
    assert np.mean([x.high < distance for x in found]) == pytest.approx(0.8, abs=0.03)


def test_a_small_pilot_knows_its_spread_badly():
    assert spread_bound(1.0, 3) == pytest.approx(2.12, abs=0.01)
    assert spread_bound(1.0, 5) == pytest.approx(1.56, abs=0.01)
    small = np.random.default_rng(0).normal(size=(RUNS, 3)).std(1, ddof=1)
    assert np.mean([spread_bound(s, 3) > 1 for s in small]) == pytest.approx(0.8, abs=0.03)


# ------------------------------------------------------------------------------------------------ verdicts, by effect


def verdicts(rule, n, effect, delta=1.0, **check):
    """Shares of the verdicts on a claim of one check and one good control, replicates of spread 1 around `effect`."""
    control = {"name": "c", "what": "c", "role": "control", "rule": "below", "value": 1e9}
    checks = [{"name": "x", "what": "x", "role": "primary", "rule": rule, "delta": delta, **check}, control]
    found = []
    for values in simulated(n, effect)[:600]:
        found.append(claims.judge("T1", {"n": n, "checks": checks}, {"x": values, "c": np.zeros(n)})["verdict"])
    return {word: found.count(word) / len(found) for word in claims.VERDICTS}


@pytest.mark.parametrize("n", [n for n in PLANNED if n <= 20])
def test_no_effect_is_rarely_reproduced_and_a_clear_one_never_contradicted(n):
    delta = next(d for d in np.linspace(0.3, 5, 471) if replicates_for(d, 1.0) <= n)  # what n replicates decide
    none, small, large = (verdicts("gain", n, k * delta, delta) for k in (0, 1, 2))
    assert none["reproduced"] < 0.05
    assert none["contradicted"] > 0.75
    assert small["contradicted"] < 0.05
    assert small["reproduced"] > 0.75
    assert large["contradicted"] == 0
    assert large["reproduced"] > 0.97


def test_no_harm_and_equal_err_rarely():
    n, delta = 20, 0.9
    assert verdicts("no harm", n, -delta, delta)["reproduced"] < 0.05
    assert verdicts("no harm", n, 0.0, delta)["reproduced"] > 0.95
    assert verdicts("equal", n, 2 * delta, delta, value=0.0)["reproduced"] == 0
    assert verdicts("equal", n, delta, delta, value=0.0)["reproduced"] < 0.05
    assert verdicts("equal", n, 0.0, delta, value=0.0)["reproduced"] > 0.9


def test_the_worst_of_k_holds_jointly():
    check = {"name": "x", "what": "x", "rule": "above", "value": -9, "worst": "tasks"}
    data = np.random.default_rng(0).normal(size=(1000, 8, 4))
    found = [claims.measure(check, values, 8) for values in data]
    assert np.mean([x["low"] > 0 for x in found]) < 0.05  # all means are 0, so is the worst
    assert np.mean([x["high"] < 0 for x in found]) < 0.05


def test_ratios_are_judged_on_logs():
    check = {"name": "x", "what": "x", "rule": "gain", "delta": 1.2, "interval": "log"}
    values = np.exp(np.random.default_rng(0).normal(0.3, 0.1, 10))
    found = claims.measure(check, values, 10)
    assert found["low"] == pytest.approx(math.exp(student(np.log(values)).low))
    assert found["state"] == "holds"
    assert claims.measure(check, 1 / values, 10)["word"] == "reversed"
    assert claims.measure(check, values * 0, 10)["undefined"] == 10


def test_shares_stay_shares():
    found = claims.interval(Shares(np.ones(3), images=37))
    assert (found["low"], found["high"]) == pytest.approx((0.906, 1.0), abs=0.001)
    spread = claims.interval(Shares(np.array([0.98, 1.0, 0.9]), images=100))
    assert spread["high"] == 1.0
    assert spread["low"] < student(np.array([0.98, 1.0, 0.9])).low + 1e-12
