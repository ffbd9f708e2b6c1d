"""Robust representations through regularised fine-tuning."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from competition_kit.strategies.base import check_at_least

if TYPE_CHECKING:
    from torch import Tensor

    from competition_kit.training.step import Step

__all__ = ["R3F"]


@dataclass(frozen=True, kw_only=True)
class R3F:
    """Symmetric KL between the prediction for a text and for the same text with a little noise.

    Formula:      loss = L(E) + alpha * mean KL_sym(p(E), p(E + z)),  z ~ U(-epsilon, epsilon) or
                  N(0, epsilon^2) on true tokens; gradient through both sides
    Paper:        Aghajanyan et al., ICLR 2021, arXiv 2008.03156 (equation 4).
    Options:      noise="normal": Gaussian. dropout="shared": both passes have the same masks.
    Cost:         2 forwards, 2 backwards (6 units).
    Sane range:   alpha 0.1 to 5, epsilon 1e-5 in the paper; 1e-3 to 1e-2 to be felt at all.
    Interactions: with fresh dropout and the paper's epsilon the two passes differ mainly by their
                  masks: then it is R-Drop with one supervised pass.
    Public bugs:  noise on padding. Masked here.
    """

    alpha: float = 1.0
    epsilon: float = 1e-5
    noise: Literal["uniform", "normal"] = "uniform"
    dropout: Literal["fresh", "shared"] = "fresh"

    def __post_init__(self) -> None:
        check_at_least(0.0, alpha=self.alpha, epsilon=self.epsilon)

    @property
    def strength(self) -> float:
        return min(self.alpha, self.epsilon)

    def __call__(self, step: Step) -> Generator[Tensor, None, None]:
        with step.dropout(self.dropout):
            loss, clean = step.supervised()
            unit = step.uniform() if self.noise == "uniform" else step.gaussian()
            noise = self.epsilon * unit * step.mask
            yield loss + self.alpha * step.divergence("symmetric", clean, noise)
