"""From probabilities to decisions by fitted rules: thresholds, multipliers, cut points, temperature.

Argmax and the threshold 0.5 are right for accuracy of calibrated probabilities, and for little else.
A rule is a function from probabilities to probabilities whose plain decision (`metrics.decide`) is
the rule's decision, so whatever takes probabilities (a metric, a submission) takes ruled ones, too.

Fitting a rule looks at labels. `cross_fitting.cross_fitted` scores it on rows that it was not fitted on.
What does not beat the plain decision even on the rows that it was fitted on is `Unchanged`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Protocol

import numpy as np
from scipy.special import expit, logit, softmax

from competition_kit.results.metrics import THRESHOLD, Metric
from competition_kit.results.objective import Objective, likelihoods

__all__ = [
    "CutPoints",
    "Multipliers",
    "Rule",
    "RuleKind",
    "Temperature",
    "Thresholds",
    "Unchanged",
    "suitable_rule",
]

BAGS = 10  # bootstrap samples that a rule's numbers are averaged over
CANDIDATES = 50  # values that are tried for one number, at quantiles of the rows
SWEEPS = 10  # over all numbers of a rule; most fits end after three
SEPARABLE = ("macro_f1", "weighted_f1")  # sums over labels: each is best where its own F1 is
TINY = 1e-12  # smaller probabilities have no logarithm worth keeping
ROUNDING = 1e-12  # a score that is higher by no more is the same score


class Rule(Protocol):
    """A fitted rule: [n, C] probabilities to [n, C] probabilities whose plain decision is its own."""

    def __call__(self, probabilities: np.ndarray) -> np.ndarray: ...

    def settings(self, classes: tuple[str, ...]) -> dict[str, float]:
        """Return what was fitted, by name."""
        ...


@dataclass(frozen=True)
class RuleKind:
    """A kind of rule and how it is fitted: `fit(probabilities [n, C], objective on these rows)`.

    Attributes:
        columns: what a table of its settings is headed with: of what, which number.
        neutral: the number that changes no decision; None where the kind has none.
    """

    name: str
    columns: tuple[str, str]
    neutral: float | None
    fit: Callable[[np.ndarray, Objective], Rule]


@dataclass(frozen=True)
class Unchanged:
    """The plain decision, to the last bit: what was fitted does not beat it.

    Attributes:
        neutral: the rule of the kind that decides the same; None where the kind has none.
    """

    neutral: Rule | None

    def __call__(self, probabilities: np.ndarray) -> np.ndarray:
        return probabilities

    def settings(self, classes: tuple[str, ...]) -> dict[str, float]:
        return {} if self.neutral is None else self.neutral.settings(classes)


@dataclass(frozen=True)
class Thresholds:
    """A label is said from its own threshold on (several labels).

    Probabilities are stretched piece by piece so that each threshold comes to lie at 0.5.
    """

    values: tuple[float, ...]

    def __call__(self, probabilities: np.ndarray) -> np.ndarray:
        at = np.array(self.values)
        above = THRESHOLD + (1 - THRESHOLD) * (probabilities - at) / (1 - at)
        return np.where(probabilities >= at, above, THRESHOLD * probabilities / at)

    def settings(self, classes: tuple[str, ...]) -> dict[str, float]:
        return dict(zip(classes, self.values, strict=True))


@dataclass(frozen=True)
class Multipliers:
    """Each class's probability is multiplied by a number before the largest is taken.

    With two classes this is a threshold: class 1 from `m0 / (m0 + m1)` on.
    """

    values: tuple[float, ...]

    def __call__(self, probabilities: np.ndarray) -> np.ndarray:
        scaled = np.maximum(probabilities, TINY) * np.array(self.values)
        return scaled / scaled.sum(axis=1, keepdims=True)

    def settings(self, classes: tuple[str, ...]) -> dict[str, float]:
        return dict(zip(classes, self.values, strict=True))


@dataclass(frozen=True)
class CutPoints:
    """The expected class number is cut into classes (ordered classes); the rest is certainty."""

    values: tuple[float, ...]

    def __call__(self, probabilities: np.ndarray) -> np.ndarray:
        decisions = np.searchsorted(self.values, expected_class(probabilities), side="right")
        return np.eye(probabilities.shape[1])[decisions]

    def settings(self, classes: tuple[str, ...]) -> dict[str, float]:
        names = [f"{low} | {high}" for low, high in pairwise(classes)]
        return dict(zip(names, self.values, strict=True))


@dataclass(frozen=True)
class Temperature:
    """Logits are divided by a number: above 1 makes probabilities less sure (Guo et al. 2017)."""

    value: float
    multi_label: bool

    def __call__(self, probabilities: np.ndarray) -> np.ndarray:
        if self.multi_label:
            return expit(logit(np.clip(probabilities, TINY, 1 - TINY)) / self.value)
        return softmax(np.log(np.maximum(probabilities, TINY)) / self.value, axis=1)

    def settings(self, classes: tuple[str, ...]) -> dict[str, float]:
        return {"temperature": self.value}


def expected_class(probabilities: np.ndarray) -> np.ndarray:
    """Return [n] the mean class number under [n, C] probabilities."""
    return probabilities @ np.arange(probabilities.shape[1])


def suitable_rule(metric: Metric, multi_label: bool) -> RuleKind | None:
    """Return the kind of rule that a metric asks for; None where no rule can change the score.

    The ROC AUC looks at the order of rows alone. A metric of the user's own gets the rule for
    decisions; whether that gains anything, the cross-fitted score says.
    """
    if metric.name in SUITABLE:
        return SUITABLE[metric.name]
    return THRESHOLDS if multi_label else MULTIPLIERS


def _fit_thresholds(probabilities: np.ndarray, objective: Objective) -> Rule:
    labels = probabilities.shape[1]
    if objective.metric.name in SEPARABLE:
        alone = [
            _search_thresholds(probabilities[:, [number]], objective.label(number))
            for number in range(labels)
        ]
        found = Thresholds(tuple(np.concatenate(alone).tolist()))
    else:
        found = Thresholds(tuple(_search_thresholds(probabilities, objective).tolist()))
    return _better(found, Thresholds((THRESHOLD,) * labels), probabilities, objective)


def _search_thresholds(probabilities: np.ndarray, objective: Objective) -> np.ndarray:
    """Return a threshold for each label; the plain ones where the search ends below them."""

    def trials(probabilities: np.ndarray, values: np.ndarray, number: int) -> np.ndarray:
        return np.clip(_between(probabilities[:, number]), 1e-6, 1 - 1e-6)

    def rule(values: np.ndarray) -> Rule:
        return Thresholds(tuple(values.tolist()))

    start = np.full(probabilities.shape[1], THRESHOLD)
    values = _bagged(start, trials, rule, probabilities, objective)
    return values if _beats_plain(rule(values), probabilities, objective) else start


def _fit_multipliers(probabilities: np.ndarray, objective: Objective) -> Rule:
    def trials(probabilities: np.ndarray, values: np.ndarray, number: int) -> np.ndarray:
        """Return the logarithms at which rows turn to this class from their best other one."""
        logs = np.log(np.maximum(probabilities, TINY))
        others = np.delete(logs + values, number, axis=1).max(axis=1)
        return _between(others - logs[:, number])

    def rule(values: np.ndarray) -> Rule:  # a common factor changes no decision
        return Multipliers(tuple(np.exp(values - values.mean()).tolist()))

    start = np.zeros(probabilities.shape[1])
    found = rule(_bagged(start, trials, rule, probabilities, objective))
    return _better(found, rule(start), probabilities, objective)


def _fit_cut_points(probabilities: np.ndarray, objective: Objective) -> Rule:
    classes = probabilities.shape[1]

    def trials(probabilities: np.ndarray, values: np.ndarray, number: int) -> np.ndarray:
        edges = np.concatenate([[0.0], values, [classes - 1.0]])
        low, high = edges[number], edges[number + 2]
        expected = expected_class(probabilities)
        return _between(expected[(expected >= low) & (expected <= high)])

    def rule(values: np.ndarray) -> Rule:
        return CutPoints(tuple(values.tolist()))

    halves = np.arange(classes - 1) + 0.5
    found = rule(_bagged(halves, trials, rule, probabilities, objective))
    return _better(found, None, probabilities, objective)


def _fit_temperature(probabilities: np.ndarray, objective: Objective) -> Rule:
    from scipy.optimize import minimize_scalar

    def loss(log_temperature: float) -> float:
        cooled = Temperature(float(np.exp(log_temperature)), objective.multi_label)(probabilities)
        return float(-np.log(likelihoods(cooled, objective.targets)).mean())

    found = minimize_scalar(loss, bounds=(np.log(0.05), np.log(20.0)), method="bounded")
    rule = Temperature(float(np.exp(found.x)), objective.multi_label)
    plain = Temperature(1.0, objective.multi_label)
    return _better(rule, plain, probabilities, objective)


def _better(
    rule: Rule, neutral: Rule | None, probabilities: np.ndarray, objective: Objective
) -> Rule:
    """Return a fitted rule if it beats the plain decision on its own rows, else the plain decision.

    An average over samples can fall short of both; and what gains nothing here will gain nothing
    on other rows.
    """
    return rule if _beats_plain(rule, probabilities, objective) else Unchanged(neutral)


def _beats_plain(rule: Rule, probabilities: np.ndarray, objective: Objective) -> bool:
    return objective.value(rule(probabilities)) > objective.value(probabilities) + ROUNDING


def _between(values: np.ndarray) -> np.ndarray:
    """Return midpoints between neighbouring values; quantiles of them where there are many."""
    distinct = np.unique(values)
    middles = (distinct[:-1] + distinct[1:]) / 2
    if len(middles) <= CANDIDATES:
        return middles
    return np.quantile(middles, np.linspace(0, 1, CANDIDATES), method="nearest")


Trials = Callable[[np.ndarray, np.ndarray, int], np.ndarray]


def _bagged(
    start: np.ndarray,
    trials: Trials,
    rule: Callable[[np.ndarray], Rule],
    probabilities: np.ndarray,
    objective: Objective,
) -> np.ndarray:
    """Return numbers fitted on bootstrap samples of the rows, averaged.

    The best numbers for some hundred rows are a peak of noise; their average over samples scores
    higher on new rows, and moves less from fold to fold.
    """
    generator = np.random.default_rng(0)
    bags = [objective.bootstrap(generator) for _ in range(BAGS)]
    fitted = [
        _ascend(start, trials, rule, probabilities[rows], objective.on(rows)) for rows in bags
    ]
    return np.mean(fitted, axis=0)


def _ascend(
    start: np.ndarray,
    trials: Trials,
    rule: Callable[[np.ndarray], Rule],
    probabilities: np.ndarray,
    objective: Objective,
) -> np.ndarray:
    """Improve one number after the other until nothing gets better (coordinate ascent).

    The metrics are steps, so a gradient says nothing. Of values that score the same, the one
    nearest to `start`, the plain decision, is taken.
    """
    values, best = start, objective.value(rule(start)(probabilities))
    for _ in range(SWEEPS):
        before = best
        for number in range(len(values)):
            tried = trials(probabilities, values, number)
            for value in tried[np.argsort(np.abs(tried - start[number]), kind="stable")]:
                changed = values.copy()
                changed[number] = value
                if (score := objective.value(rule(changed)(probabilities))) > best + ROUNDING:
                    values, best = changed, score
        if best == before:
            break
    return values


THRESHOLDS = RuleKind("thresholds", ("label", "threshold"), THRESHOLD, _fit_thresholds)
MULTIPLIERS = RuleKind("class multipliers", ("class", "multiplier"), 1.0, _fit_multipliers)

SUITABLE: dict[str, RuleKind | None] = {
    "log_loss": RuleKind("temperature", ("", "value"), 1.0, _fit_temperature),
    "qwk": RuleKind("cut points", ("between", "cut at"), None, _fit_cut_points),
    "roc_auc": None,
}
