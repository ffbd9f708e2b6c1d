"""Tables of probabilities: oof.csv (each training row, once for each seed), test_predictions.csv."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from competition_kit.data.competition import Competition
from competition_kit.data.folds import Folds
from competition_kit.data.tables import read_table
from competition_kit.errors import InputError

__all__ = ["oof_table", "prediction_table", "read_oof", "split_labels", "targets_of"]


def oof_table(
    competition: Competition, folds: Folds, seeds: Sequence[int], oof: np.ndarray
) -> pd.DataFrame:
    """Return id, fold, seed, label, p_<class>... for probabilities [S, N, C].

    Several labels of a row stand in one cell, joined by a sign that no class name holds.
    """
    fold_names = np.array(folds.names, dtype=object)[folds.fold_of]
    classes = np.array(competition.classes, dtype=object)
    if competition.multi_label:
        sign = _separator(competition.classes)
        labels = [sign.join(classes[row.astype(bool)]) for row in competition.targets]
    else:
        labels = classes[competition.targets].tolist()
    layers = []
    for seed, layer in zip(seeds, oof, strict=True):
        table = pd.DataFrame(
            {"id": competition.train.ids, "fold": fold_names, "seed": seed, "label": labels}
        )
        probabilities = pd.DataFrame(layer, columns=pd.Index([f"p_{name}" for name in classes]))
        layers.append(pd.concat([table, probabilities], axis=1))
    return pd.concat(layers, ignore_index=True)


def prediction_table(
    ids: Sequence[str], classes: Sequence[str], probabilities: np.ndarray
) -> pd.DataFrame:
    """Return id, p_<class>... for probabilities [N, C], as in test_predictions.csv."""
    table = pd.DataFrame(probabilities, columns=pd.Index([f"p_{name}" for name in classes]))
    table.insert(0, "id", np.array(ids, dtype=object))
    return table


def read_oof(path: Path, classes: Sequence[str], *others: str) -> pd.DataFrame:
    """Read a run's oof.csv as text.

    Args:
        others: columns that are wanted besides id, seed, label and the classes' probabilities.

    Raises:
        InputError: if the file is missing or damaged, or lacks a column.
    """
    table = read_table(path)
    wanted = ("id", "seed", "label", *others, *(f"p_{name}" for name in classes))
    if missing := set(wanted) - set(table.columns):
        raise InputError(
            f"no column {min(missing)!r}", file=path, remedy="run the command that made it again"
        )
    return table


def targets_of(labels: Iterable[str], classes: Sequence[str], multi_label: bool) -> np.ndarray:
    """Return [N] class numbers, or [N, C] zeros and ones, from cells of the label column."""
    numbers = {name: number for number, name in enumerate(classes)}
    if not multi_label:
        return np.array([numbers[label] for label in labels], dtype=np.int64)
    cells = list(labels)
    targets = np.zeros((len(cells), len(classes)), dtype=np.int64)
    for row, cell in enumerate(cells):
        targets[row, [numbers[name] for name in split_labels(cell, classes)]] = 1
    return targets


def split_labels(cell: str, classes: Sequence[str]) -> list[str]:
    """Return the labels of one cell of the label column of a multi-label oof.csv."""
    return [name for name in cell.split(_separator(classes)) if name]


def _separator(classes: Sequence[str]) -> str:
    return next(sign for sign in "|;/\t\x1f" if not any(sign in name for name in classes))
