"""Finished runs whose files someone edited: one line that names file and key, never a number."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from competition_kit.cli import main
from competition_kit.data.competition import load_competition
from competition_kit.data.folds import Folds
from competition_kit.files import write_csv, write_json
from competition_kit.harness.run_folder import RunFolder
from competition_kit.results.oof import oof_table

ROWS = 20
FOLDS = Folds(np.arange(ROWS) % 2, ("0", "1"))  # whole groups: row % 10 is a row's group
Run = Callable[..., RunFolder]


@pytest.fixture
def data(competition_folder: Callable[..., Path]) -> Path:
    return competition_folder(rows=ROWS, groups=True)


@pytest.fixture
def run(data: Path, tmp_path: Path) -> Run:
    """Return a function that writes the files of a finished run."""
    toy = load_competition(data)

    def write(name: str = "run") -> RunFolder:
        folder = RunFolder(tmp_path / "runs" / "toy" / name)
        chances = np.random.default_rng(len(name)).dirichlet([1, 1, 1], (1, ROWS))
        write_csv(folder.oof, oof_table(toy, FOLDS, [0], chances))
        folder.submission.write_bytes((data / "sample_submission.csv").read_bytes())
        arm = {
            "model": "tiny",
            "strategy": "none",
            "tricks": "",
            "pooling": "mean",
            "dropout": 0.1,
            "max_length": 9,
            "training": {"epochs": 1, "lr": 0.1, "batch_size": 4},
            "version": "1",
            "data_hash": toy.data_hash,
            "fold_hash": "f",
            "model_hash": "m",
        }
        config = {
            "competition_folder": str(data),
            "train_rows": ROWS,
            "test_rows": 12,
            "rules": {
                "title": "Toy",
                "task": "single_label",
                "metric": "accuracy",
                "cv": {"scheme": "group", "folds": 2},
            },
            "classes": list(toy.classes),
            "arm": arm,
            "arm_hash": "a",
            "seeds": [0],
            "placement": {"workers": 1},
            "command": "run_cv.py",
            "git_commit": None,
            "versions": {"torch": "2"},
        }
        cell = {
            "seed": 0,
            "score": 0.5,
            "fit_seconds": 1.0,
            "shift_norm": 0.0,
            "peak_memory_mb": 1.0,
            "device": "cpu",
        }
        metrics = {
            "metric": "accuracy",
            "greater_is_better": True,
            "mean": 0.5,
            "sd": 0.1,
            "oof_of_mean": 0.5,
            "floor": {"folds": [0.4, 0.4], "mean": 0.4},
            "passes": {"forwards": 1.0, "backwards": 1.0, "input_backwards": 0.0},
            "cells": [{**cell, "fold": fold} for fold in FOLDS.names],
        }
        write_json(folder.config, config)
        write_json(folder.metrics, metrics)
        for number in (0, 1):
            write_json(folder.path / f"cells/seed0-fold{number}/metrics.json", {})
        return folder

    return write


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Return a function that runs a command which has to stop with one line."""

    def refused(*command: str) -> str:
        capsys.readouterr()
        assert main(list(command)) == 2
        (line,) = [x for x in capsys.readouterr().err.splitlines() if x.startswith("error: ")]
        return line.removeprefix("error: ")

    return refused


def commands(folder: RunFolder, other: RunFolder) -> dict[str, list[str]]:
    run = str(folder.path)
    return {
        "score": ["score", run],
        "record": ["record", run, "--public", "0.5"],
        "compare": ["compare", run, str(other.path)],
        "report": ["report", run],
        "pseudo": ["pseudo", run],
    }


def edit(path: Path, key: str, *value: Any) -> None:
    """Set a key of a JSON file, or remove it."""
    content = json.loads(path.read_text(encoding="utf-8"))
    *places, last = key.split(".")
    within = content
    for place in places:
        within = within[int(place) if place.isdecimal() else place]
    if value:
        within[last] = copy.copy(value[0])
    else:
        del within[last]
    write_json(path, content)


@pytest.mark.parametrize("name", ["score", "record", "compare", "report"])
def test_an_unedited_run_is_read(name: str, run: Run) -> None:
    assert main(commands(run(), run("other"))[name]) == 0


@pytest.mark.parametrize(
    ("name", "file"),
    [
        *((name, "config") for name in ("score", "compare", "report")),
        *((name, "metrics") for name in ("score", "record", "compare", "report", "pseudo")),
    ],
)
@pytest.mark.parametrize("content", ["{}", '{"arm": {}, "metric": NaN}', "[" * 100_000, "["])
def test_a_file_that_lacks_its_keys_is_named(
    content: str, name: str, file: str, run: Run, refused: Callable[..., str]
) -> None:
    folder = run()
    path = folder.path / f"{file}.json"
    path.write_text(content, encoding="utf-8")
    said = refused(*commands(folder, run("other"))[name])
    assert said.startswith(f"{path}: ") and said.endswith("run the command that made it again")


@pytest.mark.parametrize(
    ("name", "file", "key"),
    [
        *(("score", "config", key) for key in ("competition_folder", "train_rows")),
        *(("score", "metrics", key) for key in ("metric", "mean", "sd", "oof_of_mean")),
        ("record", "metrics", "metric"),
        *(("compare", "config", key) for key in ("classes", "rules.task", "arm.training.epochs")),
        *(
            ("compare", "metrics", key)
            for key in ("cells.0.fit_seconds", "cells.1.device", "passes.backwards")
        ),
        *(("report", "config", key) for key in ("rules.title", "arm.dropout", "train_rows")),
        *(("report", "metrics", key) for key in ("cells", "floor.folds", "cells.1.fold")),
        *(("pseudo", "config", key) for key in ("rules", "arm_hash", "competition_folder")),
    ],
)
@pytest.mark.parametrize("value", [(), ([],)], ids=["missing", "a list"])
def test_a_key_that_someone_edited_is_named(
    value: tuple[Any, ...],
    name: str,
    file: str,
    key: str,
    run: Run,
    refused: Callable[..., str],
) -> None:
    folder = run()
    path = folder.path / f"{file}.json"
    edit(path, key, *value)
    problem = f"its key '{key}' cannot be []" if value else f"has no key '{key}'"
    said = refused(*commands(folder, run("other"))[name])
    assert said.startswith(f"{path}: {problem}")


def test_an_arm_that_is_not_the_one_of_its_hash_is_refused(
    run: Run, refused: Callable[..., str]
) -> None:
    said = refused("pseudo", str(run().path))
    assert "its key 'arm' was changed" in said


@pytest.mark.parametrize("name", ["compare", "report"])
def test_a_probability_that_is_none_is_no_score(
    name: str, run: Run, refused: Callable[..., str]
) -> None:
    folder = run()
    lines = folder.oof.read_text(encoding="utf-8").splitlines()
    lines[4] = f"{lines[4].rpartition(',')[0]},nan"
    folder.oof.write_text("\n".join(lines), encoding="utf-8")
    said = refused(*commands(folder, run("other"))[name])
    assert said.startswith(f"{folder.oof}, row 5, column 'p_so-so': 'nan' is no probability")


def test_runs_of_other_labels_are_not_compared(run: Run, refused: Callable[..., str]) -> None:
    folder, other = run(), run("other")
    text = folder.oof.read_text(encoding="utf-8")
    folder.oof.write_text(text.replace(",good,", ",bad,", 1), encoding="utf-8")
    assert "its labels are not those of" in refused("compare", *map(str, (folder.path, other.path)))


@pytest.mark.parametrize(
    ("before", "after", "said"),
    [
        ("train-004,", "train-003,", "train.csv, row 6, column 'id'"),
        ("train-004,", "train-999,", "its rows or their groups are no longer those of"),
        (",d4,", ",d5,", "its rows or their groups are no longer those of"),
        ("train-004,", "train-004,another ", "its rows or their groups are no longer those of"),
    ],
)
def test_groups_of_data_that_has_changed_are_refused(
    before: str, after: str, said: str, data: Path, run: Run, refused: Callable[..., str]
) -> None:
    folder, other = run(), run("other")
    text = (data / "train.csv").read_text(encoding="utf-8")
    (data / "train.csv").write_text(text.replace(before, after, 1), encoding="utf-8")
    assert said in refused("compare", str(folder.path), str(other.path))
