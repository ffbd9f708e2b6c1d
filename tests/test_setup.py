"""From flags to plans: what "auto" stands for is said, and what has no effect is refused."""

from __future__ import annotations

import argparse
import logging
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import competition_kit.harness.train_cell as train_cell_module
from competition_kit.cli import main
from competition_kit.commands.setup import _competition, _precision
from competition_kit.harness.cells import CellJob, CellResult


@pytest.mark.parametrize(("native", "precision"), [(True, "bf16"), (False, "fp16")])
def test_a_card_without_bf16_trains_in_fp16_and_says_so(
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    native: bool,
    precision: str,
) -> None:
    def supported(including_emulation: bool = True) -> bool:
        return native or including_emulation

    monkeypatch.setattr(torch.cuda, "is_bf16_supported", supported)

    with caplog.at_level(logging.INFO):
        assert _precision("auto", "cuda:1") == precision
        assert _precision("fp16", "cuda:1") == "fp16", "what was asked for needs no remark"
        assert _precision("auto", "cpu") == "fp32"

    said = [message for message in caplog.messages if "fp16" in message]
    assert len(said) == (not native)
    assert all("--precision fp32" in message for message in said)


@pytest.mark.parametrize(
    ("flags", "ending"), [([], "x cpu"), (["--precision", "bf16"], "x cpu in bf16")]
)
def test_the_headline_names_an_arithmetic_that_is_not_the_usual_one(
    competition_folder: Callable[..., Path],
    model_folder: Callable[[str], Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    flags: list[str],
    ending: str,
) -> None:
    def stop(job: CellJob, on_step: object) -> CellResult:
        raise KeyboardInterrupt

    monkeypatch.setattr(train_cell_module, "train_cell", stop)
    command = ["cv", "--data", str(competition_folder()), "--model", str(model_folder("bert"))]
    command += ["--out", str(tmp_path / "runs"), "--workers", "1", "--device", "cpu"]

    main([*command, *flags])

    (headline,) = [x for x in capsys.readouterr().err.splitlines() if " cells on " in x]
    assert headline.endswith(ending)


@pytest.mark.parametrize("command", [["cv"], ["ablate", "--arms", "fgm"]])
@pytest.mark.parametrize("place", ["flag", "settings"])
def test_a_number_of_folds_beside_predefined_ones_is_refused(
    competition_folder: Callable[..., Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    command: list[str],
    place: str,
) -> None:
    data = competition_folder(groups=True)
    (data / "competition.toml").write_text('[cv]\nfold = "doc"\n', encoding="utf-8")
    settings = tmp_path / "settings.toml"
    settings.write_text("folds = 4\n", encoding="utf-8")
    given = ["--folds", "4"] if place == "flag" else ["--settings", str(settings)]

    assert main([*command, "--data", str(data), "--out", str(tmp_path / "runs"), *given]) == 2

    (line,) = [x for x in capsys.readouterr().err.splitlines() if x.startswith("error: ")]
    assert line.startswith(f"error: {data}: --folds 4, but its folds are predefined; leave out")
    assert not (tmp_path / "runs").exists()
    flags = argparse.Namespace(metric=None, scheme="kfold", folds=4)
    assert _competition(flags, data).rules.cv.folds == 4, "these are split anew"
