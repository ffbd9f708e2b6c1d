"""Out of memory: fewer rows at a time, the same gradient, and the training goes on."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from competition_kit.data.encoding import Encoded
from competition_kit.specs import parse_spec
from competition_kit.strategies import STRATEGIES
from competition_kit.training.fit import FitLog, TrainingError, fit_fold, predict
from competition_kit.training.model import Classifier, build_classifier
from competition_kit.training.objectives import CrossEntropy, Once
from competition_kit.training.recipe import Recipe
from competition_kit.training.seeds import FoldSeeds

SEEDS = FoldSeeds(seed=0, fold=0)
LABELS = np.random.default_rng(1).integers(0, 3, size=30)
# rows of equal length: padding is the same however they are cut
ENCODED = Encoded(
    np.random.default_rng(0).integers(5, 24, size=180).astype(np.int32),
    None,
    np.arange(31, dtype=np.int64) * 6,
    truncated=0,
    pad_id=0,
)


@pytest.fixture
def build(model_folder: Callable[[str], Path]) -> Callable[[], Classifier]:
    def make() -> Classifier:
        model = build_classifier(model_folder("bert"), 3, generator=SEEDS.head()).double()
        for module in model.modules():  # dropout is drawn anew for each part
            if isinstance(module, nn.Dropout):
                module.p = 0.0
            if hasattr(module, "dropout_prob"):
                module.dropout_prob = 0.0
        return model

    return make


@contextmanager
def memory_for(model: Classifier, rows: int, after: int = 0) -> Iterator[list[int]]:
    """Let forward passes of more than so many rows fail, from some pass on; yield sizes that ran."""
    ran: list[int] = []

    def check(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        if len(inputs[0]) > rows and len(ran) >= after:
            raise torch.OutOfMemoryError("CUDA out of memory")
        ran.append(len(inputs[0]))

    handle = model.register_forward_pre_hook(check)
    yield ran
    handle.remove()


def fit(model: Classifier, strategy: str = "none") -> FitLog:
    return fit_fold(
        model,
        ENCODED,
        LABELS,
        np.arange(24),
        strategy=parse_spec(strategy, STRATEGIES),
        objective=Once(CrossEntropy()),
        recipe=Recipe(epochs=2, lr=1e-3, batch_size=8),
        seeds=SEEDS,
    )


@pytest.mark.parametrize("strategy", ["none", "fgm(scope=example)", "pgd(scope=example)"])
def test_training_goes_on_with_the_same_effective_batch(
    build: Callable[[], Classifier], caplog: pytest.LogCaptureFixture, strategy: str
) -> None:
    """The third step runs out of memory, in its first pass or, with an attack, in its second."""
    whole, halved = build(), build()
    expected = fit(whole, strategy)
    with (
        caplog.at_level(logging.WARNING),
        memory_for(halved, rows=3, after=2 * round(expected.forwards) + 1) as ran,
    ):
        found = fit(halved, strategy)

    assert max(ran[-9:]) == 2, "8, then 4, then 2"
    assert [record.args[0] for record in caplog.records] == [4, 2], "said twice, not in each step"  # type: ignore[index]
    assert found.steps == expected.steps == 6
    for name, weight in halved.state_dict().items():
        torch.testing.assert_close(weight, whole.state_dict()[name], rtol=1e-6, atol=1e-9)
    for a, b in zip(found.lines, expected.lines, strict=True):
        assert (a.loss, a.shift_norm) == pytest.approx((b.loss, b.shift_norm), rel=1e-6)


def test_a_single_text_that_does_not_fit_is_a_clear_error(build: Callable[[], Classifier]) -> None:
    model = build()

    with memory_for(model, rows=0), pytest.raises(TrainingError, match="--max-length"):
        fit(model)


def test_predictions_are_those_of_larger_batches(build: Callable[[], Classifier]) -> None:
    model = build()
    expected = predict(model, ENCODED, np.arange(30))

    with memory_for(model, rows=4) as ran:
        found = predict(model, ENCODED, np.arange(30))

    np.testing.assert_allclose(found, expected, rtol=1e-6)
    assert max(ran) == 4 and sum(ran) == 30, "no row twice"
