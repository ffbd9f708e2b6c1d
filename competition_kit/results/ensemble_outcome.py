"""Every way to blend the same members side by side: cross-fitted scores, intervals, what each adds."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np

from competition_kit.results.cross_fitting import Blend, Method, Ruled, cross_fitted, with_rule
from competition_kit.results.decision_rules import Rule, RuleKind
from competition_kit.results.ensembling import METHODS, Weighted
from competition_kit.results.metrics import decide
from competition_kit.results.objective import Objective
from competition_kit.results.statistics import Interval, bootstrap_difference

__all__ = [
    "REFERENCE",
    "EnsembleOutcome",
    "MethodScore",
    "RuleScore",
    "blend_members",
    "verdict_of",
]

REFERENCE = "mean"  # what fits nothing: the others have to beat it
LEVEL = 0.95  # of intervals
RESAMPLES = 1000

Fitted = TypeVar("Fitted")


@dataclass(frozen=True)
class MethodScore:
    """One way to blend.

    Attributes:
        score: of the cross-fitted probabilities, all rows together.
        in_sample: of the same method fitted on the rows that it is scored on.
        fold_scores: [F] of the cross-fitted probabilities.
        over_mean: gain over the plain mean; above 0 is better, whatever the metric's direction.
        weights: [K] of the members, fitted on all rows; None where members have no single weight.
        oof: [N, C] cross-fitted probabilities.
        blend: fitted on all rows.
    """

    method: Method
    score: float
    in_sample: float
    fold_scores: np.ndarray
    over_mean: Interval
    weights: np.ndarray | None
    oof: np.ndarray
    blend: Blend


@dataclass(frozen=True)
class RuleScore:
    """A decision rule on top of the chosen method; scores as in `MethodScore`.

    Attributes:
        gain: of the rule over the plain decision, cross-fitted; above 0 is better.
        in_sample: where the rule is scored on the rows that it was fitted on (the blend below it
            is cross-fitted even there); `in_sample_gain`, over the plain decision, is never below 0.
        rule: fitted on all rows.
        changed_rows: rows that this rule decides otherwise than the plain decision does.
        applied: whether the submission is made with it.
    """

    kind: RuleKind
    score: float
    in_sample: float
    fold_scores: np.ndarray
    gain: Interval
    in_sample_gain: float
    rule: Rule
    changed_rows: int
    blend: Ruled
    applied: bool


@dataclass(frozen=True)
class EnsembleOutcome:
    """All methods on the same members, one of them chosen.

    Attributes:
        methods: every method by name, the plain mean first.
        alone: [K] score of each member.
        correlation: [K, K] of the members' errors (probability minus truth); NaN for a member
            without errors.
        adds: [K] what the chosen method, cross-fitted, loses without the member; above 0: it helps.
            Empty for a single member.
    """

    objective: Objective
    methods: dict[str, MethodScore]
    chosen: MethodScore
    rule: RuleScore | None
    alone: np.ndarray
    correlation: np.ndarray
    adds: np.ndarray

    @property
    def submitted(self) -> MethodScore | RuleScore:
        """What the submission is made with: the chosen method, with its rule where that is applied."""
        return self.rule if self.rule is not None and self.rule.applied else self.chosen


def blend_members(
    stack: np.ndarray,
    objective: Objective,
    *,
    method: str = REFERENCE,
    kind: RuleKind | None = None,
    apply_rule: bool = False,
    on_step: Callable[[int, int], None] = lambda done, of: None,
) -> EnsembleOutcome:
    """Fit and score every method; for the chosen one also its rule, and what each member adds.

    Args:
        stack: [K, N, C] the members' out-of-fold probabilities.
        method: a name in METHODS.
        kind: the decision rule to try on top of the chosen method.
        apply_rule: whether it is to be part of the submission.
        on_step: called with the fits so far, and how many there are in all.
    """
    steps = _Steps(_fits(METHODS[method], kind, stack, objective), on_step)
    mean = _oof(METHODS[REFERENCE], stack, objective)
    methods = {
        name: _scored(replace(candidate, fit=steps.counted(candidate.fit)), stack, objective, mean)
        for name, candidate in METHODS.items()
    }
    chosen, rule = methods[method], None
    if kind is not None:
        kind = replace(kind, fit=steps.counted(kind.fit))
        rule = _ruled(chosen, kind, stack, objective, apply_rule)
    return EnsembleOutcome(
        objective=objective,
        methods=methods,
        chosen=chosen,
        rule=rule,
        alone=np.array([objective.score(member) for member in stack]),
        correlation=_error_correlation(stack, objective),
        adds=_adds(chosen, stack, objective),
    )


class _Steps:
    """Counts fits, of which nearly all the work consists, as they end."""

    def __init__(self, total: int, on_step: Callable[[int, int], None]) -> None:
        self._done, self._total, self._on_step = 0, total, on_step
        on_step(0, total)

    def counted(
        self, fit: Callable[[np.ndarray, Objective], Fitted]
    ) -> Callable[[np.ndarray, Objective], Fitted]:
        def counting(given: np.ndarray, objective: Objective) -> Fitted:
            found = fit(given, objective)
            self._done += 1
            self._on_step(self._done, self._total)
            return found

        return counting


def _fits(chosen: Method, kind: RuleKind | None, stack: np.ndarray, objective: Objective) -> int:
    """Return how many fits `blend_members` needs; a test holds it to that."""
    members, folds = len(stack), len(np.unique(objective.fold_of))
    fits = sum(1 + folds * method.learns for method in METHODS.values())
    if kind is not None:  # in each fold the blend, the same cross-fitted for the rule, the rule
        nested = (folds - 1) * chosen.learns if folds > 2 else 0
        fits += folds * (1 + nested + 1) + 1
    if members > 1:
        fits += members * (folds if chosen.learns else 1)
    return fits


def _oof(method: Method, stack: np.ndarray, objective: Objective) -> np.ndarray:
    """Return [N, C] probabilities that no row's own label has a part in."""
    if method.learns:
        return cross_fitted(method.fit, stack, objective)
    return method.fit(stack, objective)(stack)


def _scored(
    method: Method, stack: np.ndarray, objective: Objective, mean: np.ndarray
) -> MethodScore:
    blend = method.fit(stack, objective)
    oof = cross_fitted(method.fit, stack, objective) if method.learns else blend(stack)
    return MethodScore(
        method=method,
        score=objective.score(oof),
        in_sample=objective.score(blend(stack)),
        fold_scores=objective.fold_scores(oof),
        over_mean=_paired_interval(objective, oof, mean),
        weights=np.array(blend.weights) if isinstance(blend, Weighted) else None,
        oof=oof,
        blend=blend,
    )


def _ruled(
    chosen: MethodScore, kind: RuleKind, stack: np.ndarray, objective: Objective, applied: bool
) -> RuleScore:
    fit = with_rule(chosen.method, kind)
    oof = cross_fitted(fit, stack, objective)
    rule = kind.fit(chosen.oof, objective)
    ruled = rule(chosen.oof)
    in_sample = objective.score(ruled)
    decided, plainly = (decide(p, objective.multi_label) for p in (ruled, chosen.oof))
    return RuleScore(
        kind=kind,
        score=objective.score(oof),
        in_sample=in_sample,
        fold_scores=objective.fold_scores(oof),
        gain=_paired_interval(objective, oof, chosen.oof),
        in_sample_gain=_gain(objective, in_sample, chosen.score),
        rule=rule,
        changed_rows=int((decided != plainly).reshape(len(ruled), -1).any(axis=1).sum()),
        blend=Ruled(chosen.blend, rule),
        applied=applied,
    )


def _gain(objective: Objective, score: float, than: float) -> float:
    return score - than if objective.metric.greater_is_better else than - score


def _adds(chosen: MethodScore, stack: np.ndarray, objective: Objective) -> np.ndarray:
    """Return [K] the gain from having each member (leave one out)."""
    if len(stack) == 1:
        return np.array([])
    without = [
        objective.score(_oof(chosen.method, np.delete(stack, number, axis=0), objective))
        for number in range(len(stack))
    ]
    return np.array([_gain(objective, chosen.score, score) for score in without])


def _error_correlation(stack: np.ndarray, objective: Objective) -> np.ndarray:
    truth = (
        objective.targets if objective.multi_label else np.eye(stack.shape[2])[objective.targets]
    )
    errors = (stack - truth).reshape(len(stack), -1)
    with np.errstate(invalid="ignore", divide="ignore"):  # a member without errors: NaN
        return np.atleast_2d(np.corrcoef(errors))


def _paired_interval(objective: Objective, ours: np.ndarray, theirs: np.ndarray) -> Interval:
    """Return by how much our probabilities beat theirs, with a bootstrap interval over rows."""
    if np.array_equal(ours, theirs):
        return Interval(0.0, 0.0, 0.0, LEVEL, 0.0, "the same predictions")
    return bootstrap_difference(
        objective.gain,
        objective.targets,
        ours,
        theirs,
        groups=objective.groups,
        repetitions=RESAMPLES,
        level=LEVEL,
    )


def verdict_of(interval: Interval) -> str:
    """Return what a whole interval says: better, worse, the same, or no evidence."""
    if interval.low is None or interval.high is None:
        return "no evidence"
    if interval.low == interval.high == 0:
        return "the same"
    return "better" if interval.low > 0 else "worse" if interval.high < 0 else "no evidence"
