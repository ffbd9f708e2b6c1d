"""`pseudo`: labels of the test rows by fold, and the run that trains on them."""

from __future__ import annotations

import json
import math
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy.special import expit, softmax

from competition_kit.approach import Approach
from competition_kit.cli import main
from competition_kit.commands.setup import set_up_again
from competition_kit.harness.pseudo_labels import Choice, advice, make_pseudo_labels
from competition_kit.harness.run_folder import RunFolder

QUICK = ["--epochs", "2", "--folds", "3", "--workers", "1", "--lr", "1e-3", "--device", "cpu"]
pytestmark = pytest.mark.usefixtures("one_core")


@pytest.fixture(autouse=True)
def _no_report(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("competition_kit.commands.cv._write_report", lambda plan: None)


@pytest.fixture
def make_run(
    competition_folder: Callable[..., Path], model_folder: Callable[[str], Path], tmp_path: Path
) -> Callable[..., Path]:
    """Return a function that cross-validates a small competition with two seeds."""

    def make(**settings: Any) -> Path:
        data = competition_folder(rows=48, test_rows=20, **settings)
        out = tmp_path / "runs"
        where = ["--data", str(data), "--model", str(model_folder("bert")), "--out", str(out)]
        assert main([*where, *QUICK, "--seeds", "0", "1"]) == 0
        return next(path.parent for path in (out / data.name).glob("*/config.json"))

    return make


def pseudo(run: Path, *arguments: str, code: int = 0) -> None:
    assert main(["pseudo", str(run), "--device", "cpu", "--workers", "1", *arguments]) == code


def found(run: Path) -> Path:
    (folder,) = run.parent.glob("*-pseudo-*")
    return folder


def table(folder: Path) -> pd.DataFrame:
    return pd.read_csv(folder / "pseudo_labels.csv", dtype={"fold": str, "id": str, "label": str})


def config(folder: Path) -> Any:
    return json.loads((folder / "config.json").read_text("utf-8"))


def fold_probabilities(run: Path, fold: int) -> np.ndarray:
    """Return [M, C]: the mean over seeds of what the models without this fold say of the test."""
    logits = [
        np.load(run / "cells" / f"seed{seed}-fold{fold}" / "predictions.npz")["test_logits"]
        for seed in (0, 1)
    ]
    multi_label = config(run)["rules"]["task"] == "multi_label"
    wide = [layer.astype(np.float64) for layer in logits]
    return np.mean([expit(x) if multi_label else softmax(x, axis=1) for x in wide], axis=0)


def test_labels_of_a_fold_are_those_of_the_models_that_did_not_see_it(
    make_run: Callable[..., Path], capsys: pytest.CaptureFixture[str]
):
    run = make_run()
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    pseudo(run, "--threshold", "0.34")
    labels, classes = table(found(run)), config(run)["classes"]
    ids = pd.read_csv(Path(config(run)["competition_folder"]) / "test.csv")["id"].tolist()
    for fold in range(3):
        probabilities = fold_probabilities(run, fold)
        sure = probabilities.max(axis=1) >= 0.34
        part = labels[labels["fold"] == str(fold)]
        assert part["id"].tolist() == [ids[row] for row in np.flatnonzero(sure)]
        assert part["label"].tolist() == [classes[c] for c in probabilities[sure].argmax(axis=1)]
        np.testing.assert_allclose(part["confidence"], probabilities[sure].max(axis=1))
    assert {path: path.read_bytes() for path in before} == before, "the first run stays as it was"
    printed = capsys.readouterr()
    assert "delta" in printed.out
    assert "did not see" in printed.err
    assert (found(run) / "submission.csv").is_file()


def test_the_new_models_train_on_more_rows_and_score_the_same_ones(make_run: Callable[..., Path]):
    run = make_run()
    pseudo(run, "--threshold", "0.34")
    first = json.loads((run / "cells/seed0-fold0/metrics.json").read_text("utf-8"))
    again = json.loads((found(run) / "cells/seed0-fold0/metrics.json").read_text("utf-8"))
    rows = (table(found(run))["fold"] == "0").sum()
    assert first["optimizer_steps"] == 2 * 2, "32 rows in batches of 16, twice"
    assert again["optimizer_steps"] == 2 * int(np.ceil((32 + rows) / 16))
    one, other = (pd.read_csv(folder / "oof.csv") for folder in (run, found(run)))
    pd.testing.assert_frame_equal(one[["id", "fold", "seed"]], other[["id", "fold", "seed"]])
    assert not np.allclose(one.iloc[:, 4:], other.iloc[:, 4:])


def test_another_folds_models_do_not_reach_a_folds_labels(make_run: Callable[..., Path]):
    """Turn the test predictions of fold 1's models round: only fold 1's labels may change."""
    run = make_run()
    pseudo(run, "--threshold", "0.34")
    before = table(found(run))
    for seed in (0, 1):
        path = run / f"cells/seed{seed}-fold1/predictions.npz"
        arrays = dict(np.load(path))
        arrays["test_logits"] = -3 * arrays["test_logits"]
        np.savez_compressed(path, **arrays)
    (old,) = run.parent.glob("*-pseudo-*")
    old.rename(run.parent.parent / "elsewhere")
    pseudo(run, "--threshold", "0.34")
    after = table(found(run))
    kept, changed = (
        [part[(part["fold"] == "1") == other].reset_index(drop=True) for part in (before, after)]
        for other in (False, True)
    )
    pd.testing.assert_frame_equal(*kept)
    assert not changed[0].equals(changed[1])


@pytest.mark.parametrize("inside", [False, True])
def test_a_run_that_is_named_from_where_it_lies_is_found(
    make_run: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, inside: bool
):
    run = make_run()
    monkeypatch.chdir(run if inside else run.parent)
    pseudo(Path() if inside else Path(run.name), "--threshold", "0.34")
    assert (found(run) / "submission.csv").is_file()
    assert [path.name for path in run.parent.parent.iterdir()] == [run.parent.name]


def test_a_run_is_found_where_it_is_and_not_where_its_names_would_put_it(
    make_run: Callable[..., Path],
):
    run = make_run()
    data = Path(config(run)["competition_folder"])
    data, run = data.rename(data.with_name("moved")), run.rename(run.with_name("best"))
    before = sorted(path.name for path in (run.parent / "tokens").iterdir())
    pseudo(run, "--threshold", "0.34", "--data", str(data))
    assert found(run).name.startswith("best-pseudo-")
    assert [path.name for path in run.parent.parent.iterdir()] == [run.parent.name]
    assert sorted(path.name for path in (run.parent / "tokens").iterdir()) == before


def test_several_labels_must_all_be_sure(make_run: Callable[..., Path]):
    run = make_run(task="multi_label")
    probabilities = fold_probabilities(run, 2)
    sure = np.maximum(probabilities, 1 - probabilities).min(axis=1)
    threshold = float(np.quantile(sure, 0.3))
    pseudo(run, "--threshold", str(min(threshold, 0.5)))
    part = table(found(run))
    assert len(part[part["fold"] == "2"]) == (sure >= min(threshold, 0.5)).sum()


def test_what_cannot_be_done_is_one_line(
    make_run: Callable[..., Path], capsys: pytest.CaptureFixture[str]
):
    run = make_run()
    capsys.readouterr()

    def refused(folder: Path, *arguments: str) -> str:
        pseudo(folder, *arguments, code=2)
        return capsys.readouterr().err.strip().splitlines()[-1]

    message = refused(run, "--threshold", "0.9999")
    assert "no test row reaches --threshold 0.9999" in message
    assert "of 20 rows 0.5 gives " in message
    assert "no finished run" in refused(run.parent)
    pseudo(run, "--threshold", "0.2")  # every row reaches it
    assert re.search(r"nearly all of them .* of 20 rows 0\.5 gives \d+", capsys.readouterr().err)
    assert "itself trained on pseudo-labels" in refused(found(run))
    data = Path(config(run)["competition_folder"])
    train = pd.read_csv(data / "train.csv", dtype=str)
    train.loc[0, "text"] = "another text"
    train.to_csv(data / "train.csv", index=False)
    assert "no longer those of the run" in refused(run, "--threshold", "0.34")
    data.rename(data.with_name("moved"))
    assert "no such folder" in refused(run)
    shutil.rmtree(run / "cells" / "seed1-fold2")
    message = refused(run)
    assert "the run is not finished: 1 of 6 cells are missing, for instance seed1-fold2" in message


def choices(*given: tuple[float, int, float]) -> list[Choice]:
    return [Choice(*one) for one in given]


def test_a_threshold_that_sorts_rows_needs_no_advice():
    assert advice(choices((0.8, 60, 0.9), (0.9, 5, 0.95)), 0.9, 100) == ""
    assert advice(choices((0.5, 100, 0.7), (0.8, 95, 0.9)), 0.8, 100) == ""


def test_advice_on_few_rows_is_the_highest_threshold_that_keeps_a_tenth():
    given = choices((0.5, 90, 0.8), (0.7, 40, 0.91), (0.8, 10, 0.95), (0.9, 9, 1.0), (0.95, 4, 1.0))
    said = advice(given, 0.95, 100)
    assert said == (
        "of 100 rows 0.5 gives 90 (80% right), 0.7 gives 40 (91% right), 0.8 gives 10 (95% right), "
        "0.9 gives 9 (100% right) (right: of such training rows, out of fold); try --threshold 0.8"
    )


def test_advice_on_nearly_all_rows_is_the_lowest_threshold_that_sorts_some_out():
    given = choices((0.5, 100, 0.8), (0.8, 96, 0.9), (0.9, 90, 0.92), (0.99, 20, 0.95))
    assert advice(given, 0.5, 100).endswith("try --threshold 0.9")


def test_advice_where_no_threshold_will_do():
    unsure = choices((0.5, 2, 0.4), (0.9, 0, math.nan))
    said = advice(unsure, 0.9, 100)
    assert "0.5 gives 2 (40% right)" in said and said.endswith("train them longer")
    blunt = choices((0.2, 100, 0.4), (0.5, 2, 0.4), (0.9, 0, math.nan))
    said = advice(blunt, 0.2, 100)
    assert "0.9 gives 0 (right:" in said and said.endswith("train them longer")
    sure = choices((0.5, 100, 0.9), (0.99, 99, 0.9))
    assert advice(sure, 0.5, 100).endswith("no threshold sorts any out")


def test_advice_counts_rows_and_what_was_right(make_run: Callable[..., Path]):
    """As read from the run's own files."""
    run = make_run()
    settings = config(run)
    setup = set_up_again(RunFolder(run), settings, data=None, device="cpu")
    plan = setup.plan(Approach.of("none", ""), (0, 1))
    found = {c.threshold: c for c in make_pseudo_labels(plan, 0.35).choices}
    assert list(found) == [0.35, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99]
    fewest = min((fold_probabilities(run, fold).max(axis=1) >= 0.35).sum() for fold in range(3))
    assert found[0.35].rows == fewest
    oof = pd.read_csv(run / "oof.csv", dtype={"label": str})
    names = [f"p_{name}" for name in settings["classes"]]
    mean = oof.groupby("id", sort=False)[names].mean().to_numpy()
    truth = oof.drop_duplicates("id")["label"].to_numpy()
    reached = mean.max(axis=1) >= 0.35
    right = np.array(settings["classes"])[mean.argmax(axis=1)] == truth
    assert found[0.35].right == pytest.approx(right[reached].mean())
