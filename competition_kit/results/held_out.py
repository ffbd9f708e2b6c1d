"""Score a run's submission on the held-back labels, where the competition folder has them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from competition_kit.data.competition import Competition, encode_labels
from competition_kit.data.tables import read_table
from competition_kit.errors import InputError, examples
from competition_kit.results.metrics import find_metric
from competition_kit.results.submission import positive_class

__all__ = ["HeldOut", "held_out_targets", "score_submission"]

SOLUTION = "solution.csv"


@dataclass(frozen=True)
class HeldOut:
    """A submission's score on rows that no model and no choice has seen the labels of."""

    metric: str
    score: float
    rows: int


def score_submission(competition: Competition, submission: Path) -> HeldOut:
    """Score a submission file against `solution.csv`; the only reader of that file.

    Raises:
        InputError: if there is no solution, or the two files do not fit.
    """
    rules = competition.rules
    path = competition.folder / SOLUTION
    if not path.is_file():
        raise InputError(
            "there are no held-back labels here",
            file=path,
            remedy="hand the submission in, or split off a test part of your own",
        )
    solution = read_table(path, rules.encoding)
    handed_in = read_table(submission)
    targets = encode_labels(solution, competition, path)
    for table, file in ((solution, path), (handed_in, submission)):
        if rules.id not in table.columns:
            raise InputError(f"no column {rules.id!r}", file=file, remedy="it must have the ids")
    ids, wanted = handed_in[rules.id].tolist(), solution[rules.id].tolist()
    place = {row_id: row for row, row_id in enumerate(ids)}
    missing = [row_id for row_id in wanted if row_id not in place]
    if missing or len(place) != len(wanted) or len(ids) != len(place):
        raise InputError(
            f"its ids are not those of {SOLUTION} "
            f"({len(missing)} missing{': ' + examples(missing) if missing else ''}, "
            f"{len(ids)} rows for {len(wanted)})",
            file=submission,
            remedy="run the same run_cv.py command again to write it anew",
        )
    handed_in = handed_in.iloc[[place[row_id] for row_id in wanted]].reset_index(drop=True)
    metric = find_metric(rules.metric, competition.multi_label)
    if rules.submission == "label":
        if metric.needs_probabilities:
            raise InputError(
                f"{metric.name} needs probabilities, the submission holds labels",
                file=submission,
                remedy='say submission = "probabilities" in competition.toml',
            )
        columns = [name for name in handed_in.columns if name != rules.id]
        if len(rules.label) == 1 and len(columns) == 1:
            handed_in = handed_in.rename(columns={columns[0]: rules.label[0]})
        decisions = encode_labels(handed_in, competition, submission)
        probabilities = (
            decisions.astype(float)
            if targets.ndim == 2
            else np.eye(len(competition.classes))[decisions]
        )
    else:
        probabilities = _probabilities(competition, handed_in.drop(columns=rules.id), submission)
    return HeldOut(
        metric.name,
        metric.score(targets, probabilities, competition.classes),
        len(targets),
    )


def held_out_targets(competition: Competition) -> np.ndarray | None:
    """Return the held-back labels in the order of the test rows; None without a solution.

    Raises:
        InputError: if the solution's ids are not those of the test rows.
    """
    path = competition.folder / SOLUTION
    if not path.is_file() or not len(competition.test):
        return None
    solution = read_table(path, competition.rules.encoding)
    if competition.rules.id not in solution.columns:
        raise InputError(f"no column {competition.rules.id!r}", file=path)
    place = {row_id: row for row, row_id in enumerate(solution[competition.rules.id])}
    missing = [row_id for row_id in competition.test.ids if row_id not in place]
    if missing or len(place) != len(competition.test):
        raise InputError(
            f"its ids are not those of the test rows ({len(missing)} missing)",
            file=path,
            remedy="take the file away to go without held-out scores",
        )
    return encode_labels(solution, competition, path)[[place[i] for i in competition.test.ids]]


def _probabilities(competition: Competition, table: pd.DataFrame, path: Path) -> np.ndarray:
    try:
        if competition.rules.submission == "probability" and not competition.multi_label:
            positive = table.iloc[:, 0].to_numpy(dtype=float)
            pair = np.stack([1 - positive, positive], axis=1)
            probabilities = pair if positive_class(competition) == 1 else pair[:, ::-1]
        else:
            probabilities = table[list(competition.classes)].to_numpy(dtype=float)
        if not ((probabilities >= 0) & (probabilities <= 1)).all():
            raise ValueError("a value is not between 0 and 1")
    except (ValueError, KeyError, IndexError) as error:
        raise InputError(
            f"does not hold the probabilities of the classes ({error})",
            file=path,
            remedy="run the same run_cv.py command again to write it anew",
        ) from error
    return probabilities
