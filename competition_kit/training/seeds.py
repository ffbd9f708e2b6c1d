"""Random numbers by purpose: nothing that draws more of one kind disturbs another kind."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
import torch

__all__ = ["FoldSeeds"]


@dataclass(frozen=True)
class FoldSeeds:
    """The sources of randomness of one cell, each derived from (seed, purpose, fold, position).

    Two arms with the same seed see the same head, the same order of rows and, pass by pass, the
    same dropout, whatever their strategies draw in between.
    """

    seed: int
    fold: int

    def derive(self, purpose: str, *position: int) -> int:
        """Return a 63-bit seed, a hash of the purpose and the position in training."""
        text = repr((self.seed, purpose, self.fold, *position)).encode()
        return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little") >> 1

    def head(self) -> torch.Generator:
        """Return the generator that initialises the classification head."""
        return torch.Generator().manual_seed(self.derive("head"))

    def order(self, epoch: int) -> np.random.Generator:
        """Return the generator of an epoch's row order."""
        return np.random.default_rng(self.derive("order", epoch))

    def trick(self, name: str) -> torch.Generator:
        """Return the generator of what a trick draws before training."""
        return torch.Generator().manual_seed(self.derive("trick-" + name))

    def gradient_mask(self, step: int, device: torch.device) -> torch.Generator:
        """Return the generator of a random gradient mask for one optimizer step."""
        return torch.Generator(device).manual_seed(self.derive("gradient-mask", step))

    def seed_dropout(self, step: int, micro: int) -> None:
        """Seed torch's global generators, which only dropout uses, for one micro-batch."""
        torch.manual_seed(self.derive("dropout", step, micro))

    def attack(self, step: int, micro: int, device: torch.device) -> torch.Generator:
        """Return the generator of a strategy's noise for one micro-batch."""
        return torch.Generator(device).manual_seed(self.derive("attack", step, micro))
