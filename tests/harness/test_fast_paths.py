"""Shortcuts change numbers by rounding only, and the flags for them reach the cells."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import competition_kit.harness.train_cell as train_cell_module
from competition_kit.cli import main
from competition_kit.data.competition import load_competition
from competition_kit.harness.cells import CellJob, CellResult
from competition_kit.harness.plan import make_plan
from competition_kit.model_source import find_model
from competition_kit.training.fit import TrainingError
from competition_kit.training.recipe import Recipe


@pytest.fixture(params=["bert", "roberta"])
def job(
    request: pytest.FixtureRequest,
    tmp_path: Path,
    competition_folder: Callable[..., Path],
    model_folder: Callable[[str], Path],
) -> CellJob:
    competition = load_competition(competition_folder(rows=36), folds=3)
    source = find_model(str(model_folder(request.param)))
    plan = make_plan(
        competition,
        source,
        strategy="pgd",
        tricks="ema()",
        recipe=Recipe(epochs=2, batch_size=8, lr=1e-3),
        pooling="mean",
        dropout=0.1,
        max_length=16,
        seeds=(0,),
        out=tmp_path / "runs",
    )
    return CellJob(
        cell=plan.cells[0],
        arm=plan.arm,
        task="single_label",
        classes=len(competition.classes),
        encoded=plan.encoded,
        labels=competition.targets,
        fold_of=plan.folds.fold_of,
        model_folder=source.folder,
        device="cpu",
        save_model=tmp_path / "model.safetensors",
    )


def test_cells_with_and_without_fast_paths_agree_to_rounding(job: CellJob) -> None:
    fast = train_cell_module.train_cell(job)
    plain = train_cell_module.train_cell(dataclasses.replace(job, fast_paths=False))

    np.testing.assert_allclose(fast.valid_logits, plain.valid_logits, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(fast.test_logits, plain.test_logits, rtol=1e-4, atol=1e-5)
    assert fast.passes == plain.passes


@pytest.mark.parametrize(("fast_paths", "dropout"), [(True, 0.1), (True, 0.0), (False, 0.1)])
def test_attention_is_written_out_while_its_dropout_trains_on_the_cpu(
    job: CellJob, monkeypatch: pytest.MonkeyPatch, fast_paths: bool, dropout: float
) -> None:
    original, seen = train_cell_module.fit_fold, []
    build = train_cell_module.build_classifier

    def with_dropout(*arguments: Any, **named: Any) -> Any:
        model = build(*arguments, **named)
        model.encoder.config.attention_probs_dropout_prob = dropout
        seen.append(model.encoder.config)
        return model

    def look(model: Any, *arguments: Any, **named: Any) -> Any:
        seen.append(model.encoder.config._attn_implementation)
        return original(model, *arguments, **named)

    monkeypatch.setattr(train_cell_module, "build_classifier", with_dropout)
    monkeypatch.setattr(train_cell_module, "fit_fold", look)
    train_cell_module.train_cell(dataclasses.replace(job, fast_paths=fast_paths))

    config, in_training = seen
    assert in_training == ("eager" if fast_paths and dropout else "sdpa")
    assert config._attn_implementation == "sdpa", "predictions are made as stored models make them"


def test_a_deterministic_cell_uses_only_such_kernels_and_leaves_others_free(
    job: CellJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*arguments: object, **named: object) -> CellResult:
        raise RuntimeError(f"deterministic: {torch.are_deterministic_algorithms_enabled()}")

    first = train_cell_module.train_cell(dataclasses.replace(job, deterministic=True))
    again = train_cell_module.train_cell(dataclasses.replace(job, deterministic=True))
    assert np.array_equal(first.valid_logits, again.valid_logits)
    assert np.array_equal(first.test_logits, again.test_logits)
    monkeypatch.setattr(train_cell_module, "fit_fold", fails)
    for wanted in (True, False):
        with pytest.raises(RuntimeError, match=f"deterministic: {wanted}"):
            train_cell_module.train_cell(dataclasses.replace(job, deterministic=wanted))


def test_a_kernel_that_is_not_deterministic_is_named(
    job: CellJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fit_fold(*arguments: object, **named: object) -> None:
        torch.zeros(4).put_(torch.tensor([0]), torch.ones(1))
        raise ValueError("so far only without the flag")

    monkeypatch.setattr(train_cell_module, "fit_fold", fit_fold)

    with pytest.raises(TrainingError, match=r"--deterministic: put_ .*: leave the flag out"):
        train_cell_module.train_cell(dataclasses.replace(job, deterministic=True))
    with pytest.raises(ValueError, match="so far"):
        train_cell_module.train_cell(job)


def test_the_flags_reach_the_cells(
    competition_folder: Callable[..., Path],
    model_folder: Callable[[str], Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen: list[tuple[bool, bool]] = []

    def look(job: CellJob, on_step: object) -> CellResult:
        seen.append((job.fast_paths, job.deterministic))
        raise KeyboardInterrupt

    monkeypatch.setattr(train_cell_module, "train_cell", look)
    command = ["cv", "--data", str(competition_folder()), "--model", str(model_folder("bert"))]
    command += ["--out", str(tmp_path / "runs"), "--workers", "1", "--device", "cpu"]

    main([*command])
    main([*command, "--deterministic", "--no-fast-paths"])

    assert seen == [(True, False), (False, True)]
