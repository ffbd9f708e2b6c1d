"""Changes to the loss of one example: label smoothing, class weights, focal loss."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar

from competition_kit.strategies.base import check_at_least

if TYPE_CHECKING:
    import numpy as np

    from competition_kit.training.objectives import Criterion

__all__ = ["ClassWeights", "FocalLoss", "LabelSmoothing"]


@dataclass(frozen=True, kw_only=True)
class LabelSmoothing:
    """Asks for a little less than certainty.

    Formula:      target = (1 - epsilon) * one-hot + epsilon / C; for several labels
                  (1 - epsilon) * y + epsilon / 2
    Paper:        Szegedy et al., CVPR 2016, arXiv 1512.00567 (section 7).
    Cost:         none.
    Sane range:   epsilon 0.02 to 0.1.
    Interactions: probabilities move towards the middle: thresholds and log loss move with them.
    """

    epsilon: float = 0.1
    conflicts: ClassVar[dict[str, str]] = {
        "focal": "both change the target of the same loss; focal has no smoothed form here"
    }

    def __post_init__(self) -> None:
        check_at_least(0.0, epsilon=self.epsilon)
        if self.epsilon >= 1:
            raise ValueError(f"epsilon must be below 1, got {self.epsilon:g}")

    def criterion(self, plain: Criterion, labels: np.ndarray, classes: int) -> Criterion:
        return replace(plain, label_smoothing=self.epsilon)  # type: ignore[type-var]


@dataclass(frozen=True, kw_only=True)
class ClassWeights:
    """Rare classes count more, by their frequency in the fold's training rows.

    Formula:      weight of class c proportional to (1 / frequency of c) ** power, scaled so that the
                  mean weight of a training row is 1; for several labels the positive part of label
                  c is multiplied by (rows without c / rows with c) ** power
    Paper:        King and Zeng 2001 for power 1; scikit-learn's class_weight="balanced".
    Cost:         none.
    Sane range:   power 0.25 to 1; 0.5 is a mild start.
    Interactions: raises recall of rare classes and macro F1, lowers accuracy; not for log loss.
    Public bugs:  weights from all rows, the scored fold included; a weighted mean that divides by
                  the batch's weights, so that batches without rare classes count as much.
    """

    power: float = 0.5
    conflicts: ClassVar[dict[str, str]] = {
        "focal": "both reweight rows; combine them in a criterion of your own if you mean it"
    }

    def __post_init__(self) -> None:
        check_at_least(0.0, power=self.power)

    def criterion(self, plain: Criterion, labels: np.ndarray, classes: int) -> Criterion:
        import numpy as np

        if labels.ndim == 2:
            positive = labels.sum(axis=0).clip(min=1)
            weights = ((len(labels) - labels.sum(axis=0)).clip(min=1) / positive) ** self.power
        else:
            counts = np.bincount(labels, minlength=classes)
            weights = (1.0 / counts.clip(min=1)) ** self.power
            weights *= len(labels) / (weights * counts).sum()
        return replace(plain, class_weights=tuple(weights.tolist()))  # type: ignore[type-var]


@dataclass(frozen=True, kw_only=True)
class FocalLoss:
    """Rows that are right already count less.

    Formula:      -(1 - p) ** gamma * log p of what is true; for several labels the mean over labels
    Paper:        Lin et al., ICCV 2017, arXiv 1708.02002 (equation 4).
    Cost:         none.
    Sane range:   gamma 0.5 to 3.
    Interactions: probabilities come out less certain than they should be.
    """

    gamma: float = 2.0
    conflicts: ClassVar[dict[str, str]] = {}

    def __post_init__(self) -> None:
        check_at_least(0.0, gamma=self.gamma)

    def criterion(self, plain: Criterion, labels: np.ndarray, classes: int) -> Criterion:
        from competition_kit.training.objectives import Focal

        return Focal(self.gamma)
