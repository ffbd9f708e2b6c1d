"""oof.csv: what is written is read again, whatever the classes are called."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from competition_kit.data.competition import load_competition
from competition_kit.data.folds import Folds
from competition_kit.errors import InputError
from competition_kit.files import write_csv
from competition_kit.results.oof import oof_table, read_oof, targets_of

FOLDS = Folds(np.arange(20) % 2, ("0", "1"))


@pytest.mark.parametrize("task", ["single_label", "multi_label"])
@pytest.mark.parametrize("sign", ["", "|", "|;", "|;/"])
def test_labels_are_read_as_they_were_written(
    sign: str, task: str, competition_folder: Callable[..., Path], tmp_path: Path
) -> None:
    loaded = load_competition(competition_folder(task=task, rows=20))
    toy = replace(loaded, classes=tuple(f"{name}{sign}x" for name in loaded.classes))
    count = len(toy.classes)
    write_csv(tmp_path / "oof.csv", oof_table(toy, FOLDS, [3], np.full((1, 20, count), 0.5)))
    table = read_oof(tmp_path / "oof.csv", toy.classes, "fold")
    np.testing.assert_array_equal(
        targets_of(table["label"], toy.classes, toy.multi_label), toy.targets
    )


@pytest.mark.parametrize("column", ["id", "seed", "label", "fold", "p_good"])
def test_a_column_that_is_missing_is_named(
    column: str, competition_folder: Callable[..., Path], tmp_path: Path
) -> None:
    toy = load_competition(competition_folder(rows=20))
    table = oof_table(toy, FOLDS, [0], np.full((1, 20, len(toy.classes)), 0.5))
    write_csv(tmp_path / "oof.csv", table.drop(columns=column))
    with pytest.raises(InputError, match=f"oof.csv: no column '{column}'"):
        read_oof(tmp_path / "oof.csv", toy.classes, "fold")
