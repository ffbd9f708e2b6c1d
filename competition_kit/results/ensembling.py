"""Ways to blend several members' probabilities [K, n, C]: means, searches, stacking.

Greedy selection: Caruana et al. 2004, "Ensemble selection from libraries of models". Stacking:
Wolpert 1992. `cross_fitting` scores them on rows that they were not fitted on.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from scipy.optimize import minimize
from scipy.special import expit, logit
from scipy.stats import rankdata

from competition_kit.results.cross_fitting import Blend, Fit, Method
from competition_kit.results.objective import Objective, likelihoods

__all__ = ["METHODS", "Weighted", "likeliest_weights"]

CLIP = 1e-7  # before a logarithm: one member's 0 must not be a veto
BAGS, STEPS = 10, 20  # of greedy selection
SHARES = np.linspace(0, 1, 11)  # of one member, tried in the search for weights


@dataclass(frozen=True)
class Weighted:
    """The weighted mean of probabilities; weights are 0 or more and sum to 1."""

    weights: tuple[float, ...]

    def __call__(self, stack: np.ndarray) -> np.ndarray:
        return _weighted_mean(np.array(self.weights), stack)


def _weighted_mean(weights: np.ndarray, stack: np.ndarray) -> np.ndarray:
    """Return sum_k w_k p_k, the same to the last bit in every order of the members.

    Sums in another order round differently, and a last bit can decide between two tied classes.
    """
    return np.sort(weights[:, None, None] * stack, axis=0).sum(axis=0)


@dataclass(frozen=True)
class Reordered:
    """A blend that was fitted to the members in another order."""

    blend: Blend
    order: np.ndarray

    def __call__(self, stack: np.ndarray) -> np.ndarray:
        return self.blend(stack[self.order])


# -- methods that fit nothing ------------------------------------------------------------------


def _equal(members: int) -> Weighted:
    return Weighted((1 / members,) * members)


def _mean(stack: np.ndarray, objective: Objective) -> Blend:
    return _equal(len(stack))


def _normalised(probabilities: np.ndarray, multi_label: bool) -> np.ndarray:
    """Make rows sum to 1 where classes exclude each other."""
    if multi_label:
        return probabilities
    return probabilities / probabilities.sum(axis=1, keepdims=True)


def _geometric(stack: np.ndarray, objective: Objective) -> Blend:
    def blend(stack: np.ndarray) -> np.ndarray:
        mean = np.exp(np.log(np.clip(stack, CLIP, 1)).mean(axis=0))
        return _normalised(mean, objective.multi_label)

    return blend


def _logit_mean(stack: np.ndarray, objective: Objective) -> Blend:
    def blend(stack: np.ndarray) -> np.ndarray:
        mean = expit(logit(np.clip(stack, CLIP, 1 - CLIP)).mean(axis=0))
        return _normalised(mean, objective.multi_label)

    return blend


def _rank_mean(stack: np.ndarray, objective: Objective) -> Blend:
    def blend(stack: np.ndarray) -> np.ndarray:
        # rounded: the order of a sum must not break a tie
        ranks = rankdata(np.round(rankdata(stack, axis=1).mean(axis=0), 9), axis=0)
        sizes = np.sort(stack.mean(axis=0), axis=0)
        places = np.arange(1, len(sizes) + 1)
        columns = [
            np.interp(column, places, size) for column, size in zip(ranks.T, sizes.T, strict=True)
        ]
        return _normalised(np.stack(columns, axis=1), objective.multi_label)

    return blend


# -- methods that look at labels ---------------------------------------------------------------


def _in_any_order(fit: Fit) -> Fit:
    """Return a fit that no order of the members can change: ties must not go to who comes first."""

    def ordered(stack: np.ndarray, objective: Objective) -> Blend:
        order = np.array(sorted(range(len(stack)), key=lambda member: stack[member].tobytes()))
        blend = fit(stack[order], objective)
        if not isinstance(blend, Weighted):
            return Reordered(blend, order)
        weights = np.zeros(len(stack))
        weights[order] = blend.weights
        return Weighted(tuple(weights.tolist()))

    return ordered


def _best(stack: np.ndarray, objective: Objective) -> Weighted:
    merits = [objective.merit(member) for member in stack]
    only = np.eye(len(stack))[merits.index(max(merits))]
    return Weighted(tuple(only.tolist()))


def _greedy(stack: np.ndarray, objective: Objective) -> Blend:
    """Select with replacement in bags of rows; the bags' weights are averaged.

    Metrics are steps, so an average of bags may lie below a single member on the rows that all of
    them were drawn from; then one selection on all rows is taken, which starts from that member.
    (Its sums may round a tie away; the member itself is the last resort.)
    """
    generator = np.random.default_rng(0)
    bags = [objective.bootstrap(generator) for _ in range(BAGS)]
    chosen = [_select(stack[:, rows], objective.on(rows)) for rows in bags]
    bagged = Weighted(tuple(np.mean(chosen, axis=0).tolist()))
    best = _best(stack, objective)
    floor = objective.merit(best(stack))
    for blend in (bagged, Weighted(tuple(_select(stack, objective).tolist()))):
        if objective.merit(blend(stack)) >= floor:
            return blend
    return best


def _select(stack: np.ndarray, objective: Objective) -> np.ndarray:
    """Return weights [K]: add the member that helps most, again and again; the best prefix counts."""
    counts = np.zeros(len(stack))
    total = np.zeros(stack.shape[1:])
    best = (-np.inf, -np.inf)
    weights = counts
    for step in range(1, STEPS + 1):
        merits = [objective.merit((total + member) / step) for member in stack]
        member = merits.index(max(merits))
        counts[member] += 1
        total += stack[member]
        if merits[member] > best:
            best, weights = merits[member], counts / step
    return weights


def _weights(stack: np.ndarray, objective: Objective) -> Weighted:
    """Search the simplex for the metric, from the likeliest weights, equal ones and the best member.

    Metrics of decisions are steps without a gradient, so the search tries shares of one member
    after the other; the log loss is smooth, and its optimum gives the start.
    """
    members = len(stack)
    starts = (likeliest_weights(stack, objective), _equal(members), _best(stack, objective))
    found = [_climb(np.array(start.weights), stack, objective) for start in starts]
    _, weights = max(found, key=lambda end: end[0])
    return Weighted(tuple(weights.tolist()))


def likeliest_weights(stack: np.ndarray, objective: Objective) -> Weighted:
    """Return the weights with the smallest log loss: a convex problem on the simplex."""
    members = len(stack)
    given = likelihoods(stack, objective.targets).reshape(members, -1)

    def loss(weights: np.ndarray) -> tuple[float, np.ndarray]:
        mixed = weights @ given
        return float(-np.log(mixed).mean()), -(given / mixed).mean(axis=1)

    found = minimize(
        loss,
        np.full(members, 1 / members),
        jac=True,
        method="SLSQP",
        bounds=[(0, 1)] * members,
        constraints={
            "type": "eq",
            "fun": lambda weights: weights.sum() - 1,
            "jac": lambda weights: np.ones(members),
        },
        options={"ftol": 1e-10, "maxiter": 500},
    )
    weights = np.clip(found.x, 0, 1)
    return Weighted(tuple((weights / weights.sum()).tolist()))


def _climb(
    weights: np.ndarray, stack: np.ndarray, objective: Objective
) -> tuple[tuple[float, float], np.ndarray]:
    """Set one member's share, the others in proportion, while that makes the blend better."""
    best = objective.merit(_weighted_mean(weights, stack))
    while True:
        blended = _weighted_mean(weights, stack)
        moves = []
        for number, (member, share) in enumerate(zip(stack, weights, strict=True)):
            if share < 1:
                others = (blended - share * member) / (1 - share)
                moves += [
                    (objective.merit(new * member + (1 - new) * others), number, new)
                    for new in SHARES
                ]
        if not moves:  # the only member
            return best, weights
        _, number, new = max(moves, key=lambda move: move[0])
        moved = weights * (1 - new) / (1 - weights[number])
        moved[number] = new
        merit = objective.merit(_weighted_mean(moved, stack))
        if not _clearly_above(merit, best):
            return best, weights
        weights, best = moved, merit


def _clearly_above(merit: tuple[float, float], than: tuple[float, float]) -> bool:
    """Return whether a merit is better by more than rounding: a search has to end."""
    return merit[0] > than[0] + 1e-12 or (merit[0] >= than[0] and merit[1] > than[1] + 1e-6)


class ClassModel(Protocol):
    """A fitted model of one class: members' probabilities of it [n, K] to its probability [n]."""

    def __call__(self, given: np.ndarray) -> np.ndarray: ...


@dataclass(frozen=True)
class Stacked:
    """A model of scikit-learn for each class, on what the members say of this class.

    No model may count a member against what it says (Breiman 1996 asks the same of stacked
    regressions): a model that may turns noise round and finds an order in it.
    """

    models: tuple[ClassModel, ...]
    multi_label: bool

    def __call__(self, stack: np.ndarray) -> np.ndarray:
        with _one_thread():
            columns = [model(stack[:, :, c].T) for c, model in enumerate(self.models)]
        return _normalised(np.clip(np.stack(columns, axis=1), CLIP, 1 - CLIP), self.multi_label)


def _stacking(fit_class: Callable[[np.ndarray, np.ndarray], ClassModel]) -> Fit:
    def fit(stack: np.ndarray, objective: Objective) -> Stacked:
        classes = range(stack.shape[2])
        multi_label, targets = objective.multi_label, objective.targets
        happened = targets.T if multi_label else [targets == number for number in classes]
        with _one_thread():
            models = [
                _constant(float(truth[0]))
                if (truth == truth[0]).all()
                else fit_class(stack[:, :, number].T, truth)
                for number, truth in zip(classes, happened, strict=True)
            ]
        return Stacked(tuple(models), multi_label)

    return fit


def _constant(probability: float) -> ClassModel:
    return lambda given: np.full(len(given), probability)


def _log_odds(given: np.ndarray) -> np.ndarray:
    return logit(np.clip(given, CLIP, 1 - CLIP))


def _logistic(given: np.ndarray, truth: np.ndarray) -> ClassModel:
    """Fit a logistic regression, leaving members out until no coefficient is negative."""
    from sklearn.linear_model import LogisticRegression

    features, kept = _log_odds(given), np.arange(given.shape[1])
    while len(kept):
        model = LogisticRegression(C=0.1, max_iter=1000)  # members say nearly the same: shrink
        coefficients = model.fit(features[:, kept], truth).coef_[0]
        if (coefficients >= 0).all():
            members = kept
            return lambda given: model.predict_proba(_log_odds(given)[:, members])[:, 1]
        kept = np.delete(kept, coefficients.argmin())
    return _constant(float(truth.mean()))


def _boosting(given: np.ndarray, truth: np.ndarray) -> ClassModel:
    from sklearn.ensemble import HistGradientBoostingClassifier

    model = HistGradientBoostingClassifier(
        max_iter=50,
        max_leaf_nodes=7,
        monotonic_cst=[1] * given.shape[1],
        early_stopping=False,
        random_state=0,
    ).fit(given, truth)
    return lambda given: model.predict_proba(given)[:, 1]


def _one_thread() -> AbstractContextManager[object]:
    """Keep libraries from starting threads: on tables this small they only wait for each other."""
    from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

    return threadpool_limits(1)


METHODS: dict[str, Method] = {
    method.name: method
    for method in (
        Method("mean", "mean of the probabilities", _mean, False),
        Method(
            "rank_mean", "mean of each class's ranks, on the scale of the mean", _rank_mean, False
        ),
        Method("logit_mean", "mean of each class's log odds", _logit_mean, False),
        Method("geometric", "geometric mean of the probabilities", _geometric, False),
        Method("best", "the best single member", _in_any_order(_best), True),
        Method(
            "greedy",
            "Caruana's selection with replacement, bagged over rows",
            _in_any_order(_greedy),
            True,
        ),
        Method("weights", "weights that maximise the metric", _in_any_order(_weights), True),
        Method(
            "stack",
            "logistic regression on log odds",
            _in_any_order(_stacking(_logistic)),
            True,
        ),
        Method(
            "stack_boosting",
            "gradient boosting on probabilities",
            _in_any_order(_stacking(_boosting)),
            True,
        ),
    )
}
