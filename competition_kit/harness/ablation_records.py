"""From an ablation's cells to what is compared: one record for each arm."""

from __future__ import annotations

import statistics
from collections.abc import Iterable

import numpy as np

from competition_kit.harness.ablation import AblationArm, Averaged, Cells, Study
from competition_kit.harness.cells import Cell, pass_units
from competition_kit.harness.cross_validation import cell_score
from competition_kit.results.ablation import ArmRecord
from competition_kit.results.metrics import Metric, to_probabilities

__all__ = ["arm_record", "averaged_record"]


def arm_record(arm: AblationArm, cells: Cells, metric: Metric) -> ArmRecord:
    """Return an arm's cells put together; what is missing is NaN."""
    plan, found = arm.plan, cells[arm]
    competition, seeds = plan.competition, plan.seeds
    classes, multi_label = len(competition.classes), competition.multi_label
    scores = np.full((len(seeds), plan.folds.count), np.nan)
    oof = np.full((len(seeds), len(competition.train), classes), np.nan)
    test = np.zeros((len(seeds), len(competition.test), classes))
    for layer, seed in enumerate(seeds):
        for fold in range(plan.folds.count):
            result = found.get(Cell(seed, fold))
            if result is None:
                test[layer] = np.nan
                continue
            scores[layer, fold] = cell_score(metric, competition, result)
            oof[layer, result.valid_rows] = to_probabilities(result.valid_logits, multi_label)
            test[layer] += to_probabilities(result.test_logits, multi_label) / plan.folds.count
    results = list(found.values())
    units = pass_units(results[0].passes) if results else np.nan
    return ArmRecord(
        name=arm.name,
        spec=", ".join(part for part in (plan.arm.strategy, plan.arm.tricks) if part),
        folder=plan.folder.path.name,
        seeds=seeds,
        scores=scores,
        oof=oof,
        test=test,
        passes=units * plan.arm.training["epochs"],
        seconds=_median(result.fit_seconds for result in results),
        cpu_seconds=_median(result.fit_cpu_seconds for result in results),
        peak_memory_mb=max((result.peak_memory_mb for result in results), default=np.nan),
        failure=str(arm.failures[0]) if arm.failures else "",
    )


def averaged_record(
    averaged: Averaged, records: dict[AblationArm, ArmRecord], study: Study
) -> ArmRecord:
    """Return the average of runs of the baseline: the first seed of each of them is one run of the result."""
    parts = [records[part] for part in averaged.parts]
    first, plan = parts[0], study.baseline.plan
    oof = np.mean([part.oof for part in parts], axis=0)
    scores = np.full(first.scores.shape, np.nan)
    for layer, fold in np.ndindex(*scores.shape):
        rows = plan.folds.validation(fold)
        if np.isfinite(oof[layer, rows]).all():
            scores[layer, fold] = study.metric.score(
                study.competition.targets[rows], oof[layer, rows], study.competition.classes
            )
    return ArmRecord(
        name=averaged.name,
        spec=first.spec,
        folder=first.folder,
        seeds=first.seeds,
        scores=scores,
        oof=oof,
        test=np.mean([part.test for part in parts], axis=0),
        passes=sum(part.passes for part in parts),
        seconds=sum(part.seconds for part in parts),
        cpu_seconds=sum(part.cpu_seconds for part in parts),
        peak_memory_mb=max(part.peak_memory_mb for part in parts),
        failure=next((part.failure for part in parts if part.failure), ""),
    )


def _median(values: Iterable[float]) -> float:
    found = list(values)
    return statistics.median(found) if found else np.nan
