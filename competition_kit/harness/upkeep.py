"""Files of a run whose cells are all there: brought up to date, its provenance left alone."""

from __future__ import annotations

import json
from typing import Any

from competition_kit.data.folds import write_folds
from competition_kit.errors import InputError
from competition_kit.files import read_json, write_json
from competition_kit.harness.engines.local import Placement
from competition_kit.harness.finished import CELLS
from competition_kit.harness.plan import Plan
from competition_kit.harness.provenance import run_config

__all__ = ["keep_up"]

# of config.json: which process computed the cells; whoever only reads them is not that process
COMPUTED_BY = ("placement", "command", "started", "versions", "machine", "git_commit")
# of config.json: what predictions, scores and submission follow from, besides the cells
DECIDED_BY = ("rules", "classes", "arm_hash", "seeds")


def keep_up(plan: Plan, placement: Placement, command: str, metric: str) -> bool:
    """Bring the settings of a run up to date that has all its cells and computes none.

    Which process computed them stays as it is in config.json; only where that file is missing does
    this process take its place.

    Returns:
        Whether the run's results have to be written: they are missing, damaged, or of other
        settings.
    """
    folder = plan.folder
    old: dict[str, Any] = read_json(folder.config) if folder.config.is_file() else {}
    new = json.loads(json.dumps(run_config(plan, placement, command)))
    new |= {key: old[key] for key in COMPUTED_BY if key in old}
    if new != old:
        write_json(folder.config, new)
        write_folds(folder.folds, plan.competition, plan.folds)
    if any(new[key] != old.get(key) for key in DECIDED_BY) or not folder.metrics.is_file():
        return True
    try:
        written = read_json(folder.metrics, {"metric": str, **CELLS})
    except InputError:
        return True
    cells = [(cell["seed"], cell["fold"]) for cell in written["cells"]]
    wanted = [(cell.seed, plan.folds.names[cell.fold]) for cell in plan.cells]
    return cells != wanted or written["metric"] != metric
