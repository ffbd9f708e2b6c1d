"""Train a classifier on one fold, and predict with it."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR

from competition_kit.data.encoding import (
    Batch,
    Encoded,
    collate,
    length_bucketed,
    length_sorted,
)
from competition_kit.strategies import Strategy
from competition_kit.training.accumulation import Accumulation, MakeBatch
from competition_kit.training.journal import FitLog, Journal, LogLine, TrainingError
from competition_kit.training.kernels import without_cudnn_attention
from competition_kit.training.model import Classifier, EncoderModel, parameter_groups
from competition_kit.training.recipe import Precision, Recipe, optimizer_steps
from competition_kit.training.rows_that_fit import RowsThatFit
from competition_kit.training.seeds import FoldSeeds
from competition_kit.training.step import Objective
from competition_kit.tricks.base import Averages, GroupsParameters, MasksGradients

__all__ = ["FitLog", "LogLine", "TrainingError", "fit_fold", "predict"]

PREDICT_ROWS = 64  # rows of a prediction batch


def _plain_batch(encoded: Encoded, rows: np.ndarray, labels: np.ndarray | None, seed: int) -> Batch:
    return collate(encoded, rows, labels)


@without_cudnn_attention()
def fit_fold(
    model: EncoderModel,
    encoded: Encoded,
    labels: np.ndarray | None,
    rows: np.ndarray,
    *,
    strategy: Strategy,
    objective: Objective,
    recipe: Recipe,
    seeds: FoldSeeds,
    groups: GroupsParameters | None = None,
    masks: MasksGradients | None = None,
    averages: Averages | None = None,
    make_batch: MakeBatch = _plain_batch,
    on_step: Callable[[int], None] = lambda step: None,
) -> FitLog:
    """Train `model` in place on some rows; it ends with the averaged weights if there is an average.

    Args:
        model: on its device; left in training mode.
        encoded: tokens of all rows.
        labels: targets of all rows ([N] or [N, C]); None if `make_batch` makes them.
        rows: [n] numbers of the rows to train on.
        groups, masks, averages: tricks for the optimizer's parameter groups, for gradients before
            clipping, and for weights after the update (see `competition_kit.tricks.base`).
        make_batch: puts rows together; its last argument is a seed of this batch's own.
        on_step: called after each optimizer step with their number so far.

    Raises:
        TrainingError: if a loss is not finite, or if a strategy that is on shifted nothing.
    """
    device = next(model.parameters()).device
    scaler = torch.amp.GradScaler(device.type, enabled=recipe.precision == "fp16")
    make_groups = groups.groups if groups is not None else parameter_groups
    optimizer = torch.optim.AdamW(
        make_groups(model, recipe.lr, recipe.weight_decay), lr=recipe.lr, fused=True
    )
    total = optimizer_steps(len(rows), recipe)
    scheduler = LambdaLR(optimizer, _schedule(recipe, total))
    journal = Journal(strategy, total, device)
    gradient = Accumulation(
        model=model,
        encoded=encoded,
        labels=labels,
        make_batch=make_batch,
        strategy=strategy,
        objective=objective,
        seeds=seeds,
        optimizer=optimizer,
        scaler=scaler,
        autocast=_autocast(device, recipe.precision),
        journal=journal,
        total=total,
    )
    fitting = RowsThatFit(recipe.batch_size, training=True)
    average = averages.average(model) if averages is not None else None
    model.train()
    look_through = partial(gradient.look_through, fitting, rows, recipe.batch_size)
    mask = masks.mask(model, look_through) if masks is not None else None

    step = 0
    for epoch in range(recipe.epochs):
        batches = length_bucketed(encoded.lengths, rows, recipe.batch_size, seeds.order(epoch))
        for first in range(0, len(batches), recipe.accumulation_steps):
            in_step = batches[first : first + recipe.accumulation_steps]
            now = epoch + first / len(batches)
            fitting.attempt(partial(gradient.add_up, number=step, epoch=now), in_step)

            scaler.unscale_(optimizer)  # mask and clip the true gradient, not the scaled one
            if mask is not None:
                mask(seeds.gradient_mask(step, device))
            limit = recipe.max_grad_norm or math.inf
            grad_norm = nn.utils.clip_grad_norm_(model.parameters(), limit)

            lr = max(group["lr"] for group in optimizer.param_groups)  # of this step
            scale = scaler.get_scale()
            scaler.step(optimizer)
            scaler.update()
            skipped = scaler.get_scale() < scale  # an fp16 overflow: weights unchanged
            if not skipped:
                scheduler.step()
            optimizer.zero_grad(set_to_none=True)  # the next step's first pass must find none

            step += 1
            if average is not None and averages is not None:
                if averages.is_due(step, total, total // recipe.epochs, skipped):
                    average.update()
            done = epoch + (first + len(in_step)) / len(batches)
            journal.stepped(step, done, lr, grad_norm, skipped)
            on_step(step)
    log = journal.close(fitting.rows)
    if average is not None:
        if average.updates == 0:
            raise TrainingError(f"{averages} is on but averaged nothing in {total} optimizer steps")
        average.put()
    return log


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


@without_cudnn_attention()
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
    fitting = RowsThatFit(PREDICT_ROWS, training=False)

    def forward(parts: list[np.ndarray]) -> None:
        outputs = []
        for part in parts:
            batch = collate(encoded, rows[part], None).to(device)
            with autocast():
                outputs.append(model(batch.input_ids, batch.attention_mask, batch.type_ids).float())
        pending.extend(zip(parts, outputs, strict=True))

    with torch.inference_mode():
        for part in length_sorted(encoded.lengths[rows], np.arange(len(rows)), PREDICT_ROWS):
            fitting.attempt(forward, [part])
    for part, output in pending:
        logits[part] = output.cpu().numpy()
    if not np.isfinite(logits).all():
        raise TrainingError("some predictions are not finite: lower --lr or use --precision fp32")
    return logits
