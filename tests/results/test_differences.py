"""Runs are told apart by the settings in which they differ, and by no more words than that."""

from __future__ import annotations

from typing import Any

import pytest

from competition_kit.results.differences import differences, settings_of

ARM = {
    "model": "org/Encoder",
    "model_hash": "aaaaaaaaaaaa",
    "strategy": "none",
    "tricks": "",
    "pooling": "mean",
    "dropout": 0.1,
    "max_length": 128,
    "training": {"epochs": 2, "lr": 1e-4, "batch_size": 16},
    "data_hash": "bbbbbbbbbbbb",
    "fold_hash": "cccccccccccc",
    "version": "1.0",
    "pseudo": "",
}
SPLIT = {"scheme": "stratified", "folds": 5, "group": None, "fold": None}


def run(seeds: tuple[int, ...] = (0,), split: dict[str, Any] | None = None, **arm: Any) -> Any:
    rules = {"cv": SPLIT | (split or {})}
    training = ARM["training"] | arm.pop("training", {})  # type: ignore[operator]
    return settings_of({"arm": ARM | arm | {"training": training}, "rules": rules}, seeds)


def test_equal_runs_need_no_words() -> None:
    assert differences([run(), run()]) == ["", ""]
    assert differences([run()]) == [""]
    assert differences([]) == []


@pytest.mark.parametrize(
    ("other", "said"),
    [
        ({"training": {"epochs": 3}}, ("epochs 2", "epochs 3")),
        ({"training": {"lr": 2e-5}}, ("lr 0.0001", "lr 2e-05")),
        ({"training": {"batch_size": 8}}, ("batch size 16", "batch size 8")),
        ({"pooling": "cls"}, ("pooling mean", "pooling cls")),
        ({"dropout": 0.0}, ("dropout 0.1", "dropout 0")),
        ({"max_length": 64}, ("max length 128", "max length 64")),
        ({"seeds": (1, 2)}, ("seeds 0", "seeds 1 2")),
        ({"version": "2.0"}, ("version 1.0", "version 2.0")),
        ({"data_hash": "d" * 64}, ("data bbbbbbbb", "data dddddddd")),
        # a split of another kind has another hash, too, which then says nothing
        (
            {"split": {"folds": 3}, "fold_hash": "e" * 64},
            ("folds 5", "folds 3"),
        ),
        ({"fold_hash": "e" * 64}, ("split cccccccc", "split eeeeeeee")),
        ({"training": {"epochs": 3}, "pooling": "max"}, ("epochs 2, pooling mean", None)),
    ],
)
def test_what_differs_is_said_of_both(other: dict[str, Any], said: tuple[str, str | None]) -> None:
    found = differences([run(), run(**other)])
    assert found[0] == said[0]
    assert said[1] is None or found[1] == said[1]


def test_what_the_name_says_is_not_said_again() -> None:
    fgm = {"strategy": "fgm(epsilon=1.0, norm='example')"}
    ema = {"tricks": "ema(decay=0.99)"}
    other_encoder = {"model": "org/Large", "model_hash": "f" * 64}
    pseudo = {"pseudo": "0" * 64}
    runs = [run(), run(**fgm), run(**ema), run(**other_encoder), run(**pseudo)]
    assert differences(runs) == [""] * 5


def test_hyper_parameters_are_said_where_a_name_has_several() -> None:
    runs = [
        run(strategy="fgm(epsilon=1.0)"),
        run(strategy="fgm(epsilon=0.5)"),
        run(strategy="neftune(alpha=7.0)"),
        run(tricks="ema(decay=0.9)"),
        run(tricks="ema(decay=0.8)"),
    ]
    assert differences(runs) == [
        *("fgm", "fgm(epsilon=0.5)", "", "ema(decay=0.9)", "ema(decay=0.8)"),
    ]


def test_a_strategy_of_another_version_of_the_kit_stands_as_it_was_written() -> None:
    runs = [run(strategy="lost(x=1)"), run(strategy="lost(x=2)", tricks="ema(decay=0.9)")]
    assert differences(runs) == ["", ""], "their names differ"
    runs = [run(strategy="lost(x=1)"), run(strategy="lost(x=2)")]
    assert differences(runs) == ["lost(x=1)", "lost(x=2)"]


def test_encoders_of_one_name_are_told_apart() -> None:
    runs = [run(model="a/Encoder"), run(model="b/encoder", model_hash="f" * 64)]
    assert differences(runs) == ["encoder a/Encoder", "encoder b/encoder"]
    runs = [run(), run(model_hash="f" * 64)]
    assert differences(runs) == ["weights aaaaaaaa", "weights ffffffff"]


def test_pseudo_labels_are_told_apart_where_several_runs_have_some() -> None:
    runs = [run(), run(pseudo="1" * 64), run(pseudo="2" * 64)]
    assert differences(runs) == ["", "pseudo-labels 11111111", "pseudo-labels 22222222"]


def test_what_has_no_arm_or_an_older_one_is_left_out() -> None:
    older = settings_of(
        {"arm": {key: ARM[key] for key in ("model", "strategy", "training")}}, seeds=()
    )
    ensemble = settings_of({"kind": "ensemble"}, seeds=(0,))
    assert ensemble == {}
    found = differences([run(pooling="cls"), run(), ensemble, older])
    assert found[:3] == ["pooling cls", "pooling mean", ""]
    assert "pooling" not in found[3]
