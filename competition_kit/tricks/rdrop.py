"""Regularised dropout."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from competition_kit.strategies.base import check_at_least

if TYPE_CHECKING:
    from competition_kit.training.objectives import Criterion
    from competition_kit.training.step import Objective

__all__ = ["RegularisedDropout"]


@dataclass(frozen=True, kw_only=True)
class RegularisedDropout:
    """Two passes with different dropout have to agree; an objective, so any strategy can use it.

    Formula:      (L(p1) + L(p2)) / 2 + alpha * (KL(p1 || p2) + KL(p2 || p1)) / 2
    Paper:        Liang et al., NeurIPS 2021, arXiv 2106.14448 (R-Drop, equation 4).
    Cost:         twice the passes of the strategy (6 units around none).
    Sane range:   alpha 0.1 to 1 for classification; needs dropout above 0.
    Interactions: with fgm four passes. With a strategy's dropout="shared" its two masks still
                  differ from each other, and are the same two in every pass of the step.
    Public bugs:  the mean taken over classes too, which divides alpha by C.
    """

    alpha: float = 0.5
    conflicts: ClassVar[dict[str, str]] = {}

    def __post_init__(self) -> None:
        check_at_least(0.0, alpha=self.alpha)

    def objective(self, criterion: Criterion) -> Objective:
        from competition_kit.training.objectives import RDrop

        return RDrop(criterion, self.alpha)
