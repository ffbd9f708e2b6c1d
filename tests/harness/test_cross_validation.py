"""Out-of-fold scores hold each row once for each seed, or there are none."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from competition_kit.cli import main
from competition_kit.errors import KitError
from competition_kit.harness import cross_validation

from .stored import train, write_competition

Arrays = dict[str, np.ndarray]


def without_its_last_row(arrays: Arrays) -> None:
    for name in ("valid_rows", "valid_logits"):
        arrays[name] = arrays[name][:-1]


def with_a_row_twice(arrays: Arrays) -> None:
    for name in ("valid_rows", "valid_logits"):
        arrays[name] = np.concatenate([arrays[name], arrays[name][:1]])


def with_a_row_instead_of_another(arrays: Arrays) -> None:
    arrays["valid_rows"][0] = arrays["valid_rows"][1]


def with_a_row_of_the_other_fold(arrays: Arrays) -> None:
    rows = arrays["valid_rows"]
    rows[0] = min(set(range(24)) - set(rows.tolist()))


def with_a_score_that_is_none(arrays: Arrays) -> None:
    arrays["valid_logits"][2, 0] = np.inf


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (without_its_last_row, "rows are 1 not predicted;"),
        (with_a_row_twice, "rows are 1 predicted more than once;"),
        (with_a_row_instead_of_another, "rows are 1 not predicted, 1 predicted more than once;"),
        (with_a_row_of_the_other_fold, "rows are 1 not predicted, 1 of other folds;"),
        (with_a_score_that_is_none, "rows are 1 with scores that are not finite;"),
    ],
)
def test_rows_that_are_not_there_once_give_no_scores(
    tmp_path: Path,
    model_folder: Callable[[str], Path],
    capsys: pytest.CaptureFixture[str],
    damage: Callable[[Arrays], None],
    said: str,
) -> None:
    data, model, out = write_competition(tmp_path / "toy"), model_folder("bert"), tmp_path / "runs"
    run = train(data, model, out, keep=False)
    before = (run / "oof.csv").read_bytes()
    cell = run / "cells" / "seed0-fold1"
    with np.load(cell / "predictions.npz") as stored:
        arrays = dict(stored)
    damage(arrays)
    np.savez(cell / "predictions.npz", **arrays)
    (run / "metrics.json").unlink()
    capsys.readouterr()

    arguments = ["--data", str(data), "--model", str(model), "--out", str(out)]
    arguments += ["--epochs", "1", "--folds", "2", "--workers", "1", "--device", "cpu"]
    assert main(arguments) == 1

    output, error = capsys.readouterr()
    assert output == ""
    line = error.splitlines()[-1]
    assert line.startswith(f"error: {cell}: each row of fold 1 must be predicted once, but {said}")
    assert "remove this folder and run the same command again" in line
    assert (run / "oof.csv").read_bytes() == before
    assert not (run / "metrics.json").exists()


@pytest.mark.parametrize(
    ("damage", "said"),
    [(with_a_row_twice, "1 predicted more than once"), (without_its_last_row, "1 not predicted")],
)
def test_what_an_ablation_gathers_is_checked_too(
    tmp_path: Path,
    model_folder: Callable[[str], Path],
    monkeypatch: pytest.MonkeyPatch,
    damage: Callable[[Arrays], None],
    said: str,
) -> None:
    gather, given = cross_validation.gather, []

    def noted(*arguments: Any, **more: Any) -> cross_validation.CVResult:
        given.append(arguments)
        return gather(*arguments, **more)

    monkeypatch.setattr(cross_validation, "gather", noted)
    data = write_competition(tmp_path / "toy")
    train(data, model_folder("bert"), tmp_path / "runs", keep=False)
    ((plan, metric, results, floor),) = given
    last = plan.cells[-1]
    arrays = {name: getattr(results[last], name) for name in ("valid_rows", "valid_logits")}
    damage(arrays)

    assert gather(plan, metric, results, floor).oof.shape == (1, 24, 3)
    with pytest.raises(KitError, match=f"fold 1 must be predicted once, but rows are {said};"):
        gather(plan, metric, {**results, last: replace(results[last], **arrays)}, floor)
