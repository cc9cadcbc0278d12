"""Verdicts follow the rules at the head of claims.yaml, and committed results were judged by the committed rules."""

import json

import numpy as np
import pytest
from scipy import stats

from lib.record import claims, show
from lib.record.files import ROOT, UserError

ENTRY = {
    "paper": "P",
    "where": "Fig. 1",
    "claim": "it works",
    "expected": "1",
    "checks": [
        {"name": "size", "what": "size", "rule": "equal", "value": 1.0, "tolerance": 0.1},
        {"name": "gain", "what": "gain", "rule": "above", "value": 0.0, "trend": True},
        {"name": "control", "what": "control", "rule": "below", "value": 0.5, "role": "control"},
    ],
}
GOOD = {"size": 1.05, "gain": [0.5, 0.6, 0.7], "control": [0.1, 0.11, 0.12]}


def verdict(**changed):
    return claims.judge("T1", ENTRY, {**GOOD, **changed})["verdict"]


def test_interval_is_student_t():
    values = np.array([1.0, 2.0, 4.0])
    low, high = stats.t.interval(0.95, 2, loc=values.mean(), scale=stats.sem(values))
    measured = claims.interval(values)
    assert measured["low"] == pytest.approx(low)
    assert measured["high"] == pytest.approx(high)
    assert claims.interval(3.0) == {"mean": 3.0, "low": 3.0, "high": 3.0, "n": 1}


def test_verdicts():
    assert verdict() == "reproduced"
    assert verdict(size=1.2) == "trend only"
    assert verdict(gain=[-0.5, 0.6, 0.7]) == "not reproduced"  # the mean is above, its interval is not
    assert verdict(control=[0.6, 0.7]) == "not reproduced"  # a control that fails spoils any verdict
    assert verdict(size=float("nan")) == "trend only"  # what is not defined does not hold


def test_claim_that_cannot_be_tested_says_what_it_needs():
    judged = claims.not_tested(ENTRY, "needs a GPU")
    assert claims.verdict(judged["checks"]) == judged["verdict"] == "not tested here"
    for written in (claims.card("T1", judged), claims.card_text("T1", judged)):
        assert "not tested here" in written
        assert "needs a GPU" in written


@pytest.mark.parametrize("measured", [{"size": 1.0}, {**GOOD, "extra": 1.0}])
def test_every_check_is_measured_and_nothing_else(measured):
    with pytest.raises(UserError, match=r"claims\.yaml lists"):
        claims.judge("T1", ENTRY, measured)


def test_card_carries_verdict_in_words_and_every_check():
    judged = claims.judge("T1", ENTRY, GOOD)
    for written in (claims.card("T1", judged), claims.card_text("T1", judged)):
        assert "reproduced" in written
        for check in ENTRY["checks"]:
            assert check["what"] in written


def test_numbers_read_well():
    assert show.number(0.000012345) == "1.23e-05"
    assert show.number(393.0) == "393"
    assert show.number(1.1) == "1.10"
    assert show.number(1234.5) == "1234"
    assert show.number(None) == "not defined"
    assert claims.text(claims.interval([1.0, 1.1, 1.2]), "deg") == "1.10 [0.852, 1.35] deg"


def test_numbers_show_as_many_digits_as_their_tolerance():
    check = {"name": "r", "what": "r", "rule": "equal", "value": 1.3618, "tolerance": 0.0001}
    judged = claims.judge("T1", {**ENTRY, "checks": [check]}, {"r": 1.36182})
    assert judged["checks"][0]["text"] == "1.3618"


def test_claims_file_is_complete():
    entries = claims.load(ROOT / "claims.yaml")
    carried = {"R": 6, "A": 6, "S": 6, "D": 7, "L": 4, "X": 2}
    assert {f"{letter}{i}" for letter, n in carried.items() for i in range(1, n + 1)} <= set(entries)
    for key, entry in entries.items():
        assert {"paper", "where", "claim", "expected"} <= set(entry), key
        checks = entry.get("checks", [])
        assert bool(checks) == bool(entry.get("notebook")), key
        assert all(check["rule"] in ("equal", "above", "below") for check in checks), key
        assert all(("tolerance" in check) == (check["rule"] == "equal") for check in checks), key
        assert len({check["name"] for check in checks}) == len(checks), key
        if checks:
            assert any(check.get("role") == "control" for check in checks), f"{key} has no negative control"


RESULTS = sorted((ROOT / "results").glob("*/[0-9]*.json"))  # of notebooks; the bench has its own


@pytest.mark.parametrize("path", RESULTS, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_committed_results_were_judged_by_the_committed_claims(path):
    entries = claims.load(ROOT / "claims.yaml")
    results = json.loads(path.read_text(encoding="utf-8"))
    expected = {key for key, entry in entries.items() if entry.get("notebook") == path.stem}
    assert set(results["claims"]) == expected
    for key, judged in results["claims"].items():
        assert judged["entry"] == entries[key], f"{key} changed since this run: run the notebook again"
        assert judged["verdict"] == claims.verdict(judged["checks"])
        assert [claims.holds(check, check) for check in judged["checks"]] == [c["holds"] for c in judged["checks"]]
