"""Folds: every row once, groups whole, the same every time; and leaks are found."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from competition_kit.data.competition import Competition, Rows
from competition_kit.data.folds import (
    Folds,
    audit,
    load_or_make_folds,
    make_folds,
    write_folds,
)
from competition_kit.data.rules import SCHEMES, CVRules, Rules
from competition_kit.errors import InputError

STRATIFIED = ("stratified", "stratified_group", "multilabel")


def competition(
    scheme: str,
    labels: list[int] | None = None,
    *,
    folds: int = 3,
    groups: list[str] | None = None,
    predefined: list[str] | None = None,
    texts: list[str] | None = None,
    test: list[str] | None = None,
) -> Competition:
    """Return a competition in memory; class numbers as labels (bits of them: multi-label)."""
    labels = labels if labels is not None else [row % 2 for row in range(24)]
    count = len(labels)
    multi = scheme == "multilabel"
    targets = np.array([[n & 1, n >> 1 & 1] for n in labels] if multi else labels)
    return Competition(
        name="toy",
        folder=Path("toy"),
        rules=Rules(
            task="multi_label" if multi else "single_label",
            cv=CVRules(scheme, folds, "doc" if groups else None, "part" if predefined else None),
        ),
        classes=("a", "b") if multi else tuple("abcdef"[: max(labels) + 1]),
        train=Rows(
            tuple(f"i{row}" for row in range(count)),
            tuple((text,) for text in texts or [f"text {row}" for row in range(count)]),
        ),
        targets=targets,
        groups=None if groups is None else np.array(groups),
        predefined=None if predefined is None else np.array(predefined),
        test=Rows(
            tuple(f"t{row}" for row in range(len(test or ()))),
            tuple((text,) for text in test or ()),
        ),
        sample=None,
        data_hash="0",
        inferred=(),
    )


def for_scheme(scheme: str) -> Competition:
    return competition(
        scheme,
        groups=[f"d{row // 3}" for row in range(24)],
        predefined=[f"part {row % 3}" for row in range(24)],
    )


@pytest.mark.parametrize("scheme", SCHEMES)
def test_every_row_is_validated_once_and_trained_on_otherwise(scheme: str) -> None:
    folds = make_folds(for_scheme(scheme))
    assert folds.count == 3
    parts = [folds.validation(fold) for fold in range(3)]
    assert sorted(np.concatenate(parts).tolist()) == list(range(24))
    for fold, part in enumerate(parts):
        assert len(part)
        assert sorted([*part, *folds.training(fold)]) == list(range(24))


@pytest.mark.parametrize("scheme", SCHEMES)
def test_the_split_is_the_same_on_every_call(scheme: str) -> None:
    first = make_folds(for_scheme(scheme))
    np.random.seed(123)  # whoever uses the global generator does not disturb it
    again = make_folds(for_scheme(scheme))
    assert first.fold_of.tolist() == again.fold_of.tolist()
    assert first.hash == again.hash


@pytest.mark.parametrize("scheme", STRATIFIED)
def test_stratified_schemes_spread_the_classes(scheme: str) -> None:
    toy = for_scheme(scheme)
    share = toy.targets.mean(axis=0)
    folds = make_folds(toy)
    for fold in range(folds.count):
        assert np.allclose(toy.targets[folds.validation(fold)].mean(axis=0), share, atol=0.17)


def test_predefined_folds_are_taken_as_they_are() -> None:
    toy = competition("predefined", [0, 1, 0, 1], predefined=["b", "a", "10", "b"])
    folds = make_folds(toy)
    assert folds.names == ("10", "a", "b")
    assert folds.fold_of.tolist() == [2, 1, 0, 2]


def test_one_predefined_fold_is_too_few() -> None:
    with pytest.raises(InputError, match="all rows are in fold 'a'"):
        make_folds(competition("predefined", [0, 1], predefined=["a", "a"]))


@settings(max_examples=150, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 3), st.integers(0, 7)), min_size=4, max_size=60),
    st.integers(2, 5),
    st.sampled_from(["stratified", "kfold", "group", "stratified_group", "multilabel"]),
)
def test_any_layout_gives_whole_folds_or_one_clear_error(
    rows: list[tuple[int, int]], folds: int, scheme: str
) -> None:
    labels, groups = [label for label, _ in rows], [f"g{group}" for _, group in rows]
    assume(len(set(labels)) > 1)
    toy = competition(scheme, labels, folds=folds, groups=groups)
    try:
        made = make_folds(toy)
    except InputError as error:
        outcome = str(error)
    else:
        outcome = "made"
        assert np.bincount(made.fold_of, minlength=folds).min() > 0
        assert len(made.fold_of) == len(rows)
        if "group" in scheme:
            for group in set(groups):
                members = made.fold_of[np.array(groups) == group]
                assert len(set(members.tolist())) == 1, "a group is split"
    scarce = (
        len(rows) < folds
        or (scheme == "stratified" and min(np.bincount(labels)[list(set(labels))]) < folds)
        or ("group" in scheme and len(set(groups)) < folds)
    )
    if scarce:
        assert "; " in outcome, "too few rows or groups are refused with a remedy"
    elif scheme in ("stratified", "kfold", "group"):
        assert outcome == "made"


@pytest.mark.parametrize(
    ("toy", "said"),
    [
        (competition("kfold", [0, 1], folds=3), "3 folds for 2 training rows; use fewer --folds"),
        (
            competition("stratified", [0, 0, 0, 0, 1, 1], folds=3),
            "column 'label': 3 folds, but class 'b' has only 2 rows; use --folds 2 or fewer",
        ),
        (
            competition("stratified", [0, 0, 0, 0, 1], folds=2),
            "class 'b' has only 1 row; merge the class with another",
        ),
        (
            competition("stratified_group", [0, 1, 0, 1], folds=3, groups=["x", "y", "z", "w"]),
            "column 'label': 3 folds, but no class has so many rows; use --folds 2 or fewer",
        ),
        (
            competition("group", [0, 1, 0, 1], folds=3, groups=["x", "x", "y", "y"]),
            "column 'doc': 3 folds for 2 groups; use --folds 2 or fewer",
        ),
    ],
)
def test_too_few_rows_or_groups_are_refused(toy: Competition, said: str) -> None:
    with pytest.raises(InputError) as caught:
        make_folds(toy)
    assert said in str(caught.value)


def test_a_class_without_any_row_does_not_stop_the_split() -> None:
    toy = replace(competition("stratified"), classes=("a", "b", "c"))
    folds = make_folds(toy)
    assert folds.count == 3
    assert audit(toy, folds) == ["1 class with no training row: never predicted: 'c'"]


# -- the fold file ------------------------------------------------------------------------------


@pytest.mark.parametrize("scheme", SCHEMES)
def test_the_fold_file_is_written_once_and_reused(tmp_path: Path, scheme: str) -> None:
    toy, path = for_scheme(scheme), tmp_path / "folds.csv"
    made = load_or_make_folds(path, toy)
    written = path.read_bytes()
    assert written.splitlines()[0] == b"id,fold"
    read = load_or_make_folds(path, toy)
    assert path.read_bytes() == written
    assert (read.hash, read.names) == (made.hash, made.names)


def test_the_file_decides_not_the_splitter(tmp_path: Path) -> None:
    toy, path = competition("kfold", [0, 1, 0, 1], folds=2), tmp_path / "folds.csv"
    own = Folds(np.array([1, 1, 0, 0]), ("0", "1"))
    write_folds(path, toy, own)
    assert load_or_make_folds(path, toy).fold_of.tolist() == [1, 1, 0, 0]


def test_more_than_ten_folds_keep_their_numbers(tmp_path: Path) -> None:
    toy, path = competition("kfold", folds=12), tmp_path / "folds.csv"
    made, read = load_or_make_folds(path, toy), load_or_make_folds(path, toy)
    assert made.names == read.names == tuple(map(str, range(12)))
    assert made.fold_of.tolist() == read.fold_of.tolist()


@pytest.mark.parametrize(
    "content",
    [
        "id,fold\ni1,0\ni0,1\n",
        "id,fold\ni0,0\n",
        "id,part\ni0,0\ni1,1\n",
        "fold,id\n0,i0\n1,i1\n",
        "id,fold\ni0,0\nx1,1\n",
    ],
)
def test_a_fold_file_of_other_rows_is_refused(tmp_path: Path, content: str) -> None:
    path = tmp_path / "folds.csv"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(InputError, match="does not list the rows") as caught:
        load_or_make_folds(path, competition("kfold", [0, 1], folds=2))
    assert str(path) in str(caught.value)


# -- the audit ----------------------------------------------------------------------------------


def halves(count: int) -> Folds:
    """Return even rows in fold 0, odd ones in fold 1."""
    return Folds(np.arange(count) % 2, ("0", "1"))


def test_a_clean_set_has_no_findings() -> None:
    toy = competition("kfold", [0, 0, 1, 1] * 3, test=["another", "one"])
    assert audit(toy, halves(12)) == []


def test_the_same_text_in_two_folds_is_counted_with_ids() -> None:
    texts = ["A  text", "a text ", "b", "B\n", "c", "d", "straße", "e", "f", "g", "h", "STRASSE"]
    toy = competition("kfold", [0, 0, 1, 1] * 3, texts=texts)
    (finding,) = audit(toy, halves(12))
    assert "3 texts stand in more than one fold (6 rows)" in finding
    assert "'i0', 'i1'" in finding


def test_the_same_text_within_one_fold_is_no_leak() -> None:
    texts = ["same", "a", "same", "b", "same", "c", "d", "e", "f", "g", "h", "i"]
    assert audit(competition("kfold", [0, 0, 1, 1] * 3, texts=texts), halves(12)) == []


def test_a_pair_is_the_same_when_both_texts_are() -> None:
    toy = competition("kfold", [0, 0, 1, 1])
    pairs = (("a", "b"), ("a", "c"), ("x", "b"), ("A", " b "))
    toy = replace(toy, train=Rows(toy.train.ids, pairs))
    (finding,) = audit(toy, halves(4))
    assert "1 texts stand in more than one fold (2 rows), e.g. ids 'i0', 'i3'" in finding


def test_a_test_text_that_is_in_train_is_counted_with_ids() -> None:
    toy = competition("kfold", [0, 0, 1, 1] * 3, test=["Text  3", "new", "text 5", "text 5"])
    (finding,) = audit(toy, halves(12))
    assert "3 test rows have a text that is in train" in finding
    assert "'t0', 't2', 't3'" in finding


def test_a_group_in_two_folds_is_counted_with_ids() -> None:
    groups = ["p", "q", "p", "q", "r", "r", "s", "t", "u", "v", "w", "x"]
    toy = competition("kfold", [0, 0, 1, 1] * 3, groups=groups)
    (finding,) = audit(toy, halves(12))
    assert "1 groups are in more than one fold: 'r', e.g. ids 'i4', 'i5'" in finding


def test_a_rare_class_is_reported_with_ids() -> None:
    toy = competition("kfold", [0, 0, 1, 1, 0, 0, 1, 1, 0, 2, 0, 2], folds=3)
    folds = Folds(np.array([0, 1, 2] * 4), ("0", "1", "2"))
    (finding,) = audit(toy, folds)
    assert "'c' with 2 for 3 folds (ids 'i9', 'i11')" in finding


def test_a_class_that_one_fold_holds_alone_is_reported() -> None:
    toy = competition("kfold", [0, 0, 1, 0, 1, 0])
    (finding,) = audit(toy, halves(6))
    assert "never sees them: 'b' in fold 0 (ids 'i2', 'i4')" in finding


def test_rare_labels_are_found_in_multi_label_sets_too() -> None:
    toy = competition("multilabel", [1, 1, 1, 3, 0, 0])
    (finding,) = audit(toy, halves(6))
    assert "never sees them: 'b' in fold 1 (ids 'i3')" in finding


def test_all_findings_are_reported_at_once() -> None:
    toy = competition(
        "kfold",
        [0, 0, 0, 0, 1, 0],
        texts=["a", "a", "b", "c", "d", "e"],
        groups=["p", "p", "q", "r", "s", "t"],
        test=["b"],
    )
    assert len(audit(toy, halves(6))) == 4


def test_many_rare_classes_are_one_finding() -> None:
    toy = competition("kfold", [0, 0, 0, 0, *range(1, 9)])
    findings = [line for line in audit(toy, halves(12)) if "never sees them" in line]
    assert len(findings) == 1
    assert re.match(r"\d classes with rows in one fold only: ", findings[0])
    assert re.search(r" and \d more$", findings[0])
