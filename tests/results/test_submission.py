"""Submissions: exactly the sample's columns, ids and order, whatever the order of test."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from competition_kit.data.competition import Competition, Rows, load_competition
from competition_kit.data.rules import Rules
from competition_kit.data.tables import read_table
from competition_kit.files import write_csv
from competition_kit.results.submission import label_table, make_submission, positive_class

IDS = ("007", "b", "1.0", "10")
PROBABILITIES = np.array([[0.7, 0.2, 0.1], [0.1, 0.8, 0.1], [0.2, 0.2, 0.6], [0.3, 0.4, 0.3]])


def competition(
    rules: Rules, classes: tuple[str, ...], sample: dict[str, list[str]] | None = None
) -> Competition:
    """Return a competition with the test rows `IDS`."""
    return Competition(
        name="toy",
        folder=Path("toy"),
        rules=rules,
        classes=classes,
        train=Rows((), ()),
        targets=np.zeros(0),
        groups=None,
        predefined=None,
        test=Rows(IDS, tuple(("text",) for _ in IDS)),
        sample=None if sample is None else pd.DataFrame(sample, dtype=object),
        data_hash="0",
        inferred=(),
    )


def test_labels_follow_the_sample() -> None:
    sample = {"answer": ["?"] * 4, "id": ["10", "007", "1.0", "b"]}
    toy = competition(Rules(), ("bad", "good", "so so"), sample)
    table = make_submission(toy, PROBABILITIES)
    assert list(table.columns) == ["answer", "id"]
    assert table["id"].tolist() == sample["id"]
    assert table["answer"].tolist() == ["good", "bad", "so so", "good"]


def test_without_a_sample_test_gives_the_order() -> None:
    table = make_submission(competition(Rules(id="key"), ("x", "y", "z")), PROBABILITIES)
    assert table.to_dict("list") == {"key": list(IDS), "label": ["x", "y", "z", "y"]}


@pytest.mark.parametrize(("positive", "column"), [(None, 1), ("x", 0), ("y", 1)])
@pytest.mark.parametrize("with_sample", [True, False])
def test_one_probability_is_of_the_positive_class(
    positive: str | None, column: int, with_sample: bool
) -> None:
    rules = Rules(submission="probability", positive=positive)
    sample = {"id": list(IDS[::-1]), "p": ["0.5"] * 4} if with_sample else None
    toy = competition(rules, ("x", "y"), sample)
    pair = np.stack([PROBABILITIES[:, 0], 1 - PROBABILITIES[:, 0]], axis=1)
    assert positive_class(toy) == column
    table = make_submission(toy, pair)
    expected = pair[:, column].tolist()
    if with_sample:
        assert table["p"].tolist() == expected[::-1]
    else:
        assert table["label"].tolist() == expected


def test_probabilities_stand_under_the_samples_names() -> None:
    sample = {"z": ["0"] * 4, "id": list(IDS[::-1]), "x": ["0"] * 4, "y": ["0"] * 4}
    toy = competition(Rules(submission="probabilities"), ("x", "y", "z"), sample)
    table = make_submission(toy, PROBABILITIES)
    assert list(table.columns) == ["z", "id", "x", "y"]
    assert table[["x", "y", "z"]].to_numpy().tolist() == PROBABILITIES[::-1].tolist()


MULTI = np.array([[0.9, 0.1], [0.5, 0.5], [0.2, 0.3], [0.4, 0.6]])


def test_multi_label_columns_of_zeros_and_ones() -> None:
    rules = Rules(task="multi_label", label=("hot", "cold"))
    sample = {"id": ["b", "007", "10", "1.0"], "cold": ["0"] * 4, "hot": ["0"] * 4}
    table = make_submission(competition(rules, ("hot", "cold"), sample), MULTI)
    assert list(table.columns) == ["id", "cold", "hot"]
    assert table["hot"].tolist() == [1, 1, 0, 0]
    assert table["cold"].tolist() == [1, 0, 1, 0]


def test_multi_label_probabilities_in_both_forms() -> None:
    for rules in (
        Rules(task="multi_label", label=("hot", "cold"), submission="probability"),
        Rules(task="multi_label", label_separator=" ", submission="probability"),
    ):
        sample = {"id": list(IDS), "cold": ["0"] * 4, "hot": ["0"] * 4}
        table = make_submission(competition(rules, ("hot", "cold"), sample), MULTI)
        assert table["hot"].tolist() == MULTI[:, 0].tolist()
        assert table["cold"].tolist() == MULTI[:, 1].tolist()


@pytest.mark.parametrize("empty", ["none", None])
def test_several_labels_in_one_column(empty: str | None) -> None:
    rules = Rules(task="multi_label", label=("tags",), label_separator="; ", empty_label=empty)
    sample = {"id": list(IDS), "what": ["hot"] * 4}
    table = make_submission(competition(rules, ("cold one", "hot"), sample), MULTI)
    assert table["what"].tolist() == ["cold one", "cold one; hot", empty or "", "hot"]


def test_label_tables_read_back_as_the_same_decisions(tmp_path: Path) -> None:
    """What is handed in is written as train writes it."""
    train = 'id,text,tags\n1,a,"x,y"\n2,b,none\n3,c,z\n'
    (tmp_path / "train.csv").write_text(train, encoding="utf-8")
    (tmp_path / "competition.toml").write_text(
        'label = "tags"\nlabel_separator = ","\nempty_label = "none"\n', encoding="utf-8"
    )
    toy = load_competition(tmp_path)
    assert label_table(toy, toy.targets)["tags"].tolist() == ["x,y", "none", "z"]


@settings(max_examples=50, deadline=None)
@given(st.permutations(range(4)), st.permutations(["id", "x", "y", "z", "note 5"]))
def test_any_order_of_rows_and_columns_is_kept(rows: list[int], columns: list[str]) -> None:
    """Every id keeps its own probabilities, and the file reads back as the sample's shape."""
    classes = tuple(column for column in columns if column != "id")
    sample = {name: [IDS[row] for row in rows] if name == "id" else ["0"] * 4 for name in columns}
    toy = competition(Rules(submission="probabilities"), ("note 5", "x", "y", "z"), sample)
    probabilities = np.random.default_rng(0).dirichlet(np.ones(4), size=4)
    table = make_submission(toy, probabilities)
    assert list(table.columns) == columns
    assert table["id"].tolist() == sample["id"]
    for name in classes:
        number = toy.classes.index(name)
        assert table[name].tolist() == [probabilities[row, number] for row in rows]


def test_a_written_submission_reads_back_digit_for_digit(tmp_path: Path) -> None:
    toy = competition(Rules(submission="probabilities"), ("好", "😀", "so, so"))
    probabilities = np.random.default_rng(0).dirichlet(np.ones(3), size=4)
    write_csv(tmp_path / "submission.csv", make_submission(toy, probabilities))
    table = read_table(tmp_path / "submission.csv")
    assert table["id"].tolist() == list(IDS)
    assert (table[["好", "😀", "so, so"]].astype(float).to_numpy() == probabilities).all()
