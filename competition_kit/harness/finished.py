"""Whether a run is finished, and the one sentence for a run that is not. No torch, no pandas."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

from competition_kit.errors import InputError
from competition_kit.files import hash_json, read_json
from competition_kit.harness.cells import Cell
from competition_kit.harness.run_folder import RunFolder

__all__ = ["CELLS", "check_arm", "check_finished", "run_cells"]

CELLS = {"cells.*.seed": int, "cells.*.fold": str}  # of metrics.json, as `read_json` takes it


def check_finished(folder: RunFolder, *, cells: bool = False) -> None:
    """Check that a folder holds a run, or an ensemble, with its results.

    Args:
        cells: whether every cell must still be there, too. The results alone are enough to score,
            to compare and to blend; whoever reads models, logs or test logits needs the cells.

    Raises:
        InputError: if it is no run, or is not finished: how many cells are missing, and the
            command that computes them.
    """
    if not folder.config.is_file():
        raise InputError(
            f"is no finished run (no {folder.config.name})",
            file=folder.path,
            remedy="give a folder such as runs/tweets/all-minilm-l6-v2-fgm-1a2b3c4d",
        )
    has_results = folder.metrics.is_file()
    if has_results and not cells:
        return
    config = read_json(folder.config, {"seeds?.*": int})
    expected = run_cells(folder) if has_results else _planned(folder, config)
    missing = [cell for cell in expected if not (folder.cell(cell) / "metrics.json").is_file()]
    if missing:
        said = (
            f"{len(missing)} of {len(expected)} cells are missing, for instance {missing[0].name}"
        )
    elif not has_results:
        said = f"its results are missing (no {folder.metrics.name})"
    else:
        return
    command = config.get("command") or "python run_cv.py --data ..."
    raise InputError(
        f"the run is not finished: {said}",
        file=folder.path,
        remedy=f"run its command again, it goes on from where it was: {command}",
    )


def run_cells(folder: RunFolder) -> list[Cell]:
    """Return the cells that a run's results were made of, from its metrics.json; [] of an ensemble.

    config.json may name other seeds: a later command with other ones writes it before it trains.

    Raises:
        InputError: if they do not say seed and fold (someone edited the file).
    """
    if "arm" not in read_json(folder.config):
        return []
    written = read_json(folder.metrics, CELLS)["cells"]
    numbers = {
        fold: number for number, fold in enumerate(dict.fromkeys(c["fold"] for c in written))
    }
    return [Cell(cell["seed"], numbers[cell["fold"]]) for cell in written]


def check_arm(folder: RunFolder, config: dict[str, Any]) -> None:
    """Check that config.json's arm is the one that the run trained.

    Raises:
        InputError: if its hash is another one (someone edited it).
    """
    arm = {key: value for key, value in config["arm"].items() if key != "pseudo" or value}
    if hash_json(arm) != config["arm_hash"]:
        raise InputError(
            "its key 'arm' was changed: 'arm_hash' is of another one",
            file=folder.config,
            remedy="run the run's command again",
        )


def _planned(folder: RunFolder, config: dict[str, Any]) -> list[Cell]:
    """Return the cells of a run without results; none of an ensemble, or where that is not known."""
    if "arm" not in config or not folder.folds.is_file():
        return []
    return [
        Cell(seed, fold)
        for seed in config.get("seeds", ())
        for fold in range(_count_folds(folder.folds))
    ]


def _count_folds(path: Path) -> int:
    with path.open(encoding="utf-8", errors="replace", newline="") as file:
        return len({row.get("fold") for row in csv.DictReader(file)})
