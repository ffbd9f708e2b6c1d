"""Learning curves from the cells' logs."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from competition_kit.errors import InputError

__all__ = ["Curve", "read_curve"]

POINTS = 40  # of a curve, at most: means over what lies between show more than every step


@dataclass(frozen=True)
class Curve:
    """Loss of the first (clean) pass against optimizer steps.

    Attributes:
        steps: [P], `mean`: [P] over the cells.
        cells: [R, P], one row for each cell; NaN where a cell's log has nothing.
    """

    steps: np.ndarray
    mean: np.ndarray
    cells: np.ndarray


def read_curve(run: Path, seeds: Iterable[int]) -> Curve | None:
    """Read the logs of a run folder's cells of these seeds; None where there is none.

    Raises:
        InputError: if a log is damaged.
    """
    logs = [log for seed in seeds for log in sorted(run.glob(f"cells/seed{seed}-fold*/log.jsonl"))]
    cells = [cell for log in logs if len((cell := _read_log(log))[0])]
    if not cells:
        return None
    last = max(steps[-1] for steps, _ in cells)
    points = min(POINTS, *(len(steps) for steps, _ in cells))
    edges = np.linspace(0, last, points + 1)
    means = np.array([_binned(steps, losses, edges) for steps, losses in cells])
    filled = ~np.isnan(means).all(axis=0)
    middles = (edges[:-1] + edges[1:]) / 2
    return Curve(middles[filled], np.nanmean(means[:, filled], axis=0), means[:, filled])


def _read_log(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Return steps and losses of a cell."""
    try:
        lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        steps = np.array([float(x["step"]) for x in lines])
        losses = np.array([float(x["loss"]) for x in lines])
        if not np.isfinite([steps, losses]).all() or (np.diff(steps, prepend=0) <= 0).any():
            raise ValueError("steps must rise from 1, with a loss each")
        return steps, losses
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
        raise InputError(
            f"is no log of a training ({type(error).__name__}: {error})",
            file=path,
            remedy="remove the file and write the report again, without its curve",
        ) from error


def _binned(steps: np.ndarray, losses: np.ndarray, edges: np.ndarray) -> np.ndarray:
    """Return the mean loss between each two edges (the right one included); NaN where none."""
    place = np.searchsorted(edges, steps, side="left") - 1
    counts = np.bincount(place, minlength=len(edges) - 1)
    sums = np.bincount(place, weights=losses, minlength=len(edges) - 1)
    return np.divide(sums, counts, out=np.full(len(counts), np.nan), where=counts > 0)
