"""Re-initialisation of the top layers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from competition_kit.strategies.base import check_at_least

if TYPE_CHECKING:
    import torch

    from competition_kit.training.model import Classifier

__all__ = ["Reinit"]


@dataclass(frozen=True, kw_only=True)
class Reinit:
    """The top layers forget what they learnt in pretraining and start from random weights.

    Formula:      matrices of the top `layers` layers ~ N(0, initializer_range), biases 0,
                  LayerNorm weight 1 and bias 0
    Paper:        Zhang et al., ICLR 2021, arXiv 2006.05987 (section 5).
    Cost:         none.
    Sane range:   1 to 3 layers of 12; 1 of 6.
    Interactions: wants more epochs. After noisytune (the new layers get no noise).
    Public bugs:  LayerNorm drawn at random as well; applied again on resume.
    """

    layers: int = 1
    conflicts: ClassVar[dict[str, str]] = {}

    def __post_init__(self) -> None:
        check_at_least(1, layers=self.layers)

    def prepare(self, model: Classifier, generator: torch.Generator) -> None:
        from torch import nn

        from competition_kit.errors import InputError
        from competition_kit.tricks.layers import encoder_layers

        stack = encoder_layers(model.encoder)
        if self.layers >= len(stack):
            raise InputError(
                f"reinit: {self.layers} of {len(stack)} separate layers",
                remedy="leave at least one pretrained layer (ALBERT's layers are one layer)",
            )
        std = getattr(model.encoder.config, "initializer_range", 0.02)
        for layer in stack[-self.layers :]:
            for module in layer.modules():
                if isinstance(module, nn.Linear):
                    nn.init.normal_(module.weight, std=std, generator=generator)
                    if module.bias is not None:
                        nn.init.zeros_(module.bias)
                elif isinstance(module, nn.LayerNorm):
                    module.reset_parameters()
