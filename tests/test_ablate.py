"""`ablate` and `compare` from the command line, on small random encoders."""

from __future__ import annotations

import contextlib
import io
import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from competition_kit.cli import main

QUICK = ["--epochs", "1", "--folds", "3", "--workers", "1", "--lr", "1e-3", "--device", "cpu"]


@pytest.fixture(autouse=True)
def _one_thread(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0}, raising=False)
    yield
    torch.set_num_threads(1)


@dataclass
class Lab:
    """A competition, an encoder, and the commands that are run on them."""

    data: Path
    model: Path
    out: Path

    def run(self, *arguments: str, code: int = 0) -> str:
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            assert main([*arguments]) == code
        return printed.getvalue()

    def ablate(self, *arguments: str, code: int = 0) -> str:
        where = ["--data", str(self.data), "--model", str(self.model), "--out", str(self.out)]
        return self.run("ablate", *where, *QUICK, *arguments, code=code)

    @property
    def folder(self) -> Path:
        (found,) = (self.out / self.data.name).glob("ablation-*")
        return found

    @property
    def content(self) -> dict[str, Any]:
        return json.loads((self.folder / "ablation.json").read_text(encoding="utf-8"))

    def arm(self, name: str) -> dict[str, Any]:
        (found,) = [arm for arm in self.content["arms"] if arm["arm"] == name]
        return found

    def run_folder(self, name: str) -> Path:
        return self.out / self.data.name / self.arm(name)["folder"]

    def scores(self, name: str, seeds: list[int]) -> np.ndarray:
        """Return [S, K] as the run's own metrics.json has them."""
        metrics = json.loads((self.run_folder(name) / "metrics.json").read_text("utf-8"))
        found = {(cell["seed"], str(cell["fold"])): cell["score"] for cell in metrics["cells"]}
        return np.array([[found[seed, fold] for fold in "012"] for seed in seeds])

    def cells(self) -> int:
        return len(list(self.out.rglob("cells/*/metrics.json")))


@pytest.fixture
def lab(
    competition_folder: Callable[..., Path], model_folder: Callable[[str], Path], tmp_path: Path
) -> Lab:
    return Lab(competition_folder(rows=48), model_folder("bert"), tmp_path / "runs")


@pytest.fixture
def _no_report(monkeypatch: pytest.MonkeyPatch) -> None:
    """Plots take a second each; the first test looks at them."""
    monkeypatch.setattr("competition_kit.commands.ablation_output.write_report", lambda folder: [])


def test_every_delta_is_the_mean_of_paired_cells_and_every_file_is_there(lab: Lab):
    printed = lab.ablate("--arms", "fgm", "ema", "--seeds", "0", "1")

    assert lab.cells() == 3 * 2 * 3 + 3 * 2, "baseline, two arms, and A/A in the baseline's folder"
    for name in ("fgm", "ema"):
        assert (lab.run_folder(name) / "submission.csv").is_file(), "each arm is an ordinary run"
        gain = lab.scores(name, [0, 1]) - lab.scores("none", [0, 1])
        arm = lab.arm(name)
        assert arm["delta"] == pytest.approx(gain.mean(), abs=1e-12)
        assert arm["wins"] == (gain > 0).sum()
        assert arm["low"] <= arm["delta"] <= arm["high"]
        assert f"{arm['delta']:+.4f}" in printed
        assert arm["sentence"]
    assert lab.arm("fgm")["cost"]["passes"] == pytest.approx(2.0)
    assert lab.arm("A/A")["seeds"] == [1000, 1001]
    assert lab.arm("A/A")["p_holm"] is None, "a control is in no family"
    assert lab.arm("fgm")["held_out_delta"] is not None, "there is a solution.csv"
    assert lab.content["design"]["complete"]
    table = pd.read_csv(lab.folder / "deltas.csv")
    assert table["arm"].tolist() == ["none", "A/A", "fgm", "ema"]
    np.testing.assert_allclose(table["delta"][2:], [lab.arm(n)["delta"] for n in ("fgm", "ema")])
    for report in ("report.html", "report.md"):
        assert "fgm" in (lab.folder / report).read_text(encoding="utf-8")


@pytest.mark.usefixtures("_no_report")
def test_again_computes_nothing_and_says_the_same_and_later_arms_are_exploratory(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
):
    lab.ablate("--arms", "fgm", "--seeds", "0", "1")
    before, deltas = lab.content, (lab.folder / "deltas.csv").read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr("competition_kit.harness.train_cell.train_cell", None)
        lab.ablate("--arms", "fgm", "--seeds", "0", "1")
    assert (lab.folder / "deltas.csv").read_bytes() == deltas
    assert lab.content["arms"] == before["arms"]

    printed = lab.ablate("--arms", "fgm", "neftune", "--seeds", "0", "1")
    assert lab.arm("neftune")["role"] == "exploratory"
    assert "neftune (exploratory)" in printed
    assert lab.arm("fgm")["p_holm"] == before["arms"][2]["p_holm"], "its family has not grown"


@pytest.mark.usefixtures("_no_report")
def test_seeds_added_after_a_look_are_announced(lab: Lab, capsys: pytest.CaptureFixture[str]):
    lab.ablate("--arms", "ema", "--seeds", "0", "1")
    assert "after a first look" not in capsys.readouterr().err
    lab.ablate("--arms", "ema", "--seeds", "0", "1", "2")
    assert "seeds 2 were added after a first look" in capsys.readouterr().err


@pytest.mark.usefixtures("_no_report")
def test_a_dry_run_prints_the_plan_and_computes_nothing(lab: Lab):
    printed = lab.ablate("--arms", "pgd", "--seeds", "0", "1", "--dry-run")
    assert lab.cells() == 0
    assert "6 of 6" in printed
    assert "3.33x" in printed, "K = 3: two more forwards, two input backwards, one backward"
    assert "smallest" in printed
    assert "expected: " in printed


@pytest.mark.usefixtures("_no_report")
def test_a_time_budget_leaves_out_what_does_not_fit_and_says_so(
    lab: Lab, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    """The clock is the test's: each look at it is a minute later, and a cell takes a minute."""
    import competition_kit.harness.ablation as module

    clock = iter(range(0, 10**6, 60))
    monkeypatch.setattr(module.time, "monotonic", lambda: float(next(clock)))
    lab.ablate("--arms", "fgm", "--seeds", "0", "1", "--time-budget", "7m")
    assert 0 < lab.cells() < 18
    design = lab.content["design"]
    assert not design["complete"]
    assert any(line.startswith("fgm: ") for line in design["missing"])
    assert "incomplete" in capsys.readouterr().err
    assert lab.arm("fgm")["pairs"] > 0, "whole pairs first"
    assert not (lab.run_folder("fgm") / "oof.csv").is_file(), "no run that is not whole"

    monkeypatch.undo()
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0}, raising=False)
    lab.ablate("--arms", "fgm", "--seeds", "0", "1")
    assert lab.content["design"]["complete"]


@pytest.mark.usefixtures("_no_report")
def test_a_time_budget_that_no_cell_fits_in_fails_and_writes_nothing(
    lab: Lab, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    import competition_kit.harness.ablation as module

    clock = iter(range(0, 10**6, 60))
    monkeypatch.setattr(module.time, "monotonic", lambda: float(next(clock)))
    lab.ablate("--arms", "ema", "--seeds", "0", "--time-budget", "1s", code=1)
    assert "time budget ran out before a cell" in capsys.readouterr().err
    assert not list(lab.out.rglob("ablation.json"))


@pytest.mark.usefixtures("_no_report")
def test_an_arm_that_fails_at_once_is_named_before_hours_are_spent(
    lab: Lab, capsys: pytest.CaptureFixture[str]
):
    lab.ablate("--arms", "fgm(epsilon=1e38)", "ema", "--seeds", "0", code=1)
    assert "fgm(epsilon=1e+38) fails in its first batches" in capsys.readouterr().err
    assert lab.cells() == 0


@pytest.mark.usefixtures("_no_report")
def test_an_arm_that_fails_later_stops_nobody(
    lab: Lab, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    from competition_kit.harness import estimate

    cost = estimate.CellCost(1.0, {"forwards": 1.0, "backwards": 1.0})
    monkeypatch.setattr(estimate, "measure_cell", lambda plan, placement: cost)
    lab.ablate("--arms", "fgm(epsilon=1e38)", "ema", "--seeds", "0")
    assert "fails and is left out" in capsys.readouterr().err
    failed = lab.arm("fgm(epsilon=1e+38)")
    assert failed["delta"] is None
    assert "not computed" in failed["sentence"]
    assert lab.arm("ema")["delta"] is not None


@pytest.mark.usefixtures("_no_report")
def test_pairs_have_an_interaction(lab: Lab):
    lab.ablate("--arms", "neftune", "fgm", "--pairs", "--seeds", "0", "1")
    (found,) = lab.content["interactions"]
    assert found["pair"] == "neftune+fgm"
    four = [lab.scores(name, [0, 1]) for name in ("neftune+fgm", "neftune", "fgm", "none")]
    extra = four[0] - four[1] - four[2] + four[3]
    assert found["delta"] == pytest.approx(extra.mean(), abs=1e-12)
    assert lab.arm("neftune+fgm")["role"] == "pair"
    assert found["sentence"]


@pytest.mark.usefixtures("_no_report")
def test_equal_compute_gives_the_baseline_the_same_budget(lab: Lab):
    printed = lab.ablate("--arms", "fgm", "--equal-compute", "--seeds", "0", "1")
    longer, averaged = lab.arm("none, 2 epochs"), lab.arm("none, 2 seeds averaged")
    assert longer["cost"]["passes"] == pytest.approx(2.0)
    assert averaged["cost"]["passes"] == pytest.approx(2.0)
    rivals = {found["against"]: found for found in lab.content["equal_compute"]}
    gain = np.array(lab.arm("fgm")["scores"]) - np.array(longer["scores"])
    assert rivals["none, 2 epochs"]["delta"] == pytest.approx(gain.mean(), abs=1e-12)
    gain = np.array(lab.arm("fgm")["scores"]) - np.array(averaged["scores"])
    assert rivals["none, 2 seeds averaged"]["delta"] == pytest.approx(gain.mean(), abs=1e-12)
    assert "at equal compute" in printed


@pytest.mark.usefixtures("_no_report")
def test_lower_is_better_turns_the_sign(lab: Lab):
    lab.ablate("--arms", "fgm", "--seeds", "0", "1", "--metric", "log_loss")
    gain = lab.scores("none", [0, 1]) - lab.scores("fgm", [0, 1])
    assert lab.arm("fgm")["delta"] == pytest.approx(gain.mean(), abs=1e-12)


@pytest.mark.usefixtures("_no_report")
def test_several_competitions_run_together(
    lab: Lab, competition_folder: Callable[..., Path], model_folder: Callable[[str], Path]
):
    other = competition_folder("labels", task="multi_label", rows=48)
    printed = lab.run(
        "ablate",
        *("--data", str(lab.data), str(other), "--model", str(lab.model), "--out", str(lab.out)),
        *QUICK,
        *("--arms", "ema", "--seeds", "0"),
    )
    for name in (lab.data.name, other.name):
        assert list((lab.out / name).glob("ablation-*/deltas.csv"))
    assert "across competitions" in printed


@pytest.mark.usefixtures("_no_report")
def test_compare_says_of_two_runs_what_the_ablation_said(lab: Lab):
    lab.ablate("--arms", "fgm", "--seeds", "0", "1")
    arm = lab.arm("fgm")
    printed = lab.run("compare", str(lab.run_folder("fgm")), str(lab.run_folder("none")))
    assert f"{arm['delta']:+.4f}" in printed
    assert f"[{arm['low']:+.4f}, {arm['high']:+.4f}]" in printed


@pytest.mark.usefixtures("_no_report")
def test_compare_refuses_runs_on_other_folds(lab: Lab, capsys: pytest.CaptureFixture[str]):
    where = ["--data", str(lab.data), "--model", str(lab.model), "--out", str(lab.out)]
    lab.run(*where, *QUICK)
    lab.run(*where, *QUICK, "--folds", "2", "--adv", "neftune")
    lab.run(*where, *QUICK, "--seeds", "5", "--adv", "neftune")
    by_folds = {
        (len(json.loads(path.read_text("utf-8"))["cells"]), path.parent)
        for path in lab.out.rglob("metrics.json")
        if "cells" not in path.parts
    }
    two = next(folder for count, folder in by_folds if count == 2)
    base = next(folder for _, folder in by_folds if "none" in folder.name)
    other = next(folder for count, folder in by_folds if count == 3 and "neftune" in folder.name)
    lab.run("compare", str(two), str(base), code=2)
    assert "rows differ" in capsys.readouterr().err
    lab.run("compare", str(other), str(base), code=2)
    assert "no seed in common" in capsys.readouterr().err
    lab.run("compare", str(base), str(base), code=2)
    assert "given twice" in capsys.readouterr().err
    lab.run("compare", str(lab.out), str(base), code=2)
    assert "no finished run" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["--arms", "none"], "nothing but the baseline"),
        (["--arms", "fgn"], "did you mean 'fgm'"),
        (["--arms", "fgm, pgd"], "2 strategies"),
        (["--seeds", "0", "1000"], "1000 or more apart"),
        (["--arms", "ema", "--name", "../elsewhere", "--seeds", "0"], "no folder name"),
        (["--arms", "awp(start_epoch=5)"], "starts after epoch 5"),
    ],
)
@pytest.mark.usefixtures("_no_report")
def test_bad_input_is_one_line(
    lab: Lab, arguments: list[str], part: str, capsys: pytest.CaptureFixture[str]
):
    lab.ablate(*arguments, code=2)
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("error: ")
    assert part in error


@pytest.mark.parametrize("value", ["8", "h", "", "0h", "8 hours"])
@pytest.mark.usefixtures("_no_report")
def test_a_time_budget_is_a_length_of_time(
    lab: Lab, value: str, capsys: pytest.CaptureFixture[str]
):
    with pytest.raises(SystemExit) as stopped:
        main(["ablate", "--time-budget", value])
    assert stopped.value.code == 2
    assert "--time-budget" in capsys.readouterr().err
