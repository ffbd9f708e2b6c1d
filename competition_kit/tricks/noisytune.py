"""NoisyTune."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from competition_kit.strategies.base import check_at_least

if TYPE_CHECKING:
    import torch

    from competition_kit.training.model import Classifier

__all__ = ["NoisyTune"]


@dataclass(frozen=True, kw_only=True)
class NoisyTune:
    """A little noise on the pretrained matrices, once, before the first step.

    Formula:      W' = W + U(-strength / 2, strength / 2) * std(W), for each matrix of the encoder
    Paper:        Wu et al., ACL 2022, arXiv 2202.12024 (equation 1; lambda there is strength here).
    Cost:         one pass over the weights.
    Sane range:   strength 0.05 to 0.2 (0.15 in most code).
    Interactions: before mixout and averaging, whose anchors then hold the noised weights. Drawn
                  anew for each fold and seed; a resumed cell starts from the beginning.
    Public bugs:  the new head noised too; NaN from the standard deviation of one element; tied
                  matrices noised twice. Here: encoder tensors of two or more dimensions, each once.
    """

    strength: float = 0.15
    conflicts: ClassVar[dict[str, str]] = {}

    def __post_init__(self) -> None:
        check_at_least(0.0, strength=self.strength)

    def prepare(self, model: Classifier, generator: torch.Generator) -> None:
        for weight in model.encoder.parameters():  # tied weights come once
            values = weight.detach()
            if values.ndim >= 2 and values.numel() > 1:
                noise = values.new_empty(values.shape).uniform_(-0.5, 0.5, generator=generator)
                values.add_(noise, alpha=self.strength * values.std().item())
