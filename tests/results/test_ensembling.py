"""Blends: exact identities, and what cross-fitting is for."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scipy.special import expit, logit, softmax
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedKFold
from sklearn.naive_bayes import GaussianNB
from sklearn.neighbors import KNeighborsClassifier

from competition_kit.results.cross_fitting import cross_fitted, with_rule
from competition_kit.results.decision_rules import RuleKind, Unchanged, suitable_rule
from competition_kit.results.ensemble_outcome import blend_members, verdict_of
from competition_kit.results.ensembling import METHODS, Weighted, likeliest_weights
from competition_kit.results.metrics import METRICS
from competition_kit.results.objective import Objective

ABC = ("a", "b", "c")
FITS_NOTHING = [name for name, method in METHODS.items() if not method.learns]
LEARNS = [name for name, method in METHODS.items() if method.learns]
LINEAR = ["mean", "best", "greedy", "weights"]


def task(
    seed: int = 0,
    *,
    rows: int = 90,
    members: int = 4,
    multi_label: bool = False,
    metric: str = "macro_f1",
    noise: float = 1.2,
) -> tuple[np.ndarray, Objective]:
    """Return members that know something, each with errors of its own."""
    generator = np.random.default_rng(seed)
    scores = generator.normal(size=(rows, 3)) * 1.5
    logits = scores + noise * generator.normal(size=(members, rows, 3))
    if multi_label:
        targets = (scores + generator.logistic(size=scores.shape) > 0).astype(int)
        stack = expit(logits)
    else:
        targets = (scores + generator.gumbel(size=scores.shape)).argmax(axis=1)
        stack = softmax(logits, axis=2)
    folds = generator.permutation(np.arange(rows) % 5)
    return stack, Objective(METRICS[metric], targets, ABC, folds)


def blended(name: str, stack: np.ndarray, objective: Objective) -> np.ndarray:
    return METHODS[name].fit(stack, objective)(stack)


# -- identities --------------------------------------------------------------------------------


@pytest.mark.parametrize("number", range(4))
def test_the_weights_of_one_member_alone_are_that_member(number: int) -> None:
    stack, _ = task()
    np.testing.assert_array_equal(Weighted(tuple(np.eye(4)[number]))(stack), stack[number])


@pytest.mark.parametrize("multi_label", [False, True])
@pytest.mark.parametrize("name", LINEAR)
def test_one_member_is_blended_to_itself(name: str, multi_label: bool) -> None:
    stack, objective = task(members=1, multi_label=multi_label)
    np.testing.assert_array_equal(blended(name, stack, objective), stack[0])


@pytest.mark.parametrize("multi_label", [False, True])
@pytest.mark.parametrize("name", ["rank_mean", "logit_mean", "geometric"])
def test_means_on_other_scales_keep_a_single_member(name: str, multi_label: bool) -> None:
    stack, objective = task(members=1, multi_label=multi_label)
    np.testing.assert_allclose(blended(name, stack, objective), stack[0], atol=1e-12)


@pytest.mark.parametrize("multi_label", [False, True])
@pytest.mark.parametrize("name", METHODS)
def test_a_blend_of_copies_is_the_blend_of_one(name: str, multi_label: bool) -> None:
    stack, objective = task(members=1, multi_label=multi_label)
    copies = np.repeat(stack, 3, axis=0)
    if name.startswith("stack"):
        assert objective.score(blended(name, copies, objective)) == pytest.approx(
            objective.score(blended(name, stack, objective)), abs=0.05
        )
    else:
        expected = blended(name, stack, objective)
        np.testing.assert_allclose(blended(name, copies, objective), expected, atol=1e-12)


def test_the_means_are_what_their_formulas_say() -> None:
    stack, objective = task()
    np.testing.assert_allclose(blended("mean", stack, objective), stack.mean(axis=0))
    root = np.prod(stack, axis=0) ** (1 / 4)
    np.testing.assert_allclose(
        blended("geometric", stack, objective), root / root.sum(axis=1, keepdims=True)
    )
    odds = expit(logit(stack).mean(axis=0))
    np.testing.assert_allclose(
        blended("logit_mean", stack, objective), odds / odds.sum(axis=1, keepdims=True)
    )


def test_with_two_classes_geometric_and_logit_mean_are_the_same() -> None:
    stack, objective = task()
    pair = stack[:, :, :2] / stack[:, :, :2].sum(axis=2, keepdims=True)
    np.testing.assert_allclose(
        blended("geometric", pair, objective), blended("logit_mean", pair, objective)
    )


def test_one_zero_is_no_veto_that_cannot_be_outvoted() -> None:
    _, objective = task()
    sure = np.array([[[1.0, 0.0, 0.0]], [[0.0, 1.0, 0.0]], [[0.0, 1.0, 0.0]]])
    for name in ("geometric", "logit_mean"):
        found = blended(name, sure, objective)
        assert np.isfinite(found).all()
        assert found.argmax() == 1


@pytest.mark.parametrize("multi_label", [False, True])
@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("metric", ["macro_f1", "log_loss"])
def test_blends_are_probabilities(name: str, multi_label: bool, metric: str) -> None:
    stack, objective = task(rows=60, multi_label=multi_label, metric=metric)
    found = METHODS[name].fit(stack, objective)(stack[:, :7])
    assert found.shape == (7, 3)
    assert ((found >= 0) & (found <= 1)).all()
    if not multi_label:
        np.testing.assert_allclose(found.sum(axis=1), 1)


@pytest.mark.parametrize("name", METHODS)
@given(order=st.permutations(range(4)), seed=st.integers(0, 5))
@settings(max_examples=4, deadline=None)
def test_the_order_of_the_members_changes_nothing(name: str, order: list[int], seed: int) -> None:
    stack, objective = task(seed, rows=45)
    one, other = (METHODS[name].fit(x, objective) for x in (stack, stack[order]))
    np.testing.assert_allclose(other(stack[order]), one(stack), atol=1e-14)  # sums are rounded
    if isinstance(one, Weighted):
        assert tuple(one.weights[member] for member in order) == other.weights


# -- rank mean ---------------------------------------------------------------------------------


def test_rank_mean_orders_rows_by_their_mean_rank() -> None:
    _, objective = task(multi_label=True)
    first = np.array([0.1, 0.2, 0.3, 0.9])  # ranks 1 2 3 4
    second = np.array([0.6, 0.5, 0.7, 0.8])  # ranks 2 1 3 4
    found = blended("rank_mean", np.stack([first, second])[:, :, None], objective)[:, 0]
    assert found[0] == found[1] < found[2] < found[3]  # mean ranks 1.5 1.5 3 4
    sizes = np.sort((first + second) / 2)  # 0.35 0.35 0.5 0.85
    np.testing.assert_allclose(found, [0.35, 0.35, sizes[2], sizes[3]])


def test_rank_mean_gives_tied_rows_the_same_number() -> None:
    _, objective = task(multi_label=True)
    tied = np.array([0.4, 0.4, 0.1, 0.4, 0.5])  # ranks 3 3 1 3 5
    other = np.array([0.3, 0.3, 0.2, 0.3, 0.1])  # ranks 4 4 2 4 1
    found = blended("rank_mean", np.stack([tied, other])[:, :, None], objective)[:, 0]
    # mean ranks 3.5 3.5 1.5 3.5 3; the means in order are 0.15 0.3 0.35 0.35 0.35
    np.testing.assert_allclose(found, [0.35, 0.35, 0.15, 0.35, 0.3])
    assert found[0] == found[1] == found[3]


@given(seed=st.integers(0, 50), power=st.floats(0.2, 5))
@settings(max_examples=20, deadline=None)
def test_rank_mean_sees_the_order_of_a_member_alone(seed: int, power: float) -> None:
    """A member whose numbers are bent without changing their order gives the same order again."""
    stack, objective = task(seed, rows=30, multi_label=True)
    bent = stack.copy()
    bent[0] = bent[0] ** power
    before, after = (blended("rank_mean", x, objective) for x in (stack, bent))
    for column in range(3):
        order = np.argsort(before[:, column], kind="stable")
        assert (np.diff(after[order, column]) >= 0).all()


# -- methods that learn ------------------------------------------------------------------------


@pytest.mark.parametrize("metric", ["macro_f1", "accuracy", "mcc", "log_loss", "roc_auc"])
@pytest.mark.parametrize("name", ["best", "greedy", "weights"])
def test_a_search_is_never_below_its_best_member_in_sample(name: str, metric: str) -> None:
    for seed in range(4):
        stack, objective = task(seed, rows=50, metric=metric)
        found = objective.value(blended(name, stack, objective))
        assert found >= max(objective.value(member) for member in stack)


@pytest.mark.parametrize("name", ["greedy", "weights"])
@example(seed=94, digits=1, members=3)  # in another order of the members a tie would be lost
@given(seed=st.integers(0, 1000), digits=st.integers(1, 3), members=st.integers(1, 5))
@settings(max_examples=15, deadline=None)
def test_a_search_is_never_below_its_best_member_in_sample_with_ties(
    name: str, seed: int, digits: int, members: int
) -> None:
    stack, objective = task(seed, rows=30, members=members, metric="accuracy")
    rounded = np.round(stack, digits)  # many equal probabilities
    found = objective.value(blended(name, rounded, objective))
    assert found >= max(objective.value(member) for member in rounded)


@given(seed=st.integers(0, 1000), members=st.integers(2, 6))
@settings(max_examples=15, deadline=None)
def test_a_weighted_mean_is_the_same_bit_for_bit_in_every_order(seed: int, members: int) -> None:
    generator = np.random.default_rng(seed)
    stack, weights = generator.random((members, 20, 3)), generator.dirichlet(np.ones(members))
    order = generator.permutation(members)
    here, there = Weighted(tuple(weights))(stack), Weighted(tuple(weights[order]))(stack[order])
    assert here.tobytes() == there.tobytes()
    np.testing.assert_allclose(here, np.einsum("k,knc->nc", weights, stack), rtol=1e-14)


@pytest.mark.parametrize("name", LINEAR)
def test_weights_are_on_the_simplex(name: str) -> None:
    stack, objective = task(3)
    weights = np.array(METHODS[name].fit(stack, objective).weights)
    assert (weights >= 0).all()
    assert weights.sum() == pytest.approx(1, abs=1e-9)


def test_best_takes_the_member_with_the_best_score() -> None:
    stack, objective = task()
    stack[2] = np.clip(np.eye(3)[objective.targets], 0.1, 0.8)
    assert METHODS["best"].fit(stack, objective).weights == (0, 0, 1, 0)


def test_weights_of_the_log_loss_are_its_optimum() -> None:
    """At the optimum no member's mean likelihood ratio is above 1 (Karush, Kuhn and Tucker)."""
    stack, objective = task(rows=200, metric="log_loss")
    for weights in (
        np.array(likeliest_weights(stack, objective).weights),
        np.array(METHODS["weights"].fit(stack, objective).weights),
    ):
        given_truth = stack[:, np.arange(200), objective.targets]
        ratio = (given_truth / (weights @ given_truth)).mean(axis=1)
        assert ratio.max() < 1.001
        np.testing.assert_allclose(ratio[weights > 0.01], 1, atol=0.002)


@pytest.mark.parametrize("name", LEARNS)
def test_a_useless_member_does_little_harm(name: str) -> None:
    stack, objective = task(rows=300, members=2, metric="log_loss", noise=0.3)
    noise = np.random.default_rng(9).dirichlet(np.ones(3) / 2, size=(2, 300))
    both = np.concatenate([stack, noise])
    good = objective.score(stack.mean(axis=0))
    found = objective.score(cross_fitted(METHODS[name].fit, both, objective))
    assert found < good + 0.1 < objective.score(both.mean(axis=0))


@pytest.mark.parametrize("name", ["stack", "stack_boosting"])
def test_no_stacker_counts_a_member_against_what_it_says(name: str) -> None:
    """The only member says the opposite of the truth: it is left out, not turned round."""
    _, objective = task(rows=150, members=1, multi_label=True)
    opposite = 1 - objective.targets * 0.8 - 0.1
    found = METHODS[name].fit(opposite[None], objective)
    sure = found(np.array([[[0.1] * 3, [0.9] * 3]]))
    assert (sure[1] - sure[0] >= -1e-12).all()


@pytest.mark.parametrize("multi_label", [False, True])
@pytest.mark.parametrize("name", METHODS)
def test_a_class_that_some_folds_do_not_have_is_survived(name: str, multi_label: bool) -> None:
    stack, objective = task(rows=40, multi_label=multi_label, metric="accuracy")
    targets = objective.targets.copy()
    if multi_label:
        targets[:, 2] = objective.fold_of == 0
    else:
        targets = np.where(objective.fold_of == 0, 2, targets % 2)
    rare = Objective(METRICS["accuracy"], targets, ABC, objective.fold_of)
    assert np.isfinite(cross_fitted(METHODS[name].fit, stack, rare)).all()


@pytest.mark.parametrize("name", METHODS)
def test_the_same_call_gives_the_same_bits(name: str) -> None:
    stack, objective = task(rows=50)
    np.testing.assert_array_equal(
        blended(name, stack, objective), blended(name, stack.copy(), objective)
    )


# -- cross-fitting -----------------------------------------------------------------------------


@pytest.mark.parametrize("name", LEARNS)
def test_a_row_is_blended_without_its_own_label(name: str) -> None:
    """Turning the labels of one fold round changes nothing that this fold is blended with."""
    stack, objective = task(rows=60)
    inside = objective.fold_of == 2
    targets = np.where(inside, (objective.targets + 1) % 3, objective.targets)
    other = Objective(objective.metric, targets, ABC, objective.fold_of)
    before, after = (cross_fitted(METHODS[name].fit, stack, x) for x in (objective, other))
    np.testing.assert_array_equal(before[inside], after[inside])


def test_a_rule_is_fitted_without_the_rows_that_it_is_scored_on() -> None:
    stack, objective = task(rows=60)
    inside = objective.fold_of == 1
    targets = np.where(inside, (objective.targets + 1) % 3, objective.targets)
    other = Objective(objective.metric, targets, ABC, objective.fold_of)
    kind = suitable_rule(objective.metric, False)
    assert kind is not None
    fit = with_rule(METHODS["best"], kind)
    before, after = (cross_fitted(fit, stack, x) for x in (objective, other))
    np.testing.assert_array_equal(before[inside], after[inside])


def test_a_rule_sees_the_blend_as_new_rows_will() -> None:
    """Boosting is surer in sample than it may be: the temperature has to be that of other rows."""
    stack, objective = task(rows=150, metric="log_loss", noise=2.0)
    kind = suitable_rule(objective.metric, False)
    assert kind is not None
    method = METHODS["stack_boosting"]
    ruled = with_rule(method, kind)(stack, objective)
    in_sample = kind.fit(method.fit(stack, objective)(stack), objective)
    other_rows = kind.fit(cross_fitted(method.fit, stack, objective), objective)
    assert ruled.rule == other_rows
    assert ruled.rule.value > 1.2 * in_sample.value


def test_two_folds_are_enough_for_a_rule() -> None:
    """One fold is left to fit on, so the rule takes the blend in sample, but never its own fold."""
    stack, objective = task(rows=60)
    halves = Objective(objective.metric, objective.targets, ABC, objective.fold_of % 2)
    kind = suitable_rule(objective.metric, False)
    assert kind is not None
    assert np.isfinite(cross_fitted(with_rule(METHODS["weights"], kind), stack, halves)).all()


@pytest.mark.parametrize("name", FITS_NOTHING)
def test_what_fits_nothing_is_cross_fitted_to_itself(name: str) -> None:
    stack, objective = task()
    np.testing.assert_array_equal(
        cross_fitted(METHODS[name].fit, stack, objective), blended(name, stack, objective)
    )


ROWS, CHANCE = 120, 1 / 3


def noise(seed: int, members: int = 5) -> tuple[np.ndarray, Objective]:
    """Return members and labels that know nothing of each other."""
    generator = np.random.default_rng(seed)
    stack = generator.dirichlet(np.ones(3), size=(members, ROWS))
    targets = generator.integers(3, size=ROWS)
    folds = generator.permutation(np.arange(ROWS) % 4)
    return stack, Objective(METRICS["accuracy"], targets, ABC, folds)


def bound(repetitions: int) -> float:
    """Return four standard errors of a mean accuracy over so many tasks of pure guessing."""
    return 4 * float(np.sqrt(CHANCE * (1 - CHANCE) / ROWS / repetitions))


@pytest.mark.parametrize("name", METHODS)
def test_on_noise_the_cross_fitted_score_stays_at_chance(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The labels are independent of all members, so 1/3 is the expected accuracy, whatever is fitted.

    Bound: four standard errors (0.043 to 0.07). In sample, whatever learns is above it.
    """
    monkeypatch.setattr("competition_kit.results.ensembling.BAGS", 3)  # quicker, more optimistic
    repetitions = 6 if name.startswith("stack") else 16
    honest, fooled = [], []
    for seed in range(repetitions):
        stack, objective = noise(seed)
        honest.append(objective.score(cross_fitted(METHODS[name].fit, stack, objective)))
        fooled.append(objective.score(blended(name, stack, objective)))
    assert np.mean(honest) == pytest.approx(CHANCE, abs=bound(repetitions))
    if METHODS[name].learns:
        assert np.mean(fooled) > CHANCE + bound(repetitions) / 2
        assert np.mean(fooled) > np.mean(honest) + 0.03


@pytest.mark.parametrize("name", ["mean", "best", "greedy", "weights", "stack"])
def test_trained_members_on_noise_stay_near_chance(name: str) -> None:
    """Members that were trained on the noise: those of other folds have seen this fold's labels.

    No blend of finished predictions can undo that; stated bound: 0.05 above chance at 120 rows.
    """
    repetitions, honest = 6 if name == "stack" else 10, []
    for seed in range(repetitions):
        generator = np.random.default_rng(seed)
        targets = generator.permutation(np.arange(ROWS) % 3)
        features = generator.normal(size=(ROWS, 5))
        models = (GaussianNB(), KNeighborsClassifier(9), LogisticRegression())
        stack, folds = np.zeros((3, ROWS, 3)), np.zeros(ROWS, dtype=int)
        split = StratifiedKFold(4, shuffle=True, random_state=seed).split(features, targets)
        for fold, (train, valid) in enumerate(split):
            folds[valid] = fold
            for layer, model in zip(stack, models, strict=True):
                model.fit(features[train], targets[train])
                layer[valid] = model.predict_proba(features[valid])
        objective = Objective(METRICS["accuracy"], targets, ABC, folds)
        honest.append(objective.score(cross_fitted(METHODS[name].fit, stack, objective)))
    assert abs(np.mean(honest) - CHANCE) < 0.05


@pytest.mark.parametrize(
    ("metric", "multi_label", "chance"),
    [
        ("accuracy", False, 1 / 3),
        ("mcc", False, 0.0),
        ("accuracy", True, 1 / 8),
        ("qwk", False, 0.0),
    ],
)
def test_on_noise_a_rule_gains_nothing_cross_fitted(
    metric: str, multi_label: bool, chance: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "competition_kit.results.decision_rules.BAGS", 2
    )  # quicker, more optimistic
    kind: RuleKind | None = suitable_rule(METRICS[metric], multi_label)
    assert kind is not None
    repetitions, honest, fooled = 10, [], []
    for seed in range(repetitions):
        generator = np.random.default_rng(seed)
        folds = generator.permutation(np.arange(ROWS) % 4)
        if multi_label:
            stack = generator.uniform(size=(1, ROWS, 3))
            targets = generator.integers(2, size=(ROWS, 3))
        else:
            stack = generator.dirichlet(np.ones(3), size=(1, ROWS))
            targets = generator.integers(3, size=ROWS)
        objective = Objective(METRICS[metric], targets, ABC, folds)
        fit = with_rule(METHODS["mean"], kind)
        honest.append(objective.score(cross_fitted(fit, stack, objective)))
        fooled.append(objective.score(fit(stack, objective)(stack)))
    error = np.std(honest, ddof=1) / np.sqrt(repetitions)
    assert np.mean(honest) == pytest.approx(chance, abs=4 * error)
    assert np.mean(fooled) > np.mean(honest) + error / 2


# -- all methods side by side ------------------------------------------------------------------


@pytest.mark.parametrize("folds", [2, 3])
@pytest.mark.parametrize(
    ("method", "members", "ruled"), [("mean", 2, True), ("best", 3, True), ("best", 1, False)]
)
def test_every_fit_is_counted_for_the_progress_bar(
    method: str, members: int, ruled: bool, folds: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("competition_kit.results.ensemble_outcome.RESAMPLES", 20)
    monkeypatch.setattr("competition_kit.results.decision_rules.BAGS", 1)
    for name in ("greedy", "weights", "stack", "stack_boosting"):
        monkeypatch.delitem(METHODS, name)
    stack, objective = task(rows=40, members=members)
    objective = Objective(objective.metric, objective.targets, ABC, objective.fold_of % folds)
    kind = suitable_rule(objective.metric, False) if ruled else None
    seen: list[tuple[int, int]] = []
    blend_members(
        stack, objective, method=method, kind=kind, on_step=lambda *step: seen.append(step)
    )
    total = seen[0][1]
    assert seen == [(done, total) for done in range(total + 1)]


def test_an_unchanged_rule_changes_no_bit_of_the_blend(monkeypatch: pytest.MonkeyPatch) -> None:
    """Members that are right everywhere leave a rule nothing to gain."""
    monkeypatch.setattr("competition_kit.results.ensemble_outcome.RESAMPLES", 20)
    for name in ("greedy", "weights", "stack", "stack_boosting"):
        monkeypatch.delitem(METHODS, name)
    stack, objective = task(rows=40, members=2)
    right = 0.1 * stack + 0.9 * np.eye(3)[objective.targets]
    kind = suitable_rule(objective.metric, False)
    outcome = blend_members(right, objective, kind=kind, apply_rule=True)
    assert outcome.rule is not None
    assert isinstance(outcome.rule.rule, Unchanged)
    assert (outcome.rule.in_sample_gain, outcome.rule.changed_rows) == (0, 0)
    assert verdict_of(outcome.rule.gain) == "the same"
    np.testing.assert_array_equal(outcome.submitted.blend(right), outcome.chosen.blend(right))


def test_members_that_err_alike_add_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("competition_kit.results.ensemble_outcome.RESAMPLES", 100)
    stack, objective = task(rows=150, members=2, noise=1.5)
    outcome = blend_members(np.concatenate([stack, stack[:1]]), objective)
    assert outcome.correlation[0, 2] == pytest.approx(1)
    assert outcome.correlation[0, 1] < 0.9
    np.testing.assert_allclose(outcome.correlation, outcome.correlation.T)
    assert outcome.adds[1] > max(outcome.adds[0], outcome.adds[2])
    assert outcome.alone[0] == outcome.alone[2] == objective.score(stack[0])
    assert verdict_of(outcome.methods["mean"].over_mean) == "the same"


def test_a_gain_is_positive_where_a_lower_score_is_better(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("competition_kit.results.ensemble_outcome.RESAMPLES", 100)
    stack, objective = task(rows=400, members=2, metric="log_loss", noise=0.2)
    wild = np.random.default_rng(0).dirichlet(np.ones(3) / 4, size=(2, 400))
    outcome = blend_members(
        np.concatenate([stack, wild]),
        objective,
        method="weights",
        kind=suitable_rule(objective.metric, False),
    )
    weights = outcome.methods["weights"]
    assert weights.score < outcome.methods["mean"].score
    assert verdict_of(weights.over_mean) == "better"
    assert weights.over_mean.low is not None and weights.over_mean.low > 0
    assert outcome.rule is not None
    assert outcome.rule.in_sample_gain >= 0
    assert outcome.submitted is weights
    assert outcome.alone[2] > 1.5
    assert abs(outcome.adds[2]) < 0.02
