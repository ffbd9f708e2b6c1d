"""Files of a run whose cells are all there: brought up to date, its provenance left alone."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from competition_kit.data.folds import write_folds
from competition_kit.data.tables import read_table
from competition_kit.errors import InputError
from competition_kit.files import read_json, write_json
from competition_kit.harness.engines.local import Placement
from competition_kit.harness.plan import Plan
from competition_kit.harness.provenance import run_config

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["holds", "keep_settings"]

# of config.json: which process computed the cells; whoever only reads them is not that process
COMPUTED_BY = ("placement", "command", "started", "versions", "machine", "git_commit")
TOLERANCE = 1e-9  # of a table's numbers: processors differ by the last bits


def keep_settings(plan: Plan, placement: Placement, command: str) -> None:
    """Bring the settings of a run up to date that has all its cells and computes none.

    Which process computed them stays as it is in config.json; only where that file is missing does
    this process take its place.
    """
    folder = plan.folder
    old: dict[str, Any] = read_json(folder.config) if folder.config.is_file() else {}
    new = json.loads(json.dumps(run_config(plan, placement, command)))
    new |= {key: old[key] for key in COMPUTED_BY if key in old}
    if new != old:
        write_json(folder.config, new)
        write_folds(folder.folds, plan.competition, plan.folds)


def holds(path: Path, content: pd.DataFrame | dict[str, Any]) -> bool:
    """Return whether a CSV or JSON file says this already; False if it is missing or damaged."""
    try:
        if isinstance(content, pd.DataFrame):
            return _same(read_table(path), content)
        return path.is_file() and read_json(path) == json.loads(json.dumps(content))
    except InputError:
        return False


def _same(texts: pd.DataFrame, table: pd.DataFrame) -> bool:
    """Return whether a table of texts is this one."""
    names = [str(name).strip() for name in table.columns]  # as `read_table` gives them
    if list(texts.columns) != names or len(texts) != len(table):
        return False
    for name, (_, column) in zip(names, table.items(), strict=True):
        if pd.api.types.is_numeric_dtype(column):
            numbers = pd.to_numeric(texts[name], errors="coerce")
            if not np.allclose(numbers, column, rtol=0, atol=TOLERANCE):
                return False
        elif texts[name].tolist() != column.astype(str).tolist():
            return False
    return True
