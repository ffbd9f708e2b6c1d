"""Ablations in milliseconds whose truth is known: real cross-validation of tiny models.

A population of rows with m hidden features z ~ N(0, I); the label is the sign of their sum plus
noise. A procedure (the baseline, an arm) sees its own noisy copy of the features, as two ways to
train see the same texts, and fits ridge regression that is pulled towards a random start: what is
left of an initialisation when training stops early. So

- other rows make other models and other scores, and folds share training rows, as they do in any
  cross-validation: nothing about their dependence is assumed;
- copies that share their noise (`shared` near 1) disagree on few rows: little noise from the data;
- a strong random start (`luck`), drawn anew for each cell, is noise from seeds.

Procedures whose copies are equally noisy are exchangeable: their true delta is 0. A cleaner copy
makes an arm truly better. The population is normal, so a model's expected score on it, on infinitely
many rows, has a closed form; the true delta is its mean over data sets, folds and seeds.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from competition_kit.results.statistics import (
    RowVariance,
    row_variance,
    row_variance_of_means,
)

__all__ = ["SCORES", "Ablation", "Setting", "draw"]


@dataclass(frozen=True, kw_only=True)
class Setting:
    """One kind of ablation: a baseline and `arms`, on `rows` rows in `folds` folds.

    Attributes:
        shared: share of the copies' noise that all procedures have in common.
        copy_noise, label_noise: standard deviations; a feature, and the sum of them, have 1.
        luck: standard deviation of a weight's random start.
        ridge: strength of the pull towards it.
        score: a key of `SCORES`.
        group: rows that come together and are alike (half of each feature); never split by folds.
        sources: standard deviation, in logarithms, of a factor on the copy's noise for each fold and
            procedure: each fold is a source of its own, as folds by author or by time may be.
        one_start: a seed starts all its folds from the same weights (the kit never does).
        gain: share of the copy's noise that the first arm is spared; the others are null.
    """

    rows: int = 300
    folds: int = 5
    seeds: int = 3
    arms: int = 6
    features: int = 16
    shared: float = 0.0
    copy_noise: float = 1.0
    label_noise: float = 0.5
    luck: float = 0.02
    ridge: float = 10.0
    score: str = "accuracy"
    group: int = 1
    sources: float = 0.0
    one_start: bool = False
    gain: float = 0.0


@dataclass(frozen=True)
class Ablation:
    """What one ablation measured, and what it could not know.

    Attributes:
        differences: [A, S, K] arm minus baseline.
        row_variances: of each arm; None with one seed.
        true: [A] expected delta of the very models that were trained, averaged over cells; NaN
            where the score has no closed form.
    """

    differences: np.ndarray
    row_variances: list[RowVariance | None]
    true: np.ndarray


def draw(setting: Setting, generator: np.random.Generator) -> Ablation:
    """Draw a data set, cross-validate all procedures on it, return what was measured.

    Shapes: A + 1 procedures, K folds of n rows, m features, S seeds.
    """
    procedures, folds, features = setting.arms + 1, setting.folds, setting.features
    size = setting.rows // folds
    hidden = generator.standard_normal((folds, size, features))
    if setting.group > 1:
        alike = generator.standard_normal((folds, size // setting.group, features))
        hidden = np.sqrt(0.5) * (hidden + alike.repeat(setting.group, axis=1))
    weights = np.full(features, features**-0.5)
    noise = setting.label_noise * generator.standard_normal((folds, size))
    targets = np.sign(hidden @ weights + noise)  # [K, n]
    spread = np.full((procedures, folds), setting.copy_noise)
    spread[1] *= 1 - setting.gain
    if setting.sources:
        spread *= np.exp(setting.sources * generator.standard_normal(spread.shape))
    common = generator.standard_normal((folds, size, features))
    own = generator.standard_normal((procedures, folds, size, features))
    blur = np.sqrt(setting.shared) * common + np.sqrt(1 - setting.shared) * own
    scale = np.sqrt(1 + spread**2)
    inputs = (hidden + spread[..., None, None] * blur) / scale[..., None, None]

    gram = inputs.swapaxes(-1, -2) @ inputs  # [A + 1, K, m, m], of a fold's own rows
    moment = (inputs * targets[..., None]).sum(axis=-2)  # [A + 1, K, m]
    training_gram = gram.sum(axis=1, keepdims=True) - gram
    training_moment = moment.sum(axis=1, keepdims=True) - moment
    starts = 1 if setting.one_start else folds
    start = setting.luck * generator.standard_normal((procedures, starts, features, setting.seeds))
    fitted = np.linalg.solve(  # [A + 1, K, m, S]
        training_gram + setting.ridge * np.eye(features),
        training_moment[..., None] + setting.ridge * start,
    )
    outputs = inputs @ fitted  # [A + 1, K, n, S]

    along = np.einsum("m,akms->ask", weights, fitted) / scale[:, None, :]
    length = np.einsum("akms,akms->ask", fitted, fitted)
    score = SCORES[setting.score]
    # with sources: on new rows of the fold's own source
    expected = score.expected(along, length, np.sqrt(1 + setting.label_noise**2))
    differences, row_variances = _measure(outputs, targets, score, setting.group)
    return Ablation(differences, row_variances, (expected[1:] - expected[0]).mean(axis=(1, 2)))


@dataclass(frozen=True)
class Score:
    """A score of outputs [n] against targets [n] of -1 and 1, greater is better.

    Attributes:
        whole: (targets, outputs) -> score.
        expected: covariance of outputs with the hidden sum, their variance, the standard deviation
            of hidden sum plus label noise -> score on the population; NaN where it is not known.
        of_rows: (targets, outputs) -> score of each row, where the score is their mean.
    """

    whole: Callable[[np.ndarray, np.ndarray], float]
    expected: Callable[[np.ndarray, np.ndarray, float], np.ndarray]
    of_rows: Callable[[np.ndarray, np.ndarray], np.ndarray] | None = None


def _measure(
    outputs: np.ndarray, targets: np.ndarray, score: Score, group: int
) -> tuple[np.ndarray, list[RowVariance | None]]:
    """Return differences [A, S, K] and each arm's row variance, as an ablation would.

    `outputs` [A + 1, K, n, S], `targets` [K, n], `group`: rows in a group.
    """
    procedures, folds, size, seeds = outputs.shape
    fold_of = np.repeat(np.arange(folds), size)
    if score.of_rows is not None and group == 1:
        rows = score.of_rows(targets[..., None], outputs)
        gained = np.moveaxis(rows[1:] - rows[0], -1, 1)  # [A, S, K, n]
        variances = [row_variance_of_means(arm.reshape(seeds, -1), fold_of) for arm in gained]
        return gained.mean(axis=-1), variances
    cells = np.array(
        [
            [[score.whole(targets[k], side[k, :, s]) for k in range(folds)] for s in range(seeds)]
            for side in outputs
        ]
    )
    pooled = np.moveaxis(outputs, -1, 1).reshape(procedures, seeds, -1)
    groups = None if group == 1 else np.arange(folds * size) // group
    variances = [
        row_variance(score.whole, targets.ravel(), arm, pooled[0], fold_of, groups=groups)
        for arm in pooled[1:]
    ]
    return cells[1:] - cells[0], variances


def _right(targets: np.ndarray, outputs: np.ndarray) -> np.ndarray:
    return (np.sign(outputs) == targets).astype(float)


def _accuracy(targets: np.ndarray, outputs: np.ndarray) -> float:
    return float(_right(targets, outputs).mean())


def _expected_accuracy(along: np.ndarray, length: np.ndarray, spread: float) -> np.ndarray:
    """Return the chance that two correlated normal variables have the same sign."""
    return 0.5 + np.arcsin(along / (np.sqrt(length) * spread)) / np.pi


def _squares(targets: np.ndarray, outputs: np.ndarray) -> np.ndarray:
    return -((outputs - targets) ** 2)


def _squared_error(targets: np.ndarray, outputs: np.ndarray) -> float:
    return float(_squares(targets, outputs).mean())


def _expected_squared_error(along: np.ndarray, length: np.ndarray, spread: float) -> np.ndarray:
    return -(1 - 2 * np.sqrt(2 / np.pi) * along / spread + length)


def _macro_f1(targets: np.ndarray, outputs: np.ndarray) -> float:
    """Return macro F1 of signs; scikit-learn's takes a hundred times as long."""
    decided, actual = outputs > 0, targets > 0
    hits, rows = int(np.count_nonzero(decided & actual)), len(targets)
    named = int(np.count_nonzero(decided)) + int(np.count_nonzero(actual))
    misses = rows - named + hits
    return hits / max(named, 1) + misses / max(2 * rows - named, 1)


def _unknown(along: np.ndarray, length: np.ndarray, spread: float) -> np.ndarray:
    return np.full_like(along, np.nan)


SCORES = {
    "accuracy": Score(_accuracy, _expected_accuracy, _right),
    "squared error": Score(_squared_error, _expected_squared_error, _squares),
    "macro F1": Score(_macro_f1, _unknown),
}
