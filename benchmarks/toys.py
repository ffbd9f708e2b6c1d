"""Small random encoders and texts for checks of numbers; made here, nothing is read or downloaded."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from benchmarks.workload import random_encoder
from competition_kit.data.encoding import Encoded
from competition_kit.training.model import Classifier

__all__ = ["KINDS", "Toy", "toy"]

KINDS = ("bert", "roberta")
VOCABULARY, CLASSES, LONGEST = 300, 3, 24
SETTINGS: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 128,
}
FIRST_WORD = 5  # token ids below are special in both kinds


@dataclass(frozen=True)
class Toy:
    """A classifier on the CPU in training mode, and rows that it can learn."""

    model: Classifier
    encoded: Encoded
    labels: np.ndarray


def toy(
    kind: str,
    *,
    rows: int,
    dropout: float = 0.0,
    seed: int = 0,
    longest: int = LONGEST,
    **settings: int,
) -> Toy:
    """Return a BERT or RoBERTa of two layers, and `rows` texts of 4 to `longest` tokens.

    A row's label decides from which third of the vocabulary most of its tokens come. Dropout is off
    unless asked for: its random numbers differ between CPU and GPU.
    """
    torch.manual_seed(seed)
    # wider than BERT's 0.02, so that losses are curved enough for a wrong shift to show
    encoder = random_encoder(
        kind,
        SETTINGS | settings,
        positions=longest,
        initializer_range=0.08,
        hidden_dropout_prob=dropout,
        attention_probs_dropout_prob=dropout,
    )
    generator = np.random.default_rng(seed)
    labels = generator.integers(CLASSES, size=rows)
    lengths = generator.integers(4, longest + 1, size=rows)
    third = (VOCABULARY - FIRST_WORD) // CLASSES
    texts = []
    for label, length in zip(labels, lengths, strict=True):
        words = generator.integers(FIRST_WORD, VOCABULARY, size=length)
        marked = generator.random(length) < 0.8
        words[marked] = FIRST_WORD + label * third + words[marked] % third
        texts.append(words.astype(np.int32))
    ids = np.concatenate(texts)
    encoded = Encoded(
        ids=ids,
        type_ids=np.zeros_like(ids) if kind == "bert" else None,
        starts=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
        truncated=0,
        pad_id=encoder.config.pad_token_id,
    )
    model = Classifier(encoder, CLASSES, dropout=dropout)
    return Toy(model.train(), encoded, labels)
