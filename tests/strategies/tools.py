"""What strategies and references are run on: a toy model, a toy batch, one step, its gradients."""

from __future__ import annotations

import math
from collections.abc import Generator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from competition_kit.data.encoding import Batch, Encoded
from competition_kit.specs import parse_spec
from competition_kit.strategies import STRATEGIES, Strategy
from competition_kit.training.fit import FitLog, fit_fold
from competition_kit.training.model import Classifier, build_classifier
from competition_kit.training.objectives import BinaryCrossEntropy, CrossEntropy, Once
from competition_kit.training.recipe import Recipe
from competition_kit.training.seeds import FoldSeeds
from competition_kit.training.step import Objective, Step

KINDS = ("bert", "roberta")
EXACT = 1e-10  # relative error of a gradient between two ways to compute it in float64
SEED = 5  # of a step's noise
Gradients = dict[str, Tensor]


def toy_classifier(folder: Path, *, pooling: str = "mean", dropout: float = 0.0) -> Classifier:
    """Return a float64 classifier for three classes, its matrices drawn anew with more spread.

    With BERT's own standard deviation of 0.02 a tiny encoder is nearly linear and nearly constant;
    attacks would hardly change its gradient, and a wrong one could pass for a right one.
    """
    model = build_classifier(folder, 3, pooling=pooling, dropout=dropout).double()  # type: ignore[arg-type]
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:  # the padding row of the word table too
                parameter.normal_(std=0.3, generator=generator)
    return set_dropout(model, dropout).train()


def set_dropout(model: Classifier, p: float) -> Classifier:
    """Set every dropout probability (attention reads it from the same modules)."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = p
    return model


def toy_batch(
    model: nn.Module,
    *,
    lengths: Sequence[int] = (9, 4, 6, 2),
    labels: Tensor | None = None,
    multi_label: bool = False,
    extra_padding: int = 0,
    seed: int = 0,
) -> Batch:
    """Return a batch of random texts over 7 tokens, so that tokens repeat in and across texts."""
    embedding = model.get_input_embeddings()  # type: ignore[operator]
    pad = embedding.padding_idx if embedding.padding_idx is not None else 0
    generator = torch.Generator().manual_seed(seed)
    ids = torch.full((len(lengths), max(lengths) + extra_padding), pad)
    for row, length in enumerate(lengths):
        ids[row, :length] = torch.randint(5, 12, (length,), generator=generator)
    if labels is None and multi_label:
        labels = torch.randint(0, 2, (len(lengths), 3), generator=generator)
    elif labels is None:
        labels = torch.randint(0, 3, (len(lengths),), generator=generator)
    return make_batch(ids, lengths, labels)


def padded_batch(model: nn.Module, *, multi_label: bool = False, seed: int = 0) -> Batch:
    """Return a toy batch with padding in its longest text, too."""
    return toy_batch(model, multi_label=multi_label, seed=seed, extra_padding=2)


def make_batch(ids: Tensor, lengths: Sequence[int], labels: Tensor) -> Batch:
    """Return a batch of these ids, of which the first `lengths` of each row are no padding."""
    mask = (torch.arange(ids.shape[1]) < torch.tensor(lengths)[:, None]).long()
    distinct, slots = ids.unique(return_inverse=True)
    return Batch(ids, mask, None, labels, slots, len(distinct))


class Linear(nn.Module):
    """Logit f_i = w . (mean of the text's embeddings); with `zero`, the table holds zeros.

    With a zero table the embedding's output *is* the shift: `seen` has it for every pass, whatever
    way it came there.
    """

    def __init__(self, width: int = 8, tokens: int = 12, *, zero: bool = False) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(3)
        self.table = nn.Embedding(tokens, width, dtype=torch.float64)
        self.w = nn.Parameter(torch.randn(width, dtype=torch.float64, generator=generator))
        with torch.no_grad():
            self.table.weight.normal_(generator=generator)
            if zero:
                self.table.weight.zero_()
        self.seen: list[Tensor] = []

    def get_input_embeddings(self) -> nn.Module:
        return self.table

    def forward(self, ids: Tensor, mask: Tensor, types: Tensor | None = None) -> Tensor:
        embedded = self.table(ids)
        self.seen.append(embedded.detach().clone())
        mean = (embedded * mask.unsqueeze(-1)).sum(1) / mask.sum(1, keepdim=True)
        return (mean @ self.w).unsqueeze(1)


def binary_batch(model: Linear, lengths: tuple[int, ...] = (9, 4, 6, 2), extra: int = 0) -> Batch:
    labels = torch.arange(len(lengths)).remainder(2).unsqueeze(1)
    return toy_batch(model, lengths=lengths, labels=labels, extra_padding=extra)


class Watching(Step):
    """A step that keeps the logits and the shift of every pass, inner ones included."""

    def __init__(self, *args: Any, **settings: Any) -> None:
        super().__init__(*args, **settings)
        self.seen: list[Tensor] = []
        self.shifts: list[Tensor] = []

    def logits(self, shift: Tensor | None = None, draw: int = 0) -> Tensor:
        logits = super().logits(shift, draw)
        self.shifts.append(self.new_shift() if shift is None else shift.detach().clone())
        self.seen.append(logits.detach().clone())
        return logits

    def slow_logits(self, *args: Any) -> Tensor:
        logits = super().slow_logits(*args)
        self.seen.append(logits.detach().clone())
        return logits


def step_of(
    model: nn.Module,
    batch: Batch,
    objective: Objective | None = None,
    *,
    seed: int = SEED,
    **settings: Any,
) -> Watching:
    """Return a step; its objective is the plain loss of the batch's labels, unless given."""
    assert batch.labels is not None
    plain = Once(CrossEntropy() if batch.labels.ndim == 1 else BinaryCrossEntropy())
    generator = torch.Generator().manual_seed(seed)
    return Watching(model, batch, objective or plain, generator, **settings)


def drive(losses: Generator[Tensor, None, None], weight: float = 1.0) -> list[float]:
    """Do what `fit_fold` does with a strategy's losses; return their values."""
    values = []
    with closing(losses):
        for loss in losses:
            (loss * weight).backward()
            values.append(loss.item())
    return values


def gradients(model: nn.Module) -> Gradients:
    """Return a copy of every parameter's gradient (zeros where there is none)."""
    return {
        name: torch.zeros_like(p) if p.grad is None else p.grad.clone()
        for name, p in model.named_parameters()
    }


def trained(strategy: Strategy | str, model: nn.Module, batch: Batch, **settings: Any) -> Gradients:
    """Return every parameter's gradient after one step."""
    if isinstance(strategy, str):
        strategy = parse_spec(strategy, STRATEGIES)
    model.zero_grad()
    drive(strategy(step_of(model, batch, **settings)))
    return gradients(model)


def toy_rows() -> tuple[Encoded, np.ndarray]:
    """Return 12 random rows of 3 to 9 tokens, and their labels."""
    generator = np.random.default_rng(0)
    lengths = generator.integers(3, 10, size=12)
    ids = generator.integers(5, 20, size=lengths.sum()).astype(np.int32)
    starts = np.concatenate([[0], lengths.cumsum()])
    return Encoded(ids, None, starts, 0, 0), np.arange(12) % 3


def fit(model: Classifier, strategy: Strategy | str, **recipe: Any) -> FitLog:
    """Train on the toy rows; two epochs of two steps, the first of two micro-batches."""
    encoded, labels = toy_rows()
    settings = {"epochs": 2, "lr": 1e-3, "batch_size": 4, "accumulation_steps": 2, **recipe}
    return fit_fold(
        model,
        encoded,
        labels,
        np.arange(len(labels)),
        strategy=parse_spec(strategy, STRATEGIES) if isinstance(strategy, str) else strategy,
        objective=Once(CrossEntropy()),
        recipe=Recipe(**settings),
        seeds=FoldSeeds(0, 0),
    )


def identical(one: Gradients, other: Gradients) -> bool:
    return all(torch.equal(one[name], other[name]) for name in one)


def relative_error(got: Gradients, want: Gradients) -> float:
    """Return the largest error of a parameter's gradient, relative to that gradient's norm.

    A gradient that should vanish (a key's bias, an unused row) is held against the largest norm.
    """
    assert got.keys() == want.keys()
    largest = max(float(g.norm()) for g in want.values())
    assert largest > 0, "a test on vanishing gradients shows nothing"
    errors = []
    for name, right in want.items():
        scale = float(right.norm())
        scale = scale if scale > 1e-9 * largest else largest
        errors.append(float((got[name] - right).norm()) / scale)
    return max(errors)


def added(*parts: Gradients, weight: float = 1.0) -> Gradients:
    return {name: weight * sum(part[name] for part in parts) for name in parts[0]}  # type: ignore[misc]


def true_lengths(batch: Batch) -> list[int]:
    return [int(row.sum()) for row in batch.attention_mask]


def l2(tensor: Tensor) -> float:
    return math.sqrt(sum(float(x) ** 2 for x in tensor.flatten().tolist()))
