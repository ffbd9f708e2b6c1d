"""Layer-wise learning-rate decay."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

if TYPE_CHECKING:
    from competition_kit.training.model import EncoderModel

__all__ = ["LayerwiseDecay"]


@dataclass(frozen=True, kw_only=True)
class LayerwiseDecay:
    """Lower layers learn more slowly: the further from the head, the smaller the rate.

    Formula:      rate of layer l of D = lr * decay ** (D - l + 1) for l = 1 .. D; embeddings and
                  all else in the encoder: lr * decay ** (D + 1); the head: lr
    Paper:        Howard and Ruder, ACL 2018, arXiv 1801.06146 (section 3.2); for BERT Sun et al.
                  2019, arXiv 1905.05583.
    Cost:         none.
    Sane range:   decay 0.8 to 0.95 for base-size encoders.
    Interactions: lr is the head's rate now: often higher than without.
    Public bugs:  parameters that no name pattern matches left out of the optimizer. Here every
                  parameter stands in exactly one group; layers that share weights count as one.
    """

    decay: float = 0.9
    conflicts: ClassVar[dict[str, str]] = {}

    def __post_init__(self) -> None:
        if not 0 < self.decay <= 1:
            raise ValueError(f"decay must be above 0 and at most 1, got {self.decay:g}")

    def groups(self, model: EncoderModel, lr: float, weight_decay: float) -> list[dict[str, Any]]:
        from competition_kit.tricks.layers import encoder_layers

        stack = encoder_layers(model.encoder)
        below = len(stack) + 1
        depth = dict.fromkeys(model.parameters(), 0)  # distance from the head
        depth.update(dict.fromkeys(model.encoder.parameters(), below))
        for number, layer in enumerate(stack):
            depth.update(dict.fromkeys(layer.parameters(), len(stack) - number))
        groups: dict[tuple[int, bool], dict[str, Any]] = {}
        for weight, distance in depth.items():
            if not weight.requires_grad:
                continue
            matrix = weight.ndim > 1
            group = groups.setdefault(
                (distance, matrix),
                {
                    "params": [],
                    "lr": lr * self.decay**distance,
                    "weight_decay": weight_decay if matrix else 0.0,
                },
            )
            group["params"].append(weight)
        return list(groups.values())
