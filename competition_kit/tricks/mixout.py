"""Mixout."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

if TYPE_CHECKING:
    import torch

    from competition_kit.training.model import Classifier

__all__ = ["Mixout"]


@dataclass(frozen=True, kw_only=True)
class Mixout:
    """In each pass a random part of the encoder's weights is the pretrained one again.

    Formula:      w~ = (M * w0 + (1 - M) * w - p * w0) / (1 - p),  M ~ Bernoulli(p) per element, so
                  that the mean of w~ is w; for the matrices of the encoder's linear layers
    Paper:        Lee, Cho, Kang, ICLR 2020, arXiv 1909.11299 (equation 4).
    Cost:         a random mask of every matrix in each pass, and a copy of the matrices.
    Sane range:   p 0.1 to 0.9 (0.7 and 0.9 in the paper, for large encoders and few rows).
    Interactions: w0 is the encoder as it is after noisytune and reinit. Masks follow
                  dropout="shared". Not in prediction.
    Public bugs:  layers swapped by name; one row of the mask repeated over the whole matrix.
    """

    p: float = 0.5
    conflicts: ClassVar[dict[str, str]] = {}

    def __post_init__(self) -> None:
        if not 0 <= self.p < 1:
            raise ValueError(f"p must be at least 0 and below 1, got {self.p:g}")

    def prepare(self, model: Classifier, generator: torch.Generator) -> None:
        from torch import nn
        from torch.nn.utils import parametrize

        from competition_kit.training.weights import MixedWeight

        for layer in list(model.encoder.modules()):
            if isinstance(layer, nn.Linear):
                mixed = MixedWeight(layer.weight.detach().clone(), self.p)
                parametrize.register_parametrization(layer, "weight", mixed)
