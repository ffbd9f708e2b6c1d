"""Pseudo-labels of the test rows, keyed by fold so that no out-of-fold score ever sees its own rows.

The labels on which fold k's new models train come from models that did not see fold k's rows: those
of the cells of fold k itself. One set of labels from the whole ensemble would carry each row's label
into its own fold through the models that were trained on it.

Lee, "Pseudo-Label", ICML 2013 workshop: hard labels, here of the rows above a confidence.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd

from competition_kit.data.competition import slug
from competition_kit.errors import InputError
from competition_kit.harness.cells import Cell, ExtraRows, load_cell
from competition_kit.harness.plan import Plan
from competition_kit.harness.run_folder import RunFolder
from competition_kit.results.metrics import decide, to_probabilities
from competition_kit.training.recipe import Recipe, optimizer_steps

__all__ = ["PseudoLabels", "make_pseudo_labels", "with_pseudo_labels"]


@dataclass(frozen=True)
class PseudoLabels:
    """What each fold's models are given besides their training rows.

    Attributes:
        folds: for each fold, numbers [n] of test rows and their labels.
        confidences: for each fold [n].
    """

    folds: tuple[ExtraRows, ...]
    confidences: tuple[np.ndarray, ...]

    @property
    def hash(self) -> str:
        """Hash of rows and labels."""
        digest = hashlib.sha256()
        for fold in self.folds:
            for array in (fold.rows.astype(np.int64), fold.labels.astype(np.int64)):
                digest.update(str(array.shape).encode() + array.tobytes())
        return digest.hexdigest()

    def table(self, plan: Plan) -> pd.DataFrame:
        """Return fold, id, label, confidence, one line for each row of each fold."""
        competition = plan.competition
        names = np.array(competition.classes, dtype=object)
        parts = []
        for fold, extra, confidence in zip(
            plan.folds.names, self.folds, self.confidences, strict=True
        ):
            labels = (
                [" ".join(names[row.astype(bool)]) for row in extra.labels]
                if competition.multi_label
                else names[extra.labels]
            )
            ids = [competition.test.ids[row] for row in extra.rows]
            parts.append(
                pd.DataFrame({"fold": fold, "id": ids, "label": labels, "confidence": confidence})
            )
        return pd.concat(parts, ignore_index=True)


def make_pseudo_labels(plan: Plan, threshold: float) -> PseudoLabels:
    """Label the test rows of which a finished run's models are sure enough.

    Args:
        plan: of the finished run; its cells' test predictions are used, averaged over seeds.
        threshold: least probability of the likeliest class; for several labels each of them must
            be this sure of its own, one way or the other.

    Raises:
        InputError: if there are no test rows, a cell is missing, or no row is sure enough in a fold.
    """
    competition = plan.competition
    if not len(competition.test):
        raise InputError(
            "no test rows to label", file=competition.folder, remedy="add a test.csv with texts"
        )
    folds, confidences = [], []
    for fold in range(plan.folds.count):
        probabilities = np.mean(
            [_test_probabilities(plan, Cell(seed, fold)) for seed in plan.seeds], axis=0
        )
        sure = (
            np.maximum(probabilities, 1 - probabilities).min(axis=1)
            if competition.multi_label
            else probabilities.max(axis=1)
        )
        rows = np.flatnonzero(sure >= threshold)
        if not len(rows):
            raise InputError(
                f"no test row reaches --threshold {threshold:g} in fold {plan.folds.names[fold]} "
                f"(the surest has {sure.max():.3f})",
                file=plan.folder.path,
                remedy=f"use --threshold {np.quantile(sure, 0.75):.2f} for a quarter of the rows",
            )
        labels = decide(probabilities[rows], competition.multi_label)
        folds.append(ExtraRows(rows, labels))
        confidences.append(sure[rows])
    return PseudoLabels(tuple(folds), tuple(confidences))


def _test_probabilities(plan: Plan, cell: Cell) -> np.ndarray:
    result = load_cell(plan.folder.cell(cell), plan.arm, cell)
    if result is None:
        raise InputError(
            f"{cell.name} is missing, or belongs to other data or settings",
            file=plan.folder.path,
            remedy="run its command (config.json has it) again",
        )
    return to_probabilities(result.test_logits, plan.competition.multi_label)


def with_pseudo_labels(plan: Plan, labels: PseudoLabels) -> Plan:
    """Return the plan of the same arm that trains on pseudo-labelled rows, too."""
    arm = replace(plan.arm, pseudo=labels.hash)
    recipe = Recipe(**plan.arm.training)
    home: Path = plan.folder.path.parent
    base = plan.folder.path.name.removesuffix(f"-{plan.arm.hash[:8]}")
    first = len(plan.competition.train)  # test rows stand behind the training rows in the tokens
    return replace(
        plan,
        arm=arm,
        folder=RunFolder(home / f"{slug(f'{base}-pseudo')}-{arm.hash[:8]}"),
        steps={
            cell: optimizer_steps(
                len(plan.folds.training(cell.fold)) + len(labels.folds[cell.fold].rows), recipe
            )
            for cell in plan.cells
        },
        extra=tuple(replace(fold, rows=fold.rows + first) for fold in labels.folds),
    )
