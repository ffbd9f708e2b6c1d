"""Results that are missing, damaged or of other settings are written again."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from competition_kit.files import write_json
from competition_kit.harness import upkeep
from competition_kit.harness.cells import Cell
from competition_kit.harness.run_folder import RunFolder

SETTINGS = {"rules": {}, "classes": ["a", "b"], "arm_hash": "x", "seeds": [3]}
CELLS = [{"seed": 3, "fold": "0"}, {"seed": 3, "fold": "1"}]


@pytest.mark.parametrize(
    ("metrics", "again"),
    [
        ({"metric": "accuracy", "cells": CELLS}, False),
        ({"metric": "mcc", "cells": CELLS}, True),
        ({"metric": "accuracy", "cells": CELLS[:1]}, True),
        ({}, True),
        *(
            ({"metric": "accuracy", "cells": cells}, True)
            for cells in ("x", ["a"], 7, None, [{}], [{"seed": "x", "fold": []}])
        ),
        ("{", True),
    ],
)
def test_damaged_results_are_written_again(
    metrics: Any, again: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(upkeep, "run_config", lambda *of: SETTINGS)
    folder = RunFolder(tmp_path)
    write_json(folder.config, SETTINGS)
    if isinstance(metrics, str):
        folder.metrics.write_text(metrics, encoding="utf-8")
    else:
        write_json(folder.metrics, metrics)
    cells, folds = [Cell(3, 0), Cell(3, 1)], SimpleNamespace(names=("0", "1"))
    plan: Any = SimpleNamespace(folder=folder, cells=cells, folds=folds)
    placement: Any = None
    assert upkeep.keep_up(plan, placement, "run_cv.py", "accuracy") is again
