"""Gradients of every strategy on a device, against float64 on the CPU, and in mixed precision."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing

import numpy as np
import torch
from torch import Tensor

from benchmarks.checks import Check
from benchmarks.toys import KINDS, toy
from benchmarks.workload import autocast
from competition_kit.data.encoding import Batch, collate
from competition_kit.specs import parse_spec
from competition_kit.strategies import STRATEGIES, Strategy
from competition_kit.training.model import Classifier
from competition_kit.training.objectives import CrossEntropy, Once
from competition_kit.training.recipe import Precision
from competition_kit.training.step import Step

__all__ = ["check_bf16", "check_fp16", "check_gradients", "settings"]

GRADIENT_ERROR = 1e-4  # fp32 against float64, see `_error`
BF16_COSINE = 0.999  # with fp32: bf16 has 8 significant bits
FP16_ERROR = 0.005  # of the whole gradient: fp16 has 11
FP16_SCALE = 2.0**12  # of the loss; here nothing overflows at it
# vat's direction is the gradient of a divergence between two nearly equal predictions: what fewer
# digits leave of it is rougher than a loss gradient. A direction from other noise has a cosine of
# 0.97 and an error of 0.25 in the whole gradient
ROUGH = ("vat",)
ROUGH_GRADIENT_ERROR = 5e-4
ROUGH_BF16_COSINE = 0.97
ROUGH_FP16_ERROR = 0.08
ROWS = 16

SETTINGS = (
    "none",
    "neftune",
    'neftune(noise="gaussian", length="padded")',
    "fgm",
    'fgm(scope="example", epsilon=0.5)',
    'fgm(scope="token", epsilon=0.2)',
    "pgd",
    "pgd(epsilon=0.5)",
    'pgd(scope="example", epsilon=0.5)',
    "freelb",
    'freelb(max_norm=0.15, init=0.2, passes="steps+1")',
    'freelb(norm="linf", step_size=0.02, init=0.02, max_norm=0.03)',
    "neftune+fgm",
    # so strong that the regulariser is a good part of the gradient; at their defaults it is 1e-5
    "alum(sigma=0.05, step_size=0.1, epsilon=0.1)",
    "smart(sigma=0.05, step_size=0.1, epsilon=0.1)",
    "r3f(epsilon=0.1)",
)


def settings() -> tuple[str, ...]:
    """Return the spec strings to check: those above, and any strategy that they leave out."""
    kinds = set()
    for spec in SETTINGS:
        strategy = parse_spec(spec, STRATEGIES)
        while strategy is not None:
            kinds.add(type(strategy))
            strategy = getattr(strategy, "inner", None)
    return SETTINGS + tuple(name for name, cls in STRATEGIES.items() if cls not in kinds)


class CpuNoiseStep(Step):
    """A step whose noise is drawn on the CPU in float64, so that every device sees the same."""

    def uniform(self) -> Tensor:
        return self._draw().uniform_(-1.0, 1.0, generator=self.generator).to(self.mask)

    def gaussian(self) -> Tensor:
        return self._draw().normal_(generator=self.generator).to(self.mask)

    def _draw(self) -> Tensor:
        return torch.empty((*self.batch.input_ids.shape, self.width), dtype=torch.float64)


def check_gradients(device: torch.device) -> Iterator[Check]:
    """Compare each setting's gradient in fp32 on `device` with float64 on the CPU, same noise."""
    torch.set_float32_matmul_precision("highest")  # no TF32
    for kind, spec, strategy, model, batch in _cases():
        reference = _gradients(copy.deepcopy(model).double(), batch, strategy)
        found = _gradients(model.to(device), batch.to(device), strategy)
        bound = ROUGH_GRADIENT_ERROR if spec in ROUGH else GRADIENT_ERROR
        yield Check("gradient error", f"{kind} {spec}", _error(found, reference), bound)


def check_bf16(device: torch.device) -> Iterator[Check]:
    """Compare each setting's gradient under autocast to bf16 with fp32, same device and noise."""
    for name, found, reference in _mixed(device, "bf16"):
        # where a gradient is not finite the cosine is NaN, which no bound lets pass
        cosine = found @ reference / (found.norm() * reference.norm())
        bound = ROUGH_BF16_COSINE if name.endswith(ROUGH) else BF16_COSINE
        yield Check("bf16 cosine", name, float(cosine), bound, at_least=True)


def check_fp16(device: torch.device) -> Iterator[Check]:
    """Compare each setting's unscaled gradient in fp16 with fp32, same device and noise."""
    for name, found, reference in _mixed(device, "fp16"):
        error = (found - reference).norm() / reference.norm()
        bound = ROUGH_FP16_ERROR if name.endswith(ROUGH) else FP16_ERROR
        yield Check("fp16 error", name, float(error), bound)


def _mixed(device: torch.device, precision: Precision) -> Iterator[tuple[str, Tensor, Tensor]]:
    """Yield name, gradient in mixed precision and gradient in fp32 of each setting."""
    for kind, spec, strategy, model, batch in _cases():
        model, batch = model.to(device), batch.to(device)
        reference = _flat(_gradients(model, batch, strategy))
        scaler = torch.amp.GradScaler(
            device.type, init_scale=FP16_SCALE, enabled=precision == "fp16"
        )
        found = _gradients(model, batch, strategy, autocast(device, precision), scaler)
        yield f"{kind} {spec}", _flat(found), reference


def _cases() -> Iterator[tuple[str, str, Strategy, Classifier, Batch]]:
    for kind in KINDS:
        made = toy(kind, rows=ROWS)
        batch = collate(made.encoded, np.arange(ROWS), made.labels)
        for spec in settings():
            yield kind, spec, parse_spec(spec, STRATEGIES), copy.deepcopy(made.model), batch


def _gradients(
    model: Classifier,
    batch: Batch,
    strategy: Strategy,
    precision: Callable[[], AbstractContextManager] | None = None,
    scaler: torch.amp.GradScaler | None = None,
) -> list[Tensor]:
    """Return one step's gradient by weight, float64 on the CPU; loss scaling undone."""
    scaler = scaler or torch.amp.GradScaler("cpu", enabled=False)
    model.zero_grad()
    noise = torch.Generator().manual_seed(20)
    # strategies that start late act from the first step here
    step = CpuNoiseStep(
        model, batch, Once(CrossEntropy()), noise, precision, scaler.scale, epoch=math.inf
    )
    with closing(strategy(step)) as losses:
        for loss in losses:
            scaler.scale(loss).backward()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    scaler.unscale_(optimizer)
    return [p.grad.double().cpu() for p in model.parameters() if p.grad is not None]


def _error(found: list[Tensor], reference: list[Tensor]) -> float:
    """Return the worst ||found - reference|| / ||reference|| over the weights.

    The divisor is at least 1 % of the whole gradient's norm: some gradients are zero but for
    rounding (the bias of attention keys: softmax does not see it).
    """
    least = 0.01 * float(_flat(reference).norm())
    return max(
        float((a - b).norm()) / max(float(b.norm()), least)
        for a, b in zip(found, reference, strict=True)
    )


def _flat(gradients: list[Tensor]) -> Tensor:
    return torch.cat([gradient.flatten() for gradient in gradients])
