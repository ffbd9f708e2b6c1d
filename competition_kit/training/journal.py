"""What a fold's training did, collected on the device and read off in bulk."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from competition_kit.errors import KitError
from competition_kit.specs import format_spec
from competition_kit.strategies import STRATEGIES, Strategy
from competition_kit.strategies.base import start_epoch
from competition_kit.training.step import Step

__all__ = ["FitLog", "Journal", "LogLine", "TrainingError"]

LOG_LINES = 200  # at most, in one fold's log


class TrainingError(KitError):
    """Training that went wrong: a loss that is not finite, or a strategy that did nothing."""


@dataclass(frozen=True)
class LogLine:
    """Means over the optimizer steps since the line before.

    Attributes:
        loss: of each step's first pass (the clean one, unless noise stands on the embeddings).
        shift_norm: mean over examples of the L2 norm of the step's largest shift.
        grad_norm: before clipping.
        notes: what the strategy wants to be seen, such as `weight_shift` (relative length of its move
            of the weights) or `direction_cosine`.
        lr: at the last of these steps.
    """

    step: int
    epoch: float
    loss: float
    lr: float
    grad_norm: float
    shift_norm: float
    notes: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class FitLog:
    """What a fold's training did.

    Attributes:
        steps: optimizer steps taken; `skipped` of them overflowed in fp16 and changed nothing.
        forwards: per micro-batch, on average; followed by a full backward (`backwards`), by one to
            the shift alone (`input_backwards`), or by none.
        shift_norm: mean over the steps (see `LogLine`).
    """

    lines: tuple[LogLine, ...]
    steps: int
    skipped: int
    forwards: float
    backwards: float
    input_backwards: float
    shift_norm: float


class Journal:
    """Collects a fold's numbers on the device and reads them off in bulk (one wait per line)."""

    def __init__(self, strategy: Strategy, total_steps: int, device: torch.device) -> None:
        self._strategy = strategy
        self._name = _name(strategy)
        self._every = math.ceil(total_steps / LOG_LINES)
        self._device = device
        self._lines: list[LogLine] = []
        self._passes = np.zeros(4)  # micro-batches, forwards, backwards, input-only backwards
        self._shift_total = 0.0
        self._skipped = 0
        self._moved = False
        self._now = (0, 0.0, 0.0)  # optimizer step, epochs done, learning rate
        self._reset()

    def _reset(self) -> None:
        self._sums = torch.zeros(3, device=self._device)  # loss, shift norm, gradient norm
        self._notes: dict[str, tuple[Tensor, int]] = {}
        self._since = 0

    def passed(self, step: Step, yielded: int, weight: float) -> None:
        """Note one micro-batch; `weight` is its part of the optimizer step's rows."""
        if yielded == 0 or step.first_loss is None:
            raise TrainingError(f"{self._name} yielded no loss: there is nothing to train on")
        backwards = step.forwards - step.input_backwards - step.no_grad_forwards
        self._passes += (1, step.forwards, backwards, step.input_backwards)
        for name, value in step.notes.items():
            total, count = self._notes.get(name, (torch.zeros((), device=self._device), 0))
            self._notes[name] = (total + value, count + 1)
        self._sums[0] += weight * step.first_loss
        if step.shift_norm is not None:
            self._sums[1] += weight * step.shift_norm

    def stepped(self, step: int, epoch: float, lr: float, grad_norm: Tensor, skipped: bool) -> None:
        """Note one optimizer step; every now and then check the numbers and write a line."""
        self._now = (step, epoch, lr)
        self._since += 1
        self._skipped += skipped
        if not skipped:
            self._sums[2] += grad_norm.detach()
        if step % self._every == 0:
            self._write()

    def _write(self) -> None:
        step, epoch, lr = self._now
        loss, shift_norm, grad_norm = (self._sums / self._since).tolist()
        if not math.isfinite(loss) or not math.isfinite(grad_norm):
            what = "loss" if not math.isfinite(loss) else "gradient norm"
            raise TrainingError(
                f"the {what} became {loss if what == 'loss' else grad_norm} by optimizer step "
                f"{step}: lower --lr, or the strategy's strength ({self._name})"
            )
        notes = {name: float(total) / count for name, (total, count) in self._notes.items()}
        self._moved = self._moved or shift_norm > 0 or notes.get("weight_shift", 0.0) > 0
        if epoch >= start_epoch(self._strategy) + 1:
            self._check_moved()
        self._lines.append(LogLine(step, epoch, loss, lr, grad_norm, shift_norm, notes))
        self._shift_total += shift_norm * self._since
        self._reset()

    def _check_moved(self) -> None:
        if self._strategy.strength > 0 and not self._moved and not self._skipped:
            raise TrainingError(
                f"{self._name} is on but moved nothing up to optimizer step {self._now[0]}: the "
                "loss does not depend on what it moves, or its start_epoch never came"
            )

    def close(self) -> FitLog:
        """Return the whole log."""
        if self._since:
            self._write()
        self._check_moved()
        micro_batches, *passes = self._passes.tolist()
        forwards, backwards, input_backwards = (count / micro_batches for count in passes)
        return FitLog(
            lines=tuple(self._lines),
            steps=self._now[0],
            skipped=self._skipped,
            forwards=forwards,
            backwards=backwards,
            input_backwards=input_backwards,
            shift_norm=self._shift_total / max(1, self._now[0]),
        )


def _name(strategy: Strategy) -> str:
    """Return a strategy as users write it; one that is not listed (yet) by its repr."""
    try:
        return format_spec(strategy, STRATEGIES, defaults=False)
    except StopIteration:
        return repr(strategy)
