"""Sharpness-aware minimisation."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from competition_kit.strategies.base import Strategy, check_at_least, remarks
from competition_kit.strategies.none import Plain

if TYPE_CHECKING:
    from torch import Tensor, nn

    from competition_kit.training.step import Step

__all__ = ["ASAM", "SAM"]


@dataclass(frozen=True, kw_only=True)
class SAM:
    """Trains at the worst weights in a ball of radius rho; a wrapper for any other strategy.

    Formula:      e = rho * g / ||g||_2, the norm over all weights together;
                  gradient = the inner strategy's at w + e
    Paper:        Foret et al., ICLR 2021, arXiv 2010.01412 (equation 2, algorithm 1).
    Options:      weights as in awp: "linear", "matrices" or "all". start_epoch: epochs of plain training first.
    Cost:         1 forward and 1 backward more than the inner strategy (6 units around none).
    Sane range:   rho 0.01 to 0.1.
    Interactions: like awp, which scales by tensor instead; one of the two is enough. Under
                  accumulation each micro-batch climbs along its own gradient (m-sharpness).
    Public bugs:  weights left at w + e after an error; norm per group instead of over all.
    """

    rho: float = 0.05
    weights: Literal["linear", "matrices", "all"] = "all"
    start_epoch: float = 0.0
    inner: Strategy = field(default_factory=Plain)

    def __post_init__(self) -> None:
        check_at_least(0.0, rho=self.rho, start_epoch=self.start_epoch)

    @property
    def strength(self) -> float:
        return max(self.rho, self.inner.strength)

    def remarks(self) -> list[str]:
        return remarks(self.inner)

    def __call__(self, step: Step) -> Generator[Tensor, None, None]:
        if step.epoch < self.start_epoch:
            yield from self.inner(step)
            return
        weights = step.weights(self.weights)
        with step.moved(weights, self._offsets(step, weights)):
            yield from self.inner(step)

    def _offsets(self, step: Step, weights: Sequence[nn.Parameter]) -> list[Tensor]:
        return step.units_together(step.weight_gradients(weights), self.rho)


@dataclass(frozen=True, kw_only=True)
class ASAM(SAM):
    """SAM in a ball that is scaled by each weight's size, so that rescaling layers changes nothing.

    Formula:      e = rho * T^2 g / ||T g||_2, T = |w| + eta elementwise, norm over all weights;
                  gradient = the inner strategy's at w + e
    Paper:        Kwon et al., ICML 2021, arXiv 2102.11600 (equation 8; eta as in its section 4).
    Options:      as sam: weights "linear", "matrices" or "all"; start_epoch.
    Cost:         1 forward and 1 backward more than the inner strategy (6 units around none).
    Sane range:   rho 0.1 to 1 (about ten times SAM's), eta 0.01.
    Interactions: as sam.
    Public bugs:  as sam.
    """

    rho: float = 0.5
    eta: float = 0.01

    def __post_init__(self) -> None:
        super().__post_init__()
        check_at_least(0.0, eta=self.eta)

    def _offsets(self, step: Step, weights: Sequence[nn.Parameter]) -> list[Tensor]:
        gradients = step.weight_gradients(weights)
        for number, weight in enumerate(weights):
            gradients[number] = self._scale(weight) * gradients[number]
        offsets = step.units_together(gradients, self.rho)
        for weight, offset in zip(weights, offsets, strict=True):
            offset.mul_(self._scale(weight))
        return offsets

    def _scale(self, weight: Tensor) -> Tensor:
        """Return T = |w| + eta; made twice rather than kept for all weights."""
        return weight.detach().abs() + self.eta
