"""Smoothness-inducing regularisation and Bregman proximal point optimisation."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Literal

from competition_kit.strategies.alum import smoothing_shift
from competition_kit.strategies.base import check_at_least

if TYPE_CHECKING:
    from torch import Tensor

    from competition_kit.training.step import Step

__all__ = ["SMART"]

SLOW = "smart.slow_weights"


@dataclass(frozen=True, kw_only=True)
class SMART:
    """A smooth prediction around each text, and small moves of the prediction between updates.

    Formula:      loss = L(E) + alpha * mean KL_sym(p(E), p(E + r))
                       + mu * mean KL_sym(p(E; w), p(E; w_slow))
                  r: as in alum (normalised ascent inside an epsilon ball, linf, per text);
                  w_slow = beta * w_slow + (1 - beta) * w at each update (Bregman proximal point
                  with momentum), no gradient through it
    Paper:        Jiang et al., ACL 2020, arXiv 1911.03437 (algorithm 1).
    Options:      variant="reference": the ascent of the authors' code: "stable_kl" (not the KL
                  divergence) summed over the batch, the sum r + step_size * g scaled to largest
                  element 1 per token, and KL in both directions with each target held constant.
                  mu=0: no proximal term (the authors' public code has none).
                  dropout="shared": all passes have the same masks.
    Cost:         3 forwards, 2 backwards, 1 input-only backward (8 units at K = 1); with mu > 0 one
                  more forward without gradient (9), and a copy of the weights.
    Sane range:   alpha 1 to 5, mu 0 to 1, step_size 1e-3, epsilon 1e-5 to 1e-2, sigma 1e-5; beta
                  0.99 in the first tenth of training, then 0.999.
    Interactions: as alum. Inside awp or sam the slow weights follow the moved ones.
    Public bugs:  as alum; options other than the default that crash; the proximal term missing.
    """

    alpha: float = 1.0
    mu: float = 1.0
    epsilon: float = 1e-3
    step_size: float = 1e-3
    sigma: float = 1e-5
    steps: int = 1
    beta_early: float = 0.99
    beta: float = 0.999
    variant: Literal["paper", "reference"] = "paper"
    dropout: Literal["fresh", "shared"] = "fresh"

    def __post_init__(self) -> None:
        check_at_least(0.0, alpha=self.alpha, mu=self.mu, epsilon=self.epsilon)
        check_at_least(0.0, step_size=self.step_size, sigma=self.sigma)
        check_at_least(0.0, beta_early=self.beta_early, beta=self.beta)
        check_at_least(1, steps=self.steps)
        if max(self.beta, self.beta_early) > 1:
            raise ValueError("beta and beta_early must be at most 1")

    @property
    def strength(self) -> float:
        reach = self.epsilon if self.variant == "paper" else 1.0
        return max(self.mu, min(self.alpha, reach))

    def __call__(self, step: Step) -> Generator[Tensor, None, None]:
        with step.dropout(self.dropout):
            loss, clean = step.supervised()
            if self.alpha > 0:
                loss = loss + self.alpha * self._smoothness(step, clean)
            if self.mu > 0:
                slow = self._slow_weights(step)
                distance = _relative_distance(step, slow)
                step.notes.setdefault("weight_shift", distance)
                step.acted(distance)
                loss = loss + self.mu * step.between("symmetric", clean, step.slow_logits(slow))
            yield loss

    def _smoothness(self, step: Step, clean: Tensor) -> Tensor:
        reference = self.variant == "reference"
        climb = partial(step.divergence, "stable" if reference else "symmetric", clean.detach())
        size = len(step.batch) if reference else 1  # the reference sums over the batch

        def ascent(shift: Tensor) -> Tensor:
            return size * climb(shift)

        shift = smoothing_shift(
            step,
            ascent,
            sigma=self.sigma,
            step_size=self.step_size,
            epsilon=self.epsilon,
            steps=self.steps,
            variant=self.variant,
        )
        return step.divergence("detached" if reference else "symmetric", clean, shift)

    def _slow_weights(self, step: Step) -> dict[str, Tensor]:
        """Return the slow copy of the weights, moved once for each optimizer step."""
        weights = dict(step.model.named_parameters())
        if SLOW not in step.memory:
            step.memory[SLOW] = (
                step.number,
                {name: w.detach().clone() for name, w in weights.items()},
            )
        last, slow = step.memory[SLOW]
        if last != step.number:
            beta = self.beta_early if step.progress < 0.1 else self.beta
            for name, value in slow.items():
                value.lerp_(weights[name].detach(), 1 - beta)
            step.memory[SLOW] = (step.number, slow)
        return slow


def _relative_distance(step: Step, slow: dict[str, Tensor]) -> Tensor:
    """Return ||w_slow - w|| / ||w|| over all weights: without a shift, what says that mu acts."""
    weights = [(w.detach(), slow[name]) for name, w in step.model.named_parameters()]
    size = sum(w.square().sum() for w, _ in weights)
    distance = sum((old - w).square().sum() for w, old in weights)
    return (distance / size) ** 0.5
