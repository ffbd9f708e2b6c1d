"""Whether a run is finished: one sentence, whatever is missing."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from competition_kit.commands.finished import finished_run
from competition_kit.errors import InputError
from competition_kit.files import write_json
from competition_kit.harness.cells import Cell
from competition_kit.harness.finished import run_cells
from competition_kit.harness.run_folder import RunFolder

COMMAND = "python run_cv.py --adv fgm --seeds 3 7"
CELLS = [{"seed": seed, "fold": fold} for seed in (3, 7) for fold in ("a", "b")]
Make = Callable[..., RunFolder]


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """Return a function that writes a run of two seeds and two folds."""

    def make(**changed: Any) -> RunFolder:
        folder = RunFolder(tmp_path / "run")
        config = {"arm": {}, "seeds": [3, 7], "command": COMMAND}
        write_json(folder.config, config | changed)
        folder.folds.write_text("id,fold\n1,a\n2,b\n3,a\n", encoding="utf-8")
        write_json(folder.metrics, {"cells": CELLS})
        for cell in run_cells(folder):
            write_json(folder.cell(cell) / "metrics.json", {})
        return folder

    return make


def refused(folder: RunFolder, *, cells: bool = False) -> str:
    with pytest.raises(InputError) as caught:
        finished_run(folder.path, cells=cells)
    return str(caught.value).removeprefix(f"{folder.path}: ")


def sentence(missing: int, first: str) -> str:
    return (
        f"the run is not finished: {missing} of 4 cells are missing, for instance {first}; run its "
        f"command again, it goes on from where it was: {COMMAND}"
    )


def test_a_whole_run_is_found(make: Make) -> None:
    folder = make()
    for cells in (False, True):
        assert finished_run(folder.path, cells=cells).path == folder.path


def test_cells_are_counted_before_there_are_results(make: Make) -> None:
    folder = make()
    folder.metrics.unlink()
    shutil.rmtree(folder.cell(Cell(3, 1)))
    assert refused(folder) == refused(folder, cells=True) == sentence(1, "seed3-fold1")
    shutil.rmtree(folder.path / "cells")
    assert refused(folder) == sentence(4, "seed3-fold0")


def test_results_may_be_missing_where_no_cell_is(make: Make) -> None:
    folder = make()
    folder.metrics.unlink()
    said = "the run is not finished: its results are missing (no metrics.json); run its command"
    assert refused(folder).startswith(said)
    folder.folds.unlink()  # stopped before there were any: nobody knows how many cells it wants
    assert refused(folder).startswith(said)


def test_results_are_enough_unless_cells_are_asked_for(make: Make) -> None:
    folder = make()
    (folder.cell(Cell(7, 0)) / "metrics.json").unlink()
    assert finished_run(folder.path).path == folder.path
    assert refused(folder, cells=True) == sentence(1, "seed7-fold0")


def test_the_cells_are_those_of_the_results(make: Make) -> None:
    """A later command with other seeds writes config.json before it trains."""
    folder = make(seeds=[9])
    assert finished_run(folder.path, cells=True).path == folder.path
    folder.metrics.unlink()
    assert "2 of 2 cells are missing, for instance seed9-fold0" in refused(folder)


def test_an_ensemble_has_no_cells(make: Make) -> None:
    folder = make()
    write_json(folder.config, {"kind": "ensemble", "seeds": [0]})
    write_json(folder.metrics, {})
    assert finished_run(folder.path, cells=True).path == folder.path
    folder.metrics.unlink()
    assert "its results are missing" in refused(folder)


@pytest.mark.parametrize(
    "cells",
    [
        None,
        [],
        [{}],
        [{"seed": 0}],
        [None],
        3,
        [{"seed": "x", "fold": "a"}],
        [{"seed": 0, "fold": []}],
    ],
)
def test_results_whose_cells_someone_edited(make: Make, cells: Any) -> None:
    folder = make()
    write_json(folder.metrics, {"cells": cells})
    assert finished_run(folder.path).path == folder.path, "the scores are still there"
    assert refused(folder, cells=True).startswith(f"{folder.metrics}: ")


def test_what_is_no_run(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "nowhere"):
        assert refused(RunFolder(path)).startswith("is no finished run (no config.json); give a")
