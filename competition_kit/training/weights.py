"""Weights that are moved for a while, and put back bit for bit."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from torch import Tensor, nn
from torch.autograd.graph import increment_version
from torch.nn import functional
from torch.nn.utils import parametrize

__all__ = ["MixedWeight", "moved", "settle", "stored_weight"]


@contextmanager
def moved(parameters: Sequence[nn.Parameter], offsets: Sequence[Tensor]) -> Iterator[None]:
    """Add offsets to parameters while the block runs; they are back bit for bit on every exit.

    The moved weights stand where the offsets were, which are used up; the weights themselves wait
    untouched (w + v - v would not be w in floating point). So no copy is made.
    """
    kept = [parameter.data for parameter in parameters]
    try:
        for parameter, offset in zip(parameters, offsets, strict=True):
            parameter.data = offset.add_(parameter.data)
        increment_version(parameters)  # a graph made outside must not go on with moved weights
        yield
    finally:
        for parameter, original in zip(parameters, kept, strict=True):
            parameter.data = original
        increment_version(parameters)


def stored_weight(layer: nn.Linear) -> nn.Parameter:
    """Return the parameter behind a linear layer's weight (mixout computes the weight from it)."""
    stored: Tensor = layer.weight
    if parametrize.is_parametrized(layer, "weight"):
        stored = layer.parametrizations["weight"].original  # type: ignore[index, union-attr]
    assert isinstance(stored, nn.Parameter)
    return stored


class MixedWeight(nn.Module):
    """A weight that is, element by element, sometimes its anchor (see `tricks.mixout`).

    Args:
        anchor: the pretrained weight.
        p: probability of the anchor, in training.
    """

    anchor: Tensor

    def __init__(self, anchor: Tensor, p: float) -> None:
        super().__init__()
        self.register_buffer("anchor", anchor, persistent=False)
        self.p = p

    def forward(self, weight: Tensor) -> Tensor:
        if not self.training or self.p == 0:
            return weight
        # dropout of the difference from the anchor is the same formula: p of its elements become
        # zero, the others are divided by 1 - p
        return self.anchor + functional.dropout(weight - self.anchor, self.p)


def settle(model: nn.Module) -> None:
    """Turn computed weights (mixout's) back into plain ones, as they are in evaluation."""
    for module in model.modules():
        if parametrize.is_parametrized(module, "weight"):
            parametrize.remove_parametrizations(module, "weight", leave_parametrized=False)
