"""What a strategy did inside somebody else's loop: numbers for its log, and whether it moved."""

from __future__ import annotations

import torch
from torch import Tensor

from competition_kit.strategies import Strategy
from competition_kit.training.journal import TrainingError, idle_part
from competition_kit.training.step import Step

__all__ = ["Watch"]


class Watch:
    """Collects a run's numbers on the device; they are read off only when the loop logs."""

    def __init__(self, strategy: Strategy) -> None:
        self._strategy = strategy
        self._passes = 0  # of forward, in all micro-batches since the last log
        self._since = 0  # micro-batches since the last log
        self._sums: dict[str, tuple[Tensor, Tensor]] = {}  # name -> weighted sum, sum of weights
        self._moves: Tensor | None = None  # largest so far: of embeddings, weights, a pass's own
        self._steps = 0

    def passed(self, step: Step, weight: Tensor) -> None:
        """Note one micro-batch; `weight` is its part of the optimizer step."""
        if step.first_loss is None:
            raise TrainingError(f"{self._strategy} yielded no loss: there is nothing to train on")
        self._passes += step.forwards
        self._since += 1
        self._steps += 1
        weight = weight.detach()
        shift = step.shift_norm if step.shift_norm is not None else torch.zeros_like(weight)
        for name, value in {"shift_norm": shift, **step.notes}.items():
            total, weights = self._sums.get(name, (0.0 * weight, 0.0 * weight))
            self._sums[name] = (total + weight * value, weights + weight)
        moves = torch.stack(
            [
                torch.zeros_like(weight) if move is None else move.detach().to(weight)
                for move in (step.shift_norm, step.notes.get("weight_shift"), step.own_move)
            ]
        ).nan_to_num(0.0)
        self._moves = moves if self._moves is None else self._moves.maximum(moves)

    def read(self) -> dict[str, float]:
        """Return means since the last call: shift norm and notes, forwards of a micro-batch."""
        if not self._since:
            return {}
        means = {name: float(total / weights) for name, (total, weights) in self._sums.items()}
        forwards = self._passes / self._since
        self._passes, self._since, self._sums = 0, 0, {}
        return {**means, "forwards": forwards}

    def check_moved(self) -> None:
        """Raise if the strategy, or the one inside its wrappers, is on and never moved anything.

        Raises:
            TrainingError: naming it; the training was a plain one under another name.
        """
        if self._moves is None:
            return
        embeddings, weights, own = (move > 0 for move in self._moves.tolist())
        idle = idle_part(self._strategy, embeddings=embeddings, weights=weights, own=own)
        if idle is not None:
            raise TrainingError(
                f"{idle} is on but moved nothing in {self._steps} batches: the loss does not depend "
                "on what it moves, or its start_epoch never came"
            )
