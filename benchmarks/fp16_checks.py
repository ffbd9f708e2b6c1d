"""fp16 with loss scaling: it learns, and an overflow costs one step and nothing else."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from benchmarks.checks import Check
from benchmarks.toys import toy
from benchmarks.workload import autocast
from competition_kit.data.encoding import collate
from competition_kit.strategies import STRATEGIES
from competition_kit.training.fit import fit_fold
from competition_kit.training.model import Classifier, parameter_groups
from competition_kit.training.objectives import CrossEntropy, Once
from competition_kit.training.recipe import Recipe
from competition_kit.training.seeds import FoldSeeds
from competition_kit.training.step import Step

__all__ = ["check_fit", "check_huge_scale"]

RECIPE = Recipe(epochs=5, lr=3e-3, batch_size=8, warmup_ratio=0.0, precision="fp16")
ROWS = 96
OVERFLOW_AT = 9  # optimizer step, from 0
LOSS_LEFT = 0.85  # of the first steps' loss, after training: 0.05 to 0.56 on a CPU, smart the most
HUGE = 2.0**40  # a first loss scale with which every gradient overflows
PATIENCE = 40  # steps in which the scale must have come down, halving each time


@dataclass
class OverflowingLoss:
    """Cross-entropy whose gradient is infinite in one optimizer step; the loss itself is as ever."""

    weights: list[Tensor] = field(default_factory=list)  # before the first step, after each step

    def __call__(self, logits: Tensor, labels: Tensor) -> Tensor:
        loss = CrossEntropy()(logits, labels)
        if len(self.weights) - 1 == OVERFLOW_AT:
            loss.register_hook(lambda gradient: gradient * math.inf)
        return loss


def check_fit(device: torch.device) -> Iterator[Check]:
    """Run `fit_fold` in fp16 with every strategy, an overflow injected into one step."""
    for name, cls in STRATEGIES.items():
        made = toy("bert", rows=ROWS, dropout=0.1)
        model = made.model.to(device)
        objective = OverflowingLoss([_weights(model)])
        log = fit_fold(
            model,
            made.encoded,
            made.labels,
            np.arange(ROWS),
            strategy=cls(),
            objective=Once(objective),
            recipe=RECIPE,
            seeds=FoldSeeds(0, 0),
            on_step=lambda step, o=objective, m=model: o.weights.append(_weights(m)),  # type: ignore[misc]
        )
        losses = np.array([line.loss for line in log.lines])
        part = len(losses) // 4
        kept = [torch.equal(a, b) for a, b in pairwise(objective.weights)]
        last = objective.weights[-1]
        yield Check(
            "fp16 training",
            f"{name}, loss left",
            float(losses[-part:].mean() / losses[:part].mean()),
            LOSS_LEFT,
        )
        yield Check(
            "fp16 training",
            f"{name}, weights moved in the overflow",
            float(not kept[OVERFLOW_AT]),
            0,
        )
        # skipped is counted from the scale going down, so this is the back-off too
        yield Check(
            "fp16 training",
            f"{name}, steps without effect but not skipped",
            float(abs(sum(kept) - log.skipped)),
            0,
        )
        yield Check(
            "fp16 training", f"{name}, weights not finite", float((~last.isfinite()).sum()), 0
        )


def check_huge_scale(device: torch.device) -> Iterator[Check]:
    """Start with a loss scale that overflows: it must come down, and then training goes on."""
    for name, cls in STRATEGIES.items():
        made = toy("roberta", rows=ROWS)
        model = made.model.to(device)
        batch = collate(made.encoded, np.arange(8), made.labels).to(device)
        optimizer = torch.optim.AdamW(parameter_groups(model, 1e-3, 0.01), lr=1e-3, fused=True)
        scaler = torch.amp.GradScaler(device.type, init_scale=HUGE)
        start, taken, moved_by_overflow = _weights(model), None, 0
        for number in range(PATIENCE):
            noise = torch.Generator(device).manual_seed(number)
            step = Step(
                model,
                batch,
                Once(CrossEntropy()),
                noise,
                autocast(device, "fp16"),
                scaler.scale,
                epoch=math.inf,
            )
            with closing(cls()(step)) as losses:
                for loss in losses:
                    scaler.scale(loss).backward()
            scaler.unscale_(optimizer)
            scale = scaler.get_scale()
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad(set_to_none=True)
            if scaler.get_scale() >= scale:
                taken = number + 1
                break
            moved_by_overflow += not torch.equal(_weights(model), start)
        end = _weights(model)
        part = "fp16, scale from 2^40"
        yield Check(part, f"{name}, steps until one is taken", float(taken or math.inf), PATIENCE)
        yield Check(part, f"{name}, overflows that moved weights", float(moved_by_overflow), 0)
        yield Check(
            part,
            f"{name}, weights moved by the step taken, all finite",
            float(bool(end.isfinite().all()) and not torch.equal(start, end)),
            1,
            at_least=True,
        )


def _weights(model: Classifier) -> Tensor:
    """Return a copy of all weights, on the CPU."""
    return torch.cat([p.detach().flatten() for p in model.parameters()]).cpu()
