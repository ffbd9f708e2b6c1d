"""Pseudo-labels of the test rows, keyed by fold so that no out-of-fold score ever sees its own rows.

The labels on which fold k's new models train come from models that did not see fold k's rows: those
of the cells of fold k itself. One set of labels from the whole ensemble would carry each row's label
into its own fold through the models that were trained on it.

Lee, "Pseudo-Label", ICML 2013 workshop: hard labels, here of the rows above a confidence.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd

from competition_kit.data.competition import slug
from competition_kit.errors import InputError
from competition_kit.harness.cells import Cell, CellResult, ExtraRows, load_cell
from competition_kit.harness.plan import Plan
from competition_kit.harness.run_folder import RunFolder
from competition_kit.results.metrics import decide, to_probabilities
from competition_kit.training.recipe import Recipe, optimizer_steps

__all__ = ["Choice", "PseudoLabels", "advice", "make_pseudo_labels", "with_pseudo_labels"]

THRESHOLDS = (0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99)  # that are looked at for advice
FEW, MANY = 0.05, 0.95  # shares of the test rows outside which a threshold is questioned
USEFUL = 0.1  # share that a better one should give at least


FoldProbabilities = tuple[np.ndarray, np.ndarray, np.ndarray]  # training rows, [n, C], [M, C]


@dataclass(frozen=True)
class Choice:
    """What a threshold gives.

    Attributes:
        rows: test rows that reach it, in the fold with the fewest.
        right: share of the training rows that reach it, out of fold, whose label it gets right;
            NaN where no row reaches it.
    """

    threshold: float
    rows: int
    right: float

    def __str__(self) -> str:
        right = "" if math.isnan(self.right) else f" ({self.right:.0%} right)"
        return f"{self.threshold:g} gives {self.rows}{right}"


@dataclass(frozen=True)
class PseudoLabels:
    """What each fold's models are given besides their training rows.

    Attributes:
        folds: for each fold, numbers [n] of test rows and their labels.
        confidences: for each fold [n].
        choices: what other thresholds would give, and this one.
    """

    folds: tuple[ExtraRows, ...]
    confidences: tuple[np.ndarray, ...]
    choices: tuple[Choice, ...]

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
    competition, multi_label = plan.competition, plan.competition.multi_label
    if not len(competition.test):
        raise InputError(
            "no test rows to label", file=competition.folder, remedy="add a test.csv with texts"
        )
    said = [_fold_probabilities(plan, fold) for fold in range(plan.folds.count)]
    sure = [_confidence(test, multi_label) for _, _, test in said]
    choices = _choices(plan, said, sure, threshold)
    kept = [np.flatnonzero(confidence >= threshold) for confidence in sure]
    if not all(map(len, kept)):
        fold = [len(rows) for rows in kept].index(0)
        raise InputError(
            f"no test row reaches --threshold {threshold:g} in fold {plan.folds.names[fold]} "
            f"(the surest has {sure[fold].max():.3f})",
            file=plan.folder.path,
            remedy=advice(choices, threshold, len(competition.test)),
        )
    return PseudoLabels(
        folds=tuple(
            ExtraRows(rows, decide(test[rows], multi_label))
            for rows, (_, _, test) in zip(kept, said, strict=True)
        ),
        confidences=tuple(confidence[rows] for rows, confidence in zip(kept, sure, strict=True)),
        choices=choices,
    )


def advice(choices: Sequence[Choice], threshold: float, rows: int) -> str:
    """Return in words what other thresholds give, and which one to try; "" where this one will do.

    Args:
        choices: with that of `threshold` itself.
        rows: number of test rows.
    """
    chosen = next(choice for choice in choices if choice.threshold == threshold)
    few = chosen.rows < FEW * rows
    if not few and chosen.rows <= MANY * rows:
        return ""
    others = [choice for choice in choices if choice is not chosen]
    table = ", ".join(map(str, others))
    useful = [choice for choice in others if max(USEFUL * rows, 1) <= choice.rows]
    if not few:
        useful = [choice for choice in useful if choice.rows <= MANY * rows][::-1]
    if useful:
        tried = f"try --threshold {useful[-1].threshold:g}"
    elif choices[-1].rows > MANY * rows:
        tried = "the models are sure of nearly every row: no threshold sorts any out"
    else:
        tried = "the models are not sure enough of these texts for pseudo-labels: train them longer"
    return f"of {rows} rows {table} (right: of such training rows, out of fold); {tried}"


def _choices(
    plan: Plan, said: Sequence[FoldProbabilities], sure: Sequence[np.ndarray], threshold: float
) -> tuple[Choice, ...]:
    """Return what some thresholds give, this one among them, lowest first."""
    competition, multi_label = plan.competition, plan.competition.multi_label
    own = np.concatenate([_confidence(valid, multi_label) for _, valid, _ in said])
    right = np.concatenate(
        [_agrees(decide(valid, multi_label), competition.targets[rows]) for rows, valid, _ in said]
    )
    lowest = 0.5 if multi_label else 1 / len(competition.classes)  # every row reaches it
    values = {value for value in THRESHOLDS if value > lowest} | {threshold}
    return tuple(
        Choice(
            threshold=value,
            rows=min(int((confidence >= value).sum()) for confidence in sure),
            right=float(right[own >= value].mean()) if (own >= value).any() else math.nan,
        )
        for value in sorted(values)
    )


def _confidence(probabilities: np.ndarray, multi_label: bool) -> np.ndarray:
    """Return [n]: the likeliest class's probability, or that of the label that is least certain."""
    if multi_label:
        return np.maximum(probabilities, 1 - probabilities).min(axis=1)
    return probabilities.max(axis=1)


def _agrees(labels: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Return [n] whether a row's label, or all of its labels, are right."""
    return (labels == targets).reshape(len(labels), -1).all(axis=1)


def _fold_probabilities(plan: Plan, fold: int) -> FoldProbabilities:
    """Return a fold's training rows, and what its models say of them and of the test rows.

    The models of a fold saw neither; their probabilities are averaged over seeds.
    """
    results = [_result(plan, Cell(seed, fold)) for seed in plan.seeds]
    multi_label = plan.competition.multi_label
    valid, test = (
        np.mean([to_probabilities(logits, multi_label) for logits in layers], axis=0)
        for layers in (
            [result.valid_logits for result in results],
            [result.test_logits for result in results],
        )
    )
    return results[0].valid_rows, valid, test


def _result(plan: Plan, cell: Cell) -> CellResult:
    result = load_cell(plan.folder.cell(cell), plan.arm, cell)
    if result is None:
        raise InputError(
            f"{cell.name} is missing, or belongs to other data or settings",
            file=plan.folder.path,
            remedy="run its command (config.json has it) again",
        )
    return result


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
