"""Blends of several members' probabilities, each scored on rows that it was not fitted on.

A method is fitted to the members' out-of-fold probabilities [K, n, C] and gives a blend, a function
from [K, n, C] to [n, C] that then takes the test probabilities. What is fitted on out-of-fold rows
is scored **cross-fitted**: for each fold, fitted on the rows of the other folds and applied to this
one. The score in sample, on the rows that it was fitted on, stands beside it as its optimism.

Cross-fitting removes what a blend learns from the rows that it is scored on; the members of the
other folds were trained with these rows' labels, which no blend can undo.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from competition_kit.results.decision_rules import Rule, RuleKind
from competition_kit.results.objective import Objective

__all__ = ["Blend", "Fit", "Method", "Ruled", "cross_fitted", "with_rule"]


class Blend(Protocol):
    """A fitted blend: members' probabilities [K, n, C] to blended ones [n, C]."""

    def __call__(self, stack: np.ndarray) -> np.ndarray: ...


Fit = Callable[[np.ndarray, Objective], Blend]


@dataclass(frozen=True)
class Method:
    """A way to blend.

    Attributes:
        fit: (members [K, n, C], objective on the same n rows) -> blend.
        learns: whether it looks at labels, so that its score in sample is too good.
    """

    name: str
    summary: str
    fit: Fit
    learns: bool


@dataclass(frozen=True)
class Ruled:
    """A blend and the decision rule that was fitted on top of it."""

    blend: Blend
    rule: Rule

    def __call__(self, stack: np.ndarray) -> np.ndarray:
        return self.rule(self.blend(stack))


def cross_fitted(fit: Fit, stack: np.ndarray, objective: Objective) -> np.ndarray:
    """Return blended probabilities [n, C], each fold's by a blend fitted on the other folds.

    Rows of one group are in one fold, so groups are kept apart as well.
    """
    blended = np.full(stack.shape[1:], np.nan)
    for fold in np.unique(objective.fold_of):
        inside = objective.fold_of == fold
        blend = fit(stack[:, ~inside], objective.on(~inside))
        blended[inside] = blend(stack)[inside]  # ranks want all rows
    assert np.isfinite(blended).all(), "a row was not blended"
    return blended


def with_rule(method: Method, kind: RuleKind) -> Fit:
    """Return the fit of a method followed by a decision rule.

    The rule is fitted on probabilities that the method itself gives cross-fitted within the same
    rows: in sample they would be surer than they are on new rows (rows of one fold alone leave
    nothing else).
    """

    def fit(stack: np.ndarray, objective: Objective) -> Ruled:
        blend = method.fit(stack, objective)
        nested = method.learns and len(np.unique(objective.fold_of)) > 1
        honest = cross_fitted(method.fit, stack, objective) if nested else blend(stack)
        return Ruled(blend, kind.fit(honest, objective))

    return fit
