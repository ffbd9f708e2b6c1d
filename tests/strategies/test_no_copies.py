"""No strategy copies the embedding table or the gradients: the exact peak of allocations."""

from __future__ import annotations

from collections.abc import Callable, Generator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from benchmarks.peak_memory import MIB, step_peak
from competition_kit.specs import parse_spec
from competition_kit.strategies import STRATEGIES, Strategy
from competition_kit.strategies.fgm import FGM
from competition_kit.strategies.none import Plain
from competition_kit.training.model import Classifier
from competition_kit.training.step import Step

from .tools import drive, step_of, toy_batch, toy_classifier

TOKENS = 100_000
FAR_BELOW = 0.1  # of a table


@pytest.fixture(scope="module")
def model(model_folder: Callable[[str], Path]) -> Classifier:
    """Return a tiny encoder of which the table is nearly everything."""
    model = toy_classifier(model_folder("bert"))
    table = nn.Embedding(TOKENS, 32, padding_idx=0, dtype=torch.float64)
    model.encoder.set_input_embeddings(table)  # type: ignore[operator]
    return model


def peak(model: Classifier, *strategies: Strategy) -> float:
    """Return the peak of these steps, whose gradients add up, in embedding tables."""
    batch = toy_batch(model)
    model.zero_grad(set_to_none=True)

    def work() -> None:
        for strategy in strategies:
            drive(strategy(step_of(model, batch)))

    table = model.get_input_embeddings().weight
    assert isinstance(table, Tensor)
    return step_peak(work, torch.device("cpu")) * MIB / (table.numel() * table.element_size())


@pytest.mark.parametrize("name", ["fgm", "fgsm", "pgd", "freelb", "vat", "alum", "r3f"])
def test_an_attack_takes_what_two_plain_passes_take(name: str, model: Classifier) -> None:
    """Two tables: the gradient, and while torch adds the next pass's to it, that one."""
    plain = peak(model, Plain(), Plain())
    assert plain == pytest.approx(2, abs=FAR_BELOW)
    assert peak(model, parse_spec(name, STRATEGIES)) < plain + FAR_BELOW


@pytest.mark.parametrize("name", ["neftune", "fgm(objective=adv_only)"])
def test_one_full_backward_takes_what_a_plain_one_takes(name: str, model: Classifier) -> None:
    plain = peak(model, Plain())
    assert plain == pytest.approx(1, abs=FAR_BELOW)
    assert peak(model, parse_spec(name, STRATEGIES)) < plain + FAR_BELOW


@dataclass(frozen=True, kw_only=True)
class BacksUp(FGM):
    """FGM that keeps a copy of the table, or of its gradient, as pasted recipes do."""

    gradient: bool = False

    def __call__(self, step: Step) -> Generator[Tensor, None, None]:
        table = step.model.get_input_embeddings().weight  # type: ignore[operator]
        kept = None if self.gradient else table.detach().clone()
        for loss in super().__call__(step):
            yield loss
            kept = table.grad.clone() if kept is None else kept


@pytest.mark.parametrize("gradient", [False, True])
def test_a_copy_would_show(gradient: bool, model: Classifier) -> None:
    assert peak(model, BacksUp(gradient=gradient)) > peak(model, Plain(), Plain()) + 1 - FAR_BELOW
