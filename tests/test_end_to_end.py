"""The whole way: a folder of CSVs in, scores and a submission out."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd

from competition_kit.cli import main

QUICK = ["--epochs", "1", "--folds", "3", "--workers", "1", "--lr", "1e-3", "--device", "cpu"]


def test_a_folder_becomes_a_submission(
    tmp_path: Path, competition_folder: Callable[..., Path], model_folder: Callable[[str], Path]
) -> None:
    folder = competition_folder()
    out = tmp_path / "runs"
    arguments = ["--data", str(folder), "--model", str(model_folder("bert")), "--out", str(out)]

    assert main([*arguments, "--adv", "fgm", "--seeds", "0", "1", *QUICK]) == 0

    (run,) = (out / "toy").glob("tiny-bert-fgm-*")
    sample = pd.read_csv(folder / "sample_submission.csv")
    submission = pd.read_csv(run / "submission.csv")
    assert list(submission.columns) == list(sample.columns)
    assert submission["id"].tolist() == sample["id"].tolist()
    oof = pd.read_csv(run / "oof.csv")
    train = pd.read_csv(folder / "train.csv")
    for _, rows in oof.groupby("seed"):
        assert rows["id"].tolist() == train["id"].tolist()
    assert np.allclose(oof.filter(like="p_").sum(axis=1), 1)
    assert "<html" in (run / "report.html").read_text(encoding="utf-8")
    assert main(["score", str(run)]) == 0
