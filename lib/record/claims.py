"""Claims, measured checks and verdicts: what a paper says, what we expected, what we measured, whether it stands."""

import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from markupsafe import Markup
from scipy import stats

from lib.record import show
from lib.record.files import UserError

VERDICTS = ("reproduced", "trend only", "not reproduced", "not tested here")
MARKS = {"reproduced": "✔", "trend only": "◐", "not reproduced": "✘", "not tested here": "○"}


def interval(values: Any) -> dict[str, Any]:
    """Return `mean`, `low`, `high` (95 %, Student t) and `n` of a number or of n values over seeds or draws.

    All but `n` are None where a value is not finite. A single number is its own interval.
    """
    array = np.atleast_1d(np.asarray(values, dtype=float))
    n = len(array)
    if not np.isfinite(array).all():
        return {"mean": None, "low": None, "high": None, "n": n}
    mean = float(array.mean())
    half = float(stats.t.ppf(0.975, n - 1) * stats.sem(array)) if n > 1 else 0.0  # stats.t.interval: nan without spread
    return {"mean": mean, "low": mean - half, "high": mean + half, "n": n}


def text(measured: dict[str, Any], unit: str = "", digits: int = 3) -> str:
    """Write a measured interval: `1.09 [1.07, 1.11] deg`, or the bare number where there is no spread."""
    words = show.number(measured["mean"], digits)
    if measured["n"] > 1 and measured["mean"] is not None:
        words += f" [{show.number(measured['low'], digits)}, {show.number(measured['high'], digits)}]"
    return f"{words} {unit}".strip()


def load(path: Path) -> dict[str, dict[str, Any]]:
    """Read `claims.yaml`: claim id -> entry."""
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def holds(check: dict[str, Any], measured: dict[str, Any]) -> bool:
    """Whether a measured interval satisfies a check's rule (see the head of claims.yaml)."""
    if measured["mean"] is None:
        return False
    if check["rule"] == "equal":
        return abs(measured["mean"] - check["value"]) <= check["tolerance"]
    if check["rule"] == "above":
        return measured["low"] > check["value"]
    if check["rule"] == "below":
        return measured["high"] < check["value"]
    raise UserError(f"claims.yaml, check '{check['name']}': rule '{check['rule']}'; one of equal, above, below")


def rule_text(check: dict[str, Any]) -> str:
    """Write a check's rule: `= 0.966 ± 0.01`, `> 0` or `< 0.5`."""
    if check["rule"] == "equal":
        return f"= {check['value']:g} ± {check['tolerance']:g}"
    return f"{'>' if check['rule'] == 'above' else '<'} {check['value']:g}"


def judge(claim_id: str, entry: dict[str, Any], measured: dict[str, Any]) -> dict[str, Any]:
    """Return the `verdict`, the judged `checks` and the `entry` of a claim.

    `measured`: check name -> number or values over seeds; exactly the checks of the entry, else `UserError`.
    """
    names = [check["name"] for check in entry.get("checks", [])]
    if set(names) != set(measured):
        raise UserError(f"claim {claim_id}: measured {sorted(measured)}, but claims.yaml lists {sorted(names)}")
    checks = []
    for check in entry["checks"]:
        spread = interval(measured[check["name"]])
        words = text(spread, check.get("unit", ""), _digits(check))
        checks.append({"role": "main", **check, **spread, "text": words, "holds": holds(check, spread)})
    return {"verdict": verdict(checks), "checks": checks, "entry": entry}


def not_tested(entry: dict[str, Any], reason: str) -> dict[str, Any]:
    """Return what `judge` does, for a claim that this run could not test, with the reason: what it would need."""
    return {"verdict": "not tested here", "checks": [], "reason": reason, "entry": entry}


def _digits(check: dict[str, Any]) -> int:
    """Return how many significant digits show whether a number lies within the check's tolerance; at least 3."""
    if check["rule"] != "equal" or not check["value"] or not check["tolerance"]:
        return 3
    return max(3, math.ceil(math.log10(abs(check["value"]) / check["tolerance"])))


def verdict(checks: Iterable[dict[str, Any]]) -> str:
    """Return the verdict of judged checks: none, or all hold, or all controls and trend checks hold, or neither."""
    checks = list(checks)
    if not checks:
        return "not tested here"
    if all(check["holds"] for check in checks):
        return "reproduced"
    trend = [check for check in checks if check.get("trend") or check["role"] == "control"]
    if any(check.get("trend") for check in trend) and all(check["holds"] for check in trend):
        return "trend only"
    return "not reproduced"


def card(claim_id: str, judged: dict[str, Any], foot: str = "", template: str = "card.html") -> str:
    """Return the claim card of a judged claim as HTML; `foot` is HTML for its last line."""
    values = {"reason": "", **judged, "id": claim_id, "foot": Markup(foot), "marks": MARKS, "rule": rule_text}
    return show.render(template, **values)


def card_text(claim_id: str, judged: dict[str, Any]) -> str:
    """Return the claim card as plain text, for terminals."""
    return card(claim_id, judged, template="card.txt").rstrip()
