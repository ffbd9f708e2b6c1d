"""Before the hours are spent: the smallest delta that seeds x folds could detect."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import special, stats

from competition_kit.results.statistics.rows import MOST_DEGREES, RowVariance

__all__ = ["Detectable", "Noise", "found_by", "minimum_detectable", "noise_components", "too_small"]

PLAIN = 3.0  # SD of paired differences: a true delta that nearly every single cell shows
ADVISED = {"seeds": 3, "folds": 5}


@dataclass(frozen=True)
class Noise:
    """Standard deviations of one cell's difference: of the data's part and of the seeds' part.

    With one seed they cannot be told apart, and all is counted as the data's. None: not defined.
    """

    data_sd: float | None
    seed_sd: float | None


@dataclass(frozen=True)
class Detectable:
    """What a design can see, in the unit of the standard deviations that it was asked for.

    Attributes:
        threshold: a *measured* delta of this size is just significant (of one comparison alone).
        detectable: a *true* delta of this size is found with probability `power`; larger than the
            threshold, which a true delta of its own size passes only half of the time.
        note: why they are None, or "".
    """

    threshold: float | None
    detectable: float | None
    level: float
    power: float
    note: str


def noise_components(differences: np.ndarray, row_variance: RowVariance | None = None) -> Noise:
    """Take the spread of paired differences [S, K] apart, for a plan from a pilot's cells.

    The data's part comes from rows where `row_variance` is given, else from the folds' means.
    """
    cells = np.asarray(differences, dtype=float)
    cells = cells[:, np.isfinite(cells).all(axis=0)]  # whole folds: a pilot needs no more
    seeds, folds = cells.shape
    if folds < 2 or not seeds:
        return Noise(None, None)
    means = float(cells.mean(axis=0).var(ddof=1))
    if seeds == 1:
        return Noise(float(np.sqrt(means)), 0.0)
    within = float(cells.var(axis=0, ddof=1).mean())
    data = max(0.0, means - within / seeds) if row_variance is None else row_variance.variance
    return Noise(float(np.sqrt(data)), float(np.sqrt(within)))


def minimum_detectable(
    data_sd: float,
    seed_sd: float,
    *,
    seeds: int,
    folds: int,
    test_share: float,
    rows_tell: bool = True,
    level: float = 0.95,
    power: float = 0.8,
) -> Detectable:
    """Return the smallest delta that a design could detect, by the method that `compare` uses.

    Without a pilot, ask for (1, 0) and (0, 1): the answers are in units of the SD of paired
    differences, if their noise is all the data's, or all the seeds'. With one seed both are the
    same: 5 folds have a threshold of 1.86 SD. Rows are taken to tell the data's part (two seeds
    or more) without an error that counts, where they tell it at all.

    Args:
        data_sd, seed_sd: standard deviations of one cell's difference, see `Noise`.
        seeds, folds: of the design.
        test_share: rows that a fold is tested on / rows it is trained on.
        rows_tell: whether out-of-fold rows tell how much the data vary: not where folds are
            sources of their own.
        level: of the interval.
        power: probability with which `detectable` is detected.

    Raises:
        ValueError: if an argument is out of range.
    """
    if data_sd < 0 or seed_sd < 0 or seeds < 1 or folds < 1 or not test_share > 0:
        raise ValueError("standard deviations, seeds, folds and test share must be positive")
    if not 0 < 1 - level < power < 1:
        raise ValueError(f"power {power!r} must lie between 1 - level and 1")
    if folds == 1:
        note = "one fold: nothing tells how much the data vary"
        return Detectable(None, None, level, power, note)
    if data_sd == seed_sd == 0:
        return Detectable(None, None, level, power, "no spread is given")
    correction = 1 / folds + test_share
    if seeds == 1 or not rows_tell:
        variance, degrees = (data_sd**2 + seed_sd**2 / seeds) * correction, float(folds - 1)
    else:
        data, seed = data_sd**2 * correction, seed_sd**2 / (seeds * folds)
        variance = data + seed
        degrees = variance**2 / (data**2 / MOST_DEGREES + seed**2 / (folds * (seeds - 1)))
    error = float(np.sqrt(variance))
    return Detectable(
        threshold=error * float(stats.t.ppf((1 + level) / 2, degrees)),
        detectable=error * _effect(power, degrees, level),
        level=level,
        power=power,
        note="",
    )


def found_by(seeds: int, folds: int, *, rows_tell: bool = True) -> tuple[float, float]:
    """Return the true deltas that a design finds 4 times in 5, in SD of the paired differences.

    The first is for noise that is all the seeds', the second for noise that is all the data's.

    Args:
        seeds, folds: of the design, two folds or more.
        rows_tell: see `minimum_detectable`.

    Raises:
        ValueError: for fewer than two folds.
    """
    if folds < 2:
        raise ValueError(f"{folds} folds find nothing: two are the fewest")
    found = [
        minimum_detectable(
            *noise, seeds=seeds, folds=folds, test_share=1 / (folds - 1), rows_tell=rows_tell
        ).detectable
        for noise in ((0.0, 1.0), (1.0, 0.0))
    ]
    assert found[0] is not None and found[1] is not None, "two folds tell how much data vary"
    return found[0], found[1]


def too_small(seeds: int, folds: int, *, rows_tell: bool = True) -> str:
    """Return why a design can detect nothing and what to add, in words; "" where it can."""
    if min(found_by(seeds, folds, rows_tell=rows_tell)) <= PLAIN:
        return ""
    more_seeds, more_folds = max(seeds, ADVISED["seeds"]), max(folds, ADVISED["folds"])
    larger = dict.fromkeys(((more_seeds, folds), (seeds, more_folds), (more_seeds, more_folds)))
    advice = [
        f"{_size(*design)} find {_range(*found_by(*design, rows_tell=rows_tell))}"
        for design in larger
        if min(found_by(*design, rows_tell=rows_tell)) <= PLAIN
    ]
    return (
        f"{_size(seeds, folds)} can detect nothing, expect no evidence of any arm: only a true "
        f"delta of {_range(*found_by(seeds, folds, rows_tell=rows_tell))} of the paired differences "
        f"would be found. Add seeds or folds: {'; '.join(advice)}."
    )


def _size(seeds: int, folds: int) -> str:
    return f"{folds} folds x {seeds} seed{'s' * (seeds != 1)}"


def _range(low: float, high: float) -> str:
    """Return both ends, or the one that they are."""
    ends = dict.fromkeys(f"{end:.0f}" if end >= 10 else f"{end:.1f}" for end in (low, high))
    return f"{' to '.join(ends)} SD"


def _effect(power: float, degrees: float, level: float) -> float:
    """Return the true delta, in standard errors, that a t-test finds with probability `power`."""
    critical = stats.t.ppf((1 + level) / 2, degrees)
    return float(special.nctdtrinc(degrees, 1 - power, critical))
