"""The calibration benchmark: toy ablations of known truth, and intervals that hold on them."""

from __future__ import annotations

import gc
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from benchmarks import calibration
from benchmarks.calibration import STYLES, verdicts
from benchmarks.coverage import FALLBACK, OURS, SCENARIOS, measure
from benchmarks.toy_ablations import SCORES, Setting, draw


@pytest.fixture(autouse=True)
def little_garbage() -> Iterator[None]:
    """Make Holm's correction fast: statsmodels collects garbage in every call of it."""
    gc.freeze()
    yield
    gc.unfreeze()


class Silent:
    """A progress bar that shows nothing."""

    def update(self) -> None:
        pass


def test_toy_ablations_have_the_truth_that_they_say() -> None:
    """Exchangeable arms differ by nothing on average; a cleaner copy gains what the formula says."""
    setting = Setting(rows=200, seeds=2, arms=3, gain=0.8)
    found = [draw(setting, np.random.default_rng(number)) for number in range(120)]
    measured = np.array([one.differences.mean(axis=(1, 2)) for one in found])
    true = np.array([one.true for one in found])
    error = (measured - true).std(axis=0) / np.sqrt(len(found))
    assert (np.abs((measured - true).mean(axis=0)) < 4 * error).all()
    null_error = true[:, 1:].std(axis=0) / np.sqrt(len(found))
    assert (np.abs(true[:, 1:].mean(axis=0)) < 4 * null_error).all()
    assert true[:, 0].mean() > 0.08


def test_squared_error_has_the_truth_that_it_says() -> None:
    setting = Setting(rows=200, seeds=1, arms=1, gain=0.8, score="squared error")
    found = [draw(setting, np.random.default_rng(number)) for number in range(120)]
    apart = np.array([one.differences.mean() - one.true[0] for one in found])
    assert abs(apart.mean()) < 4 * apart.std() / np.sqrt(len(found))


def test_folds_share_rows_and_arms_share_a_baseline() -> None:
    """The dependence that independent differences would not have."""
    setting = Setting(rows=200, seeds=1, arms=2)
    found = np.array(
        [draw(setting, np.random.default_rng(number)).differences for number in range(300)]
    )
    arms = found.mean(axis=(2, 3))
    assert np.corrcoef(arms.T)[0, 1] > 0.3
    folds = found[:, 0, 0]
    correlations = np.corrcoef(folds.T)[np.triu_indices(5, 1)]
    assert correlations.mean() > 0.02


@pytest.mark.parametrize("name", SCENARIOS)
def test_each_scenario_draws_finite_numbers_the_same_each_time(name: str) -> None:
    setting = SCENARIOS[name]
    one, same = (draw(setting, np.random.default_rng(5)) for _ in range(2))
    assert one.differences.shape == (setting.arms, setting.seeds, setting.folds)
    assert np.isfinite(one.differences).all()
    np.testing.assert_array_equal(one.differences, same.differences)
    assert one.row_variances == same.row_variances
    assert all((rows is None) == (setting.seeds == 1) for rows in one.row_variances)


def test_macro_f1_is_scikit_learns() -> None:
    from sklearn.metrics import f1_score

    generator = np.random.default_rng(0)
    for rows in (1, 7, 50):
        targets, outputs = np.sign(generator.normal(size=(2, rows)))
        expected = f1_score(targets, outputs, average="macro", labels=[-1, 1], zero_division=0)
        assert SCORES["macro F1"].whole(targets, outputs) == pytest.approx(expected)


def test_groups_come_together() -> None:
    """Alike rows make scores of folds vary more than their number says."""
    setting = Setting(rows=200, seeds=2, arms=1, group=5)
    grouped, alone = [], []
    for number in range(8):
        found = draw(setting, np.random.default_rng(number)).row_variances[0]
        assert found is not None
        grouped.append(found.variance)
        one = draw(Setting(rows=200, seeds=2, arms=1), np.random.default_rng(number))
        assert one.row_variances[0] is not None
        alone.append(one.row_variances[0].variance)
    assert np.mean(grouped) > 1.1 * np.mean(alone)


@pytest.mark.parametrize(
    ("name", "least", "widest"), [("seeds", 0.90, 0.7), ("data", 0.93, 1.4), ("mixed", 0.90, 0.9)]
)
def test_intervals_hold(name: str, least: float, widest: float) -> None:
    """A few ablations, loose bounds; the plain paired t-test misses them where the data vary."""
    found = measure(name, SCENARIOS[name], 60, Silent())["methods"]
    ours = found[OURS]
    assert ours["coverage"]["value"] >= least
    assert ours["errors_after_holm"]["value"] <= 0.10
    assert ours["width_over_corrected"] <= widest
    assert found[FALLBACK]["coverage"]["value"] >= least
    if name != "seeds":
        assert found["paired t"]["coverage"]["value"] < least
        assert found["paired t"]["errors_after_holm"]["value"] > 0.10


def test_a_broken_promise_is_found() -> None:
    """Bounds are bounds: the plain paired t-test in the kit's place fails."""
    null = measure("data", SCENARIOS["data"], 25, Silent())
    assert all(check.ok for check in verdicts([null]))
    null["methods"][OURS] = null["methods"]["paired t"]
    assert {check.name for check in verdicts([null]) if not check.ok} == {
        "coverage + 2 errors",
        "verdict errors - 2 errors",
    }
    null["assumptions_hold"] = False
    assert all(check.ok for check in verdicts([null]))


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--ablations", "1"], "1 is less than 2"),
        (["--plot", "power.pdf"], "power.pdf does not end in .svg or .png"),
        (["--plot", "power.svg", "--no-power"], "measured in: seeds, data, mixed"),
        (["--plot", "power.svg", "--scenarios", "data, 1 seed"], "measured in: seeds, data, mixed"),
    ],
)
def test_what_cannot_be_measured_is_said_before_the_hours(
    flags: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        calibration.main(flags)
    assert caught.value.code == 2
    assert says in capsys.readouterr().err


def test_a_part_of_the_measurement_does_not_replace_the_whole(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(calibration, "result_path", lambda *_: pytest.fail("the published file"))
    calibration.main(["--ablations", "3", "--scenarios", "seeds", "--no-power"])
    assert "written" not in capsys.readouterr().out


def test_command_writes_figures_and_plot(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    figures, plot = tmp_path / "figures.json", tmp_path / "power.svg"
    arguments = ["--quick", "--ablations", "6", "--scenarios", "seeds"]
    code = calibration.main([*arguments, "--json", str(figures), "--plot", str(plot)])
    content = json.loads(figures.read_text(encoding="utf-8"))
    assert code == (1 if any(c["verdict"] == "FAILED" for c in content["checks"]) else 0)
    assert content["scenarios"][0]["scenario"] == "seeds"
    assert content["power"][0]["true_delta"]["value"] > 0
    assert content["environment"]["versions"]
    picture = plot.read_text(encoding="utf-8")
    for method, style in STYLES.items():
        assert picture.count(f"stroke: {style['color']}") >= 4, method
    printed = capsys.readouterr().out
    assert OURS in printed and "power, %" in printed
