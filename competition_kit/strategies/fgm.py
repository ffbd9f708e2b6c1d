"""Fast gradient method."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from competition_kit.strategies.base import check_at_least

if TYPE_CHECKING:
    from torch import Tensor

    from competition_kit.training.step import Step

__all__ = ["FGM"]


@dataclass(frozen=True, kw_only=True)
class FGM:
    """One step of length epsilon uphill; trains on the clean and the shifted batch.

    Formula:      r = epsilon * g / ||g||_2,  g = dL(E)/dE;  gradient = dL(E) + dL(E + r), r constant
    Paper:        Miyato, Dai, Goodfellow, ICLR 2017, arXiv 1605.07725 (section 3).
    Options:      scope="table": the competition recipe. g is the gradient of the whole embedding
                  table over the batch, ||g|| its Frobenius norm: one budget for the batch, the
                  same shift for every occurrence of a token. Its meaning changes with the batch.
                  scope="example": the paper's, a budget for each text.
                  scope="token": a budget for each position.
    Cost:         2 forwards, 2 backwards (6 units); nothing is copied or restored.
    Sane range:   table 0.25 to 1.0; example 0.1 to 1.0 (a text's embeddings have norm 5 to 8 in
                  base-size encoders); token 0.05 to 0.3.
    Interactions: the two gradients add up, so clipping bites earlier; under accumulation each
                  micro-batch is attacked along its own gradient.
    Public bugs:  direction from accumulated gradients; weights left shifted after an error; a name
                  pattern that matches nothing. None here: the table is never touched.
    """

    epsilon: float = 1.0
    scope: Literal["table", "example", "token"] = "table"

    def __post_init__(self) -> None:
        check_at_least(0.0, epsilon=self.epsilon)

    @property
    def strength(self) -> float:
        return self.epsilon

    def __call__(self, step: Step) -> Generator[Tensor, None, None]:
        shift = step.new_shift()
        yield step.loss(shift)  # the clean pass also fills shift.grad
        assert shift.grad is not None, "the loop must back-propagate every yielded loss"
        yield step.loss(self.epsilon * step.unit(shift.grad, self.scope))
