"""Plain training."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

    from competition_kit.training.step import Step

__all__ = ["Plain"]


@dataclass(frozen=True, kw_only=True)
class Plain:
    """Plain training: the gradient of the loss, nothing else. The baseline of every delta.

    Formula:      g = dL(E)/dtheta
    Cost:         1 forward, 1 backward (3 units).
    """

    @property
    def strength(self) -> float:
        return 0.0

    def __call__(self, step: Step) -> Generator[Tensor, None, None]:
        yield step.loss()
