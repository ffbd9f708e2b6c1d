"""Weight averages: EMA, SWA, checkpoint averaging."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from competition_kit.strategies.base import check_at_least

if TYPE_CHECKING:
    from competition_kit.training.averaging import WeightAverage
    from competition_kit.training.model import EncoderModel

__all__ = ["EMA", "SWA", "CheckpointAverage"]

ONE_AVERAGE = "evaluation can use one average of the weights only"


@dataclass(frozen=True, kw_only=True)
class EMA:
    """Evaluation uses an exponential moving average of the weights.

    Formula:      s = d_t * s + (1 - d_t) * w after each optimizer step that changed the weights;
                  d_t = min(decay, (1 + t) / (10 + t)) with warmup, else decay
    Paper:        Polyak and Juditsky 1992; with warm-up of the decay as in TensorFlow's EMA.
    Cost:         one pass over the weights in each step, and a copy of them.
    Sane range:   decay 0.99 to 0.999 for runs of some hundred steps; 0.9999 would still be at the
                  first weights.
    Interactions: with a learning rate that falls to zero the gain is small.
    Public bugs:  updated for each micro-batch, or on steps that fp16 skipped.
    """

    decay: float = 0.99
    warmup: bool = True
    conflicts: ClassVar[dict[str, str]] = {"swa": ONE_AVERAGE, "checkpoint_average": ONE_AVERAGE}

    def __post_init__(self) -> None:
        if not 0 <= self.decay < 1:
            raise ValueError(f"decay must be at least 0 and below 1, got {self.decay:g}")

    def average(self, model: EncoderModel) -> WeightAverage:
        from competition_kit.training.averaging import WeightAverage

        def factor(t: int) -> float:
            return 1 - (min(self.decay, (1 + t) / (10 + t)) if self.warmup else self.decay)

        return WeightAverage(model, factor)

    def is_due(self, step: int, total_steps: int, steps_per_epoch: int, skipped: bool) -> bool:
        return not skipped


@dataclass(frozen=True, kw_only=True)
class SWA:
    """Evaluation uses the arithmetic mean of the weights of the last part of training, step by step.

    Formula:      mean of w after each optimizer step from `start` (a part of all steps) on
    Paper:        Izmailov et al., UAI 2018, arXiv 1803.05407, with the usual falling rate.
    Cost:         one pass over the weights in each of those steps, and a copy of them.
    Sane range:   start 0.5 to 0.9; combine with --schedule constant for the paper's form.
    Interactions: with a learning rate that falls to zero the gain is small.
    """

    start: float = 0.75
    conflicts: ClassVar[dict[str, str]] = {"ema": ONE_AVERAGE, "checkpoint_average": ONE_AVERAGE}

    def __post_init__(self) -> None:
        if not 0 <= self.start < 1:
            raise ValueError(f"start must be at least 0 and below 1, got {self.start:g}")

    def average(self, model: EncoderModel) -> WeightAverage:
        return _mean(model)

    def is_due(self, step: int, total_steps: int, steps_per_epoch: int, skipped: bool) -> bool:
        return step > self.start * total_steps and not skipped


@dataclass(frozen=True, kw_only=True)
class CheckpointAverage:
    """Evaluation uses the mean of the weights at the end of each of the last epochs.

    Formula:      mean of w after the last `epochs` epochs
    Paper:        Vaswani et al., NeurIPS 2017, arXiv 1706.03762 (section 6.1).
    Cost:         one pass over the weights in each epoch, and a copy of them.
    Sane range:   epochs 2 to 5, of at least as many.
    Interactions: with a learning rate that falls to zero the gain is small.
    """

    epochs: int = 2
    conflicts: ClassVar[dict[str, str]] = {"ema": ONE_AVERAGE, "swa": ONE_AVERAGE}

    def __post_init__(self) -> None:
        check_at_least(1, epochs=self.epochs)

    def average(self, model: EncoderModel) -> WeightAverage:
        return _mean(model)

    def is_due(self, step: int, total_steps: int, steps_per_epoch: int, skipped: bool) -> bool:
        # after a skipped step, too: the weights are those at the end of the epoch all the same
        last = total_steps - self.epochs * steps_per_epoch
        return step % steps_per_epoch == 0 and step > last


def _mean(model: EncoderModel) -> WeightAverage:
    from competition_kit.training.averaging import WeightAverage

    return WeightAverage(model, lambda t: 1 / (t + 1))
