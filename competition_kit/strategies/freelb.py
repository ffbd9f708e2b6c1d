"""Free large-batch adversarial training."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from competition_kit.strategies.base import check_at_least

if TYPE_CHECKING:
    from torch import Tensor

    from competition_kit.training.step import Step

__all__ = ["FreeLB"]


@dataclass(frozen=True, kw_only=True)
class FreeLB:
    """Ascends and trains with the same backward passes; the gradient is the mean over the path.

    Formula:      r_0 = u * init / sqrt(n d), u ~ U(-1, 1) on true tokens (n: the text's length);
                  r_{t+1} = P(r_t + step_size * g_t / ||g_t||), norms per text;
                  gradient = mean over t of dL(E + r_t)
    Paper:        Zhu et al., ICLR 2020, arXiv 1909.11764 (algorithm 1).
    Options:      passes="steps": K passes and K - 1 ascents, as in the authors' transformers
                  version. passes="steps+1": K + 1 passes and K ascents, as in their fairseq version.
                  max_norm=0: no projection, as in both. norm="linf": init is U(-init, init),
                  ascent by g / max|g|, projection by clamping. dropout="shared": one mask for the
                  whole path (the paper's section 3.3; the authors' code shares some of the masks).
    Cost:         K forwards, K backwards (3K units: 9 at K = 3); one of each more for "steps+1".
    Sane range:   steps 2 to 4, step_size 0.03 to 0.2, init 0 to 0.6, max_norm 0 to 0.6 (the
                  authors' scripts, base to xxlarge encoders).
    Interactions: init is no norm: the start has L2 norm about init / sqrt(3). It is not projected.
    Public bugs:  the mean forgotten (gradient K times too large); max_norm=0 taken as radius 0;
                  norms over the whole batch; padding shifted. None here.
    """

    steps: int = 3
    step_size: float = 0.1
    init: float = 0.1
    max_norm: float = 0.0
    norm: Literal["l2", "linf"] = "l2"
    passes: Literal["steps", "steps+1"] = "steps"
    dropout: Literal["fresh", "shared"] = "fresh"

    def __post_init__(self) -> None:
        check_at_least(1, steps=self.steps)
        check_at_least(0.0, step_size=self.step_size, init=self.init, max_norm=self.max_norm)

    @property
    def strength(self) -> float:
        return max(self.init, self.step_size * (self._count - 1))

    @property
    def _count(self) -> int:
        return self.steps + (self.passes == "steps+1")

    def __call__(self, step: Step) -> Generator[Tensor, None, None]:
        with step.dropout(self.dropout):
            yield from self._path(step)

    def _path(self, step: Step) -> Generator[Tensor, None, None]:
        shift = step.new_shift(self._start(step))
        for t in range(self._count):
            yield step.loss(shift) / self._count  # fills shift.grad too
            if t + 1 < self._count:
                assert shift.grad is not None, "the loop must back-propagate every yielded loss"
                direction = step.unit(shift.grad, "example", self.norm)
                uphill = shift.detach() + self.step_size * direction
                if self.max_norm > 0:
                    uphill = step.project(uphill, self.max_norm, "example", self.norm)
                shift = step.new_shift(uphill)

    def _start(self, step: Step) -> Tensor:
        """Return the random start [B, T, H]; zero when init is 0."""
        noise = step.uniform() * step.mask * self.init
        return noise if self.norm == "linf" else noise / (step.lengths * step.width).sqrt()
