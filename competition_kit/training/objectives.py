"""What is minimised at one point of embedding space. Each is usable with every strategy.

A *criterion* turns logits and labels into one loss per example; an *objective* runs the passes that
it needs at a given shift and returns the mean. `Once` is the usual one: one pass, one criterion.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional

from competition_kit.training.divergence import symmetric_kl
from competition_kit.training.step import Step

__all__ = ["CRITERIA", "BinaryCrossEntropy", "Criterion", "CrossEntropy", "Focal", "Once", "RDrop"]


class Criterion(Protocol):
    """The loss of each example, given its logits."""

    def __call__(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Return [B] losses for logits [B, C]."""
        ...


@dataclass(frozen=True)
class CrossEntropy:
    """-log p(label), for one label per row.

    Attributes:
        label_smoothing: e; the target is (1 - e) for the label plus e / C for every class.
        class_weights: factor for each class, or none. The mean is over rows, not over weights, so
            that micro-batches add up to their batch.
    """

    label_smoothing: float = 0.0
    class_weights: tuple[float, ...] = ()

    def __call__(self, logits: Tensor, labels: Tensor) -> Tensor:
        losses = functional.cross_entropy(
            logits, labels, label_smoothing=self.label_smoothing, reduction="none"
        )
        if not self.class_weights:
            return losses
        return losses * logits.new_tensor(self.class_weights)[labels]


@dataclass(frozen=True)
class BinaryCrossEntropy:
    """Mean over the labels of the binary cross-entropy, for several labels per row.

    Attributes:
        label_smoothing: e; a target y becomes (1 - e) y + e / 2.
        class_weights: factor for the positive part of each label, or none.
    """

    label_smoothing: float = 0.0
    class_weights: tuple[float, ...] = ()

    def __call__(self, logits: Tensor, labels: Tensor) -> Tensor:
        targets = labels.to(logits.dtype) * (1 - self.label_smoothing) + self.label_smoothing / 2
        positive = logits.new_tensor(self.class_weights) if self.class_weights else None
        return functional.binary_cross_entropy_with_logits(
            logits, targets, pos_weight=positive, reduction="none"
        ).mean(dim=1)


CRITERIA: dict[str, type[CrossEntropy] | type[BinaryCrossEntropy]] = {
    "single_label": CrossEntropy,
    "multi_label": BinaryCrossEntropy,
}


@dataclass(frozen=True)
class Focal:
    """-(1 - p)^gamma log p of what is true (Lin et al. 2017, arXiv 1708.02002, equation 4).

    For several labels the mean over labels, each a yes-or-no question. With gamma 0 it is the
    cross-entropy.
    """

    gamma: float = 2.0

    def __call__(self, logits: Tensor, labels: Tensor) -> Tensor:
        if labels.ndim == 2:
            signs = labels.to(logits.dtype) * 2 - 1
            log_p = functional.logsigmoid(logits * signs)  # of the true answer
            return self._focal(log_p).mean(dim=1)
        log_p = functional.log_softmax(logits, dim=1).gather(1, labels[:, None]).squeeze(1)
        return self._focal(log_p)

    def _focal(self, log_p: Tensor) -> Tensor:
        # 1 - p without cancellation, and never 0: the slope of x ** gamma is infinite there
        wrong = (-log_p.expm1()).clamp_min(torch.finfo(log_p.dtype).tiny)
        return -(wrong**self.gamma) * log_p


@dataclass(frozen=True)
class Once:
    """One pass, the mean of its criterion over the batch."""

    criterion: Criterion

    def __call__(self, step: Step, shift: Tensor | None) -> tuple[Tensor, Tensor]:
        logits = step.logits(shift)
        return self.criterion(logits, step.labels).mean(), logits


@dataclass(frozen=True)
class RDrop:
    """Two passes with different dropout; their losses averaged, plus alpha times their distance.

    (L(p1) + L(p2)) / 2 + alpha * (KL(p1 || p2) + KL(p2 || p1)) / 2, mean over the batch, gradient
    through both sides (Liang et al. 2021, arXiv 2106.14448; equation 4 sums the two losses where
    the authors' code and this take their mean).
    """

    criterion: Criterion
    alpha: float

    def __call__(self, step: Step, shift: Tensor | None) -> tuple[Tensor, Tensor]:
        first, second = step.logits(shift), step.logits(shift, draw=1)
        supervised = self.criterion(first, step.labels) + self.criterion(second, step.labels)
        distance = symmetric_kl(first, second, step.multi_label)
        return (0.5 * supervised + 0.5 * self.alpha * distance).mean(), first
