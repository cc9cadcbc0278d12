"""Verdicts follow the rules at the head of claims.yaml, and committed results were judged by the committed rules."""

import json
import re
from datetime import date

import numpy as np
import pytest

from lib.record import claims, show
from lib.record.files import ROOT, UserError

ENTRY = {
    "paper": "P",
    "where": "Fig. 1",
    "kind": "toy",
    "claim": "it works",
    "expected": "1",
    "differs": "smaller",
    "unit": "seed",
    "n": 4,
    "checks": [
        {"name": "gain", "what": "the gain", "role": "primary", "rule": "gain", "delta": 0.2, "why": "visible"},
        {"name": "size", "what": "the size", "role": "main", "rule": "exact", "value": 1.0, "tolerance": 0.1},
        {"name": "control", "what": "the control", "role": "control", "rule": "below", "value": 0.5},
    ],
}
GOOD = {"gain": [0.5, 0.6, 0.7, 0.6], "size": 1.05, "control": [0.1, 0.11, 0.12, 0.1]}


def judged(**changed):
    return claims.judge("T1", ENTRY, {**GOOD, **changed})


@pytest.mark.parametrize(
    ("changed", "verdict", "reason"),
    [
        ({}, "reproduced", ""),
        ({"size": 1.2}, "partly", "the size is contradicted, 1.20"),
        ({"gain": [0.1, -0.1, 0.05, 0.0]}, "contradicted", "negligible: the gain"),
        ({"gain": [-0.5, -0.6, -0.7, -0.6]}, "contradicted", "reversed: the gain"),
        ({"gain": [-0.5, 0.6, 0.7, 0.1]}, "undecided", r"the gain.* about \d+ replicates would decide"),
        ({"gain": [0.5, np.nan, 0.7, 0.6]}, "undecided", "not defined in 1 of 4"),
        ({"control": [0.6, 0.7, 0.65, 0.6]}, "not tested", "its control fails: the control"),
        ({"control": [0.1, 0.9, 0.2, 0.3]}, "undecided", "the control"),
        ({"control": [0.6, 0.7, 0.65, 0.6], "gain": [-0.5, -0.6, -0.7, -0.6]}, "not tested", "its control fails"),
        ({"gain": [0.5, 0.6, 0.7]}, "undecided", "3 of 4 planned replicates"),
        ({"gain": 0.5}, "undecided", "1 of 4 planned replicates"),
    ],
)
def test_verdicts(changed, verdict, reason):
    found = judged(**changed)
    assert found["verdict"] == verdict
    assert re.search(reason, found["reason"])


def test_more_replicates_than_planned_are_judged_at_any_time():
    values = np.random.default_rng(0).normal(0.6, 0.3, 12)
    few, more = claims.measure(ENTRY["checks"][0], values, 12), claims.measure(ENTRY["checks"][0], values, 4)
    assert more["high"] - more["low"] > 1.3 * (few["high"] - few["low"])


@pytest.mark.parametrize(
    ("check", "words"),
    [
        ({"rule": "gain", "delta": 0.1}, "> 0, matters from 0.1"),
        ({"rule": "gain", "delta": 1.2, "interval": "log"}, "> 1, matters from × 1.2"),
        ({"rule": "no harm", "delta": 0.1}, "> -0.1"),
        ({"rule": "no harm", "delta": 1.25, "interval": "log"}, "> 0.8"),
        ({"rule": "equal", "value": 1, "delta": 0.1}, "within 1 ± 0.1"),
        ({"rule": "exact", "value": 1, "tolerance": 0.1}, "= 1 ± 0.1"),
        ({"rule": "above", "value": 0.5}, "> 0.5"),
        ({"rule": "below", "value": 0.5}, "< 0.5"),
    ],
)
def test_rules_in_words(check, words):
    assert claims.rule_text(check) == words


def test_numbers_have_the_digits_that_their_rule_needs():
    entry = {**ENTRY, "checks": [{**ENTRY["checks"][1], "role": "primary", "value": 1.3618, "tolerance": 0.00001}]}
    assert claims.judge("T1", entry, {"size": 1.361804})["checks"][0]["text"] == "1.3618"
    check = {"name": "r", "what": "r", "role": "primary", "rule": "below", "value": 0.05}
    found = claims.judge("T1", {**ENTRY, "checks": [check]}, {"r": [0.04999, 0.04998, 0.04999, 0.04998]})
    assert found["checks"][0]["text"] == "0.04999 [0.04998, 0.04999]"  # three digits would say 0.0500


def test_claim_without_checks_says_why():
    entry = {**ENTRY, "checks": [], "reason": "to be measured"}
    for found in (claims.not_tested(ENTRY, "to be measured"), claims.judge("T1", entry, {})):
        assert found["verdict"] == "not tested"
        for written in (claims.card("T1", found), claims.card_text("T1", found)):
            assert "not tested" in written
            assert "to be measured" in written


@pytest.mark.parametrize("measured", [{"size": 1.0}, {**GOOD, "extra": 1.0}])
def test_every_check_is_measured_and_nothing_else(measured):
    with pytest.raises(UserError, match=r"claims\.yaml lists"):
        claims.judge("T1", ENTRY, measured)


def test_columns_go_with_the_worst():
    with pytest.raises(UserError, match="`worst`"):
        judged(gain=[[0.1, 0.2]] * 4)


def test_unknown_rule_is_named():
    with pytest.raises(UserError, match="rule 'near'; one of gain"):
        claims.measure({"name": "x", "rule": "near"}, [1.0, 2.0], 2)


def test_card_carries_verdict_in_words_and_every_check():
    found = judged(size=1.2)
    for written in (claims.card("T1", found), claims.card_text("T1", found)):
        assert "partly" in written
        for check in ENTRY["checks"]:
            assert check["what"] in written


def test_numbers_read_well():
    assert show.number(0.000012345) == "1.23e-05"
    assert show.number(393.0) == "393"
    assert show.number(1.1) == "1.10"
    assert show.number(1234.5) == "1234"
    assert show.number(999.7) == "1000"
    assert show.number(float("nan")) == "not defined"
    assert show.number(None) == "not defined"


def test_formulas_in_claims_are_set():
    found = show.math("E|x - G|^2 -> 1 for lambda > 0; W2, gamma_aux >= pi; eta in beta, A-1, 5x5")
    wanted = "E|x − G|<sup>2</sup> → 1 for λ &gt; 0; W<sub>2</sub>, γ<sub>aux</sub> ≥ π; η in beta, A-1, 5x5"
    assert found == wanted
    assert claims.text(claims.interval([1.0, 1.1, 1.2]), "deg") == "1.10 [0.852, 1.35] deg"
    assert claims.interval(3.0) == {"mean": 3.0, "low": 3.0, "high": 3.0, "n": 1}


@pytest.mark.parametrize(
    ("values", "machine", "says"),
    [
        ([0.5, 0.6], 0.0, "same"),
        ([0.51, 0.6], 0.0, "compatible"),
        ([0.51, 0.6], 0.01, "same"),
        ([0.55], 0.0, "compatible"),
        ([5.0, 5.1], 0.0, "differs"),
        ([5.0], 0.0, "differs"),
        ([np.nan, 0.6], 0.0, "differs"),
    ],
)
def test_a_readers_run_against_the_record(values, machine, says):
    record = judged()
    now = claims.judge("T1", ENTRY, {**GOOD, "gain": values})
    assert claims.against(now, record, {"gain": machine})["agrees"] == says
    assert claims.against(now, record, {})["verdict"] == "reproduced"


def test_an_exact_number_is_the_records_within_its_tolerance():
    assert claims.against(judged(size=1.1), judged(), {})["agrees"] == "same"
    assert claims.against(judged(size=1.2), judged(), {})["agrees"] == "differs"


def test_a_card_says_what_the_record_says():
    found = judged() | {"record": claims.against(judged(), judged(), {})}
    for written in (claims.card("T1", found), claims.card_text("T1", found)):
        assert "same" in written


NEEDS = {"gain": {"delta"}, "no harm": {"delta"}, "equal": {"value", "delta"}, "exact": {"value", "tolerance"}}


def test_claims_file_is_complete():
    entries = claims.load(ROOT / "claims.yaml")
    carried = {"R": 6, "A": 6, "S": 6, "D": 7, "L": 4, "X": 2}
    assert {f"{letter}{i}" for letter, n in carried.items() for i in range(1, n + 1)} == set(entries)
    for key, entry in entries.items():
        assert {"paper", "where", "claim", "expected", "kind"} <= set(entry), key
        assert entry["kind"] in claims.KINDS, key
        for change in entry.get("amendments", []):
            assert {"date", "what", "why"} == set(change), key
            date.fromisoformat(change["date"])  # raises for what is no day, as JSON keeps it
        if not entry.get("checks"):
            assert entry.get("reason"), f"{key} has neither checks nor the reason why"
            continue
        assert {"differs", "unit", "n", "notebook"} <= set(entry), key
        roles = [check["role"] for check in entry["checks"]]
        assert roles[0] == "primary", key
        assert roles.count("primary") == 1, key
        assert roles.count("main") <= 2, key
        assert "control" in roles, f"{key} has no control"
        assert len({check["name"] for check in entry["checks"]}) == len(roles), key
        for check in entry["checks"]:
            needed = NEEDS.get(check["rule"], {"value"})
            assert {"value", "delta", "tolerance"} & set(check) == needed, f"{key} {check['name']}"
            assert ("why" in check) == ("delta" in check), f"{key} {check['name']}: the reason of its delta"
            assert check.get("interval", "t") in ("t", "log", "none"), f"{key} {check['name']}"


RESULTS = sorted(path for path in (ROOT / "results").glob("*/[0-9]*.json") if path.parent.name != "pilot")


@pytest.mark.parametrize("path", RESULTS, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_committed_results_were_judged_by_the_committed_claims(path):
    entries = json.loads(json.dumps(claims.load(ROOT / "claims.yaml"), default=str))
    results = json.loads(path.read_text(encoding="utf-8"))
    expected = {key for key, entry in entries.items() if entry.get("notebook") == path.stem}
    assert set(results["claims"]) == expected
    for key, found in results["claims"].items():
        assert found["entry"] == entries[key], f"{key} changed since this run: run the notebook again"
        if found["checks"]:
            assert [found["verdict"], found["reason"]] == [*claims.verdict(found["entry"], found["checks"])]
