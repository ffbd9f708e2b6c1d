"""One arm from its plan to the files of its run: out-of-fold scores, test predictions, submission."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from competition_kit.data.competition import Competition
from competition_kit.data.folds import write_folds
from competition_kit.errors import KitError
from competition_kit.files import write_csv, write_json
from competition_kit.harness.cells import Cell, CellResult
from competition_kit.harness.engines.local import Placement
from competition_kit.harness.plan import Plan
from competition_kit.harness.provenance import run_config
from competition_kit.harness.running import Task, run_tasks
from competition_kit.harness.upkeep import holds, keep_settings, written_seeds
from competition_kit.results.metrics import Metric, find_metric, to_probabilities
from competition_kit.results.oof import oof_table, prediction_table
from competition_kit.results.submission import make_submission

__all__ = [
    "CVResult",
    "cell_score",
    "cross_validate",
    "gather",
    "mean_and_sd",
    "prepare_run",
    "write_results",
]

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class CVResult:
    """What cross-validation found out.

    Attributes:
        oof: [S, N, C] out-of-fold probabilities, one layer for each seed.
        test: [M, C] mean over seeds and folds of the test probabilities.
        fold_scores: [S, K].
        oof_scores: [S] pooled over all rows of a seed.
        oof_of_mean: pooled score of the OOF probabilities averaged over seeds.
        cells: per cell, as read or computed.
        computed: the cells that this call had to compute.
        floor_scores: [K], floor_oof: the same scores of the TF-IDF floor.
    """

    metric: Metric
    oof: np.ndarray
    test: np.ndarray
    fold_scores: np.ndarray
    oof_scores: np.ndarray
    oof_of_mean: float
    cells: dict[Cell, CellResult]
    computed: tuple[Cell, ...]
    floor_scores: np.ndarray
    floor_oof: float

    @property
    def mean(self) -> float:
        """Mean score over all cells where it is defined."""
        return mean_and_sd(self.fold_scores)[0]

    @property
    def sd(self) -> float:
        """Standard deviation over folds (of the means over seeds), n - 1 in the denominator."""
        return mean_and_sd(self.fold_scores.mean(axis=0))[1]


def mean_and_sd(scores: np.ndarray) -> tuple[float, float]:
    """Return mean and standard deviation (n - 1) of the scores that are defined, else NaN."""
    defined = scores[np.isfinite(scores)]
    return (
        float(defined.mean()) if len(defined) else math.nan,
        float(defined.std(ddof=1)) if len(defined) > 1 else math.nan,
    )


def cross_validate(
    plan: Plan,
    placement: Placement,
    floor: Callable[[], np.ndarray],
    *,
    save_models: bool = False,
    fresh: bool = False,
    command: str = "",
    on_step: Callable[[Cell, int], None] = lambda cell, step: None,
    on_cell: Callable[[Cell, float, bool], None] = lambda cell, score, computed: None,
) -> CVResult:
    """Compute the cells that are missing, then write the run's results.

    Must be called with the run folder locked.

    Args:
        floor: returns the floor's out-of-fold probabilities [N, C] (`floor_probabilities`); asked
            when all cells are there.
        save_models: keep each cell's weights (cells without them are computed again).
        fresh: compute earlier cells of this plan again, one by one.
        on_step: a cell's optimizer steps so far; `on_cell`: its score, and whether it was computed
            now (True) or read (False).

    Raises:
        KitError: what a cell raised, after the cells that were already running have been saved; or
            if a cell's predictions are not those of its fold's rows, each once.
    """
    competition = plan.competition
    metric = find_metric(competition.rules.metric, competition.multi_label)
    # a metric that cannot be computed says so here, before hours are spent
    metric.score(competition.targets, _random_probabilities(competition), competition.classes)
    results: dict[Cell, CellResult] = {}
    computed: list[Cell] = []
    failures: list[BaseException] = []
    prepared = False

    def admit(task: Task) -> bool:
        nonlocal prepared
        if not failures and not prepared:
            prepare_run(plan, placement, command)
            prepared = True
        return not failures

    for task, outcome, now in run_tasks(
        [Task(plan, cell) for cell in plan.cells],
        placement,
        save_models=save_models,
        fresh=fresh,
        on_step=lambda task, step: on_step(task.cell, step),
        admit=admit,
    ):
        if isinstance(outcome, BaseException):
            failures.append(outcome)
            continue
        _check_rows(plan, task.cell, outcome)
        results[task.cell] = outcome
        if now:
            computed.append(task.cell)
        on_cell(task.cell, cell_score(metric, competition, outcome), now)
    if failures:
        raise failures[0]
    gathered = gather(plan, metric, results, floor(), computed=tuple(computed))
    if not prepared:
        keep_settings(plan, placement, command)
    write_results(plan, gathered, anew=prepared)
    return gathered


def _random_probabilities(competition: Competition) -> np.ndarray:
    """Return probabilities [N, C] as a model might give them."""
    rows, classes = len(competition.train), len(competition.classes)
    generator = np.random.default_rng(0)
    if competition.multi_label:
        return generator.random((rows, classes))
    return generator.dirichlet(np.ones(classes), size=rows)


def prepare_run(plan: Plan, placement: Placement, command: str) -> None:
    """Write a run's folds and settings, which say who computes its cells."""
    write_json(plan.folder.config, run_config(plan, placement, command))
    write_folds(plan.folder.folds, plan.competition, plan.folds)


def cell_score(metric: Metric, competition: Competition, result: CellResult) -> float:
    """Return the score of a cell's fold."""
    probabilities = to_probabilities(result.valid_logits, competition.multi_label)
    return metric.score(competition.targets[result.valid_rows], probabilities, competition.classes)


def gather(
    plan: Plan,
    metric: Metric,
    results: Mapping[Cell, CellResult],
    floor: np.ndarray,
    *,
    computed: tuple[Cell, ...] = (),
) -> CVResult:
    """Put the cells' predictions together; each training row exactly once for each seed.

    Raises:
        KitError: if a cell's predictions are not those of its fold's rows, each once.
    """
    competition = plan.competition
    shape = (len(plan.seeds), len(competition.train), len(competition.classes))
    oof = np.full(shape, np.nan)
    scores = np.full((len(plan.seeds), plan.folds.count), np.nan)
    test = np.zeros((len(competition.test), len(competition.classes)))
    for cell in plan.cells:
        result, layer = results[cell], plan.seeds.index(cell.seed)
        _check_rows(plan, cell, result)
        oof[layer, result.valid_rows] = to_probabilities(
            result.valid_logits, competition.multi_label
        )
        scores[layer, cell.fold] = cell_score(metric, competition, result)
        test += to_probabilities(result.test_logits, competition.multi_label) / len(plan.cells)
    if np.isnan(scores).any():
        log.warning(
            "%s is undefined in %d of %d cells (a class is missing there): the mean is over the rest",
            metric.name,
            int(np.isnan(scores).sum()),
            scores.size,
        )
    targets, classes = competition.targets, competition.classes
    return CVResult(
        metric=metric,
        oof=oof,
        test=test,
        fold_scores=scores,
        oof_scores=np.array([metric.score(targets, layer, classes) for layer in oof]),
        oof_of_mean=metric.score(targets, oof.mean(axis=0), classes),
        cells={cell: results[cell] for cell in plan.cells},
        computed=computed,
        floor_scores=np.array(
            [
                metric.score(targets[rows], floor[rows], classes)
                for rows in map(plan.folds.validation, range(plan.folds.count))
            ]
        ),
        floor_oof=metric.score(targets, floor, classes),
    )


def _check_rows(plan: Plan, cell: Cell, result: CellResult) -> None:
    """Check that a cell predicts the rows of its fold, each once: folds share no row."""
    rows, expected = result.valid_rows, plan.folds.validation(cell.fold)
    wrong = {
        "not predicted": len(np.setdiff1d(expected, rows)),
        "predicted more than once": len(rows) - len(np.unique(rows)),
        "of other folds": len(np.setdiff1d(rows, expected)),
        "with scores that are not finite": int((~np.isfinite(result.valid_logits)).any(1).sum()),
    }
    if any(wrong.values()):
        counts = ", ".join(f"{count} {what}" for what, count in wrong.items() if count)
        raise KitError(
            f"{plan.folder.cell(cell)}: each row of fold {plan.folds.names[cell.fold]} must be "
            f"predicted once, but rows are {counts}; remove this folder and run the same command "
            "again"
        )


def write_results(plan: Plan, outcome: CVResult, *, anew: bool = True) -> None:
    """Write a run's predictions, scores and submission.

    Args:
        anew: also the files that say so already; else these stay as they are, to the last byte.
    """
    folder = plan.folder
    contents: dict[Path, pd.DataFrame | dict[str, Any]] = {**_tables(plan, outcome)}
    contents[folder.metrics] = _metrics(plan, outcome)
    stale = [path for path, content in contents.items() if anew or not holds(path, content)]
    if folder.submission in stale or folder.metrics in stale:
        folder.held_out.unlink(missing_ok=True)  # it belongs to what is replaced now
    if stale and (dropped := sorted(set(written_seeds(folder)) - set(plan.seeds))):
        log.warning(
            "%s: its results were of more seeds; they are written again without %s (their cells "
            "stay: name all seeds to have them back)",
            folder.path.name,
            ", ".join(map(str, dropped)),
        )
    for path in stale:
        content = contents[path]
        if isinstance(content, pd.DataFrame):
            write_csv(path, content)
        else:
            write_json(path, content)


def _tables(plan: Plan, outcome: CVResult) -> dict[Path, pd.DataFrame]:
    competition, folder = plan.competition, plan.folder
    tables = {folder.oof: oof_table(competition, plan.folds, plan.seeds, outcome.oof)}
    if len(competition.test):
        ids, classes = competition.test.ids, competition.classes
        tables[folder.test_predictions] = prediction_table(ids, classes, outcome.test)
        tables[folder.submission] = make_submission(competition, outcome.test)
    return tables


def _number(value: float) -> float | None:
    """Return a JSON number; null stands for "not defined"."""
    return float(value) if math.isfinite(value) else None


def _metrics(plan: Plan, outcome: CVResult) -> dict[str, Any]:
    cells = [
        {
            "seed": cell.seed,
            "fold": plan.folds.names[cell.fold],
            "score": _number(outcome.fold_scores[plan.seeds.index(cell.seed), cell.fold]),
            "fit_seconds": result.fit_seconds,
            "fit_cpu_seconds": result.fit_cpu_seconds,
            "predict_seconds": result.predict_seconds,
            "passes": result.passes,
            "shift_norm": result.shift_norm,
            "peak_memory_mb": result.peak_memory_mb,
            "device": result.device,
            "threads": result.threads,
            "rows_at_a_time": result.rows_at_a_time,
        }
        for cell, result in outcome.cells.items()
    ]
    return {
        "metric": outcome.metric.name,
        "greater_is_better": outcome.metric.greater_is_better,
        "mean": _number(outcome.mean),
        "sd": _number(outcome.sd),
        "oof": [_number(score) for score in outcome.oof_scores],
        "oof_of_mean": _number(outcome.oof_of_mean),
        "cell_seconds": sum(r.fit_seconds + r.predict_seconds for r in outcome.cells.values()),
        "passes": outcome.cells[plan.cells[0]].passes,
        "peak_memory_mb": max(result.peak_memory_mb for result in outcome.cells.values()),
        "floor": {
            "folds": [_number(score) for score in outcome.floor_scores],
            "mean": _number(mean_and_sd(outcome.floor_scores)[0]),
            "oof": _number(outcome.floor_oof),
        },
        "commits": list(dict.fromkeys(result.commit for result in outcome.cells.values())),
        "cells": cells,
    }
