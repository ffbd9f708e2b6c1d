"""The CSV that the competition takes: columns, ids and order of its sample."""

from __future__ import annotations

import numpy as np
import pandas as pd

from competition_kit.data.competition import Competition
from competition_kit.results.metrics import decide
from competition_kit.results.submission_check import refuse_invalid

__all__ = ["label_table", "make_submission", "positive_class"]


def positive_class(competition: Competition) -> int:
    """Return the number of the class whose probability is handed in (two classes)."""
    positive = competition.rules.positive
    return 1 if positive is None else competition.classes.index(positive)


def make_submission(competition: Competition, probabilities: np.ndarray) -> pd.DataFrame:
    """Return the submission for test probabilities [M, C].

    With a sample: exactly its columns, its ids and their order. Without: id and label columns in
    the order of test.

    Raises:
        KitError: if a competition would reject it (see `submission_check`).
    """
    table = _submission(competition, probabilities)
    refuse_invalid(table, competition)
    return table


def _submission(competition: Competition, probabilities: np.ndarray) -> pd.DataFrame:
    rules = competition.rules
    if rules.submission == "label":
        table = label_table(competition, decide(probabilities, competition.multi_label))
    elif rules.submission == "probability" and not competition.multi_label:
        table = pd.DataFrame({rules.label[0]: probabilities[:, positive_class(competition)]})
    else:
        table = pd.DataFrame(probabilities, columns=pd.Index(competition.classes))
    sample = competition.sample
    if sample is None:
        table.insert(0, rules.id, np.array(competition.test.ids, dtype=object))
        return table
    values = [str(column) for column in sample.columns if column != rules.id]
    if len(values) == 1 and len(table.columns) == 1:
        table.columns = pd.Index(values)  # the column's name is the sample's choice
    place = {row_id: row for row, row_id in enumerate(competition.test.ids)}
    order = [place[row_id] for row_id in sample[rules.id]]
    table = table.iloc[order].reset_index(drop=True)
    table[rules.id] = sample[rules.id]
    assert len(table) == len(competition.test), "every test row is handed in once"
    return table[list(sample.columns)]


def label_table(competition: Competition, decisions: np.ndarray) -> pd.DataFrame:
    """Return decisions ([M] class numbers or [M, C] zeros and ones) as train.csv writes labels."""
    rules, classes = competition.rules, np.array(competition.classes, dtype=object)
    if not competition.multi_label:
        return pd.DataFrame({rules.label[0]: classes[decisions]})
    if len(rules.label) > 1:
        return pd.DataFrame(decisions, columns=pd.Index(competition.classes))
    assert rules.label_separator is not None
    names = [
        rules.label_separator.join(classes[row.astype(bool)]) or (rules.empty_label or "")
        for row in decisions
    ]
    return pd.DataFrame({rules.label[0]: names})
