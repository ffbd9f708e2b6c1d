"""A cell's identity and its files."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from competition_kit.errors import InputError
from competition_kit.files import write_json
from competition_kit.harness import cells
from competition_kit.harness.cells import (
    Arm,
    Cell,
    CellResult,
    discard_cell,
    load_cell,
    save_cell,
)

ARM = Arm(
    model="tiny",
    model_hash="m",
    strategy="none",
    tricks="",
    pooling="mean",
    dropout=0.1,
    max_length=16,
    training={"epochs": 1, "lr": 1e-3},
    data_hash="d",
    fold_hash="f",
)
CELL = Cell(seed=3, fold=1)


@pytest.fixture
def result() -> CellResult:
    generator = np.random.default_rng(0)
    return CellResult(
        valid_rows=np.array([1, 4, 7]),
        valid_logits=generator.normal(size=(3, 2)).astype(np.float32),
        test_logits=generator.normal(size=(5, 2)).astype(np.float32),
        log=[{"step": 1, "loss": 0.1 + 0.2}, {"step": 2, "loss": 1e-300}],
        passes={"forwards": 2.0, "backwards": 2.0, "input_backwards": 0.0},
        shift_norm=1 / 3,
        optimizer_steps=2,
        skipped_steps=0,
        fit_seconds=1.25,
        fit_cpu_seconds=1.0,
        predict_seconds=0.5,
        peak_memory_mb=10.0,
        device="cpu",
        threads=1,
    )


def assert_equal(one: CellResult, other: CellResult) -> None:
    for field in dataclasses.fields(CellResult):
        mine, theirs = getattr(one, field.name), getattr(other, field.name)
        if isinstance(mine, np.ndarray):
            assert mine.dtype == theirs.dtype
            np.testing.assert_array_equal(mine, theirs)
        else:
            assert mine == theirs, field.name


def test_what_was_saved_is_loaded_to_the_last_digit(tmp_path: Path, result: CellResult) -> None:
    save_cell(tmp_path / "cell", ARM, CELL, result)

    loaded = load_cell(tmp_path / "cell", ARM, CELL)

    assert loaded is not None
    assert_equal(result, loaded)


def test_a_cell_without_test_rows_comes_back_with_none(tmp_path: Path, result: CellResult) -> None:
    result = dataclasses.replace(result, test_logits=np.zeros((0, 2), np.float32))
    save_cell(tmp_path, ARM, CELL, result)

    loaded = load_cell(tmp_path, ARM, CELL)

    assert loaded is not None and loaded.test_logits.shape == (0, 2)


def test_nothing_is_loaded_where_nothing_is(tmp_path: Path) -> None:
    assert load_cell(tmp_path / "nowhere", ARM, CELL) is None


@pytest.mark.parametrize("field", [field.name for field in dataclasses.fields(Arm)])
def test_every_setting_of_an_arm_decides_its_hash_and_whose_cell_it_is(
    tmp_path: Path, result: CellResult, field: str
) -> None:
    others: dict[str, Any] = {"dropout": 0.2, "max_length": 17, "training": {"epochs": 2}}
    other = dataclasses.replace(ARM, **{field: others.get(field, "another")})
    save_cell(tmp_path, ARM, CELL, result)

    assert other.hash != ARM.hash
    assert load_cell(tmp_path, other, CELL) is None


@pytest.mark.parametrize("cell", [Cell(3, 0), Cell(2, 1), Cell(1, 3)])
def test_a_cell_of_another_seed_or_fold_is_not_this_one(
    tmp_path: Path, result: CellResult, cell: Cell
) -> None:
    save_cell(tmp_path, ARM, CELL, result)

    assert load_cell(tmp_path, ARM, cell) is None


def test_the_order_of_settings_does_not_decide_the_hash() -> None:
    turned = dict(reversed(ARM.training.items()))

    assert list(turned) != list(ARM.training)
    assert dataclasses.replace(ARM, training=turned).hash == ARM.hash


@pytest.mark.parametrize("name", ["predictions.npz", "log.jsonl"])
def test_the_marker_is_the_last_file_to_be_written(
    tmp_path: Path, result: CellResult, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    original = cells.atomic_write

    def failing(path: Path, mode: str = "w") -> Any:
        if path.name == name:
            raise OSError("gone")
        return original(path, mode)

    monkeypatch.setattr(cells, "atomic_write", failing)
    with pytest.raises(OSError, match="gone"):
        save_cell(tmp_path, ARM, CELL, result)

    assert not (tmp_path / "metrics.json").exists()
    assert load_cell(tmp_path, ARM, CELL) is None


def test_a_log_that_is_not_finite_is_refused_rather_than_written_as_no_json(
    tmp_path: Path, result: CellResult
) -> None:
    result = dataclasses.replace(result, log=[{"step": 1, "loss": float("nan")}])

    with pytest.raises(ValueError, match="JSON"):
        save_cell(tmp_path, ARM, CELL, result)

    assert load_cell(tmp_path, ARM, CELL) is None


def test_discarding_takes_the_marker_first(
    tmp_path: Path, result: CellResult, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed half-way, a discarded cell must not look finished."""
    save_cell(tmp_path / "cell", ARM, CELL, result)

    def killed(folder: Path) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", killed)
        with pytest.raises(KeyboardInterrupt):
            discard_cell(tmp_path / "cell")
    assert (tmp_path / "cell" / "predictions.npz").exists()
    assert load_cell(tmp_path / "cell", ARM, CELL) is None

    discard_cell(tmp_path / "cell")
    assert not (tmp_path / "cell").exists()
    discard_cell(tmp_path / "cell")  # once more does no harm


def test_discarding_a_link_to_a_cell_leaves_what_it_leads_to(
    tmp_path: Path, result: CellResult
) -> None:
    save_cell(tmp_path / "elsewhere", ARM, CELL, result)
    (tmp_path / "cell").symlink_to("elsewhere")
    discard_cell(tmp_path / "cell")
    assert load_cell(tmp_path / "cell", ARM, CELL) is None
    assert load_cell(tmp_path / "elsewhere", ARM, CELL) is not None


def test_a_marker_that_is_no_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "metrics.json").mkdir()
    with pytest.raises(InputError, match=r"metrics\.json: is a folder; .* remove it"):
        load_cell(tmp_path, ARM, CELL)


def _cut(raw: bytes, place: int) -> bytes:
    return raw[:place]


def _flipped(raw: bytes, place: int) -> bytes:
    return raw[:place] + bytes([raw[place] ^ 0x10]) + raw[place + 1 :]


@pytest.mark.parametrize("damage", [_cut, _flipped])
def test_damaged_predictions_are_reported_or_harmless_but_never_other_numbers(
    tmp_path: Path, result: CellResult, damage: Callable[[bytes, int], bytes]
) -> None:
    save_cell(tmp_path, ARM, CELL, result)
    raw = (tmp_path / "predictions.npz").read_bytes()
    reported = 0
    for place in range(0, len(raw), 5):
        (tmp_path / "predictions.npz").write_bytes(damage(raw, place))
        try:
            loaded = load_cell(tmp_path, ARM, CELL)
        except InputError:
            reported += 1
        else:
            assert loaded is not None
            assert_equal(result, loaded)
    assert reported > len(raw) // 5 / 2, "most bytes matter"


@pytest.mark.parametrize("lacking", ["arm", "seed", "threads"])
def test_a_marker_that_lacks_something_is_reported(
    tmp_path: Path, result: CellResult, lacking: str
) -> None:
    save_cell(tmp_path, ARM, CELL, result)
    marker = json.loads((tmp_path / "metrics.json").read_text())
    del marker[lacking]
    write_json(tmp_path / "metrics.json", marker)

    with pytest.raises(InputError, match="remove the folder"):
        load_cell(tmp_path, ARM, CELL)
