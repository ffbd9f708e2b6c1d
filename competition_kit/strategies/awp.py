"""Adversarial weight perturbation."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from competition_kit.strategies.base import Strategy, check_at_least, remarks
from competition_kit.strategies.none import Plain

if TYPE_CHECKING:
    from torch import Tensor, nn

    from competition_kit.training.step import Step

__all__ = ["AWP"]

GUARD = 1e-6  # the Kaggle recipe's, beside both norms


@dataclass(frozen=True, kw_only=True)
class AWP:
    """Trains at weights that were moved uphill; a wrapper for any other strategy.

    Formula:      kind="layer":  v_l = gamma * ||w_l|| * g_l / ||g_l|| for each tensor (the paper's)
                  kind="kaggle": v = clip(step_size * g / (||g|| + 1e-6) * (||w|| + 1e-6),
                                          -epsilon |w|, epsilon |w|)
                  kind="momentum": as kaggle, with Adam's running mean in place of g
                  gradient = the inner strategy's at w + v; the clean gradient is not used
    Paper:        Wu, Xia, Wang, NeurIPS 2020, arXiv 2004.05884 (section 3.3). The Kaggle form and
                  the one before the forward come from Feedback Prize solutions.
    Options:      kind: "layer", "kaggle" or "momentum" (formula above).
                  weights: "linear" layers' matrices, all "matrices" (embeddings too), or "all"
                  (LayerNorm and biases too); chosen by module and shape.
                  start_epoch: epochs of plain training first.
    Cost:         1 forward and 1 backward more than the inner strategy (6 units around none);
                  "momentum": none more (3 units). A copy of the moved weights.
    Sane range:   gamma 0.001 to 0.01; kaggle step_size 1e-4 to 1, epsilon 1e-3 to 1e-2; start
                  after epoch 1 (earlier it disturbs the new head).
    Interactions: "awp+fgm" attacks embeddings at moved weights. One of awp and sam is enough.
    Public bugs:  arguments swapped; perturbation skipped because the gradients were None;
                  zero_grad inside, which drops accumulated gradients; a start epoch that never
                  comes. None here: gradients are read with autograd.grad, and a run in which the
                  weights never moved is an error.
    """

    kind: Literal["layer", "kaggle", "momentum"] = "layer"
    gamma: float = 0.005
    step_size: float = 0.1
    epsilon: float = 0.005
    weights: Literal["linear", "matrices", "all"] = "matrices"
    start_epoch: float = 1.0
    inner: Strategy = field(default_factory=Plain)

    def __post_init__(self) -> None:
        check_at_least(0.0, gamma=self.gamma, step_size=self.step_size, epsilon=self.epsilon)
        check_at_least(0.0, start_epoch=self.start_epoch)

    @property
    def strength(self) -> float:
        own = self.gamma if self.kind == "layer" else min(self.step_size, self.epsilon)
        return max(own, self.inner.strength)

    def remarks(self) -> list[str]:
        return remarks(self.inner)

    def __call__(self, step: Step) -> Generator[Tensor, None, None]:
        if step.epoch < self.start_epoch:
            yield from self.inner(step)
            return
        weights = step.weights(self.weights)
        with step.moved(weights, self._offsets(step, weights)):
            yield from self.inner(step)

    def _offsets(self, step: Step, weights: Sequence[nn.Parameter]) -> list[Tensor]:
        if self.kind == "momentum":
            means = [step.momentum(weight) for weight in weights]
            gradients = [
                weight.detach() * 0 if mean is None else mean
                for weight, mean in zip(weights, means, strict=True)
            ]
        else:
            gradients = step.weight_gradients(weights)
        offset = self._layer if self.kind == "layer" else self._kaggle
        for number, weight in enumerate(weights):  # in place of the gradient, which is let go
            gradients[number] = offset(step, weight, gradients[number])
        return gradients

    def _layer(self, step: Step, weight: nn.Parameter, gradient: Tensor) -> Tensor:
        return step.unit_of(gradient, self.gamma * step.size(weight))

    def _kaggle(self, step: Step, weight: nn.Parameter, gradient: Tensor) -> Tensor:
        scale = self.step_size * (step.size(weight) + GUARD) / (gradient.norm() + GUARD)
        limit = self.epsilon * weight.detach().abs()
        return (scale * gradient).nan_to_num(0.0).clamp(-limit, limit)
