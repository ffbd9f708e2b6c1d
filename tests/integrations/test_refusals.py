"""What AdversarialTrainer refuses, and what it says then."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from competition_kit.errors import InputError
from competition_kit.strategies.fgm import FGM
from competition_kit.training.journal import TrainingError

from .models import build, texts, train


def test_a_strategy_that_moved_nothing(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="moved nothing in 2 batches"):
        train(tmp_path, build(), "awp(start_epoch=5)")


def test_noise_does_not_hide_a_strategy_that_moved_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(FGM, "__call__", lambda self, step: (yield step.loss()))
    with pytest.raises(TrainingError, match=r"^fgm.* inside neftune.* moved nothing in 2 batches"):
        train(tmp_path, build(), "neftune+fgm")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"neftune_noise_alpha": 5}, "does not work with neftune_noise_alpha"),
        ({"torch_compile": True}, "does not work with torch_compile"),
        ({"optim": "lomo"}, "does not work with optim=lomo"),
    ],
)
def test_refusals(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        train(tmp_path, build(), "fgm", **changes)


def test_a_model_without_embeddings(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="Linear has no get_input_embeddings"):
        train(tmp_path, nn.Linear(2, 2), "fgm")


def test_a_wrong_spec(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="did you mean 'fgm'"):
        train(tmp_path, build(), "fgn")


def test_regularisers_refuse_regression(tmp_path: Path) -> None:
    model = build()
    model.config.problem_type = "regression"
    rows = [{**row, "labels": torch.eye(3)[row["labels"]]} for row in texts()]
    with pytest.raises(InputError, match="the model does regression"):
        train(tmp_path, model, "vat", options={"train_dataset": rows})
    train(tmp_path, model, "fgm", options={"train_dataset": rows})
