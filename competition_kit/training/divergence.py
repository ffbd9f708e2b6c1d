"""Divergences between two predictions: what virtual adversarial regularisers measure.

All take logits [B, C] and return one number per example [B]. For several labels (`multi_label`)
a prediction is C independent Bernoulli variables, and divergences add up over the labels.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

__all__ = ["DIVERGENCES", "Divergence", "kl", "stable_kl", "symmetric_kl"]

Divergence = Literal["kl", "symmetric", "detached", "stable"]


def _log_probabilities(logits: Tensor, multi_label: bool) -> Tensor:
    """Return log-probabilities [B, C], or [B, C, 2] of yes and no for several labels."""
    if multi_label:
        return torch.stack([functional.logsigmoid(logits), functional.logsigmoid(-logits)], dim=-1)
    return functional.log_softmax(logits, dim=-1)


def kl(p_logits: Tensor, q_logits: Tensor, multi_label: bool = False) -> Tensor:
    """Return KL(p || q) = sum p (log p - log q) for each example."""
    log_p, log_q = (_log_probabilities(x, multi_label) for x in (p_logits, q_logits))
    return (log_p.exp() * (log_p - log_q)).flatten(1).sum(dim=1)


def symmetric_kl(p_logits: Tensor, q_logits: Tensor, multi_label: bool = False) -> Tensor:
    """Return KL(p || q) + KL(q || p) = sum (p - q)(log p - log q) for each example."""
    log_p, log_q = (_log_probabilities(x, multi_label) for x in (p_logits, q_logits))
    return ((log_p.exp() - log_q.exp()) * (log_p - log_q)).flatten(1).sum(dim=1)


def stable_kl(p_logits: Tensor, q_logits: Tensor, multi_label: bool = False) -> Tensor:
    """Return what SMART's reference code climbs on in place of a divergence.

    2 * sum p * (log-odds(p) - log-odds(q)) with both log-odds held constant, log-odds being
    log(p) - log(1 - p) clipped at 1e-6. Not the KL divergence; kept to reproduce that code.
    """
    log_p, log_q = (_log_probabilities(x, multi_label) for x in (p_logits, q_logits))
    p, q = log_p.exp(), log_q.exp()
    odds_p = -(1.0 / (p + 1e-6) - 1.0 + 1e-6).detach().log()
    odds_q = -(1.0 / (q + 1e-6) - 1.0 + 1e-6).detach().log()
    return (2.0 * p * (odds_p - odds_q)).flatten(1).sum(dim=1)


def detached_kl(p_logits: Tensor, q_logits: Tensor, multi_label: bool = False) -> Tensor:
    """Return KL(p || q) + KL(q || p) with the first argument of each held constant.

    The value of `symmetric_kl`, with half of its gradient; what SMART's reference code adds up.
    """
    return kl(p_logits.detach(), q_logits, multi_label) + kl(
        q_logits.detach(), p_logits, multi_label
    )


# kind -> (reference logits, moved logits, multi_label) -> one number per example
DIVERGENCES: dict[Divergence, Callable[[Tensor, Tensor, bool], Tensor]] = {
    "kl": kl,
    "symmetric": symmetric_kl,
    "detached": detached_kl,
    "stable": lambda reference, moved, multi_label: stable_kl(moved, reference, multi_label),
}
