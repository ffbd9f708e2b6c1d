"""What training needs of a GPU beside right gradients: dropout again, the same bits, little memory."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import torch

from benchmarks.checks import Check
from benchmarks.toys import Toy, toy
from competition_kit.data.encoding import collate
from competition_kit.strategies import STRATEGIES
from competition_kit.training.fit import FitLog, fit_fold
from competition_kit.training.kernels import kernels
from competition_kit.training.objectives import CrossEntropy, Once
from competition_kit.training.recipe import Recipe
from competition_kit.training.seeds import FoldSeeds
from competition_kit.training.step import Step

__all__ = ["check_machinery"]

RECIPE = Recipe(epochs=1, lr=1e-3, batch_size=16, warmup_ratio=0.0, schedule="constant")
ROWS = 64
WIDE = {"hidden_size": 256, "intermediate_size": 1024}  # of the model that has too little memory
LITTLE = 0.7  # of the memory that whole batches take
HALVED_DIFFERENCE = 1e-3  # of a weight: sums of two halves round differently, and Adam's first
# steps divide by gradients near zero


def check_machinery(device: torch.device) -> Iterator[Check]:
    """Check shared dropout, two trainings with deterministic kernels, and one that has to halve."""
    yield _shared_dropout(device)
    yield _same_bits(device)
    yield from _little_memory(device)


def _shared_dropout(device: torch.device) -> Check:
    made = toy("bert", rows=ROWS, dropout=0.1)
    batch = collate(made.encoded, np.arange(16), made.labels).to(device)
    generator = torch.Generator(device).manual_seed(0)
    step = Step(made.model.to(device), batch, Once(CrossEntropy()), generator)
    with step.dropout("shared"):
        one, other = step.logits(), step.logits()
    return Check(
        "machinery", "shared dropout, two passes", float((one - other).detach().abs().max()), 0.0
    )


def _same_bits(device: torch.device) -> Check:
    weights = []
    for _ in range(2):
        made = toy("bert", rows=ROWS, dropout=0.1)
        with kernels(deterministic=True):
            _fit(made, device)
        weights.append(_weights(made))
    torch.use_deterministic_algorithms(False)
    apart = float((weights[0] - weights[1]).abs().max())
    return Check("machinery", "deterministic kernels, two trainings", apart, 0.0)


def _little_memory(device: torch.device) -> Iterator[Check]:
    """Train a second time with a part of the memory that the first took: batches have to be halved."""
    if device.type != "cuda":
        yield Check("machinery", "too little memory (needs a GPU)", None)
        return
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(device)
    whole = toy("bert", rows=1024, longest=256, **WIDE)
    large = replace(RECIPE, batch_size=512)
    plain = _fit(whole, device, large)
    took = torch.cuda.max_memory_reserved(device)
    halved = toy("bert", rows=1024, longest=256, **WIDE)
    weights = _weights(whole)
    whole.model.to("cpu")
    torch.cuda.empty_cache()
    all_memory = torch.cuda.get_device_properties(device).total_memory
    torch.cuda.set_per_process_memory_fraction(LITTLE * took / all_memory, device)
    try:
        little = _fit(halved, device, large)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0, device)
    yield Check("machinery", "rows at a time, enough memory", plain.rows_at_a_time, 512, True)
    yield Check("machinery", "rows at a time, too little", little.rows_at_a_time, 256)
    apart = float((_weights(halved) - weights).abs().max())
    yield Check("machinery", "weights after halving", apart, HALVED_DIFFERENCE)


def _fit(made: Toy, device: torch.device, recipe: Recipe = RECIPE) -> FitLog:
    return fit_fold(
        made.model.to(device),
        made.encoded,
        made.labels,
        np.arange(len(made.labels)),
        strategy=STRATEGIES["fgm"](),
        objective=Once(CrossEntropy()),
        recipe=recipe,
        seeds=FoldSeeds(0, 0),
    )


def _weights(made: Toy) -> torch.Tensor:
    return torch.cat([p.detach().flatten().cpu() for p in made.model.parameters()])
