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
from competition_kit.strategies.base import layers, start_epoch
from competition_kit.training.step import Step

__all__ = ["FitLog", "Journal", "LogLine", "TrainingError", "idle_part"]

LOG_LINES = 200  # at most, in one fold's log


class TrainingError(KitError):
    """Training that went wrong: a loss that is not finite, a strategy that did nothing, no memory."""


@dataclass(frozen=True)
class LogLine:
    """Means over the optimizer steps since the line before.

    Attributes:
        loss: of each step's first pass (the clean one, unless noise stands on the embeddings).
        shift_norm: mean over examples of the L2 norm of the step's largest shift.
        grad_norm: before clipping; mean over the steps that were not skipped, 0 if all were.
        notes: what the strategy wants to be seen, such as `weight_shift` (relative length of its move
            of the weights) or `direction_cosine`.
        lr: of the last of these steps; the head's, where lower layers have smaller ones.
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
        rows_at_a_time: of a micro-batch at the end; fewer than asked for where the GPU's memory
            ended, and then dropout, noise and attacks were drawn for those.
    """

    lines: tuple[LogLine, ...]
    steps: int
    skipped: int
    forwards: float
    backwards: float
    input_backwards: float
    shift_norm: float
    rows_at_a_time: int


class Journal:
    """Collects a fold's numbers on the device and reads them off in bulk (one wait per line)."""

    def __init__(self, strategy: Strategy, total_steps: int, device: torch.device) -> None:
        self._strategy = strategy
        self._name = _name(strategy)
        self._start = start_epoch(strategy)
        self._every = math.ceil(total_steps / LOG_LINES)
        self._device = device
        self._lines: list[LogLine] = []
        self._passes = np.zeros(4)  # micro-batches, forwards, backwards, input-only backwards
        self._shift_total = 0.0
        self._skipped = 0
        self._acting = 0  # steps taken since every part of the strategy has begun to act
        # moves of embeddings, of weights, of the innermost strategy: in this step, in steps taken
        self._moves_now = torch.zeros(3, device=device)
        self._moves = torch.zeros(3, device=device)
        self._begun = False
        self._now = (0, 0.0, 0.0)  # optimizer step, epochs done, learning rate
        self._reset()

    def _reset(self) -> None:
        # loss, shift norm, gradient norm, losses of all passes
        self._sums = torch.zeros(4, device=self._device)
        self._notes: dict[str, tuple[Tensor, int]] = {}
        self._since = self._taken = 0

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
        if step.all_losses is not None:
            self._sums[3] += weight * step.all_losses
        moves = (step.shift_norm, step.notes.get("weight_shift"), step.own_move)
        for number, move in enumerate(moves):
            if move is not None:
                self._moves_now[number] += move
        self._begun = step.epoch >= self._start

    def stepped(self, step: int, epoch: float, lr: float, grad_norm: Tensor, skipped: bool) -> None:
        """Note one optimizer step; every now and then check the numbers and write a line."""
        self._now = (step, epoch, lr)
        self._since += 1
        self._skipped += skipped
        if not skipped:
            self._taken += 1
            self._sums[2] += grad_norm.detach()
            self._moves += self._moves_now
            self._acting += self._begun
        self._moves_now.zero_()
        if step % self._every == 0:
            self._write()

    def _write(self) -> None:
        step, epoch, lr = self._now
        loss, shift_norm, grad_norm, all_losses = (self._sums / self._since).tolist()
        grad_norm *= self._since / max(1, self._taken)
        for what, value in (
            ("loss", loss),
            ("loss of a later pass", all_losses),
            ("gradient norm", grad_norm),
        ):
            if not math.isfinite(value):
                # not fp16's overflow, which the scaler skips: that one is in the scaled gradients
                raise TrainingError(
                    f"the {what} became {value} by optimizer step {step}: lower --lr, or the "
                    f"strategy's strength ({self._name}); in fp16 try --precision fp32"
                )
        notes = {name: float(total) / count for name, (total, count) in self._notes.items()}
        if epoch >= self._start + 1 and self._acting:
            self._check_moved()
        self._lines.append(LogLine(step, epoch, loss, lr, grad_norm, shift_norm, notes))
        self._shift_total += shift_norm * self._since
        self._reset()

    def _check_moved(self) -> None:
        embeddings, weights, own = (move > 0 for move in self._moves.tolist())
        idle = idle_part(self._strategy, embeddings=embeddings, weights=weights, own=own)
        if idle is not None:
            skipped = f" ({self._skipped} of them skipped)" if self._skipped else ""
            raise TrainingError(
                f"{idle} is on but moved nothing in {self._now[0]} optimizer steps{skipped}: the "
                "loss does not depend on what it moves, or its start_epoch never came"
            )

    def close(self, rows_at_a_time: int) -> FitLog:
        """Return the whole log.

        Raises:
            TrainingError: if no step was taken, or a strategy that is on moved nothing.
        """
        if self._since:
            self._write()
        if self._skipped == self._now[0]:
            raise TrainingError(
                f"all {self._skipped} optimizer steps overflowed in fp16 and were skipped: nothing "
                "was trained; use --precision bf16 or fp32, or more --epochs"
            )
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
            rows_at_a_time=rows_at_a_time,
        )


def idle_part(strategy: Strategy, *, embeddings: bool, weights: bool, own: bool) -> str | None:
    """Return the strategy, or the one inside its wrappers, that is on and moved nothing; else None.

    A wrapper's moves (noise that stands, weights) must not hide an idle strategy inside.

    Args:
        embeddings, weights: whether anything moved these.
        own: whether a pass had a shift of its own, apart from the standing one.
    """
    innermost = layers(strategy)[-1]
    if strategy.strength > 0 and not (embeddings or weights):
        return _name(strategy)
    if innermost is not strategy and innermost.strength > 0 and not own:
        return f"{_name(innermost)} inside {_name(strategy)}"
    return None


def _name(strategy: Strategy) -> str:
    """Return a strategy as users write it; one that is not listed (yet) by its repr."""
    try:
        return format_spec(strategy, STRATEGIES, defaults=False)
    except StopIteration:
        return repr(strategy)
