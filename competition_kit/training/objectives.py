"""The loss of one forward pass, by task. Each is usable with every strategy."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor
from torch.nn import functional

from competition_kit.training.step import Objective

__all__ = ["OBJECTIVES", "BinaryCrossEntropy", "CrossEntropy"]


@dataclass(frozen=True)
class CrossEntropy:
    """Mean over the batch of -log p(label), for one label per row."""

    def __call__(self, logits: Tensor, labels: Tensor) -> Tensor:
        return functional.cross_entropy(logits, labels)


@dataclass(frozen=True)
class BinaryCrossEntropy:
    """Mean over rows and labels of the binary cross-entropy, for several labels per row."""

    def __call__(self, logits: Tensor, labels: Tensor) -> Tensor:
        return functional.binary_cross_entropy_with_logits(logits, labels.to(logits.dtype))


OBJECTIVES: dict[str, type[Objective]] = {
    "single_label": CrossEntropy,
    "multi_label": BinaryCrossEntropy,
}
