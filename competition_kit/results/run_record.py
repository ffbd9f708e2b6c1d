"""A finished run as an arm: what its files say, seed by seed."""

from __future__ import annotations

import statistics
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from competition_kit.data.tables import find_table, read_table
from competition_kit.errors import InputError, examples
from competition_kit.files import read_json
from competition_kit.harness.cells import pass_units
from competition_kit.harness.finished import check_finished
from competition_kit.harness.run_folder import RunFolder
from competition_kit.results.ablation import ArmRecord, Labels
from competition_kit.results.metrics import Metric, find_metric
from competition_kit.results.oof import read_oof, targets_of

__all__ = ["RunRecord", "paired_records", "read_run"]


class RunRecord:
    """A run's out-of-fold predictions for every seed.

    Attributes:
        ids: [N] in the order of oof.csv; fold_names: [N] fold of each row.
        targets: [N] class numbers or [N, C] zeros and ones.
        oof: seed -> [N, C] probabilities.
    """

    def __init__(self, folder: RunFolder) -> None:
        self.folder = folder
        self.config: dict[str, Any] = read_json(folder.config)
        self.metrics: dict[str, Any] = read_json(folder.metrics)
        self.classes = tuple(self.config["classes"])
        self.multi_label = self.config["rules"]["task"] == "multi_label"
        self.metric: Metric = find_metric(self.metrics["metric"], self.multi_label)
        table = read_oof(folder.oof, self.classes, "fold")
        names = [f"p_{name}" for name in self.classes]
        self.oof: dict[int, np.ndarray] = {}
        for seed, layer in table.groupby("seed", sort=False):
            self.oof[int(str(seed))] = layer[names].to_numpy(dtype=float)
        first = table[table["seed"] == table["seed"].iloc[0]]
        self.ids = first["id"].tolist()
        self.fold_names = first["fold"].to_numpy(dtype=object)
        self.targets = targets_of(first["label"], self.classes, self.multi_label)

    def groups(self) -> np.ndarray | None:
        """Return the group of each row, where the folds keep groups together.

        Raises:
            InputError: if the competition folder, which has them, is gone, or has other rows now.
        """
        cv = self.config["rules"]["cv"]
        if cv["scheme"] not in ("group", "stratified_group"):
            return None
        data = Path(self.config["competition_folder"])
        path = find_table(data, "train")
        if path is None:
            raise InputError(
                "the competition folder is gone, and with it the groups of the rows",
                file=data,
                remedy="put it back: rows of a group must be resampled together",
            )
        rules = self.config["rules"]
        table = read_table(path, rules["encoding"])
        known = {rules["id"], cv["group"]} <= set(table.columns)
        groups = dict(zip(table[rules["id"]], table[cv["group"]], strict=True)) if known else {}
        if missing := [row_id for row_id in self.ids if row_id not in groups]:
            raise InputError(
                f"has no group for rows of {self.folder.path}: {examples(missing)}",
                file=path,
                remedy="put the run's own data back: rows of a group must be resampled together",
            )
        return np.array([groups[row_id] for row_id in self.ids])

    def record(self, seeds: tuple[int, ...], fold_of: np.ndarray) -> ArmRecord:
        """Return the arm with some of its seeds."""
        oof = np.stack([self.oof[seed] for seed in seeds])
        scores = [
            [
                self.metric.score(self.targets[rows], layer[rows], self.classes)
                for rows in (np.flatnonzero(fold_of == fold) for fold in np.unique(fold_of))
            ]
            for layer in oof
        ]
        cells = self.metrics.get("cells", [])
        arm = self.config.get("arm", {})
        epochs = arm.get("training", {}).get("epochs", 1)
        return ArmRecord(
            name=self.folder.path.name,
            spec=", ".join(part for part in (arm.get("strategy"), arm.get("tricks")) if part),
            folder=self.folder.path.name,
            seeds=seeds,
            scores=np.array(scores),
            oof=oof,
            test=np.zeros((len(seeds), 0, len(self.classes))),
            passes=pass_units(self.metrics["passes"]) * epochs if cells else np.nan,
            seconds=_median([cell["fit_seconds"] for cell in cells]),
            cpu_seconds=_median([cell.get("fit_cpu_seconds", np.nan) for cell in cells]),
            peak_memory_mb=max((cell["peak_memory_mb"] for cell in cells), default=np.nan),
        )


def read_run(path: Path) -> RunRecord:
    """Read a finished run of the kit.

    Raises:
        InputError: if it is none.
    """
    folder = RunFolder(path)
    check_finished(folder)
    if not folder.oof.is_file():
        raise InputError(
            f"its out-of-fold predictions are missing (no {folder.oof.name})",
            file=path,
            remedy="run its command again, which writes them",
        )
    return RunRecord(folder)


def paired_records(ours: RunRecord, baseline: RunRecord) -> tuple[ArmRecord, ArmRecord, Labels]:
    """Return two runs with the seeds that both have, and what their rows are held against.

    Raises:
        InputError: if rows, folds, classes or metric differ, or no seed is in both.
    """
    path = ours.folder.path
    if ours.classes != baseline.classes or ours.metric.name != baseline.metric.name:
        raise InputError(
            f"its classes or metric ({ours.metric.name}) are not those of {baseline.folder.path}",
            file=path,
            remedy="compare runs of one competition and one --metric",
        )
    place = {row_id: row for row, row_id in enumerate(baseline.ids)}
    differing = [
        row_id
        for row_id, fold in zip(ours.ids, ours.fold_names, strict=True)
        if row_id not in place or baseline.fold_names[place[row_id]] != fold
    ]
    if differing or len(ours.ids) != len(place):
        raise InputError(
            f"its folds are not those of {baseline.folder.path}: {len(differing)} of "
            f"{len(ours.ids)} rows differ ({examples(differing)})",
            file=path,
            remedy="run both with the same --data, --scheme and --folds",
        )
    seeds = tuple(seed for seed in ours.oof if seed in baseline.oof)
    if not seeds:
        raise InputError(
            f"no seed in common with {baseline.folder.path} "
            f"({list(ours.oof)} and {list(baseline.oof)})",
            file=path,
            remedy="run one of them again with the other's --seeds",
        )
    order = np.array([place[row_id] for row_id in ours.ids])
    _, fold_of = np.unique(ours.fold_names.astype(str), return_inverse=True)
    own = ours.record(seeds, fold_of)
    back = np.empty_like(fold_of)
    back[order] = fold_of
    other = baseline.record(seeds, back)
    return (
        own,
        replace(other, oof=other.oof[:, order]),
        Labels(
            train=ours.targets,
            held_out=None,
            fold_of=fold_of,
            groups=ours.groups(),
            folds_are_sources=ours.config["rules"]["cv"]["scheme"] == "predefined",
            classes=ours.classes,
        ),
    )


def _median(values: list[float]) -> float:
    return statistics.median(values) if values else np.nan
