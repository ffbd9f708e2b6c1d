"""Task-adaptive pretraining."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from competition_kit.strategies.base import check_at_least

__all__ = ["Pretrain"]


@dataclass(frozen=True, kw_only=True)
class Pretrain:
    """Goes on with masked-language-model pretraining on the competition's own texts, before the folds.

    Formula:      minimise the mean of -log p(token) over masked tokens (15 %; of these 80 % masked,
                  10 % random, 10 % kept), plus alum * mean KL_sym at an adversarial shift if alum > 0
    Paper:        Gururangan et al., ACL 2020, arXiv 2004.10964 (TAPT); with alum > 0 the first of
                  the two stages of Liu et al. 2020, arXiv 2004.08994 (alpha 10 there).
    Cost:         `epochs` passes over all texts, once for all folds, seeds and arms that ask for it
                  (the adapted encoder is kept under runs/<competition>/pretrained).
    Sane range:   epochs 1 to 20 on small sets, lr 2e-5 to 1e-4, alum 0 or 10.
    Interactions: uses the texts of train and test without labels; config.json and the report say
                  so. Allowed in most competitions; read the rules. A checkpoint without a
                  masked-language head starts with a random one.
    Public bugs:  texts masked once and for all; special tokens masked; ALUM's own script, which
                  leaves the adversarial term off.
    """

    epochs: int = 1
    lr: float = 5e-5
    mask_probability: float = 0.15
    batch_size: int = 32
    alum: float = 0.0
    conflicts: ClassVar[dict[str, str]] = {}

    def __post_init__(self) -> None:
        check_at_least(1, epochs=self.epochs, batch_size=self.batch_size)
        check_at_least(0.0, lr=self.lr, alum=self.alum)
        if not 0 < self.mask_probability < 1:
            raise ValueError(f"mask_probability must lie in (0, 1), got {self.mask_probability:g}")
