"""oof.csv: every training row once for each seed, with its fold, label and probabilities."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from competition_kit.data.competition import Competition
from competition_kit.data.folds import Folds

__all__ = ["oof_table", "split_labels"]


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


def split_labels(cell: str, classes: Sequence[str]) -> list[str]:
    """Return the labels of one cell of the label column of a multi-label oof.csv."""
    return [name for name in cell.split(_separator(classes)) if name]


def _separator(classes: Sequence[str]) -> str:
    return next(sign for sign in "|;/\t\x1f" if not any(sign in name for name in classes))
