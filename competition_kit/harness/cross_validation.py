"""Plan -> cells -> results: everything between the command line and the files of a run."""

from __future__ import annotations

import logging
import math
import os
import platform
import subprocess
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from competition_kit.data.competition import Competition, Rows, slug
from competition_kit.data.folds import Folds, load_or_make_folds, write_folds
from competition_kit.errors import InputError
from competition_kit.files import atomic_write, hash_json, write_csv, write_json
from competition_kit.harness.cells import (
    Arm,
    Cell,
    CellJob,
    CellResult,
    discard_cell,
    load_cell,
    save_cell,
)
from competition_kit.harness.engines.local import Placement, compute
from competition_kit.harness.run_folder import RunFolder
from competition_kit.model_source import SMALL_FILES, ModelSource
from competition_kit.results.metrics import Metric, find_metric, to_probabilities
from competition_kit.results.oof import oof_table
from competition_kit.results.submission import make_submission
from competition_kit.specs import spec_names
from competition_kit.training.recipe import Recipe, optimizer_steps

__all__ = ["CVResult", "Plan", "cross_validate", "make_plan", "mean_and_sd", "tokens_of"]

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Plan:
    """A run before it starts: what will be computed, and where it will stand.

    Attributes:
        folder: of the arm.
        encoded: file with the tokens of all training and test rows.
        steps: optimizer steps of each cell.
    """

    competition: Competition
    folds: Folds
    arm: Arm
    source: ModelSource
    seeds: tuple[int, ...]
    folder: RunFolder
    encoded: Path
    steps: dict[Cell, int]

    @property
    def cells(self) -> list[Cell]:
        return list(self.steps)


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


def make_plan(
    competition: Competition,
    source: ModelSource,
    *,
    strategy: str,
    tricks: str,
    recipe: Recipe,
    pooling: str,
    dropout: float,
    max_length: int,
    seeds: tuple[int, ...],
    out: Path,
) -> Plan:
    """Fix the folds, tokenise (or find the tokens of an earlier run), and name the arm's folder.

    Raises:
        InputError: if the settings do not fit the encoder or the data.
    """
    if max_length > source.max_length:
        raise InputError(
            f"--max-length {max_length}, but {source.name} takes {source.max_length} tokens",
            remedy=f"use --max-length {source.max_length} or less",
        )
    home = out / competition.name
    rules = competition.rules.cv
    split = hash_json([competition.data_hash, asdict(rules), _groups(competition)])[:8]
    folds = load_or_make_folds(
        home / "folds" / f"{rules.scheme}-{rules.folds}-{split}.csv", competition
    )
    arm = Arm(
        model=source.name,
        model_hash=source.hash,
        strategy=strategy,
        tricks=tricks,
        pooling=pooling,
        dropout=dropout,
        max_length=max_length,
        training=asdict(recipe),
        data_hash=competition.data_hash,
        fold_hash=folds.hash,
    )
    name = "-".join([source.short_name, *spec_names(strategy), *spec_names(tricks)])
    steps = {
        Cell(seed, fold): optimizer_steps(len(folds.training(fold)), recipe)
        for seed in seeds
        for fold in range(folds.count)
    }
    return Plan(
        competition=competition,
        folds=folds,
        arm=arm,
        source=source,
        seeds=seeds,
        folder=RunFolder(home / f"{slug(name)[:60]}-{arm.hash[:8]}"),
        encoded=tokens_of(competition, source, max_length, home),
        steps=steps,
    )


def _groups(competition: Competition) -> list[list[str]]:
    """Return what the split depends on besides the data hash."""
    columns = (competition.groups, competition.predefined)
    return [[] if column is None else column.tolist() for column in columns]


def tokens_of(competition: Competition, source: ModelSource, max_length: int, home: Path) -> Path:
    """Return the file with the tokens of the training rows, then the test rows; make it once."""
    from competition_kit.data.encoding import encode
    from competition_kit.training.model import load_tokenizer

    key = hash_json([competition.data_hash, source.hash, max_length])[:16]
    path = home / "tokens" / f"{key}.safetensors"
    if not path.is_file():
        both = Rows(
            competition.train.ids + competition.test.ids,
            competition.train.texts + competition.test.texts,
        )
        encoded = encode(load_tokenizer(source.folder), both, max_length)
        if encoded.truncated:
            log.warning(
                "%d of %d texts are longer than %d tokens and were cut; --max-length changes it",
                encoded.truncated,
                len(both),
                max_length,
            )
        encoded.save(path)
    return path


def cross_validate(
    plan: Plan,
    placement: Placement,
    floor: np.ndarray,
    *,
    save_models: bool = False,
    fresh: bool = False,
    command: str = "",
    on_step: Callable[[Cell, int], None] = lambda cell, step: None,
    on_cell: Callable[[Cell, float, bool], None] = lambda cell, score, computed: None,
) -> CVResult:
    """Compute the cells that are missing, then write the run's results.

    Must be called with the run folder locked. A finished cell is on disk before the next one is
    waited for, so that whatever stops this function loses no finished work.

    Args:
        floor: [N, C] out-of-fold probabilities of the floor (`floor_probabilities`).
        save_models: keep each cell's weights (cells without them are computed again).
        fresh: forget earlier cells of this plan.
        on_step: a cell's optimizer steps so far; `on_cell`: its score, and whether it was computed
            now (True) or read (False).
    """
    competition, folder = plan.competition, plan.folder
    write_json(folder.config, _config(plan, placement, command))
    write_folds(folder.folds, competition, plan.folds)
    if save_models:
        _keep_encoder_files(plan)
    metric = find_metric(competition.rules.metric, competition.multi_label)
    # a metric that cannot be computed says so before hours are spent
    metric.score(competition.targets, floor, competition.classes)
    results: dict[Cell, CellResult] = {}

    def finished(cell: Cell, result: CellResult, computed: bool) -> None:
        results[cell] = result
        on_cell(cell, _score(metric, competition, result), computed)

    for cell in plan.cells:
        old = None if fresh else load_cell(folder.cell(cell), plan.arm, cell)
        if old is not None and not (save_models and not _weights(folder, cell).is_file()):
            finished(cell, old, False)
        else:
            discard_cell(folder.cell(cell))
    jobs = [
        CellJob(
            cell=cell,
            arm=plan.arm,
            task=competition.rules.task,  # type: ignore[arg-type]
            classes=len(competition.classes),
            encoded=plan.encoded,
            labels=competition.targets,
            fold_of=plan.folds.fold_of,
            model_folder=plan.source.folder,
            device=placement.devices[0],
            save_model=_weights(folder, cell) if save_models else None,
        )
        for cell in plan.cells
        if cell not in results
    ]
    for cell, result in compute(jobs, placement, on_step):
        save_cell(folder.cell(cell), plan.arm, cell, result)
        finished(cell, result, True)

    outcome = _gather(plan, metric, results, tuple(job.cell for job in jobs), floor)
    _write_results(plan, outcome)
    return outcome


def _keep_encoder_files(plan: Plan) -> None:
    """Copy config and tokenizer beside the saved weights: they are of no use without them."""
    for pattern in SMALL_FILES:
        for path in plan.source.folder.glob(pattern):
            with atomic_write(plan.folder.encoder / path.name, "wb") as file:
                file.write(path.read_bytes())


def _weights(folder: RunFolder, cell: Cell) -> Path:
    return folder.cell(cell) / "model.safetensors"


def _score(metric: Metric, competition: Competition, result: CellResult) -> float:
    probabilities = to_probabilities(result.valid_logits, competition.multi_label)
    return metric.score(competition.targets[result.valid_rows], probabilities, competition.classes)


def _gather(
    plan: Plan,
    metric: Metric,
    results: dict[Cell, CellResult],
    computed: tuple[Cell, ...],
    floor: np.ndarray,
) -> CVResult:
    """Put the cells' predictions together; each training row exactly once for each seed."""
    competition = plan.competition
    shape = (len(plan.seeds), len(competition.train), len(competition.classes))
    oof = np.full(shape, np.nan)
    scores = np.full((len(plan.seeds), plan.folds.count), np.nan)
    test = np.zeros((len(competition.test), len(competition.classes)))
    for cell in plan.cells:
        result, layer = results[cell], plan.seeds.index(cell.seed)
        assert np.isnan(oof[layer, result.valid_rows]).all(), "a row was predicted twice"
        assert (plan.folds.fold_of[result.valid_rows] == cell.fold).all(), "a fold leaks"
        oof[layer, result.valid_rows] = to_probabilities(
            result.valid_logits, competition.multi_label
        )
        scores[layer, cell.fold] = _score(metric, competition, result)
        test += to_probabilities(result.test_logits, competition.multi_label) / len(plan.cells)
    assert np.isfinite(oof).all(), "a row was not predicted"
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


def _write_results(plan: Plan, outcome: CVResult) -> None:
    competition, folder = plan.competition, plan.folder
    folder.held_out.unlink(missing_ok=True)  # it belongs to the submission that is replaced now
    write_csv(folder.oof, oof_table(competition, plan.folds, plan.seeds, outcome.oof))
    if len(competition.test):
        names = [f"p_{name}" for name in competition.classes]
        table = pd.DataFrame(outcome.test, columns=pd.Index(names))
        table.insert(0, "id", np.array(competition.test.ids, dtype=object))
        write_csv(folder.test_predictions, table)
        write_csv(folder.submission, make_submission(competition, outcome.test))
    write_json(folder.metrics, _metrics(plan, outcome))


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
        "cells": cells,
    }


def _config(plan: Plan, placement: Placement, command: str) -> dict[str, Any]:
    competition = plan.competition
    return {
        "competition": competition.name,
        "competition_folder": str(competition.folder.resolve()),
        "rules": asdict(competition.rules),
        "classes": list(competition.classes),
        "train_rows": len(competition.train),
        "test_rows": len(competition.test),
        "arm": asdict(plan.arm),
        "arm_hash": plan.arm.hash,
        "seeds": list(plan.seeds),
        "placement": asdict(placement),
        "command": command,
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "versions": versions(),
        "git_commit": git_commit(),
    }


def versions() -> dict[str, str]:
    """Return the versions that numbers depend on."""
    names = ("torch", "transformers", "tokenizers", "scikit-learn", "numpy", "pandas")
    found = {"python": platform.python_version()}
    for name in names:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def git_commit() -> str | None:
    """Return the commit of the kit's own checkout, with a mark where it was changed; else None."""
    here = Path(__file__).parent
    environment = {**os.environ, "GIT_OPTIONAL_LOCKS": "0"}
    try:
        run = [
            subprocess.run(
                ["git", "-C", str(here), *arguments],
                capture_output=True,
                text=True,
                timeout=5,
                check=True,
                env=environment,
            ).stdout.strip()
            for arguments in (["rev-parse", "HEAD"], ["status", "--porcelain"])
        ]
    except (OSError, subprocess.SubprocessError):
        return None
    return run[0] + ("+changes" if run[1] else "")
