"""From flags to plans: the arithmetic that "auto" stands for is said."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import competition_kit.harness.train_cell as train_cell_module
from competition_kit.cli import main
from competition_kit.commands.setup import _precision
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
