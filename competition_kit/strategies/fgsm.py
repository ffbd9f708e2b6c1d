"""Fast gradient sign method."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from competition_kit.strategies.base import check_at_least
from competition_kit.strategies.fgm import one_step_attack

if TYPE_CHECKING:
    from torch import Tensor

    from competition_kit.training.step import Step

__all__ = ["FGSM"]


@dataclass(frozen=True, kw_only=True)
class FGSM:
    """Every embedding element moves by epsilon in the direction that raises the loss.

    Formula:      r = epsilon * sign(g),  g = dL(E)/dE;  gradient = dL(E) + dL(E + r), r constant
    Paper:        Goodfellow, Shlens, Szegedy, ICLR 2015, arXiv 1412.6572 (section 4).
    Options:      objective as in fgm: "sum", "mean" or "adv_only". dropout="shared": both passes
                  have the same masks.
    Cost:         2 forwards, 2 backwards (6 units); objective="adv_only": 5 units.
    Sane range:   epsilon 0.001 to 0.02 (elements of a base-size table have a standard deviation of
                  about 0.04). A text of n tokens moves by epsilon * sqrt(n d) in L2.
    Interactions: as fgm.
    Public bugs:  padding moved too, since sign() blows tiny leaks up to full size. Masked here.
    """

    epsilon: float = 0.005
    objective: Literal["sum", "mean", "adv_only"] = "sum"
    dropout: Literal["fresh", "shared"] = "fresh"

    def __post_init__(self) -> None:
        check_at_least(0.0, epsilon=self.epsilon)

    @property
    def strength(self) -> float:
        return self.epsilon

    def __call__(self, step: Step) -> Generator[Tensor, None, None]:
        with step.dropout(self.dropout):
            yield from one_step_attack(step, self.objective, self._shift)

    def _shift(self, step: Step, gradient: Tensor) -> Tensor:
        return self.epsilon * step.sign(gradient)
