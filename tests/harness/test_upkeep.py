"""Which files of results say already what the cells say; the others are written again."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from competition_kit.files import write_csv, write_json
from competition_kit.harness.upkeep import holds

TABLE = pd.DataFrame({"id": ["007", "8"], "seed": 3, "label": ["", "a"], "p_a": [0.25, 2 / 3]})
METRICS = {"metric": "accuracy", "mean": 1 / 3, "sd": None, "cells": [{"seed": 3, "fold": "0"}]}


@pytest.mark.parametrize(
    "other",
    [
        TABLE.assign(id=["7", "8"]),
        TABLE.assign(seed=4),
        TABLE.assign(label=["a", "a"]),
        TABLE.assign(p_a=[0.25, 0.66667]),
        TABLE.rename(columns={"p_a": "p_b"}),
        TABLE[["id", "label", "seed", "p_a"]],
        TABLE[::-1],
        TABLE[:1],
        TABLE.drop(columns="seed"),
    ],
)
def test_a_table_that_says_something_else_does_not_hold_this_one(
    other: pd.DataFrame, tmp_path: Path
) -> None:
    write_csv(path := tmp_path / "oof.csv", other)
    assert holds(path, other)
    assert not holds(path, TABLE)


def test_the_last_bits_of_another_processor_make_no_other_table(tmp_path: Path) -> None:
    write_csv(path := tmp_path / "oof.csv", TABLE)
    assert holds(path, TABLE.assign(p_a=np.nextafter(TABLE["p_a"], 1)))


@pytest.mark.parametrize("content", [b"", b'id,"', b"\xff\xfe\xff", b"id,seed\n1\n", None])
def test_a_damaged_or_missing_table_holds_nothing(content: bytes | None, tmp_path: Path) -> None:
    path = tmp_path / "oof.csv"
    if content is not None:
        path.write_bytes(content)
    assert not holds(path, TABLE)


@pytest.mark.parametrize(
    ("content", "same"),
    [
        (json.dumps(METRICS), True),
        *(
            (json.dumps({**METRICS, **other}), False)
            for other in ({"metric": "mcc"}, {"mean": 0.3}, {"cells": []}, {"cells": None})
        ),
        ("{}", False),
        ("{", False),
        ("[]", False),
    ],
)
def test_metrics_hold_what_they_say(content: str, same: bool, tmp_path: Path) -> None:
    path = tmp_path / "metrics.json"
    assert not holds(path, METRICS), "it is not there"
    path.write_text(content, encoding="utf-8")
    assert holds(path, METRICS) is same
    write_json(path, METRICS)
    assert holds(path, METRICS)
