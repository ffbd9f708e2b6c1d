"""What every trick promises, over `TRICKS`: card, spec, conflicts, and training through a cell.

A new trick is tested as soon as it is listed; it needs one entry in `VISIBLE` below.
"""

from __future__ import annotations

import dataclasses
import inspect
import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from competition_kit.data.encoding import Encoded
from competition_kit.errors import InputError
from competition_kit.harness.cells import Arm, Cell, CellJob, CellResult
from competition_kit.harness.train_cell import train_cell
from competition_kit.specs import format_spec, parse_spec
from competition_kit.strategies import STRATEGIES
from competition_kit.tricks import TRICKS, format_tricks, parse_tricks
from competition_kit.tricks.base import (
    Averages,
    ChangesCriterion,
    ChangesModel,
    ChangesObjective,
    GroupsParameters,
    MasksGradients,
)
from competition_kit.tricks.cards import card, catalogue

SEAMS = (
    Averages,
    ChangesCriterion,
    ChangesModel,
    ChangesObjective,
    GroupsParameters,
    MasksGradients,
)
# settings that visibly change the training of four steps
VISIBLE: dict[str, str] = {
    "pretrain": "pretrain",
    "label_smoothing": "label_smoothing(epsilon=0.2)",
    "class_weights": "class_weights(power=1.0)",
    "focal": "focal",
    "rdrop": "rdrop(alpha=1.0)",
    "noisytune": "noisytune",
    "reinit": "reinit",
    "mixout": "mixout",
    "multi_sample_dropout": "multi_sample_dropout",
    "llrd": "llrd(decay=0.5)",
    "child_tuning": "child_tuning",
    "ema": "ema(decay=0.5)",
    "swa": "swa(start=0.25)",
    "checkpoint_average": "checkpoint_average",
}
TRAINED = [name for name in TRICKS if name != "pretrain"]  # that one acts before the folds


# -- a small cell -------------------------------------------------------------------------------

ROWS, TEST_ROWS, CLASSES = 24, 5, 3


@pytest.fixture(scope="session")
def tokens(tmp_path_factory: pytest.TempPathFactory) -> Path:
    generator = np.random.default_rng(0)
    lengths = generator.integers(3, 12, size=ROWS + TEST_ROWS)
    ids = np.concatenate([np.r_[2, generator.integers(5, 24, size=n - 2), 3] for n in lengths])
    path = tmp_path_factory.mktemp("tokens") / "tokens.safetensors"
    Encoded(ids.astype(np.int32), None, np.cumsum([0, *lengths]), 0, 0).save(path)
    return path


@pytest.fixture
def train(tokens: Path, model_folder: Callable[[str], Path]) -> Callable[..., CellResult]:
    """Return a function that trains a cell of 16 rows: 4 optimizer steps in 2 epochs."""

    def run(
        tricks: str = "",
        adv: str = "none",
        *,
        multi_label: bool = False,
        seed: int = 0,
        fold: int = 0,
        folder: Path | None = None,
        dropout: float = 0.1,
        save: Path | None = None,
        labels: np.ndarray | None = None,
        **recipe: Any,
    ) -> CellResult:
        generator = np.random.default_rng(1)
        if labels is None:
            # rare class 2, so that weights of classes are far from 1
            labels = np.where(np.arange(ROWS) % 8 == 0, 2, np.arange(ROWS) % 2)
            if multi_label:
                labels = (generator.random((ROWS, CLASSES)) < [0.2, 0.5, 0.7]).astype(np.int64)
        training: dict[str, Any] = {
            "epochs": 2,
            "lr": 2e-3,
            "batch_size": 8,
            "max_grad_norm": 0.0,  # a norm over parameters in another order rounds otherwise
            **recipe,
        }
        arm = Arm(
            model="tiny",
            model_hash="",
            strategy=format_spec(parse_spec(adv, STRATEGIES), STRATEGIES),
            tricks=format_tricks(parse_tricks(tricks)),
            pooling="mean",
            dropout=dropout,
            max_length=32,
            training=training,
            data_hash="",
            fold_hash="",
        )
        job = CellJob(
            cell=Cell(seed, fold),
            arm=arm,
            task="multi_label" if multi_label else "single_label",
            classes=CLASSES,
            encoded=tokens,
            labels=labels,
            fold_of=np.arange(ROWS) % 3,
            model_folder=folder or model_folder("bert"),
            device="cpu",
            save_model=save,
        )
        return train_cell(job)

    return run


def same(one: CellResult, other: CellResult) -> bool:
    return np.array_equal(one.valid_logits, other.valid_logits) and np.array_equal(
        one.test_logits, other.test_logits
    )


# -- declaration --------------------------------------------------------------------------------


def test_every_listed_trick_has_an_entry_here() -> None:
    assert VISIBLE.keys() == TRICKS.keys()


def test_pretraining_stands_first_and_starts_in_the_order_in_which_they_are_applied() -> None:
    """Noise, then new layers (without noise), then mixout's anchor (of both)."""
    names = list(TRICKS)
    assert names[0] == "pretrain"
    starts = [name for name, cls in TRICKS.items() if isinstance(cls(), ChangesModel)]
    assert starts == ["noisytune", "reinit", "mixout", "multi_sample_dropout"]


@pytest.mark.parametrize("name", TRICKS)
def test_a_trick_is_a_frozen_dataclass_with_keyword_only_fields(name: str) -> None:
    cls = TRICKS[name]
    assert dataclasses.is_dataclass(cls)
    assert all(field.kw_only for field in dataclasses.fields(cls))
    trick = cls()
    for field in dataclasses.fields(cls):
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(trick, field.name, 1)
    assert hash(trick) == hash(cls()) and trick == cls()


@pytest.mark.parametrize("name", TRAINED)
def test_a_trick_has_exactly_one_seam(name: str) -> None:
    assert sum(isinstance(TRICKS[name](), seam) for seam in SEAMS) == 1


@pytest.mark.parametrize("name", TRICKS)
def test_the_docstring_is_a_method_card(name: str) -> None:
    text = inspect.getdoc(TRICKS[name]) or ""
    for heading in ("Formula:", "Paper:", "Cost:", "Sane range:", "Interactions:"):
        assert f"\n{heading}" in text
    assert text.splitlines()[0].endswith(".")
    assert card(name).startswith(f"{name}(") and text in card(name)
    assert f"\n  {name} " in catalogue()


# -- specs --------------------------------------------------------------------------------------


def values_of(hint: Any) -> st.SearchStrategy[Any]:
    if hint is bool:
        return st.booleans()
    if hint is int:
        return st.integers(2, 5)
    if get_origin(hint) is Literal:
        return st.sampled_from(get_args(hint))
    assert hint is float
    return st.floats(0.01, 0.9)


def fields_of(cls: type) -> dict[str, Any]:
    hints = get_type_hints(cls)
    return {field.name: hints[field.name] for field in dataclasses.fields(cls)}


def contradict(one: str, other: str) -> bool:
    return other in TRICKS[one].conflicts or one in TRICKS[other].conflicts


@st.composite
def some_tricks(draw: st.DrawFn) -> list[Any]:
    """Draw tricks that do not contradict each other, in any order."""
    names: list[str] = []
    for name in draw(st.permutations(list(TRICKS)))[: draw(st.integers(0, 6))]:
        if not any(contradict(name, other) for other in names):
            names.append(name)
    return [
        TRICKS[name](
            **{key: draw(values_of(hint)) for key, hint in fields_of(TRICKS[name]).items()}
        )
        for name in names
    ]


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(some_tricks())
def test_a_list_reads_back_as_it_was_written_in_the_listed_order(tricks: list[Any]) -> None:
    order = list(TRICKS.values())
    want = tuple(sorted(tricks, key=lambda trick: order.index(type(trick))))
    text = format_tricks(tuple(tricks))
    assert parse_tricks(text) == want
    assert format_tricks(parse_tricks(format_tricks(want))) == format_tricks(want)


def test_no_tricks_are_an_empty_text() -> None:
    assert parse_tricks("") == parse_tricks("  ") == ()
    assert format_tricks(()) == ""


@pytest.mark.parametrize("name", TRICKS)
def test_the_format_says_every_hyper_parameter(name: str) -> None:
    text = format_tricks(parse_tricks(name))
    for key in fields_of(TRICKS[name]):
        assert f"{key}=" in text


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("emma", "did you mean"),
        ("ema(decoy=0.5)", "no argument 'decoy'"),
        ("ema(decay=1.0)", "decay must be at least 0 and below 1"),
        ("ema(warmup=1)", "warmup"),
        ("ema, ema(decay=0.5)", "twice"),
        ("ema+swa", "cannot go around"),
        ("child_tuning(kind=E)", "kind is 'E'"),
        ("child_tuning(p=0)", "p must be above 0"),
        ("mixout(p=1)", "p must be at least 0 and below 1"),
        ("llrd(decay=1.1)", "decay"),
        ("label_smoothing(epsilon=1)", "below 1"),
        ("reinit(layers=0)", "layers"),
        ("multi_sample_dropout(samples=1)", "samples"),
        ("multi_sample_dropout(p=1)", "p must lie"),
        ("pretrain(mask_probability=1)", "mask_probability"),
        ("swa(start=1)", "start"),
        ("checkpoint_average(epochs=0)", "epochs"),
        ("rdrop(alpha=-1)", "alpha"),
        ("focal(gamma=-1)", "gamma"),
        ("noisytune(strength=-1)", "strength"),
        ("class_weights(power=-1)", "power"),
    ],
)
def test_what_does_not_fit_is_refused_with_the_reason(text: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        parse_tricks(text)


@pytest.mark.parametrize(
    ("one", "other"), [pair for pair in itertools.combinations(TRICKS, 2) if contradict(*pair)]
)
def test_contradictions_are_refused_in_both_orders_with_the_reason(one: str, other: str) -> None:
    reason = TRICKS[one].conflicts.get(other) or TRICKS[other].conflicts[one]
    for text in (f"{one}, {other}", f"{other}, {one}"):
        with pytest.raises(InputError) as caught:
            parse_tricks(text)
        assert reason in str(caught.value)
        assert one in str(caught.value) and other in str(caught.value)


def test_tricks_of_one_seam_of_which_only_one_can_act_contradict() -> None:
    """`train_cell` takes the first one of these seams: a second would be dropped in silence."""
    for seam in (Averages, ChangesObjective, GroupsParameters, MasksGradients):
        names = [name for name in TRICKS if isinstance(TRICKS[name](), seam)]
        assert all(contradict(*pair) for pair in itertools.combinations(names, 2)), names
    assert contradict("focal", "label_smoothing") and contradict("focal", "class_weights")


def test_conflicts_name_listed_tricks() -> None:
    for cls in TRICKS.values():
        assert set(cls.conflicts) <= set(TRICKS)
        assert all(reason.strip() for reason in cls.conflicts.values())


# -- training -----------------------------------------------------------------------------------


@pytest.mark.parametrize("adv", ["none", "neftune+fgm", "awp(start_epoch=0)+freelb"])
@pytest.mark.parametrize("name", TRAINED)
def test_every_trick_trains_under_every_kind_of_strategy(
    name: str, adv: str, train: Callable[..., CellResult]
) -> None:
    """And gives other predictions than the strategy without it, from the same seed."""
    result = train(VISIBLE[name], adv)
    assert np.isfinite(result.valid_logits).all() and np.isfinite(result.test_logits).all()
    assert result.optimizer_steps == 4
    factor = 2 if name == "rdrop" else 1
    plain = {"none": 1, "neftune+fgm": 2, "awp(start_epoch=0)+freelb": 4}[adv]
    assert result.passes["forwards"] == factor * plain
    assert result.valid_logits.shape == (8, CLASSES)  # no blocks of several dropout samples
    assert np.abs(result.valid_logits - train("", adv).valid_logits).max() > 1e-5


@pytest.mark.parametrize("name", TRAINED)
def test_every_trick_trains_with_several_labels(
    name: str, train: Callable[..., CellResult]
) -> None:
    result = train(VISIBLE[name], multi_label=True)
    plain = train("", multi_label=True)
    assert np.isfinite(result.valid_logits).all()
    assert np.abs(result.valid_logits - plain.valid_logits).max() > 1e-5


@pytest.mark.parametrize("name", TRAINED)
def test_the_same_seed_gives_the_same_bits(name: str, train: Callable[..., CellResult]) -> None:
    assert same(train(VISIBLE[name]), train(VISIBLE[name]))


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (f"{name}({key}={first!r})", f"{name}({key}={second!r})")
        for name, cls in TRICKS.items()
        for key, hint in fields_of(cls).items()
        if get_origin(hint) is Literal or hint is bool
        for first, second in itertools.combinations(get_args(hint) or (False, True), 2)
    ],
)
def test_every_choice_of_every_option_does_something_of_its_own(
    one: str, other: str, train: Callable[..., CellResult]
) -> None:
    assert np.abs(train(one).valid_logits - train(other).valid_logits).max() > 1e-5


ALL_TOGETHER = (
    "label_smoothing, class_weights, rdrop, noisytune, reinit, mixout, multi_sample_dropout, llrd, "
    "child_tuning, ema"
)


@pytest.mark.parametrize("adv", ["none", "neftune+awp(start_epoch=0)+smart(dropout=shared)"])
def test_one_of_each_seam_trains_together(adv: str, train: Callable[..., CellResult]) -> None:
    assert np.isfinite(train(ALL_TOGETHER, adv).valid_logits).all()
    assert np.isfinite(train(ALL_TOGETHER, adv, multi_label=True).valid_logits).all()


# -- identities ---------------------------------------------------------------------------------


@pytest.mark.parametrize("adv", ["none", "neftune+fgm"])
@pytest.mark.parametrize(
    "tricks",
    [
        "label_smoothing(epsilon=0)",
        "class_weights(power=0)",
        "noisytune(strength=0)",
        "mixout(p=0)",
        "llrd(decay=1.0)",
        "child_tuning(p=1)",
        "child_tuning(kind=D, p=1)",
        "ema(decay=0, warmup=False)",
        "checkpoint_average(epochs=1)",
    ],
)
def test_settings_that_change_nothing_give_the_baseline_bit_for_bit(
    tricks: str, adv: str, train: Callable[..., CellResult]
) -> None:
    """T29, dropout on: what a trick draws comes from a generator of its own."""
    assert same(train(tricks, adv), train("", adv))


def test_label_smoothing_without_strength_is_the_baseline_with_several_labels(
    train: Callable[..., CellResult],
) -> None:
    plain = train("", multi_label=True)
    assert same(train("label_smoothing(epsilon=0)", multi_label=True), plain)


@pytest.mark.parametrize("multi_label", [False, True])
def test_focal_without_gamma_is_the_cross_entropy_to_rounding(
    multi_label: bool, train: Callable[..., CellResult]
) -> None:
    """Computed another way; Adam blows differences of rounding up, so one small step only."""
    settings = {"multi_label": multi_label, "epochs": 1, "batch_size": 16, "lr": 1e-4}
    plain = train("", **settings)
    focal = train("focal(gamma=0)", **settings)
    assert focal.log[0]["loss"] == pytest.approx(plain.log[0]["loss"], rel=1e-6)
    np.testing.assert_allclose(focal.valid_logits, plain.valid_logits, atol=1e-4)
    assert abs(train("focal", **settings).log[0]["loss"] - plain.log[0]["loss"]) > 1e-2


def test_rdrop_without_alpha_and_dropout_is_the_baseline_to_rounding(
    train: Callable[..., CellResult], tmp_path: Path
) -> None:
    """T19: two equal passes, averaged; in the first step the loss is the same to rounding."""
    from conftest import make_model

    folder = make_model(tmp_path / "still", "bert", dropout=0.0)
    settings = {"folder": folder, "dropout": 0.0}
    plain, both = train("", **settings), train("rdrop(alpha=0)", **settings)
    assert both.log[0]["loss"] == pytest.approx(plain.log[0]["loss"], rel=1e-6)
    np.testing.assert_allclose(both.valid_logits, plain.valid_logits, atol=1e-4)
    strong = train("rdrop(alpha=100)", **settings)
    np.testing.assert_allclose(strong.valid_logits, plain.valid_logits, atol=1e-4)


def test_the_labels_of_the_scored_fold_are_never_used(train: Callable[..., CellResult]) -> None:
    """Class weights, Fisher masks and all others see the training rows only."""
    labels = np.where(np.arange(ROWS) % 8 == 0, 2, np.arange(ROWS) % 2)
    other = np.where(np.arange(ROWS) % 3 == 0, 2, labels)  # fold 0 is all of one class now
    tricks = "class_weights(power=1), child_tuning(kind=D), rdrop"
    assert same(train(tricks, labels=labels), train(tricks, labels=other))
    trained_on = np.where(np.arange(ROWS) == 1, 2, labels)
    assert not same(train(tricks, labels=labels), train(tricks, labels=trained_on))
