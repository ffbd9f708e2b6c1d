"""Averages of the weights: ema, swa, checkpoint_average, in closed form and inside the loop."""

from __future__ import annotations

from collections.abc import Callable, Generator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from competition_kit.data.encoding import Encoded
from competition_kit.strategies import Strategy
from competition_kit.strategies.none import Plain
from competition_kit.training.averaging import WeightAverage
from competition_kit.training.fit import FitLog, TrainingError, fit_fold
from competition_kit.training.model import Classifier, build_classifier
from competition_kit.training.objectives import CrossEntropy, Once
from competition_kit.training.recipe import Recipe
from competition_kit.training.seeds import FoldSeeds
from competition_kit.training.step import Step
from competition_kit.tricks.averages import EMA, SWA, CheckpointAverage

ROWS = 20  # 3 optimizer steps an epoch at batch size 8
Weights = dict[str, Tensor]


@pytest.fixture(scope="module")
def encoded() -> Encoded:
    generator = np.random.default_rng(0)
    lengths = generator.integers(3, 10, size=ROWS)
    ids = generator.integers(5, 24, size=int(lengths.sum())).astype(np.int32)
    return Encoded(ids, None, np.cumsum([0, *lengths]), truncated=0, pad_id=0)


@pytest.fixture
def model(model_folder: Callable[[str], Path]) -> Classifier:
    return build_classifier(model_folder("bert"), 3, generator=FoldSeeds(0, 0).head())


def snapshot(model: nn.Module) -> Weights:
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def fit(
    model: Classifier,
    encoded: Encoded,
    averages: Any,
    *,
    strategy: Strategy | None = None,
    **recipe: Any,
) -> tuple[list[Weights], FitLog]:
    """Train; return the weights at the start and after each optimizer step, and the log."""
    trail = [snapshot(model)]
    settings: dict[str, Any] = {"epochs": 3, "lr": 5e-3, "batch_size": 8, **recipe}
    log = fit_fold(
        model,
        encoded,
        np.arange(ROWS) % 3,
        np.arange(ROWS),
        strategy=strategy or Plain(),
        objective=Once(CrossEntropy()),
        recipe=Recipe(**settings),
        seeds=FoldSeeds(0, 0),
        averages=averages,
        on_step=lambda step: trail.append(snapshot(model)),
    )
    return trail, log


def assert_close(model: nn.Module, want: Weights) -> None:
    for name, weight in model.named_parameters():
        torch.testing.assert_close(weight.detach(), want[name], rtol=1e-4, atol=1e-6)


def mean_of(trail: list[Weights]) -> Weights:
    return {name: torch.stack([w[name] for w in trail]).mean(0) for name in trail[0]}


# -- the arithmetic -----------------------------------------------------------------------------


def walk(average: WeightAverage, model: nn.Linear, count: int) -> list[Tensor]:
    """Set the weights to fresh numbers and take them in, `count` times; return those numbers."""
    generator = torch.Generator().manual_seed(1)
    seen = []
    for _ in range(count):
        with torch.no_grad():
            model.weight.normal_(generator=generator)
        seen.append(model.weight.detach().clone())
        average.update()
    return seen


def linear() -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(3, 2).double()


@pytest.mark.parametrize("decay", [0.0, 0.3, 0.95])
def test_ema_is_its_closed_form(decay: float) -> None:
    """T23: s_t = d^t s_0 + (1 - d) sum_i d^(t - i) w_i."""
    model = linear()
    start = model.weight.detach().clone()
    average = EMA(decay=decay, warmup=False).average(model)  # type: ignore[arg-type]
    seen = walk(average, model, 6)
    want = decay**6 * start
    for i, weight in enumerate(seen, start=1):
        want = want + (1 - decay) * decay ** (6 - i) * weight
    average.put()
    torch.testing.assert_close(model.weight.detach(), want)


@pytest.mark.parametrize("decay", [0.15, 0.99])
def test_ema_warms_up_from_a_tenth(decay: float) -> None:
    """d_t = min(decay, (1 + t) / (10 + t)): 0.1, 2/11, 3/12, ... ; the product is the start's part."""
    model = linear()
    start = model.weight.detach().clone()
    average = EMA(decay=decay).average(model)  # type: ignore[arg-type]
    seen = walk(average, model, 5)
    want = start
    for rate, weight in zip([1 / 10, 2 / 11, 3 / 12, 4 / 13, 5 / 14], seen, strict=True):
        d = min(decay, rate)
        want = d * want + (1 - d) * weight
    average.put()
    torch.testing.assert_close(model.weight.detach(), want)


@pytest.mark.parametrize("trick", [SWA(), CheckpointAverage()])
def test_swa_is_the_arithmetic_mean_whatever_the_weights_were_at_the_start(
    trick: SWA | CheckpointAverage,
) -> None:
    """T24."""
    model = linear()
    with torch.no_grad():
        model.weight.fill_(1e6)
    average = trick.average(model)  # type: ignore[arg-type]
    seen = walk(average, model, 7)
    average.put()
    torch.testing.assert_close(model.weight.detach(), torch.stack(seen).mean(0))


def test_an_average_is_no_view_of_the_weights_and_has_no_graph() -> None:
    model = linear()
    average = WeightAverage(model, lambda t: 1.0)
    average.update()
    kept = model.weight.detach().clone()
    with torch.no_grad():
        model.weight.add_(1.0)
    average.put()
    assert torch.equal(model.weight, kept)
    assert model.weight.requires_grad and model.weight.is_leaf


# -- which steps --------------------------------------------------------------------------------


def test_swa_takes_the_steps_after_its_start() -> None:
    due = [step for step in range(1, 13) if SWA(start=0.75).is_due(step, 12, 4, False)]
    assert due == [10, 11, 12]
    assert [step for step in range(1, 4) if SWA(start=0.0).is_due(step, 3, 1, False)] == [1, 2, 3]
    assert SWA(start=0.99).is_due(10, 10, 5, False)


def test_checkpoint_averaging_takes_the_ends_of_the_last_epochs() -> None:
    due = [step for step in range(1, 13) if CheckpointAverage(epochs=2).is_due(step, 12, 3, False)]
    assert due == [9, 12]
    more = [step for step in range(1, 7) if CheckpointAverage(epochs=9).is_due(step, 6, 3, False)]
    assert more == [3, 6]  # all there are


# -- inside the loop ----------------------------------------------------------------------------


@pytest.mark.parametrize("accumulation", [1, 2])
def test_the_model_ends_with_the_ema_of_its_optimizer_steps(
    accumulation: int, model: Classifier, encoded: Encoded
) -> None:
    """Once for each optimizer step, not for each micro-batch; buffers do not matter here."""
    trail, _ = fit(model, encoded, EMA(decay=0.6, warmup=False), accumulation_steps=accumulation)
    assert len(trail) == 1 + (9 if accumulation == 1 else 6)
    want = dict(trail[0])
    for weights in trail[1:]:
        want = {name: 0.6 * want[name] + 0.4 * weights[name] for name in want}
    assert_close(model, want)
    far = max(float((want[name] - trail[-1][name]).abs().max()) for name in want)
    assert far > 1e-3, "the average is not just the last weights"


def test_training_goes_on_with_its_own_weights(model: Classifier, encoded: Encoded) -> None:
    """The trail with an average is the trail without, bit for bit."""
    start = snapshot(model)
    averaged, _ = fit(model, encoded, EMA(decay=0.9))
    with torch.no_grad():
        for name, weight in model.named_parameters():
            weight.copy_(start[name])
    plain, _ = fit(model, encoded, None)
    for one, other in zip(averaged, plain, strict=True):
        assert all(torch.equal(one[name], other[name]) for name in one)
    assert all(torch.equal(plain[-1][name], w) for name, w in model.named_parameters())


def test_the_model_ends_with_the_mean_of_the_last_steps(
    model: Classifier, encoded: Encoded
) -> None:
    trail, _ = fit(model, encoded, SWA(start=0.5))
    assert_close(model, mean_of(trail[5:]))  # steps 5 to 9 of 9


def test_the_model_ends_with_the_mean_of_the_last_epochs_ends(
    model: Classifier, encoded: Encoded
) -> None:
    trail, _ = fit(model, encoded, CheckpointAverage(epochs=2))
    assert_close(model, mean_of([trail[6], trail[9]]))


def test_frozen_weights_stay_as_they_are(model: Classifier, encoded: Encoded) -> None:
    table = model.get_input_embeddings().weight
    table.requires_grad = False  # type: ignore[union-attr]
    before = table.detach().clone()  # type: ignore[operator]
    fit(model, encoded, EMA(decay=0.5))
    assert torch.equal(table, before)  # type: ignore[arg-type]


@dataclass(frozen=True)
class Overflowing:
    """Plain training whose gradient is infinite in some optimizer steps."""

    steps: tuple[int, ...]
    strength: float = 0.0

    def __call__(self, step: Step) -> Generator[Tensor, None, None]:
        loss = step.loss()
        if step.number in self.steps:
            loss.register_hook(lambda gradient: gradient * torch.inf)
        yield loss


def test_skipped_steps_are_not_averaged(model: Classifier, encoded: Encoded) -> None:
    """T23: an fp16 overflow changes no weight and counts for nothing, in the warm-up neither."""
    trail, log = fit(
        model, encoded, EMA(decay=0.9), strategy=Overflowing((2, 3, 7)), precision="fp16"
    )
    assert log.skipped == 3
    want, count = dict(trail[0]), 0
    for number, weights in enumerate(trail[1:]):
        if number in (2, 3, 7):
            assert all(torch.equal(weights[n], trail[number][n]) for n in weights)
            continue
        d = min(0.9, (1 + count) / (10 + count))
        want = {name: d * want[name] + (1 - d) * weights[name] for name in want}
        count += 1
    assert_close(model, want)


def test_an_average_of_nothing_is_an_error(model: Classifier, encoded: Encoded) -> None:
    """Every step that was due overflowed: predicting with the start's weights would be a lie."""
    strategy = Overflowing(tuple(range(5, 9)))
    with pytest.raises(TrainingError, match="averaged nothing"):
        fit(model, encoded, SWA(start=0.6), strategy=strategy, precision="fp16")


@pytest.mark.parametrize("skipped", [(5,), (8,), (5, 8), (6, 7, 8)])
def test_an_epoch_whose_last_step_overflowed_is_in_the_mean_of_the_last_epochs(
    skipped: tuple[int, ...], model: Classifier, encoded: Encoded
) -> None:
    strategy = Overflowing(skipped)
    trail, log = fit(
        model, encoded, CheckpointAverage(epochs=2), strategy=strategy, precision="fp16"
    )
    assert log.skipped == len(skipped)
    assert_close(model, mean_of([trail[6], trail[9]]))
