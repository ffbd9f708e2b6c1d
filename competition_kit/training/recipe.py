"""How weights are updated: the numbers of the training loop, in one place. Imports no torch."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

__all__ = ["Pooling", "Precision", "Recipe", "Schedule", "default_lr", "optimizer_steps"]

Precision = Literal["fp32", "bf16", "fp16"]
Schedule = Literal["linear", "cosine", "constant"]
Pooling = Literal["cls", "mean", "max", "attention"]


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How weights are updated, whatever the strategy.

    Attributes:
        lr: peak learning rate.
        batch_size: rows of one forward pass; `accumulation_steps` of them make an optimizer step.
        warmup_ratio: part of this fold's optimizer steps in which the rate climbs from 0 to lr.
        max_grad_norm: gradients are clipped to this L2 norm (0: not at all).
        precision: fp32, or autocast to bf16, or to fp16 with loss scaling.
    """

    epochs: int = 2
    lr: float = 2e-5
    batch_size: int = 16
    accumulation_steps: int = 1
    warmup_ratio: float = 0.1
    schedule: Schedule = "linear"
    weight_decay: float = 0.01
    max_grad_norm: float = 1.0
    precision: Precision = "fp32"


def optimizer_steps(rows: int, recipe: Recipe) -> int:
    """Return how many optimizer steps a fold of so many training rows takes in all."""
    micro_batches = math.ceil(rows / recipe.batch_size)
    return recipe.epochs * math.ceil(micro_batches / recipe.accumulation_steps)


def default_lr(width: int) -> float:
    """Return a learning rate for an encoder of this hidden size: 2e-5 at 768, less for wider ones.

    A rule of thumb, (768 / width) cubed, at most 5e-4: near the values in common use, about 8e-6
    for large encoders (1024), 2e-5 for base (768), 1.6e-4 for MiniLM (384).
    """
    return min(5e-4, float(f"{2e-5 * (768 / width) ** 3:.1e}"))
