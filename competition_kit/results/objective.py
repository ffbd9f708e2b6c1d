"""What a search on out-of-fold predictions maximises: the competition's metric, thousands of times.

scikit-learn's metrics check and sort their input anew at every call (2 ms for 800 rows); a search
asks again and again about the same rows, and a bootstrap about the same predictions. The kit's own
metrics are therefore computed here from sums and ranks, 15 to 100 times as fast, and of many
resamples at once; a test holds them equal to `METRICS`. Other metrics are called as they are.
Whatever is reported is computed by the metric itself.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Protocol

import numpy as np
from scipy import sparse
from scipy.stats import rankdata

from competition_kit.data.competition import Competition
from competition_kit.data.folds import Folds
from competition_kit.results.metrics import METRICS, Metric, decide

__all__ = ["Gain", "Merit", "Objective", "Resampled", "likelihoods", "quick_score"]

SMALLEST = float(np.finfo(np.float64).eps)  # as scikit-learn clips before it takes a logarithm

Merit = tuple[float, float]
Resampled = Callable[[np.ndarray], np.ndarray]  # [R, n] how often rows are drawn -> [R] scores


@dataclass(frozen=True)
class Gain:
    """A metric as resamples want it: greater is better, and many resamples at once."""

    metric: Metric
    classes: tuple[str, ...]

    def __call__(self, targets: np.ndarray, probabilities: np.ndarray) -> float:
        """Return the score of any rows, its sign turned where lower is better."""
        return self.metric.sign * quick_score(self.metric, targets, probabilities, self.classes)

    def resampled(self, targets: np.ndarray, probabilities: np.ndarray) -> Resampled | None:
        """Return the gains of resamples of these rows; None for a metric that is not known here."""
        if (quick := _quick(self.metric)) is None:
            return None
        scores = quick.resampled(targets, probabilities)
        return lambda drawn: self.metric.sign * scores(drawn)


@dataclass(frozen=True)
class Objective:
    """Rows with known labels, and the metric that predictions for them are judged by.

    Attributes:
        targets: [n] class numbers or [n, C] zeros and ones.
        fold_of: [n] fold number of each row.
        groups: [n] group of each row, or None: rows that are not independent of each other.
    """

    metric: Metric
    targets: np.ndarray
    classes: tuple[str, ...]
    fold_of: np.ndarray
    groups: np.ndarray | None = None

    @classmethod
    def of(cls, competition: Competition, folds: Folds, metric: Metric) -> Objective:
        """Return the objective on all training rows."""
        return cls(
            metric, competition.targets, competition.classes, folds.fold_of, competition.groups
        )

    @property
    def multi_label(self) -> bool:
        return self.targets.ndim == 2

    def on(self, rows: np.ndarray) -> Objective:
        """Return the objective on some rows: a mask, or row numbers that may repeat."""
        groups = None if self.groups is None else self.groups[rows]
        return replace(self, targets=self.targets[rows], fold_of=self.fold_of[rows], groups=groups)

    def label(self, number: int) -> Objective:
        """Return the objective on one of several labels, as a task of its own."""
        name = self.classes[number]
        return replace(self, targets=self.targets[:, [number]], classes=(name,))

    @cached_property
    def units(self) -> tuple[np.ndarray, ...] | None:
        """Row numbers of each group; None where every row stands for itself."""
        if self.groups is None:
            return None
        names, group_of = np.unique(self.groups, return_inverse=True)
        return tuple(np.flatnonzero(group_of == number) for number in range(len(names)))

    def drawn(self, units: np.ndarray) -> np.ndarray:
        """Return the row numbers of drawn units (groups, or rows where there are none)."""
        if self.units is None:
            return units
        return np.concatenate([self.units[unit] for unit in units])

    def bootstrap(self, generator: np.random.Generator) -> np.ndarray:
        """Draw as many units as there are, with replacement; return their row numbers."""
        count = len(self.targets) if self.units is None else len(self.units)
        return self.drawn(generator.integers(count, size=count))

    def score(self, probabilities: np.ndarray) -> float:
        """Return the metric itself for probabilities [n, C], in its own direction."""
        return self.metric.score(self.targets, probabilities, self.classes)

    def fold_scores(self, probabilities: np.ndarray) -> np.ndarray:
        """Return the metric of each fold, in the order of their numbers."""
        folds = [self.fold_of == fold for fold in np.unique(self.fold_of)]
        return np.array([self.on(rows).score(probabilities[rows]) for rows in folds])

    @property
    def gain(self) -> Gain:
        """The metric of any rows, greater is better."""
        return Gain(self.metric, self.classes)

    def value(self, probabilities: np.ndarray) -> float:
        """Return the gain as a search wants it: -inf where it is undefined."""
        gain = self.gain(self.targets, probabilities)
        return -math.inf if math.isnan(gain) else gain

    def merit(self, probabilities: np.ndarray) -> Merit:
        """Return the value, then the mean log likelihood.

        Metrics of decisions are the same for many blends; among these the more likely one is better.
        """
        likelihood = np.log(likelihoods(probabilities, self.targets)).mean()
        return self.value(probabilities), float(likelihood)


def likelihoods(probabilities: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Return the probability that was given to what happened, above 0.

    Args:
        probabilities: [..., n, C].
        targets: [n] class numbers or [n, C] zeros and ones.

    Returns:
        [..., n], or for several labels [..., n, C].
    """
    if targets.ndim == 2:
        given = np.where(targets == 1, probabilities, 1.0 - probabilities)
    else:
        given = probabilities[..., np.arange(len(targets)), targets]
    return np.clip(given, SMALLEST, 1.0)


def quick_score(
    metric: Metric, targets: np.ndarray, probabilities: np.ndarray, classes: tuple[str, ...]
) -> float:
    """Return `metric.score(targets, probabilities, classes)`, sooner where the metric is known."""
    if (quick := _quick(metric)) is None:
        return metric.score(targets, probabilities, classes)
    return quick.score(targets, probabilities)


class _Quick(Protocol):
    """A metric of `METRICS`, computed sooner."""

    def score(self, targets: np.ndarray, probabilities: np.ndarray) -> float:
        """Return the metric of these rows."""
        ...

    def resampled(self, targets: np.ndarray, probabilities: np.ndarray) -> Resampled:
        """Return the metric of resamples of these rows."""
        ...


@dataclass(frozen=True)
class _Parts:
    """What each row adds to the sums that a metric is made of.

    Attributes:
        values: [k, n] what a row adds.
        places: [k, n] the sums that it adds to; None where every row adds to all, the first value
            to the first one.
        size: number of sums.
    """

    values: np.ndarray
    places: np.ndarray | None
    size: int

    def sums(self) -> np.ndarray:
        """Return [size]."""
        if self.places is None:
            return self.values.sum(axis=1)
        return np.bincount(self.places.ravel(), self.values.ravel(), minlength=self.size)

    def resampled_sums(self) -> Resampled:
        """Return a function from how often each row is drawn, [R, n], to [R, size]."""
        if self.places is None:
            dense = self.values.T.astype(float)
            return lambda drawn: drawn @ dense
        each, count = self.places.shape
        ends = np.arange(0, count * each + 1, each)
        rows = sparse.csr_array(
            (self.values.T.ravel(), self.places.T.ravel(), ends), shape=(count, self.size)
        )
        return lambda drawn: drawn @ rows


@dataclass(frozen=True)
class _OfSums:
    """A metric that is a function of sums over rows.

    Attributes:
        parts: of targets and probabilities.
        finish: sums [..., size], whether rows have several labels -> scores [...].
    """

    parts: Callable[[np.ndarray, np.ndarray], _Parts]
    finish: Callable[[np.ndarray, bool], np.ndarray]

    def score(self, targets: np.ndarray, probabilities: np.ndarray) -> float:
        return float(self.finish(self.parts(targets, probabilities).sums(), targets.ndim == 2))

    def resampled(self, targets: np.ndarray, probabilities: np.ndarray) -> Resampled:
        sums = self.parts(targets, probabilities).resampled_sums()
        return lambda drawn: self.finish(sums(drawn), targets.ndim == 2)


def _mean_of(values: np.ndarray) -> _Parts:
    """Return one value [n] of each row, and the number of rows."""
    return _Parts(np.stack((values, np.ones(len(values)))), None, 2)


def _right(targets: np.ndarray, probabilities: np.ndarray) -> _Parts:
    right = decide(probabilities, multi_label=targets.ndim == 2) == targets
    return _mean_of(right.all(axis=1) if targets.ndim == 2 else right)


def _losses(targets: np.ndarray, probabilities: np.ndarray) -> _Parts:
    losses = -np.log(likelihoods(probabilities, targets))
    return _mean_of(losses.mean(axis=1) if targets.ndim == 2 else losses)


def _class_counts(targets: np.ndarray, probabilities: np.ndarray) -> _Parts:
    """Return hits, decided and true rows of each class: 3 * C sums."""
    classes = probabilities.shape[1]
    decisions = decide(probabilities, multi_label=targets.ndim == 2)
    if targets.ndim == 2:
        values = np.concatenate((targets * decisions, decisions, targets), axis=1)
        return _Parts(values.T, None, 3 * classes)
    places = np.stack((targets, classes + decisions, 2 * classes + targets))
    values = np.ones(places.shape)
    values[0] = decisions == targets
    return _Parts(values, places, 3 * classes)


def _distances(targets: np.ndarray, probabilities: np.ndarray) -> _Parts:
    """Return the squared distance of decision and truth, then decided and true rows: 1 + 2 * C."""
    classes = probabilities.shape[1]
    decisions = decide(probabilities, multi_label=False)
    places = np.stack((np.zeros_like(targets), 1 + decisions, 1 + classes + targets))
    values = np.ones(places.shape)
    values[0] = (decisions - targets) ** 2
    return _Parts(values, places, 1 + 2 * classes)


def _mean(sums: np.ndarray, multi_label: bool) -> np.ndarray:
    return sums[..., 0] / sums[..., 1]


def _by_class(sums: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return [..., C] hits, decided and true rows."""
    hits, decided, true = np.moveaxis(sums.reshape(*sums.shape[:-1], 3, -1), -2, 0)
    return hits, decided, true


def _macro_f1(sums: np.ndarray, multi_label: bool) -> np.ndarray:
    hits, decided, true = _by_class(sums)
    total = decided + true
    f1 = 2.0 * hits / np.maximum(total, 1.0)
    # a class that neither occurs nor is decided has an F1 of 0, and counts among labels only
    counted = total.shape[-1] if multi_label else (total > 0).sum(axis=-1)
    return f1.sum(axis=-1) / counted


def _weighted_f1(sums: np.ndarray, multi_label: bool) -> np.ndarray:
    hits, decided, true = _by_class(sums)
    f1 = 2.0 * hits / np.maximum(decided + true, 1.0)
    return (f1 * true).sum(axis=-1) / np.maximum(true.sum(axis=-1), 1.0)


def _micro_f1(sums: np.ndarray, multi_label: bool) -> np.ndarray:
    hits, decided, true = (part.sum(axis=-1) for part in _by_class(sums))
    return 2.0 * hits / np.maximum(decided + true, 1.0)


def _mcc(sums: np.ndarray, multi_label: bool) -> np.ndarray:
    hits, decided, true = _by_class(sums)
    rows = true.sum(axis=-1)
    spread = (rows**2 - (decided**2).sum(axis=-1)) * (rows**2 - (true**2).sum(axis=-1))
    together = hits.sum(axis=-1) * rows - (true * decided).sum(axis=-1)
    return np.where(spread > 0, together / np.sqrt(np.where(spread > 0, spread, 1.0)), 0.0)


def _qwk(sums: np.ndarray, multi_label: bool) -> np.ndarray:
    classes = (sums.shape[-1] - 1) // 2
    decided, true = sums[..., 1 : 1 + classes], sums[..., 1 + classes :]
    number = np.arange(classes)
    distance = (number[:, None] - number) ** 2.0
    expected = ((true @ distance) * decided).sum(axis=-1) / true.sum(axis=-1)
    defined = expected > 0
    return np.where(defined, 1.0 - sums[..., 0] / np.where(defined, expected, 1.0), math.nan)


class _RocAuc:
    """Mean over classes of the area, from the ranks of the positive rows (Mann and Whitney)."""

    def score(self, targets: np.ndarray, probabilities: np.ndarray) -> float:
        is_target, probabilities = self._one_against_rest(targets, probabilities)
        positive = is_target.sum(axis=0)
        negative = len(targets) - positive
        if not (positive * negative).all():
            return math.nan
        ranks = (rankdata(probabilities, axis=0) * is_target).sum(axis=0)
        return float(((ranks - positive * (positive + 1) / 2) / (positive * negative)).mean())

    def resampled(self, targets: np.ndarray, probabilities: np.ndarray) -> Resampled:
        """Sort once: a resample only changes how often each row counts."""
        is_target, probabilities = self._one_against_rest(targets, probabilities)
        areas = [
            self._area(truth, values)
            for truth, values in zip(is_target.T, probabilities.T, strict=True)
        ]
        return lambda drawn: np.mean([area(drawn) for area in areas], axis=0)

    @staticmethod
    def _one_against_rest(
        targets: np.ndarray, probabilities: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return [n, B] which rows are positive, and their probabilities."""
        classes = probabilities.shape[1]
        if targets.ndim == 2:
            return targets == 1, probabilities
        if classes == 2:  # the two columns say the same
            return targets[:, None] == 1, probabilities[:, 1:]
        return targets[:, None] == np.arange(classes), probabilities

    @staticmethod
    def _area(truth: np.ndarray, values: np.ndarray) -> Resampled:
        order = np.argsort(values, kind="stable")
        ordered, truth = values[order], truth[order]
        starts = np.flatnonzero(np.r_[True, ordered[1:] != ordered[:-1]])  # of equal values

        def area(drawn: np.ndarray) -> np.ndarray:
            counts = drawn[:, order]
            positive = np.add.reduceat(counts * truth, starts, axis=1)
            negative = np.add.reduceat(counts * ~truth, starts, axis=1)
            below = np.cumsum(negative, axis=1) - negative
            pairs = positive.sum(axis=1) * negative.sum(axis=1)
            won = (positive * (below + negative / 2)).sum(axis=1)
            return np.where(pairs > 0, won / np.maximum(pairs, 1.0), math.nan)

        return area


QUICK: dict[str, _Quick] = {
    "accuracy": _OfSums(_right, _mean),
    "macro_f1": _OfSums(_class_counts, _macro_f1),
    "micro_f1": _OfSums(_class_counts, _micro_f1),
    "weighted_f1": _OfSums(_class_counts, _weighted_f1),
    "mcc": _OfSums(_class_counts, _mcc),
    "qwk": _OfSums(_distances, _qwk),
    "log_loss": _OfSums(_losses, _mean),
    "roc_auc": _RocAuc(),
}


def _quick(metric: Metric) -> _Quick | None:
    return QUICK.get(metric.name) if METRICS.get(metric.name) is metric else None
