"""Finished runs with stored fold models, small and quick."""

from __future__ import annotations

import json
import os
import shutil
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from competition_kit.cli import main
from competition_kit.harness.cells import Arm

WORDS = "good great bad awful table chair river 好 坏 😀".split()


def write_competition(
    folder: Path,
    *,
    task: str = "single_label",
    pair: bool = False,
    rows: int = 24,
    test_rows: int = 9,
    words: int = 7,
) -> Path:
    """Write training and test rows (in threes) of up to so many words.

    The sample is in another order.
    """
    folder.mkdir(parents=True)
    generator = np.random.default_rng(0)

    def frame(part: str, count: int) -> pd.DataFrame:
        table = pd.DataFrame({"id": [f"{part}-{row:03d}" for row in range(count)]})
        for name in ("text", "text_b")[: 1 + pair]:
            table[name] = [
                " ".join(generator.choice(WORDS, row % words + 1)) for row in range(count)
            ]
        if task == "multi_label":
            table["hot"], table["cold"] = (
                [row % 2 for row in range(count)],
                [1, 0, 0] * (count // 3),
            )
        else:
            table["label"] = ["yes", "no", "so so"] * (count // 3)
        return table

    labels = ["hot", "cold"] if task == "multi_label" else ["label"]
    frame("a", rows).to_csv(folder / "train.csv", index=False)
    if test_rows:
        test = frame("b", test_rows)
        test.drop(columns=labels).to_csv(folder / "test.csv", index=False)
        test.iloc[::-1][["id", *labels]].to_csv(folder / "sample_submission.csv", index=False)
    return folder


def train(competition: Path, model: Path, out: Path, *more: str, keep: bool = True) -> Path:
    """Cross-validate for an epoch, two folds; return the run folder."""
    arguments = ["--data", str(competition), "--model", str(model), "--out", str(out)]
    arguments += ["--epochs", "1", "--folds", "2", "--workers", "1", "--device", "cpu"]
    with pytest.MonkeyPatch.context() as patch:
        # threads of tiny matrices wait for each other, and nobody reads the report
        patch.setattr(os, "sched_getaffinity", lambda pid: {0}, raising=False)
        patch.setattr("competition_kit.commands.cv._write_report", lambda plan: None)
        assert main([*arguments, *more, *(["--save-models"] if keep else [])]) == 0
    torch.set_num_threads(1)
    (config,) = (out / competition.name).glob("*/config.json")
    return config.parent


def copy_of(folder: Path, place: Path) -> Path:
    """Return a copy under another path."""
    return Path(shutil.copytree(folder, place))


def made_on(run: Path, device: str, precision: str) -> None:
    """Write down that the cells were computed on this device, in this precision."""
    config = json.loads((run / "config.json").read_text(encoding="utf-8"))
    config["arm"]["training"]["precision"] = precision
    config["arm_hash"] = Arm(**config["arm"]).hash
    (run / "config.json").write_text(json.dumps(config), encoding="utf-8")
    for path in run.glob("cells/*/metrics.json"):
        numbers = json.loads(path.read_text(encoding="utf-8"))
        numbers |= {"device": device, "arm": config["arm_hash"]}
        path.write_text(json.dumps(numbers), encoding="utf-8")


@contextmanager
def no_network() -> Iterator[None]:
    """Refuse every connection."""

    def refuse(*arguments: Any, **more: Any) -> None:
        raise AssertionError("the network was asked")

    with pytest.MonkeyPatch.context() as patch:
        for name in ("connect", "connect_ex", "sendto"):
            patch.setattr(socket.socket, name, refuse)
        patch.setattr(socket, "getaddrinfo", refuse)
        yield
