"""Training the used rows of the embedding table gives what training the whole table gives."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from competition_kit.approach import parse_approach
from competition_kit.data.encoding import Encoded
from competition_kit.harness.train_cell import measures_whole_table
from competition_kit.specs import parse_spec
from competition_kit.strategies import STRATEGIES
from competition_kit.training.fit import fit_fold, predict
from competition_kit.training.model import Classifier, build_classifier
from competition_kit.training.objectives import CrossEntropy, Once
from competition_kit.training.recipe import Recipe
from competition_kit.training.seeds import FoldSeeds
from competition_kit.training.used_rows import (
    UsedRows,
    _say_once,
    keep_used_rows,
    put_rows_back,
)

SEEDS = FoldSeeds(seed=0, fold=0)
LABELS = np.random.default_rng(1).integers(0, 3, size=30)
KINDS = ["bert", "roberta"]


def whole_table(spec: str) -> bool:
    approach = parse_approach(spec)
    return measures_whole_table(approach.strategy, approach.tricks)


@pytest.fixture(scope="module")
def encoded() -> Encoded:
    """30 texts of 6 of the tokens, padding between them."""
    generator = np.random.default_rng(0)
    lengths = generator.integers(3, 9, size=30)
    ids = generator.choice([2, 3, 7, 11, 12, 19], size=lengths.sum())
    return Encoded(ids.astype(np.int32), None, np.cumsum([0, *lengths]), truncated=0, pad_id=1)


@pytest.fixture
def build(model_folder: Callable[[str], Path]) -> Callable[[str], Classifier]:
    def make(kind: str) -> Classifier:
        return build_classifier(model_folder(kind), 3, generator=SEEDS.head()).double()

    return make


def keep(model: Classifier, encoded: Encoded) -> UsedRows:
    assert keep_used_rows(model, np.append(encoded.ids, encoded.pad_id))
    embedding = model.get_input_embeddings()
    assert isinstance(embedding, UsedRows)
    return embedding


def fit(model: Classifier, encoded: Encoded, strategy: str, weight_decay: float = 0.1) -> None:
    fit_fold(
        model,
        encoded,
        LABELS,
        np.arange(24),
        strategy=parse_spec(strategy, STRATEGIES),
        objective=Once(CrossEntropy()),
        recipe=Recipe(epochs=2, lr=1e-3, batch_size=8, weight_decay=weight_decay),
        seeds=SEEDS,
    )


@pytest.mark.parametrize("kind", KINDS)
# awp: weight decay of the other rows would show in ||w||; see the next test
@pytest.mark.parametrize("strategy", [name for name in STRATEGIES if name != "awp"])
def test_the_trained_rows_are_those_of_the_whole_table(
    build: Callable[[str], Classifier], encoded: Encoded, kind: str, strategy: str
) -> None:
    whole, part = build(kind), build(kind)
    before = part.get_input_embeddings().weight.detach().clone()
    rows = keep(part, encoded)
    assert rows.weight.shape == (7, before.shape[1])

    fit(whole, encoded, strategy)
    fit(part, encoded, strategy)

    inside = predict(part, encoded, np.arange(30))
    put_rows_back(part)
    assert np.array_equal(predict(part, encoded, np.arange(30)), inside)
    trained, expected = dict(part.named_parameters()), dict(whole.named_parameters())
    assert list(trained) == list(expected), "names and order as they were"
    table = part.get_input_embeddings().weight
    for name, weight in trained.items():
        wanted = expected[name].detach().clone()
        if weight is table:
            unused = np.setdiff1d(np.arange(len(before)), [1, 2, 3, 7, 11, 12, 19])
            wanted[unused] = before[unused]  # which have no gradient: only weight decay differs
        torch.testing.assert_close(weight.detach(), wanted, rtol=1e-9, atol=1e-12)
    assert not torch.equal(table.detach()[7], before[7]), "it did train"


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("strategy", ["layer", "kaggle", "momentum"])
def test_awp_measures_the_rows_that_are_not_there_too(
    build: Callable[[str], Classifier], encoded: Encoded, kind: str, strategy: str
) -> None:
    whole, part = build(kind), build(kind)
    for model in (whole, part):  # the other rows are most of ||w||
        table = model.get_input_embeddings().weight.detach()
        table[np.setdiff1d(np.arange(len(table)), [1, 2, 3, 7, 11, 12, 19])] *= 10
    keep(part, encoded)

    spec = f"awp(kind={strategy}, gamma=0.05, start_epoch=0)"
    for model in (whole, part):
        fit(model, encoded, spec, weight_decay=0.0)

    put_rows_back(part)
    for weight, wanted in zip(part.parameters(), whole.parameters(), strict=True):
        torch.testing.assert_close(weight.detach(), wanted.detach(), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_saved_weights_are_those_of_the_whole_model(
    build: Callable[[str], Classifier], encoded: Encoded, kind: str, tmp_path: Path
) -> None:
    model, copy = build(kind), build(kind)
    keep(model, encoded)
    with torch.no_grad():
        model.get_input_embeddings().weight.add_(1.0)
    expected = predict(model, encoded, np.arange(30))

    model.save(tmp_path / "model.safetensors")
    copy.restore(tmp_path / "model.safetensors")

    assert np.array_equal(predict(copy, encoded, np.arange(30)), expected)


def test_a_token_that_was_not_kept_is_an_error(
    build: Callable[[str], Classifier], encoded: Encoded
) -> None:
    rows = keep(build("bert"), encoded)

    with pytest.raises(IndexError):
        rows(torch.tensor([[2, 4]]))


def _scaled(table: nn.Embedding) -> nn.Embedding:
    class Scaled(nn.Embedding):
        def forward(self, input: torch.Tensor) -> torch.Tensor:
            return 2.0 * super().forward(input)

    return Scaled(*table.weight.shape, dtype=torch.float64)


@pytest.mark.parametrize(
    "other",
    [
        _scaled,
        lambda table: nn.Embedding(*table.weight.shape, max_norm=1.0),
        lambda table: nn.Embedding(*table.weight.shape, sparse=True),
    ],
)
def test_an_embedding_of_another_kind_stays_whole(
    build: Callable[[str], Classifier],
    encoded: Encoded,
    other: Callable[[nn.Embedding], nn.Embedding],
    caplog: pytest.LogCaptureFixture,
) -> None:
    _say_once.cache_clear()
    model = build("bert")
    model.encoder.set_input_embeddings(other(model.get_input_embeddings()))

    assert not keep_used_rows(model, encoded.ids)
    assert not keep_used_rows(model, encoded.ids)
    (record,) = caplog.records
    assert record.getMessage().startswith("BertModel looks tokens up in its own way")
    assert not isinstance(model.get_input_embeddings(), UsedRows)


def test_a_table_with_a_second_owner_stays_whole(
    build: Callable[[str], Classifier], encoded: Encoded
) -> None:
    model = build("bert")
    decoder = nn.Linear(32, 24, bias=False)
    decoder.weight = model.get_input_embeddings().weight
    model.decoder = decoder

    assert not keep_used_rows(model, encoded.ids)


def test_tricks_that_measure_the_whole_table_say_so() -> None:
    whole = ["child_tuning", "fgm, child_tuning(kind=D)"]
    used = ["none", "fgm", "sam", "asam", "awp", "mixout", "ema, noisytune"]

    assert [spec for spec in whole + used if whole_table(spec)] == whole
