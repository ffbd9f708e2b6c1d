"""Noisy embedding fine-tuning."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from competition_kit.strategies.base import Strategy, check_at_least, remarks
from competition_kit.strategies.none import Plain

if TYPE_CHECKING:
    from torch import Tensor

    from competition_kit.training.step import Step

__all__ = ["NEFTune"]


@dataclass(frozen=True, kw_only=True)
class NEFTune:
    """Noise on the embeddings, scaled by length and width; a wrapper for any other strategy.

    Formula:      E' = E + alpha / sqrt(n d) * u,  u ~ U(-1, 1) per element; the noise of one text
                  has expected L2 norm alpha / sqrt(3), whatever its length n and the width d.
    Paper:        Jain et al. 2023, arXiv 2310.05914 (decoders; here on an encoder's word
                  embeddings, before position, segment and LayerNorm).
    Options:      length="true": n is the text's own length and padding gets no noise (the
                  authors' training code). length="padded": n is the padded length and padding is
                  noised too (the patch that people paste; a short text in a long batch then gets
                  less noise, so the effect depends on what else is in the batch).
                  noise="gaussian": normal with the same variance as the uniform noise
                  (standard deviation alpha / sqrt(3 n d)); our choice, the paper uses uniform.
    Cost:         1 forward, 1 backward (3 units, as plain training).
    Sane range:   alpha 1 to 15; 5 in the paper. No published value for classification encoders.
    Interactions: one draw per step stands in every pass of an inner strategy
                  ("neftune+fgm"), so an attack climbs from the noised point.
    Public bugs:  noise in evaluation; noise on padding; hooks left on the model. None here:
                  the shift lives inside one forward pass.
    """

    alpha: float = 5.0
    noise: Literal["uniform", "gaussian"] = "uniform"
    length: Literal["true", "padded"] = "true"
    inner: Strategy = field(default_factory=Plain)

    def __post_init__(self) -> None:
        check_at_least(0.0, alpha=self.alpha)

    @property
    def strength(self) -> float:
        return max(self.alpha, self.inner.strength)

    def remarks(self) -> list[str]:
        return remarks(self.inner)

    def __call__(self, step: Step) -> Generator[Tensor, None, None]:
        with step.standing(self._noise(step)):
            yield from self.inner(step)

    def _noise(self, step: Step) -> Tensor:
        """Return the noise [B, T, H] of this step."""
        unit = step.uniform() if self.noise == "uniform" else step.gaussian() / 3**0.5
        if self.length == "padded":
            return unit * (self.alpha / (step.padded_length * step.width) ** 0.5)
        return unit * step.mask * (self.alpha / (step.lengths * step.width).sqrt())
