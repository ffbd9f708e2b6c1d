"""The quick scores of searches are the metrics' own."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from competition_kit.results.metrics import METRICS, Metric
from competition_kit.results.objective import Gain, Objective, likelihoods, quick_score

NAMES = ("a", "b", "c", "d")


@st.composite
def single_label(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray]:
    rows, classes = draw(st.integers(1, 12)), draw(st.integers(2, 4))
    targets = draw(st.lists(st.integers(0, classes - 1), min_size=rows, max_size=rows))
    # few distinct values: ties, and rows that are quite sure
    parts = st.lists(st.integers(0, 4), min_size=classes, max_size=classes).filter(any)
    counts = np.array(draw(st.lists(parts, min_size=rows, max_size=rows)), dtype=float)
    return np.array(targets), counts / counts.sum(axis=1, keepdims=True)


@st.composite
def multi_label(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray]:
    rows, classes = draw(st.integers(1, 10)), draw(st.integers(2, 4))
    size = {"min_size": rows * classes, "max_size": rows * classes}
    targets = draw(st.lists(st.integers(0, 1), **size))
    parts = draw(st.lists(st.integers(0, 8), **size))
    shape = (rows, classes)
    return np.array(targets).reshape(shape), np.array(parts).reshape(shape) / 8


def same(name: str, targets: np.ndarray, probabilities: np.ndarray) -> None:
    metric, classes = METRICS[name], NAMES[: probabilities.shape[1]]
    expected = metric.score(targets, probabilities, classes)
    found = quick_score(metric, targets, probabilities, classes)
    assert found == pytest.approx(expected, abs=1e-12, nan_ok=True)


@pytest.mark.parametrize("name", METRICS)
@given(case=single_label())
@settings(max_examples=25, deadline=None)
def test_a_quick_score_is_the_metric(name: str, case: tuple[np.ndarray, np.ndarray]) -> None:
    same(name, *case)


@pytest.mark.parametrize("name", [name for name in METRICS if METRICS[name].multi_label])
@given(case=multi_label())
@settings(max_examples=25, deadline=None)
def test_a_quick_multi_label_score_is_the_metric(
    name: str, case: tuple[np.ndarray, np.ndarray]
) -> None:
    same(name, *case)


def same_of_resamples(
    name: str, targets: np.ndarray, probabilities: np.ndarray, drawn: np.ndarray
) -> None:
    metric, classes = METRICS[name], NAMES[: probabilities.shape[1]]
    resampled = Gain(metric, classes).resampled(targets, probabilities)
    assert resampled is not None
    sign = 1 if metric.greater_is_better else -1
    rows = [np.repeat(np.arange(len(targets)), counts) for counts in drawn]
    expected = [sign * metric.score(targets[x], probabilities[x], classes) for x in rows]
    np.testing.assert_allclose(resampled(drawn.astype(float)), expected, atol=1e-12)


def resamples(data: st.DataObject, rows: int) -> np.ndarray:
    drawn = st.lists(st.integers(0, rows - 1), min_size=rows, max_size=rows)
    return np.array([np.bincount(data.draw(drawn), minlength=rows) for _ in range(3)])


@pytest.mark.parametrize("name", METRICS)
@given(case=single_label(), data=st.data())
@settings(max_examples=20, deadline=None)
def test_many_resamples_at_once_are_the_metric_of_each(
    name: str, case: tuple[np.ndarray, np.ndarray], data: st.DataObject
) -> None:
    same_of_resamples(name, *case, resamples(data, len(case[0])))


@pytest.mark.parametrize("name", [name for name in METRICS if METRICS[name].multi_label])
@given(case=multi_label(), data=st.data())
@settings(max_examples=20, deadline=None)
def test_many_multi_label_resamples_at_once_are_the_metric_of_each(
    name: str, case: tuple[np.ndarray, np.ndarray], data: st.DataObject
) -> None:
    same_of_resamples(name, *case, resamples(data, len(case[0])))


def test_an_unknown_metric_has_no_resamples_at_once() -> None:
    mine = Metric("accuracy", lambda targets, decisions, probabilities, classes: 0.25)
    assert Gain(mine, ("a", "b")).resampled(np.array([0, 1]), np.eye(2)) is None
    lower = Metric("mine", mine.function, greater_is_better=False)
    assert Gain(lower, ("a", "b"))(np.array([0, 1]), np.eye(2)) == -0.25


def test_another_metric_of_a_known_name_is_called_as_it_is() -> None:
    mine = Metric("accuracy", lambda targets, decisions, probabilities, classes: 0.25)
    assert quick_score(mine, np.array([0, 1]), np.eye(2), ("a", "b")) == 0.25


def test_the_value_of_a_search_is_greater_where_better_and_never_nan() -> None:
    targets = np.array([0, 1, 1])
    sure, unsure = np.eye(2)[targets] * 0.8 + 0.1, np.full((3, 2), 0.5)
    loss = Objective(METRICS["log_loss"], targets, ("a", "b"), np.arange(3))
    assert loss.value(sure) > loss.value(unsure)
    assert loss.score(sure) < loss.score(unsure)
    one_class = Objective(METRICS["roc_auc"], np.zeros(3, dtype=int), ("a", "b"), np.arange(3))
    assert one_class.value(sure) == -math.inf


def test_equal_scores_are_told_apart_by_their_likelihood() -> None:
    targets = np.array([0, 1])
    objective = Objective(METRICS["accuracy"], targets, ("a", "b"), targets)
    bold, shy = (np.eye(2) * scale + (1 - scale) / 2 for scale in (0.8, 0.2))
    assert objective.value(bold) == objective.value(shy) == 1
    assert objective.merit(bold) > objective.merit(shy)


def test_likelihoods_are_of_what_happened_and_above_zero() -> None:
    single = likelihoods(np.array([[[0.7, 0.3], [0.0, 1.0]]]), np.array([1, 0]))
    assert single[0, 0] == 0.3
    assert 0 < single[0, 1] < 1e-15
    several = likelihoods(np.array([[0.7, 0.2]]), np.array([[1, 0]]))
    np.testing.assert_allclose(several, [[0.7, 0.8]])


def test_groups_are_drawn_whole() -> None:
    groups = np.array(["x", "y", "x", "z", "y", "x"])
    objective = Objective(
        METRICS["accuracy"], np.zeros(6, dtype=int), ("a", "b"), np.zeros(6), groups
    )
    for seed in range(20):
        rows = objective.bootstrap(np.random.default_rng(seed))
        counts = np.bincount(rows, minlength=6)
        assert counts[0] == counts[2] == counts[5]
        assert counts[1] == counts[4]
        assert counts[0] + counts[1] + counts[3] == 3


def test_rows_are_drawn_with_replacement() -> None:
    objective = Objective(METRICS["accuracy"], np.zeros(9, dtype=int), ("a", "b"), np.zeros(9))
    rows = objective.bootstrap(np.random.default_rng(0))
    assert len(rows) == 9
    assert len(set(rows.tolist())) < 9
    drawn = objective.on(rows)
    assert len(drawn.targets) == len(drawn.fold_of) == 9


@given(case=multi_label())
@settings(max_examples=25, deadline=None)
def test_one_of_several_labels_is_scored_by_its_own_f1(case: tuple[np.ndarray, np.ndarray]) -> None:
    targets, probabilities = case
    classes = NAMES[: targets.shape[1]]
    whole = Objective(METRICS["macro_f1"], targets, classes, np.zeros(len(targets)))
    alone = [
        whole.label(number).value(probabilities[:, [number]]) for number in range(len(classes))
    ]
    assert np.mean(alone) == pytest.approx(whole.score(probabilities), abs=1e-12)
