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
from lib.record.intervals import Interval, Shares, anytime, replicates_for, spread_bound, student, wilson

MARKS = {"reproduced": "✔", "partly": "◐", "undecided": "?", "contradicted": "✘", "not tested": "○"}
VERDICTS = tuple(MARKS)
SIGNS = {"holds": "✔", "undecided": "?", "contradicted": "✘"}  # of a check
KINDS = ("identity", "toy", "network", "photographs")
RULES = ("gain", "no harm", "equal", "exact", "above", "below")
KEPT_VALUES = 200
Check = dict[str, Any]


def load(path: Path) -> dict[str, dict[str, Any]]:
    """Read `claims.yaml`: claim id -> entry."""
    return yaml.safe_load(path.read_text(encoding="utf-8"))


# ------------------------------------------------------------------------------------------- from values to an interval


def interval(values: Any) -> dict[str, Any]:
    """Return `mean`, `low`, `high` (95 %, Student t) and `n` of a number, of n values, or of `Shares`, to be quoted.

    All but `n` are None where a value is not finite. A single number is its own interval.
    """
    array, images = _parts(values)
    n = len(array)
    if not np.isfinite(array).all():
        return {"mean": None, "low": None, "high": None, "n": n}
    found = _kept(student(array), images)
    return {**(found if n > 1 else Interval(*3 * [found.mean]))._asdict(), "n": n}


def text(measured: dict[str, Any], unit: str = "", digits: int = 3) -> str:
    """Write a measured interval: `1.09 [1.07, 1.11] deg`, or the bare number where there is no spread."""
    words = show.number(measured["mean"], digits)
    if measured["low"] is not None and (measured["n"] > 1 or measured["low"] != measured["high"]):
        words += f" [{show.number(measured['low'], digits)}, {show.number(measured['high'], digits)}]"
    return f"{words} {unit}".strip()


def _parts(given: Any) -> tuple[np.ndarray, int | None]:
    """Return values and, of `Shares`, the number of images."""
    values, images = given if isinstance(given, Shares) else (given, None)
    return np.atleast_1d(np.asarray(values, dtype=float)), images


def _kept(t: Interval, images: int | None) -> Interval:
    """Widen a t interval of shares to Wilson's over the distinct images, and keep it in [0, 1]."""
    if images is None:
        return t
    found = wilson(t.mean, images)
    return Interval(t.mean, max(0.0, min(t.low, found.low)), min(1.0, max(t.high, found.high)))


def measure(check: Check, given: Any, planned: int) -> Check:
    """Return a check with its measured `mean`, `low`, `high`, `n`, its `state` and, if undecided, the n that decides.

    `given` is a number, values over replicates (n,) or `Shares`; for a check of the worst of k things, (n, k).
    """
    array, images = _parts(given)
    columns = array.reshape(len(array), -1)
    if (columns.shape[1] > 1) != ("worst" in check):
        raise UserError(f"check '{check['name']}': {array.shape} values given; `worst` in claims.yaml goes with (n, k)")
    with np.errstate(invalid="ignore", divide="ignore"):
        scaled = np.log(columns) if _ratio(check) else columns
    undefined = int((~np.isfinite(scaled)).any(1).sum())
    judged = {**check, "n": len(array), "undefined": undefined, "mean": None, "low": None, "high": None, "needs": None}
    judged |= {"values": array.tolist()} if np.isfinite(array).all() and array.size <= KEPT_VALUES else {}
    if undefined:
        return judged | {"state": "undecided", "word": ""}
    level = 1 - 0.05 / scaled.shape[1]  # the intervals of all k together hold at 95 %
    by = student if len(array) <= planned else anytime  # beyond the plan, somebody may have stopped when content
    found = [_kept(by(column, level), images) for column in scaled.T]
    if check.get("interval") == "none":
        found = [Interval(*3 * [x.mean]) for x in found]
    worst = max if check["rule"] == "below" else min
    spread = Interval(*(worst(ends) for ends in zip(*found, strict=True)))
    state, word = _state(check, spread)
    if state == "undecided" and len(array) > 1:
        column = scaled[:, worst(range(len(found)), key=lambda i: found[i].mean)]
        judged["needs"] = replicates_for(
            _distance(check, spread.mean), spread_bound(float(column.std(ddof=1)), len(array)), level
        )
    back = math.exp if _ratio(check) else float
    ends = {key: back(value) if math.isfinite(value) else None for key, value in spread._asdict().items()}
    return judged | ends | {"state": state, "word": word}


# ------------------------------------------------------------------------------------------------ rules (claims.yaml)


def _ratio(check: Check) -> bool:
    """Whether a check compares ratios, on the scale of logs; its bounds and delta are ratios too."""
    return check.get("interval") == "log"


def edges(check: Check) -> tuple[float, float]:
    """Return the bounds that a rule compares an interval with, on the scale of logs for ratios."""
    scale = math.log if _ratio(check) else float
    value, delta = (scale(check[key]) if key in check else 0.0 for key in ("value", "delta"))
    match check["rule"]:
        case "gain":
            return 0.0, delta
        case "no harm":
            return -delta, math.inf
        case "equal":
            return value - delta, value + delta
        case "exact":
            return value - check["tolerance"], value + check["tolerance"]
        case "above":
            return value, math.inf
        case "below":
            return -math.inf, value
    raise UserError(f"claims.yaml, check '{check['name']}': rule '{check['rule']}'; one of {', '.join(RULES)}")


def _state(check: Check, x: Interval) -> tuple[str, str]:
    """Return whether an interval holds a rule, contradicts it or leaves it undecided, and how it contradicts a gain."""
    low, high = edges(check)
    if check["rule"] == "exact":
        return ("holds" if low <= x.mean <= high else "contradicted"), ""
    if check["rule"] == "gain":
        if x.high < high:
            return "contradicted", "reversed" if x.high < low else "negligible"
        return ("holds" if x.low > low else "undecided"), ""
    if x.low > low and x.high < high:
        return "holds", ""
    return ("contradicted" if x.high < low or x.low > high else "undecided"), ""


def _distance(check: Check, mean: float) -> float:
    """Return how far from the mean lies what an interval must exclude to decide; by plan, not by luck, for a gain."""
    low, high = edges(check)
    if check["rule"] in ("gain", "no harm"):
        return high if check["rule"] == "gain" else -low
    return min(abs(mean - edge) for edge in (low, high) if math.isfinite(edge))


def rule_text(check: Check) -> str:
    """Write a check's rule as a card shows it."""
    value, delta = check.get("value", 0), check.get("delta", 0)
    match check["rule"]:
        case "gain":
            return f"> 1, matters from × {delta:g}" if _ratio(check) else f"> 0, matters from {delta:g}"
        case "no harm":
            return f"> {1 / delta:.3g}" if _ratio(check) else f"> {-delta:g}"
        case "equal":
            return f"within {value:g} {'×' if _ratio(check) else '±'} {delta:g}"
        case "exact":
            return f"= {value:g} ± {check['tolerance']:g}"
    return f"{'>' if check['rule'] == 'above' else '<'} {value:g}"


def _digits(check: Check) -> int:
    """Return how many significant digits the numbers of a check need, so that who reads them judges alike; 3 to 8."""
    scale = math.log if _ratio(check) else float

    def rounded(end: float | None, missing: float, digits: int) -> float:
        return missing if end is None else scale(float(f"{end:.{digits}g}"))

    for digits in range(3, 8):
        ends = (
            rounded(check[key], far, digits) for key, far in (("mean", 0.0), ("low", -math.inf), ("high", math.inf))
        )
        if check["mean"] is None or _state(check, Interval(*ends))[0] == check["state"]:
            return digits
    return 8


# ------------------------------------------------------------------------------------------------------------ verdicts


def judge(claim_id: str, entry: dict[str, Any], measured: dict[str, Any]) -> dict[str, Any]:
    """Return the `verdict`, its `reason`, the judged `checks` and the `entry` of a claim.

    `measured`: check name -> number, values over replicates or `Shares`; exactly the checks of the entry, else
    `UserError`. A claim without checks is not tested, for the reason that it gives.
    """
    names = [check["name"] for check in entry.get("checks", [])]
    if set(names) != set(measured):
        raise UserError(f"claim {claim_id}: measured {sorted(measured)}, but claims.yaml lists {sorted(names)}")
    checks = []
    for check in entry.get("checks", []):
        judged = measure(check, measured[check["name"]], entry["n"])
        words = text(judged, check.get("unit", ""), _digits(judged))
        if judged["undefined"]:
            words = f"not defined in {judged['undefined']} of {judged['n']}"
        checks.append(judged | {"text": words})
    found, reason = verdict(entry, checks)
    return {"verdict": found, "reason": reason, "checks": checks, "entry": entry}


def not_tested(entry: dict[str, Any], reason: str) -> dict[str, Any]:
    """Return what `judge` does, for a claim that this run could not test, with the reason: what it would need."""
    return {"verdict": "not tested", "checks": [], "reason": reason, "entry": entry}


def verdict(entry: dict[str, Any], checks: Iterable[Check]) -> tuple[str, str]:
    """Return the verdict of judged checks, in the order in which claims.yaml explains it, and its reason."""
    checks = list(checks)
    if not checks:
        return "not tested", entry.get("reason", "")
    fewest = min((c["n"] for c in checks if c["rule"] != "exact" and c.get("interval") != "none"), default=entry["n"])
    if fewest < entry["n"]:
        return "undecided", f"{fewest} of {entry['n']} planned replicates"
    controls = [c for c in checks if c["role"] == "control"]
    primary = next(c for c in checks if c["role"] == "primary")
    for control in controls:
        if control["state"] == "contradicted":
            return (
                "not tested",
                f"its control fails: {control['what']}, {control['text']} where {rule_text(control)} is needed",
            )
    for check in (*controls, primary):
        if check["state"] == "undecided":
            how = f"; about {check['needs']} replicates would decide" if check["needs"] else ""
            return "undecided", f"{check['what']}, {check['text']} where {rule_text(check)} is needed{how}"
    if primary["state"] == "contradicted":
        return "contradicted", f"{primary['word'] or 'outside'}: {primary['what']}, {primary['text']}"
    rest = [c for c in checks if c["role"] == "main" and c["state"] != "holds"]
    if rest:
        return "partly", "; ".join(f"{c['what']} is {c['word'] or c['state']}, {c['text']}" for c in rest)
    return "reproduced", ""


# ----------------------------------------------------------------------------------- a reader's run against the record

AGREEMENT = ("same", "compatible", "differs")


def agreement(now: Check, record: Check, machine: float | None) -> str:
    """Return whether a check's values are those of the record: same, compatible with them, or different.

    Same: with equal seeds no value is farther away than machines differ, 3 sqrt(2) `machine`, the standard deviation
    between machines. Compatible: the difference of the means lies in the pooled 95 % t interval around 0.
    """
    x, y = (np.array(check.get("values", [check["mean"]]), dtype=float) for check in (now, record))
    if np.isnan(x).any() or np.isnan(y).any():
        return "same" if np.isnan(x).any() == np.isnan(y).any() else "differs"
    shared = min(len(x), len(y))
    near = 3 * math.sqrt(2) * (machine or 0.0) + 1e-6 * float(np.abs(y).max())  # the seventh digit is rounding
    if np.abs(x[:shared] - y[:shared]).max() <= max(near, now.get("tolerance", 0.0)):
        return "same"
    n, m = len(x), len(y)
    if n + m < 3:
        return "differs"
    x, y = x.reshape(n, -1), y.reshape(m, -1)
    squares = ((x - x.mean(0)) ** 2).sum(0) + ((y - y.mean(0)) ** 2).sum(0)
    t = float(stats.t.ppf(1 - 0.025 / x.shape[1], n + m - 2))
    limit = t * np.sqrt(squares / (n + m - 2) * (1 / n + 1 / m))
    return "compatible" if (np.abs(x.mean(0) - y.mean(0)) <= limit).all() else "differs"


def against(now: dict[str, Any], record: dict[str, Any], machines: dict[str, float]) -> dict[str, str]:
    """Return the record's verdict on a claim and whether a run agrees with it, by the check that agrees least."""
    then = {check["name"]: check for check in record["checks"]}
    found = [agreement(check, then[check["name"]], machines.get(check["name"])) for check in now["checks"]]
    says = max(found, key=AGREEMENT.index, default="")
    return {"verdict": record["verdict"], "reason": record["reason"], "agrees": says}


def card(claim_id: str, judged: dict[str, Any], foot: str = "", template: str = "card.html") -> str:
    """Return the claim card of a judged claim as HTML; `foot` is HTML for its last line."""
    values = {
        "reason": "",
        "record": None,
        **judged,
        "id": claim_id,
        "foot": Markup(foot),
        "marks": MARKS,
        "signs": SIGNS,
        "rule": rule_text,
    }
    return show.render(template, **values)


def card_text(claim_id: str, judged: dict[str, Any]) -> str:
    """Return the claim card as plain text, for terminals."""
    return card(claim_id, judged, template="card.txt").rstrip()
