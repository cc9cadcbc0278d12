"""Claims, measured checks and verdicts: what a paper says, what we expected, what we measured, whether it stands."""

from __future__ import annotations

import html
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from scipy import stats

from lib.record.files import UserError

VERDICTS = ("reproduced", "trend only", "not reproduced", "not tested here")
MARKS = {"reproduced": "✔", "trend only": "◐", "not reproduced": "✘", "not tested here": "○"}


def interval(values: Any) -> dict[str, Any]:
    """Mean and 95 % Student-t interval over seeds or draws.

    Parameters
    ----------
    values
        A number, or a 1-D sequence of n numbers.

    Returns
    -------
    dict
        `mean`, `low`, `high`, `n`; all None where a value is not finite. A single number is its own interval.
    """
    array = np.atleast_1d(np.asarray(values, dtype=float))
    n = len(array)
    if not np.isfinite(array).all():
        return {"mean": None, "low": None, "high": None, "n": n}
    mean = float(array.mean())
    half = float(stats.t.ppf(0.975, n - 1) * array.std(ddof=1) / math.sqrt(n)) if n > 1 else 0.0
    return {"mean": mean, "low": mean - half, "high": mean + half, "n": n}


def number(value: float | None, digits: int = 3) -> str:
    """Write a number with `digits` significant digits, without exponents for everyday sizes."""
    if value is None:
        return "not defined"
    if value == int(value) and abs(value) < 1e6:
        return str(int(value))
    if abs(value) >= 10**digits and abs(value) < 1e6:
        return f"{value:.0f}"
    return f"{value:#.{digits}g}".rstrip(".")


def text(measured: dict[str, Any], unit: str = "", digits: int = 3) -> str:
    """Write a measured interval: `1.09 [1.07, 1.11] deg`, or the bare number where there is no spread."""
    words = number(measured["mean"], digits)
    if measured["n"] > 1 and measured["mean"] is not None:
        words += f" [{number(measured['low'], digits)}, {number(measured['high'], digits)}]"
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
    """Judge a claim by its checks.

    Parameters
    ----------
    claim_id, entry
        The id and its entry in claims.yaml.
    measured
        Check name -> number or 1-D values over seeds; exactly the checks of the entry.

    Returns
    -------
    dict
        `verdict`, `checks` (each entry check with `mean`, `low`, `high`, `n`, `text`, `holds`) and the `entry` judged.

    Raises
    ------
    UserError
        A check of the entry was not measured, or a measured name is not in the entry.
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


def badge(word: str) -> str:
    """Return a verdict as an HTML badge: mark and word, so that colour is not the only carrier."""
    return f'<span class="verdict verdict-{word.replace(" ", "-")}">{MARKS[word]} {word}</span>'


def card(claim_id: str, judged: dict[str, Any]) -> str:
    """Return the claim card of a judged claim as HTML."""
    if not judged["checks"]:
        return _open_card(claim_id, judged) + f"<p>Not tested here: {html.escape(judged['reason'])}.</p></div>"
    rows = "".join(
        f"<tr><td>{html.escape(check['what'])}{' <em>(control)</em>' if check['role'] == 'control' else ''}</td>"
        f"<td>{html.escape(rule_text(check))}</td><td>{html.escape(check['text'])}</td><td>{check['n']}</td>"
        f"<td>{'✔ holds' if check['holds'] else '✘ fails'}</td></tr>"
        for check in judged["checks"]
    )
    return (
        _open_card(claim_id, judged)
        + '<div class="claim-table"><table><thead><tr><th>measured</th><th>required</th><th>result [95 %]</th>'
        f"<th>n</th><th></th></tr></thead><tbody>{rows}</tbody></table></div></div>"
    )


def _open_card(claim_id: str, judged: dict[str, Any]) -> str:
    """Return the head of a card: id, source, verdict, sentence, what was expected; the card is left open."""
    entry = judged["entry"]
    return (
        f'<div class="claim-card" style="border:1px solid #8888;border-radius:6px;padding:.6em 1em;margin:.6em 0">'
        f'<p class="claim-title"><strong>{claim_id}</strong> · {entry["paper"]}, {html.escape(entry["where"])} '
        f"{badge(judged['verdict'])}</p><p>{html.escape(entry['claim'])}</p>"
        f'<p class="claim-expected">Expected: {html.escape(str(entry["expected"]))}</p>'
    )


def card_text(claim_id: str, judged: dict[str, Any]) -> str:
    """Return the claim card as plain text, for terminals."""
    lines = [f"{claim_id} {MARKS[judged['verdict']]} {judged['verdict']}: {judged['entry']['claim']}"]
    if not judged["checks"]:
        lines.append(f"  {judged['reason']}")
    lines += [
        f"  {'holds' if check['holds'] else 'FAILS'}  {check['what']}: {check['text']} "
        f"(required {rule_text(check)}, n = {check['n']}{', control' if check['role'] == 'control' else ''})"
        for check in judged["checks"]
    ]
    return "\n".join(lines)
