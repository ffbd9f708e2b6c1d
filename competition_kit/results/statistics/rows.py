"""What out-of-fold rows say: how much of the noise is the data's, and bootstrap intervals."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
from scipy import stats

__all__ = [
    "Interval",
    "ManyScores",
    "RowVariance",
    "bootstrap_difference",
    "row_variance",
    "row_variance_of_means",
]

Score = Callable[[np.ndarray, np.ndarray], float]
Resampled = Callable[[np.ndarray], np.ndarray]  # [R, n] how often rows are drawn -> [R] scores

FEWEST = 0.5  # share of resamples that must have a score
IN_MEMORY = 1_000_000  # numbers: how often each row is drawn in the resamples of one batch
MOST_DEGREES = 1000.0  # beyond, a t distribution is a normal one


@runtime_checkable
class ManyScores(Protocol):
    """A score that says of many resamples of the same rows at once what it says of each."""

    def resampled(self, targets: np.ndarray, probabilities: np.ndarray) -> Resampled | None:
        """Return a function from how often each row is drawn, [R, n], to the scores [R].

        None where only the resamples' own rows will do.
        """
        ...


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
        score: (targets, probabilities) -> float, greater is better, whatever the order of rows;
            much sooner if it is one of `ManyScores`, too.
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
        rows = np.flatnonzero(folds == fold)
        units = _Units(len(rows), None if groups is None else groups[rows])
        if len(units) < 2:
            continue
        differences = _differences(score, targets[rows], ours[:, rows], baseline[:, rows])
        drawn = generator.integers(len(units), size=(repetitions, len(units)))
        size = units.batch
        samples = np.concatenate(
            [
                differences(units.counts(drawn[start : start + size]))
                for start in range(0, repetitions, size)
            ]
        )
        defined = samples[np.isfinite(samples).all(axis=1)]
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
        score: (targets, probabilities) -> float, greater is better, whatever the order of rows;
            much sooner if it is one of `ManyScores`, too.
        targets: [N] or [N, C].
        ours, baseline: probabilities [N, C]; or [S, N, C] for seeds, whose scores are averaged.
        groups: [N] rows of one group come together, or None.
        repetitions: resamples.
        seed: of the resampling.
        level: of the interval.
    """
    units = _Units(len(targets), groups)
    differences = _differences(
        score, targets, *(side if side.ndim == 3 else side[None] for side in (ours, baseline))
    )

    def difference(drawn: np.ndarray, axis: int = -1) -> np.ndarray:
        return differences(units.counts(drawn)).mean(axis=-1)

    everything = np.arange(len(units))
    delta = difference(everything[None])[0] if len(units) else np.nan
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
            vectorized=True,
            n_resamples=repetitions,
            batch=units.batch,
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
    """What a resample draws whole: single rows, or groups of them.

    Args:
        rows: their number n.
        groups: [n] or None.
    """

    def __init__(self, rows: int, groups: np.ndarray | None) -> None:
        self.count = rows
        self.unit_of: np.ndarray | None = None
        if groups is not None:
            names, self.unit_of = np.unique(groups, return_inverse=True)
            self.count = len(names)
        self.batch = max(1, IN_MEMORY // max(rows, 1))

    def __len__(self) -> int:
        return self.count

    def counts(self, drawn: np.ndarray) -> np.ndarray:
        """Return how often each row is in each resample [R, n], from numbers of units [R, U]."""
        first = self.count * np.arange(len(drawn))[:, None]
        times = np.bincount((drawn + first).ravel(), minlength=self.count * len(drawn))
        times = times.reshape(len(drawn), self.count).astype(float)
        return times if self.unit_of is None else times[:, self.unit_of]


def _differences(
    score: Score, targets: np.ndarray, ours: np.ndarray, baseline: np.ndarray
) -> Resampled:
    """Return a function from how often each row [R, n] is drawn to each seed's difference [R, S].

    Args:
        ours, baseline: probabilities [S, n, C].
    """
    pairs = [
        [_resampled(score, targets, layer) for layer in layers]
        for layers in zip(ours, baseline, strict=True)
    ]
    return lambda counts: np.stack([one(counts) - other(counts) for one, other in pairs], axis=-1)


def _resampled(score: Score, targets: np.ndarray, probabilities: np.ndarray) -> Resampled:
    """Return the score of resamples: all at once where it can, else each by its own rows."""
    many = score.resampled(targets, probabilities) if isinstance(score, ManyScores) else None
    if many is not None:
        return many
    numbers = np.arange(len(targets))

    def one_by_one(counts: np.ndarray) -> np.ndarray:
        drawn = (np.repeat(numbers, times) for times in counts.astype(np.int64))
        return np.array([score(targets[rows], probabilities[rows]) for rows in drawn])

    return one_by_one
