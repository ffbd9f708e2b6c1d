"""The speed benchmarks run, on small models, and their arithmetic is right."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from benchmarks import cv, peer_cv, scaling, train, trials
from benchmarks.sides import SIDES, Rows, padded_loop
from competition_kit.data.encoding import Encoded, collate
from competition_kit.strategies import STRATEGIES
from competition_kit.training.model import build_classifier
from competition_kit.training.objectives import CrossEntropy, Once
from competition_kit.training.step import Step


@pytest.fixture
def rows(tmp_path: Path, model_folder: Callable[[str], Path]) -> Rows:
    generator = np.random.default_rng(0)
    lengths = generator.integers(3, 12, size=16)
    tokens = tmp_path / "tokens.safetensors"
    Encoded(
        generator.integers(5, 24, size=lengths.sum()).astype(np.int32),
        None,
        np.cumsum([0, *lengths]),
        truncated=0,
        pad_id=0,
    ).save(tokens)
    return Rows(
        tokens=tokens,
        labels=np.arange(16) % 3,
        model_folder=model_folder("bert"),
        batch_size=4,
        device="cpu",
        precision="fp32",
    )


def test_train_measures_every_side_and_says_how_much_faster_the_kit_is(rows: Rows) -> None:
    sides = [side for side in SIDES if side.name in ("kit", "Trainer, grouped by length")]

    found = train.measure(rows, repetitions=2, workers=1, sides=sides)

    kit, peer = found["sides"]
    assert [kit["side"], peer["side"]] == ["kit", "Trainer, grouped by length"]
    assert kit["kit_is_times_as_fast"] == {"median": 1.0, "min": 1.0, "max": 1.0}
    ratios = [a / b for a, b in zip(kit["rates"], peer["rates"], strict=True)]
    assert peer["kit_is_times_as_fast"]["median"] == pytest.approx(np.median(ratios))
    # the encoder of the tests: 2 layers of 4 x 32 x 32 + 2 x 32 x 64 weights
    weights = 2 * (4 * 32**2 + 2 * 32 * 64)
    assert found["gflop_per_row"] == pytest.approx(6 * weights * found["tokens_per_row"] / 1e9)


def test_the_sides_that_need_no_process_train(rows: Rows) -> None:
    assert padded_loop(rows, 32) > 0
    for side in SIDES:
        if side.name == "kit, no fast paths":
            assert side.train(rows) > 0


def test_cv_says_where_the_time_went_and_runs_its_peer(
    tmp_path: Path, model_folder: Callable[[str], Path]
) -> None:
    words = ["good", "bad", "fine", "table"]
    table = pd.DataFrame({"id": range(24), "text": [f"{words[i % 4]} film" for i in range(24)]})
    data = tmp_path / "toy"
    data.mkdir()
    table.assign(label=["yes", "no"] * 12)[:20].to_csv(data / "train.csv", index=False)
    table[20:].to_csv(data / "test.csv", index=False)
    flags = "--folds 2 --seeds 0 --epochs 1 --batch-size 8 --max-length 16".split()
    flags += ["--device", "cpu", "--precision", "fp32"]

    kit = cv.run_kit(data, str(model_folder("bert")), [*flags, "--workers", "1"])
    peer = cv.run_peer(data, str(model_folder("bert")), flags)

    for run in (kit, peer):
        assert run["training"] + run["predicting"] + run["rest"] == pytest.approx(1.0)
        assert run["training"] + run["rest_and_predicting"] == pytest.approx(1.0)
        assert 0 < run["training"] < 1 and 0 <= run["score"] <= 1
    parts = [kit[part] for part in ("before", "between", "after")]
    assert min(parts) > 0 and sum(parts) == pytest.approx(kit["rest"])
    assert "before" not in peer


@pytest.mark.parametrize(("workers", "idle"), [(1, 0.0), (2, 4.0), (3, 4.0 + 7.0)])
def test_workers_are_idle_from_their_last_cell_to_the_last_of_all(
    workers: int, idle: float
) -> None:
    assert cv.idle_seconds([1.0, 2.0, 5.0, 9.0], workers) == idle


@pytest.mark.parametrize("settings", [{"task": "multi_label"}, {"pair": True}])
def test_the_peer_refuses_what_it_would_train_wrongly(
    settings: dict[str, Any],
    model_folder: Callable[[str], Path],
    competition_folder: Callable[..., Path],
    capsys: pytest.CaptureFixture[str],
) -> None:
    flags = "--folds 2 --seeds 0 --epochs 1 --batch-size 8 --max-length 16 --device cpu".split()
    flags += ["--precision", "fp32", "--json", "nowhere.json", "--model", str(model_folder("bert"))]
    assert peer_cv.main([*flags, "--data", str(competition_folder(**settings))]) == 2
    assert "one label and one text" in capsys.readouterr().err


def test_linear_cost_is_one_and_quadratic_cost_more() -> None:
    work = [1.0, 2.0, 4.0, 8.0]

    assert scaling._of_linear([3 + 2 * w for w in work], work) == pytest.approx(1.0)
    assert scaling._of_linear([3 + w**2 for w in work], work) > 1.5


def test_a_pass_that_is_made_twice_gives_the_same_gradient(rows: Rows) -> None:
    model = build_classifier(rows.model_folder, 3).train()
    batch = collate(Encoded.load(rows.tokens), np.arange(4), rows.labels)

    def gradient(way: Callable[[], AbstractContextManager]) -> list[torch.Tensor]:
        model.zero_grad()
        torch.manual_seed(0)  # of dropout
        step = Step(model, batch, Once(CrossEntropy()), torch.Generator().manual_seed(0))
        with way():
            for loss in STRATEGIES["alum"]()(step):
                loss.backward()
        return [weight.grad.clone() for weight in model.parameters() if weight.grad is not None]

    twice = gradient(trials._recomputed)
    for got, wanted in zip(twice, gradient(nullcontext), strict=True):
        torch.testing.assert_close(got, wanted)
