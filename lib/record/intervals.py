"""Intervals that verdicts rest on, and how many replicates decide: Student's t, Wilson's, and one valid at any time."""

import math
from typing import NamedTuple

import numpy as np
from scipy import stats

POWER = 0.8
MOST = 100_000  # replicates; more than anybody runs


class Shares(NamedTuple):
    """Shares of images, one a replicate, (n,) or (n, k), and how many distinct images they were counted over."""

    values: np.ndarray
    images: int


class Interval(NamedTuple):
    """A mean with the ends of its interval; the ends are infinite where one replicate says nothing of the spread."""

    mean: float
    low: float
    high: float


def student(values: np.ndarray, level: float = 0.95) -> Interval:
    """Return the interval of Student's t for the mean of independent values (n,)."""
    return _around(values, float(stats.t.ppf((1 + level) / 2, max(len(values) - 1, 1))))


def anytime(values: np.ndarray, level: float = 0.95, g: float = 1.0) -> Interval:
    """Return a t interval that holds at every n at once, for sums that grow until somebody is content.

    Its chance ever to miss is at most 1 - level (Lai 1976; Wang and Ramdas 2023, with a Gaussian mixture of weight g);
    infinite below five values.
    """
    n = len(values)
    q = ((1 + n * g) / (1 - level) ** 2) ** (1 / n)
    rest = 1 - q / (1 + n * g)
    return _around(values, math.sqrt((n - 1) * (q - 1) / rest) if n > 4 and rest > 0 else math.inf)


def _around(values: np.ndarray, factor: float) -> Interval:
    mean = float(np.mean(values))
    if len(values) < 2 or math.isinf(factor):
        return Interval(mean, -math.inf, math.inf)
    half = factor * float(np.std(values, ddof=1)) / math.sqrt(len(values))
    return Interval(mean, mean - half, mean + half)


def wilson(share: float, n: int, level: float = 0.95) -> Interval:
    """Return Wilson's interval (1927) of a share that was counted over n distinct things."""
    z2 = float(stats.norm.ppf((1 + level) / 2)) ** 2
    middle = (share + z2 / (2 * n)) / (1 + z2 / n)
    half = math.sqrt(z2 * (share * (1 - share) / n + z2 / (4 * n**2))) / (1 + z2 / n)
    return Interval(share, max(0.0, middle - half), min(1.0, middle + half))


def spread_bound(s: float, n: int) -> float:
    """Return the upper 80 % bound of a standard deviation that n values of a pilot estimate as s."""
    return s * math.sqrt((n - 1) / float(stats.chi2.ppf(0.2, n - 1)))


def replicates_for(distance: float, s: float, level: float = 0.95) -> int:
    """Return the smallest n at which a t interval excludes what lies `distance` from the mean, with a power of 0.8.

    `s` is the standard deviation between replicates, most honestly its `spread_bound`.
    """
    if not distance or not math.isfinite(distance):
        return MOST
    low, high = 1, MOST
    while high - low > 1:  # the power grows with n
        n = (low + high) // 2
        enough = _power(n, distance / s if s else math.inf, level) >= POWER
        low, high = (low, n) if enough else (n, high)
    return high


def _power(n: int, effect: float, level: float) -> float:
    if math.isinf(effect):
        return 1.0
    limit = stats.t.ppf((1 + level) / 2, n - 1)
    return float(stats.nct.sf(limit, n - 1, abs(effect) * math.sqrt(n)))
