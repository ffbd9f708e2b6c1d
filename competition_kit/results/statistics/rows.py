"""What out-of-fold rows say: how much of the noise is the data's, and bootstrap intervals."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy import stats

__all__ = [
    "Interval",
    "RowVariance",
    "bootstrap_difference",
    "row_variance",
    "row_variance_of_means",
]

Score = Callable[[np.ndarray, np.ndarray], float]

FEWEST = 0.5  # share of resamples that must have a score
BATCH = 50  # resamples whose row numbers are in memory at a time
MOST_DEGREES = 1000.0  # beyond, a t distribution is a normal one


@dataclass(frozen=True)
class RowVariance:
    """Variance of a fold's expected difference that comes from the drawing of its rows.

    "Expected": over seeds. So the differences that seeds make on a row are not in it.
    """

    variance: float
    degrees_of_freedom: float


@dataclass(frozen=True)
class Interval:
    """A bootstrap interval; a number that is not defined is None, `note` says why.

    Attributes:
        lost: share of resamples in which the score was undefined; they are left out.
    """

    delta: float | None
    low: float | None
    high: float | None
    level: float
    lost: float
    note: str


def row_variance(
    score: Score,
    targets: np.ndarray,
    ours: np.ndarray,
    baseline: np.ndarray,
    folds: np.ndarray,
    *,
    groups: np.ndarray | None = None,
    repetitions: int = 100,
    seed: int = 0,
) -> RowVariance | None:
    """Estimate the data's part of the noise of a fold's difference, by bootstrap.

    The rows of each fold (or its groups, whole) are resampled, the same ones for every seed and
    both arms; what the seeds' differences then have in common, their covariance, is the data's
    part. `compare` explains what it is good for. Folds must be random parts of the data: where each
    is a source of its own (one author, one year), its rows cannot tell how much sources differ.

    Args:
        score: (targets, probabilities) -> float, greater is better.
        targets: [N] or [N, C].
        ours, baseline: out-of-fold probabilities [S, N, C], paired seeds.
        folds: [N] fold of each row.
        groups: [N] rows of one group come together, or None. For folds that are sources, the
            folds themselves: then there is nothing to draw, and the answer is None.
        repetitions: resamples of each fold.
        seed: of the resampling.

    Returns:
        None where it cannot be told: one seed, fewer than two folds with two rows or groups, or a
        score that is undefined in most resamples.
    """
    if ours.shape[0] < 2:
        return None
    generator = np.random.default_rng(seed)
    found = []
    for fold in np.unique(folds):
        units = _Units(np.flatnonzero(folds == fold), groups)
        if len(units) < 2:
            continue
        samples = []
        for _ in range(repetitions):
            rows = units.take(generator.integers(len(units), size=len(units)))
            samples.append(_differences(score, targets[rows], ours[:, rows], baseline[:, rows]))
        defined = np.array(samples)
        defined = defined[np.isfinite(defined).all(axis=1)]
        if len(defined) >= max(2, FEWEST * repetitions):
            # a resample of n has (n - 1) / n of the variance
            found.append(np.cov(defined.T) * len(units) / (len(units) - 1))
    return _pooled(found)


def row_variance_of_means(differences: np.ndarray, folds: np.ndarray) -> RowVariance | None:
    """Return what `row_variance` estimates, in closed form for scores that are means over rows.

    Args:
        differences: [S, N] of each row's score (right or wrong, negative log-loss ...).
        folds: [N] fold of each row.
    """
    if differences.shape[0] < 2:
        return None
    layers = [differences[:, folds == fold] for fold in np.unique(folds)]
    return _pooled([np.cov(rows) / rows.shape[1] for rows in layers if rows.shape[1] > 1])


def _pooled(covariances: list[np.ndarray]) -> RowVariance | None:
    """Average, over folds and pairs of seeds, covariances [S, S] of the seeds' differences."""
    if len(covariances) < 2:
        return None
    pairs = ~np.eye(len(covariances[0]), dtype=bool)
    shared = np.array([covariance[pairs].mean() for covariance in covariances])
    variance = max(0.0, float(shared.mean()))
    # a variance with k degrees of freedom has itself a variance of 2 v**2 / k; that of the mean
    # is seen from the folds, so its degrees are not less than theirs
    uncertainty = float(shared.var(ddof=1) / len(shared))
    degrees = 2 * variance**2 / uncertainty if uncertainty > 0 else MOST_DEGREES
    return RowVariance(variance, float(np.clip(degrees, len(shared) - 1, MOST_DEGREES)))


def bootstrap_difference(
    score: Score,
    targets: np.ndarray,
    ours: np.ndarray,
    baseline: np.ndarray,
    *,
    groups: np.ndarray | None = None,
    repetitions: int = 2000,
    seed: int = 0,
    level: float = 0.95,
) -> Interval:
    """Bootstrap the difference of two scores over rows, or over whole groups of rows.

    For pooled predictions and any metric, means over rows or not. Paired: both sides see the same
    rows. It answers "what would other rows say about these very models?"; that other training rows
    and seeds make other models is not in it, so no verdict rests on it. Percentile interval.

    Args:
        score: (targets, probabilities) -> float, greater is better.
        targets: [N] or [N, C].
        ours, baseline: probabilities [N, C]; or [S, N, C] for seeds, whose scores are averaged.
        groups: [N] rows of one group come together, or None.
        repetitions: resamples.
        seed: of the resampling.
        level: of the interval.
    """
    layers = [side if side.ndim == 3 else side[None] for side in (ours, baseline)]
    units = _Units(np.arange(len(targets)), groups)

    def difference(drawn: np.ndarray) -> float:
        rows = units.take(drawn)
        return float(_differences(score, targets[rows], *(side[:, rows] for side in layers)).mean())

    everything = np.arange(len(units))
    delta = difference(everything) if len(units) else np.nan
    kind = "rows" if groups is None else "groups"
    if not np.isfinite(delta):
        note = "the score is not defined on these rows" if len(units) else "there are no rows"
        return Interval(None, None, None, level, 1.0, note)
    if len(units) < 2:
        return Interval(float(delta), None, None, level, 0.0, f"fewer than two {kind}")
    with warnings.catch_warnings():
        # of resamples without a score; we leave them out, and say so
        warnings.simplefilter("ignore", stats.DegenerateDataWarning)
        samples = stats.bootstrap(
            (everything,),
            difference,
            vectorized=False,
            n_resamples=repetitions,
            batch=BATCH,
            method="percentile",
            rng=np.random.default_rng(seed),
        ).bootstrap_distribution
    defined = samples[np.isfinite(samples)]
    lost = 1 - len(defined) / len(samples)
    if len(defined) < FEWEST * len(samples):
        note = f"the score is not defined in {lost:.0%} of the resamples"
        return Interval(float(delta), None, None, level, lost, note)
    low, high = np.quantile(defined, [(1 - level) / 2, (1 + level) / 2])
    note = f"without the {lost:.1%} of resamples where the score is not defined" if lost else ""
    return Interval(float(delta), float(low), float(high), level, lost, note)


class _Units:
    """What a resample draws whole: single rows, or groups of them."""

    def __init__(self, rows: np.ndarray, groups: np.ndarray | None) -> None:
        self.rows = rows
        self.members: list[np.ndarray] | None = None
        if groups is not None:
            self.members = [rows[groups[rows] == group] for group in np.unique(groups[rows])]

    def __len__(self) -> int:
        return len(self.rows if self.members is None else self.members)

    def take(self, drawn: np.ndarray) -> np.ndarray:
        """Return the rows of units by number."""
        if self.members is None:
            return self.rows[drawn]
        return np.concatenate([self.members[unit] for unit in drawn])


def _differences(
    score: Score, targets: np.ndarray, ours: np.ndarray, baseline: np.ndarray
) -> np.ndarray:
    """Return the difference of scores for each seed [S], from probabilities [S, n, C]."""
    return np.array(
        [
            score(targets, one) - score(targets, other)
            for one, other in zip(ours, baseline, strict=True)
        ]
    )
