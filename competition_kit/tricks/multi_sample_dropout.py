"""Multi-sample dropout."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from competition_kit.strategies.base import check_at_least

if TYPE_CHECKING:
    import torch

    from competition_kit.training.model import Classifier

__all__ = ["MultiSampleDropout"]


@dataclass(frozen=True, kw_only=True)
class MultiSampleDropout:
    """The head sees each text under several dropout masks; their losses are averaged.

    Formula:      loss = mean over j of L(head(dropout_j(h))); prediction without dropout
    Paper:        Inoue 2019, arXiv 1905.09788.
    Options:      p: dropout before the head, instead of --dropout.
    Cost:         `samples` small matrix products (the encoder runs once).
    Sane range:   samples 4 to 8, p 0.1 to 0.5.
    Interactions: the mean of losses, not the loss of mean logits: the two differ.
    """

    samples: int = 5
    p: float = 0.3
    conflicts: ClassVar[dict[str, str]] = {}

    def __post_init__(self) -> None:
        check_at_least(2, samples=self.samples)
        if not 0 < self.p < 1:
            raise ValueError(f"p must lie between 0 and 1, got {self.p:g}")

    def prepare(self, model: Classifier, generator: torch.Generator) -> None:
        model.dropout_samples = self.samples
        model.dropout.p = self.p
