"""An average of the weights along training, evaluated in place of the last weights."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

__all__ = ["WeightAverage"]


class WeightAverage:
    """A running average of a model's trainable weights; training goes on with its own.

    Args:
        model: whose weights are averaged, as they are now. Buffers are left alone.
        factor: count of earlier updates -> how far the average moves towards the new weights
            (1: all the way). 1 / (count + 1) is the arithmetic mean.
    """

    def __init__(self, model: nn.Module, factor: Callable[[int], float]) -> None:
        self._weights: list[Tensor] = [p for p in model.parameters() if p.requires_grad]
        self._average = [p.detach().clone() for p in self._weights]
        self._factor = factor
        self.updates = 0

    def update(self) -> None:
        """Take the weights as they are now into the average."""
        with torch.no_grad():
            torch._foreach_lerp_(self._average, self._weights, self._factor(self.updates))
        self.updates += 1

    def put(self) -> None:
        """Give the model the average; its own weights are gone."""
        with torch.no_grad():
            torch._foreach_copy_(self._weights, self._average)
