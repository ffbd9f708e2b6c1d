"""Train a classifier on one fold, and predict with it."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import AbstractContextManager, closing, nullcontext
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR

from competition_kit.data.encoding import (
    Encoded,
    collate,
    length_bucketed,
    length_sorted,
)
from competition_kit.errors import KitError
from competition_kit.strategies import Strategy
from competition_kit.training.model import Classifier, parameter_groups
from competition_kit.training.recipe import Precision, Recipe, optimizer_steps
from competition_kit.training.seeds import FoldSeeds
from competition_kit.training.step import Objective, Step

__all__ = ["FitLog", "LogLine", "TrainingError", "fit_fold", "predict"]

LOG_LINES = 200  # at most, in one fold's log
PREDICT_ROWS = 64  # rows of a prediction batch


class TrainingError(KitError):
    """Training that went wrong: a loss that is not finite, or a strategy that did nothing."""


@dataclass(frozen=True)
class LogLine:
    """Means over the optimizer steps since the line before.

    Attributes:
        loss: of each step's first pass (the clean one, unless noise stands on the embeddings).
        shift_norm: mean over examples of the L2 norm of the step's largest shift.
        grad_norm: before clipping.
        lr: at the last of these steps.
    """

    step: int
    epoch: float
    loss: float
    lr: float
    grad_norm: float
    shift_norm: float


@dataclass(frozen=True)
class FitLog:
    """What a fold's training did.

    Attributes:
        steps: optimizer steps taken; `skipped` of them overflowed in fp16 and changed nothing.
        forwards, backwards, input_backwards: passes per micro-batch, on average.
        shift_norm: mean over the steps (see `LogLine`).
    """

    lines: tuple[LogLine, ...]
    steps: int
    skipped: int
    forwards: float
    backwards: float
    input_backwards: float
    shift_norm: float


def fit_fold(
    model: Classifier,
    encoded: Encoded,
    labels: np.ndarray,
    rows: np.ndarray,
    *,
    strategy: Strategy,
    objective: Objective,
    recipe: Recipe,
    seeds: FoldSeeds,
    on_step: Callable[[int], None] = lambda step: None,
) -> FitLog:
    """Train `model` in place on some rows.

    Args:
        model: on its device; left in training mode.
        encoded: tokens of all rows.
        labels: targets of all rows ([N] or [N, C]).
        rows: [n] numbers of the rows to train on.
        on_step: called after each optimizer step with their number so far.

    Raises:
        TrainingError: if a loss is not finite, or if a strategy that is on shifted nothing.
    """
    device = next(model.parameters()).device
    autocast = _autocast(device, recipe.precision)
    scaler = torch.amp.GradScaler(device.type, enabled=recipe.precision == "fp16")
    optimizer = torch.optim.AdamW(
        parameter_groups(model, recipe.weight_decay), lr=recipe.lr, fused=True
    )
    total = optimizer_steps(len(rows), recipe)
    scheduler = LambdaLR(optimizer, _schedule(recipe, total))
    journal = _Journal(strategy, total, device)
    model.train()

    step_number = 0
    for epoch in range(recipe.epochs):
        batches = length_bucketed(encoded.lengths, rows, recipe.batch_size, seeds.order(epoch))
        for first in range(0, len(batches), recipe.accumulation_steps):
            micro_batches = batches[first : first + recipe.accumulation_steps]
            rows_in_step = sum(len(part) for part in micro_batches)

            for micro, part in enumerate(micro_batches):
                # the same dropout in every arm's first pass, whatever its other passes drew before
                seeds.seed_dropout(step_number, micro)
                batch = collate(encoded, part, labels).to(device)
                noise = seeds.attack(step_number, micro, device)
                step = Step(model, batch, objective, noise, autocast, scaler.scale)
                weight = len(part) / rows_in_step  # a step's loss is the mean over all its rows
                backwards = 0
                with closing(strategy(step)) as losses:
                    for loss in losses:
                        scaler.scale(loss * weight).backward()
                        backwards += 1
                journal.passed(step, backwards, weight)

            # clip the true gradient, not the scaled one
            scaler.unscale_(optimizer)
            limit = recipe.max_grad_norm or math.inf
            grad_norm = nn.utils.clip_grad_norm_(model.parameters(), limit)
            scale = scaler.get_scale()
            scaler.step(optimizer)
            scaler.update()
            skipped = scaler.get_scale() < scale  # an fp16 overflow: weights unchanged
            if not skipped:
                scheduler.step()
            # the next step's first pass must find no gradient of this one
            optimizer.zero_grad(set_to_none=True)

            step_number += 1
            done = epoch + (first + len(micro_batches)) / len(batches)
            lr = optimizer.param_groups[0]["lr"]
            journal.stepped(step_number, done, lr, grad_norm, skipped)
            on_step(step_number)
    return journal.close()


def _autocast(device: torch.device, precision: Precision) -> Callable[[], AbstractContextManager]:
    if precision == "fp32":
        return nullcontext
    dtype = torch.bfloat16 if precision == "bf16" else torch.float16
    return lambda: torch.autocast(device.type, dtype)


def _schedule(recipe: Recipe, total: int) -> Callable[[int], float]:
    """Return the factor on the learning rate at each optimizer step of this fold.

    Warm-up counts from 1, so that the first step is no step of length zero.
    """
    warmup = round(recipe.warmup_ratio * total)

    def factor(step: int) -> float:
        if step < warmup:
            return (step + 1) / (warmup + 1)
        done = (step - warmup) / max(1, total - warmup)
        if recipe.schedule == "cosine":
            return 0.5 * (1.0 + math.cos(math.pi * min(1.0, done)))
        return 1.0 - done if recipe.schedule == "linear" else 1.0

    return factor


class _Journal:
    """Collects a fold's numbers on the device and reads them off in bulk (one wait per line)."""

    def __init__(self, strategy: Strategy, total_steps: int, device: torch.device) -> None:
        self._strategy = strategy
        self._every = math.ceil(total_steps / LOG_LINES)
        self._device = device
        self._lines: list[LogLine] = []
        self._passes = np.zeros(4)  # micro-batches, forwards, backwards, input-only backwards
        self._shift_total = 0.0
        self._skipped = 0
        self._now = (0, 0.0, 0.0)  # optimizer step, epochs done, learning rate
        self._reset()

    def _reset(self) -> None:
        self._sums = torch.zeros(3, device=self._device)  # loss, shift norm, gradient norm
        self._since = 0

    def passed(self, step: Step, backwards: int, weight: float) -> None:
        """Note one micro-batch; `weight` is its part of the optimizer step's rows."""
        if backwards == 0 or step.first_loss is None:
            raise TrainingError(f"{self._strategy} yielded no loss: there is nothing to train on")
        self._passes += (1, step.forwards, backwards, step.input_backwards)
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
                f"{step}: lower --lr, or the strategy's strength ({self._strategy})"
            )
        if self._strategy.strength > 0 and shift_norm == 0 and not self._skipped:
            raise TrainingError(
                f"{self._strategy} is on but shifted no embedding up to optimizer step {step}: "
                "the loss does not depend on the word embeddings (are they frozen?)"
            )
        self._lines.append(LogLine(step, epoch, loss, lr, grad_norm, shift_norm))
        self._shift_total += shift_norm * self._since
        self._reset()

    def close(self) -> FitLog:
        """Return the whole log."""
        if self._since:
            self._write()
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


def predict(
    model: Classifier,
    encoded: Encoded,
    rows: np.ndarray,
    *,
    precision: Precision = "fp32",
) -> np.ndarray:
    """Return logits [n, C] (float32) of some rows, in the order of `rows`; no noise, no dropout."""
    device = next(model.parameters()).device
    autocast = _autocast(device, precision)
    classes = model.head.out_features
    logits = np.full((len(rows), classes), np.nan, dtype=np.float32)
    model.eval()
    pending: list[tuple[np.ndarray, Tensor]] = []
    with torch.inference_mode():
        for part in length_sorted(encoded.lengths[rows], np.arange(len(rows)), PREDICT_ROWS):
            batch = collate(encoded, rows[part], None).to(device)
            with autocast():
                output = model(batch.input_ids, batch.attention_mask, batch.type_ids)
            pending.append((part, output.float()))
    for part, output in pending:
        logits[part] = output.cpu().numpy()
    if not np.isfinite(logits).all():
        raise TrainingError("some predictions are not finite: lower --lr or use --precision fp32")
    return logits
