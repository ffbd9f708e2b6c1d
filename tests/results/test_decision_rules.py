"""Decision rules: known truths are found again, and ruled probabilities decide as the rule says."""

from __future__ import annotations

import math
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import expit, logit, softmax
from sklearn.metrics import f1_score

from competition_kit.results.decision_rules import (
    CutPoints,
    Multipliers,
    Rule,
    Temperature,
    Thresholds,
    Unchanged,
    suitable_rule,
)
from competition_kit.results.metrics import METRICS, Metric, decide
from competition_kit.results.objective import Objective

ABC = ("a", "b", "c")
UNIT = st.floats(0, 1)
INSIDE = st.floats(0.01, 0.99)


def fitted(metric: str, targets: np.ndarray, probabilities: np.ndarray) -> Rule:
    classes = tuple("abcdefg"[: probabilities.shape[1]])
    kind = suitable_rule(METRICS[metric], targets.ndim == 2)
    assert kind is not None
    folds = np.arange(len(targets)) % 5
    return kind.fit(probabilities, Objective(METRICS[metric], targets, classes, folds))


def drawn(generator: np.random.Generator, probabilities: np.ndarray) -> np.ndarray:
    """Draw classes that follow their probabilities."""
    return (probabilities.cumsum(axis=1) < generator.uniform(size=(len(probabilities), 1))).sum(1)


# -- what a rule does --------------------------------------------------------------------------


@given(rows=st.lists(st.tuples(UNIT, UNIT), min_size=1, max_size=20), at=st.tuples(INSIDE, INSIDE))
@settings(max_examples=100, deadline=None)
def test_thresholds_decide_at_the_threshold(
    rows: list[tuple[float, float]], at: tuple[float, float]
) -> None:
    probabilities = np.array([*rows, at])  # and exactly there
    ruled = Thresholds(at)(probabilities)
    np.testing.assert_array_equal(decide(ruled, True), (probabilities >= at).astype(int))
    assert ((ruled >= 0) & (ruled <= 1)).all()
    for column in range(2):  # and the order of rows stays
        order = np.argsort(probabilities[:, column], kind="stable")
        assert (np.diff(ruled[order, column]) >= -1e-15).all()


def test_neutral_rules_change_nothing() -> None:
    probabilities = np.random.default_rng(0).dirichlet(np.ones(3), size=20)
    neutral = (Thresholds((0.5,) * 3), Multipliers((1.0,) * 3), Temperature(1.0, False))
    for rule in (*neutral, Temperature(1.0, True)):
        np.testing.assert_allclose(rule(probabilities), probabilities, atol=1e-12)


def test_multipliers_decide_by_the_largest_product() -> None:
    probabilities = np.array([[0.5, 0.3, 0.2], [0.4, 0.4, 0.2], [0.9, 0.1, 0.0]])
    ruled = Multipliers((0.5, 1.0, 2.0))(probabilities)
    assert decide(ruled, False).tolist() == [2, 1, 0]  # 0.25 0.3 0.4, 0.2 0.4 0.4, 0.45 0.1 0
    np.testing.assert_allclose(ruled.sum(axis=1), 1)


def test_cut_points_cut_the_expected_class() -> None:
    probabilities = np.array([[1.0, 0, 0], [0.5, 0.5, 0], [0.5, 0, 0.5], [0, 0.4, 0.6]])
    rule = CutPoints((0.4, 1.2))  # expected classes 0, 0.5, 1, 1.6
    assert decide(rule(probabilities), False).tolist() == [0, 1, 1, 2]
    assert rule.settings(ABC) == {"a | b": 0.4, "b | c": 1.2}


@given(temperature=st.floats(0.1, 10), seed=st.integers(0, 99))
@settings(max_examples=30, deadline=None)
def test_a_temperature_divides_logits(temperature: float, seed: int) -> None:
    logits = np.random.default_rng(seed).normal(size=(6, 3))
    single = Temperature(temperature, False)(softmax(logits, axis=1))
    np.testing.assert_allclose(single, softmax(logits / temperature, axis=1))
    several = Temperature(temperature, True)(expit(logits))
    np.testing.assert_allclose(several, expit(logits / temperature))


def test_certain_rows_stay_finite() -> None:
    certain = np.eye(3)
    for rule in (Temperature(2.0, False), Temperature(2.0, True), Multipliers((1.0, 2.0, 3.0))):
        assert np.isfinite(rule(certain)).all()


# -- which rule --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("metric", "multi_label", "name"),
    [
        ("macro_f1", False, "class multipliers"),
        ("mcc", False, "class multipliers"),
        ("weighted_f1", False, "class multipliers"),
        ("macro_f1", True, "thresholds"),
        ("micro_f1", True, "thresholds"),
        ("accuracy", True, "thresholds"),
        ("qwk", False, "cut points"),
        ("log_loss", False, "temperature"),
        ("log_loss", True, "temperature"),
    ],
)
def test_each_metric_has_its_rule(metric: str, multi_label: bool, name: str) -> None:
    kind = suitable_rule(METRICS[metric], multi_label)
    assert kind is not None
    assert kind.name == name


def test_no_rule_changes_the_order_of_rows() -> None:
    assert suitable_rule(METRICS["roc_auc"], False) is None


def mean_f1(targets: np.ndarray, decisions: np.ndarray, *_: object) -> float:
    """Return the mean F1 of labels [n, C]: a metric that the kit does not know, but a quick one."""
    total = (targets + decisions).sum(axis=0)
    return float((2 * (targets * decisions).sum(axis=0) / np.maximum(total, 1)).mean())


def test_a_metric_of_the_users_own_gets_a_rule_for_decisions() -> None:
    mine = Metric("mine:score", mean_f1)
    kind = suitable_rule(mine, True)
    assert kind is not None
    assert kind.name == "thresholds"
    probabilities = np.random.default_rng(0).uniform(size=(60, 2))
    targets = (probabilities > 0.3).astype(int)
    rule = kind.fit(probabilities, Objective(mine, targets, ("a", "b"), np.arange(60)))
    assert mine.score(targets, rule(probabilities), ("a", "b")) > 0.97


# -- what gains nothing ------------------------------------------------------------------------

KINDS = [
    ("macro_f1", False),
    ("mcc", False),
    ("macro_f1", True),
    ("accuracy", True),
    ("qwk", False),
    ("log_loss", False),
    ("log_loss", True),
]


def task_of(seed: int, rows: int, multi_label: bool) -> tuple[np.ndarray, np.ndarray]:
    """Return targets and probabilities that know a little of them."""
    generator = np.random.default_rng(seed)
    logits = generator.normal(size=(rows, 3))
    if multi_label:
        return (logits + generator.normal(size=(rows, 3)) > 0).astype(int), expit(logits)
    return (logits + generator.gumbel(size=(rows, 3))).argmax(axis=1), softmax(logits, axis=1)


@pytest.mark.parametrize(("metric", "multi_label"), KINDS)
def test_a_rule_beats_the_plain_decision_in_sample_or_is_left_out(
    metric: str, multi_label: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("competition_kit.results.decision_rules.BAGS", 2)
    found = set()
    for seed in range(12):
        targets, probabilities = task_of(seed, 12 if seed % 2 else 25, multi_label)
        objective = Objective(METRICS[metric], targets, ABC, np.arange(len(targets)) % 5)
        rule = fitted(metric, targets, probabilities)
        plain, ruled = (objective.value(p) for p in (probabilities, rule(probabilities)))
        assert (ruled > plain) is not isinstance(rule, Unchanged)
        found.add(type(rule))
    assert len(found - {Unchanged}) == 1, "the other seeds gain something"


@pytest.mark.parametrize(("metric", "multi_label"), KINDS)
def test_a_search_that_ends_below_the_plain_decision_is_not_believed(
    metric: str, multi_label: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever a search returns: here numbers that are far off, for probabilities that are right."""
    targets, _ = task_of(0, 60, multi_label)
    truth = targets if multi_label else np.eye(3)[targets]
    probabilities = 0.6 * truth + 0.4 / (2 if multi_label else 3)
    monkeypatch.setattr(
        "competition_kit.results.decision_rules._bagged",
        lambda start, *rest: np.linspace(0.85, 0.9, len(start)) if start[0] else 3.0 * np.arange(3),
    )
    monkeypatch.setattr(
        "scipy.optimize.minimize_scalar", lambda *_, **__: SimpleNamespace(x=np.log(9.0))
    )
    rule = fitted(metric, targets, probabilities)
    assert isinstance(rule, Unchanged)
    np.testing.assert_array_equal(rule(probabilities), probabilities)
    kind = suitable_rule(METRICS[metric], multi_label)
    assert kind is not None
    said = rule.settings(ABC)
    assert set(said.values()) == ({kind.neutral} if kind.neutral is not None else set())
    if kind.name in ("class multipliers", "thresholds"):
        assert tuple(said) == ABC


def test_a_label_whose_plain_threshold_is_best_keeps_it() -> None:
    generator = np.random.default_rng(0)
    targets = generator.integers(2, size=(200, 2))
    probabilities = 0.2 + 0.6 * targets
    probabilities[:, 1] /= 2  # this label's model never reaches 0.5
    rule = fitted("macro_f1", targets, probabilities)
    assert isinstance(rule, Thresholds)
    assert rule.values[0] == 0.5
    assert 0.1 < rule.values[1] < 0.4


# -- known truths ------------------------------------------------------------------------------


def test_the_best_threshold_of_uniform_calibrated_probabilities_is_found(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """p uniform on [0, 1] and y = 1 with probability p.

    F1(t) = 2 E[p; p > t] / (P(p > t) + E[p]) = (1 - t^2) / (1.5 - t), best where
    t^2 - 3 t + 1 = 0: t = (3 - sqrt(5)) / 2 = 0.382, half the best F1 (Lipton et al. 2014).
    """
    monkeypatch.setattr("competition_kit.results.decision_rules.BAGS", 4)  # of so many rows
    best = (3 - math.sqrt(5)) / 2
    generator = np.random.default_rng(0)
    probabilities = generator.uniform(size=(40_000, 1))  # the peak is flat
    targets = (generator.uniform(size=probabilities.shape) < probabilities).astype(int)
    rule = fitted("macro_f1", targets, probabilities)
    assert isinstance(rule, Thresholds)
    assert rule.values == pytest.approx((best,), abs=0.04)
    score = f1_score(targets, decide(rule(probabilities), True))
    assert score == pytest.approx(2 * best, abs=0.015)


def test_two_classes_have_the_same_best_threshold() -> None:
    """For two classes multipliers are a threshold m0 / (m0 + m1); with one F1 it is 0.382 again."""
    generator = np.random.default_rng(1)
    positive = generator.uniform(size=2000)
    targets = (generator.uniform(size=2000) < positive).astype(int)
    metric = Metric("mine:f1", mean_f1)  # of class b, the 1 among class numbers
    kind = suitable_rule(metric, False)
    assert kind is not None
    probabilities = np.stack([1 - positive, positive], axis=1)
    rule = kind.fit(probabilities, Objective(metric, targets, ("a", "b"), targets))
    first, second = rule.settings(("a", "b")).values()
    assert first / (first + second) == pytest.approx((3 - math.sqrt(5)) / 2, abs=0.06)


def test_shifted_class_shares_are_put_right_again() -> None:
    """Classes follow p, the model says p * shift: dividing by the shift is the best for accuracy."""
    generator = np.random.default_rng(0)
    true = generator.dirichlet(np.ones(3), size=4000)
    targets = drawn(generator, true)
    shift = np.array([4.0, 1.0, 0.5])
    said = true * shift / (true * shift).sum(axis=1, keepdims=True)
    rule = fitted("accuracy", targets, said)
    undone = 1 / shift / np.exp(np.log(1 / shift).mean())
    assert np.log(list(rule.settings(ABC).values())) == pytest.approx(np.log(undone), abs=0.25)
    right, before, after = ((decide(p, False) == targets).mean() for p in (true, said, rule(said)))
    assert before < right - 0.05
    assert after == pytest.approx(right, abs=0.01)


def test_known_cut_points_are_found() -> None:
    """Classes are the expected class number cut at 0.3, 1.1 and 2.6, a few rows aside."""
    generator = np.random.default_rng(0)
    cuts = (0.3, 1.1, 2.6)
    level = generator.uniform(0, 3, size=1500)
    low = np.floor(level).astype(int)
    probabilities = np.zeros((1500, 4))
    probabilities[np.arange(1500), low] = 1 - (level - low)
    probabilities[np.arange(1500), np.minimum(low + 1, 3)] += level - low
    targets = np.searchsorted(cuts, level, side="right")
    noisy = generator.uniform(size=1500) < 0.05
    targets[noisy] = generator.integers(4, size=noisy.sum())
    rule = fitted("qwk", targets, probabilities)
    assert isinstance(rule, CutPoints)
    assert rule.values == pytest.approx(cuts, abs=0.08)
    classes = ("a", "b", "c", "d")
    qwk = METRICS["qwk"]
    plain = qwk.score(targets, probabilities, classes)
    assert qwk.score(targets, rule(probabilities), classes) > plain + 0.03


@pytest.mark.parametrize("multi_label", [False, True])
@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.5])
def test_a_known_temperature_is_found(temperature: float, multi_label: bool) -> None:
    """Classes follow softmax(z); the model says softmax(z * T), so it has to be cooled by T."""
    generator = np.random.default_rng(0)
    logits = generator.normal(size=(8000, 3)) * 2
    if multi_label:
        targets = (generator.uniform(size=logits.shape) < expit(logits)).astype(int)
        said = expit(logits * temperature)
    else:
        targets = drawn(generator, softmax(logits, axis=1))
        said = softmax(logits * temperature, axis=1)
    rule = fitted("log_loss", targets, said)
    assert isinstance(rule, Temperature)
    assert rule.value == pytest.approx(temperature, rel=0.05)


def test_a_fitted_rule_moves_little_where_nothing_is_to_gain() -> None:
    """Calibrated probabilities and accuracy: argmax is best already."""
    generator = np.random.default_rng(0)
    probabilities = generator.dirichlet(np.ones(3), size=3000)
    rule = fitted("accuracy", drawn(generator, probabilities), probabilities)
    assert np.abs(np.log(list(rule.settings(ABC).values()))).max() < 0.25


def test_each_label_gets_its_own_threshold() -> None:
    generator = np.random.default_rng(0)
    truth = generator.uniform(size=(3000, 2))
    targets = (generator.uniform(size=truth.shape) < truth).astype(int)
    said = truth.copy()
    said[:, 1] = expit(logit(truth[:, 1]) - 2)  # this label's model is far too shy
    for metric in ("macro_f1", "micro_f1"):
        rule = fitted(metric, targets, said)
        first, second = rule.settings(("a", "b")).values()
        assert first == pytest.approx(0.38, abs=0.06)
        assert second == pytest.approx(expit(logit(0.38) - 2), abs=0.05)


@pytest.mark.parametrize("metric", ["macro_f1", "mcc", "qwk", "log_loss"])
def test_extreme_inputs_are_survived(metric: str) -> None:
    targets = np.array([0, 1, 2, 0, 1, 2, 0, 0, 0, 0])
    for probabilities in (np.eye(3)[targets], np.full((10, 3), 1 / 3), np.eye(3)[[0] * 10]):
        ruled = fitted(metric, targets, probabilities)(probabilities)
        assert np.isfinite(ruled).all()
        np.testing.assert_allclose(ruled.sum(axis=1), 1)
