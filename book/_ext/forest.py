"""Where the marks of the forest plot stand: a claim's primary check on an axis of its own, in per cent of its width."""

import math
from typing import Any

from lib.record import claims

DOTS = 5  # replicates up to which each is drawn
MARGIN = 0.15  # of what is drawn, left free on both sides


def strip(check: dict[str, Any]) -> dict[str, Any]:
    """Return the marks of a judged check: `ground` where its rule holds, `ticks`, `interval`, `mean`, `dots`, `axis`.

    `ground` is (left, width), `matters` the part of it beyond the delta of a gain, `interval` (left, right) or None
    without one, `axis` the values at its ends and whether it is a scale of logs, as it is for ratios.
    """
    scale = math.log if check.get("interval") == "log" else float
    low, high = claims.edges(check)
    ticks = [edge for edge in (low, high) if math.isfinite(edge)]
    matters = high if check["rule"] == "gain" else low
    if check["rule"] == "gain":
        high = math.inf  # delta is a tick: what is smaller does not matter
    spread = [scale(check[key]) for key in ("low", "mean", "high") if check[key] is not None]
    values = check.get("values") or []
    dots = [scale(value) for value in values] if 1 < len(values) <= DOTS and not isinstance(values[0], list) else []
    drawn = [*ticks, *spread, *dots]
    room = MARGIN * ((max(drawn) - min(drawn)) or 1.0)
    start, end = min(drawn) - room, max(drawn) + room

    def place(x: float) -> float:
        return round(100 * (min(max(x, start), end) - start) / (end - start), 2)

    ends = [place(scale(check[key])) if check[key] is not None else edge for key, edge in (("low", 0), ("high", 100))]
    return {
        "ground": (place(low), round(place(high) - place(low), 2)),
        "matters": (place(matters), round(place(high) - place(matters), 2)),
        "ticks": [place(tick) for tick in ticks],
        "interval": ends if check["n"] > 1 and check.get("interval") != "none" else None,
        "mean": None if check["mean"] is None else place(scale(check["mean"])),
        "dots": [place(dot) for dot in dots],
        "axis": (start, end, scale is math.log),
    }
