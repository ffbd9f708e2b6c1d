"""What is trained in a speed measurement: an encoder and some batches."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from competition_kit.data.encoding import Batch, Encoded, collate, encode, length_bucketed
from competition_kit.errors import InputError
from competition_kit.model_source import DEFAULT_MODEL, find_model
from competition_kit.training.model import Classifier, build_classifier, load_tokenizer
from competition_kit.training.objectives import CRITERIA, Criterion
from competition_kit.training.recipe import Precision

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = [
    "SHAPES",
    "Workload",
    "autocast",
    "from_competition",
    "from_shape",
    "random_encoder",
    "random_tokens",
    "save_encoder",
]

MAX_LENGTH = 128  # tokens, as the kit's own default
CLASSES = 3  # of random labels
# of random texts: as many different tokens as 3,000 tweets have, beyond the special ones
FIRST_TOKEN, TOKENS_IN_USE = 1000, 8000

SHAPES: dict[str, tuple[str, dict[str, Any]]] = {  # name -> model type, its config
    "minilm": (
        "bert",
        {
            "vocab_size": 30522,
            "hidden_size": 384,
            "num_hidden_layers": 6,
            "num_attention_heads": 12,
            "intermediate_size": 1536,
        },
    ),
    "roberta-base": (
        "roberta",
        {
            "vocab_size": 50265,
            "hidden_size": 768,
            "num_hidden_layers": 12,
            "num_attention_heads": 12,
            "intermediate_size": 3072,
        },
    ),
}


@dataclass(frozen=True)
class Workload:
    """A model in training mode and batches, all on one device.

    Attributes:
        label: what it is, in words.
        batches: of the same number of rows each.
        token_ids: of all rows of the competition, not of the batches alone; padding too.
    """

    label: str
    model: Classifier
    batches: list[Batch]
    criterion: Criterion
    token_ids: np.ndarray

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    @property
    def rows(self) -> int:
        """Rows of all batches together."""
        return sum(len(batch) for batch in self.batches)

    @property
    def tokens_per_row(self) -> float:
        """Mean tokens of a row, padding not counted."""
        return sum(int(batch.attention_mask.sum()) for batch in self.batches) / self.rows


def autocast(device: torch.device, precision: Precision) -> Callable[[], AbstractContextManager]:
    """Return what makes the context of a forward pass in this precision."""
    if precision == "fp32":
        return nullcontext
    dtype = torch.bfloat16 if precision == "bf16" else torch.float16
    return lambda: torch.autocast(device.type, dtype)


def from_competition(
    model: str, data: Path, *, batch_size: int, batches: int, device: torch.device
) -> Workload:
    """Take a real encoder and the first batches of a competition's first epoch.

    Raises:
        InputError: if there is no such encoder or competition, or too few rows in it.
    """
    from competition_kit.data.competition import load_competition

    source = find_model(model)
    competition = load_competition(data)
    length = min(MAX_LENGTH, source.max_length)
    encoded = encode(load_tokenizer(source.folder), competition.train, length)
    torch.manual_seed(0)
    classifier = build_classifier(
        source.folder, len(competition.classes), generator=torch.Generator().manual_seed(0)
    )
    return Workload(
        label=f"{source.short_name}, {competition.name}",
        model=classifier.to(device).train(),
        batches=_batches(encoded, competition.targets, batch_size, batches, device),
        criterion=CRITERIA[competition.rules.task](),
        token_ids=np.append(encoded.ids, encoded.pad_id),
    )


def from_shape(
    shape: str, *, length: int, batch_size: int, batches: int, device: torch.device
) -> Workload:
    """Make an encoder of a known size with random weights, and rows of `length` random tokens."""
    kind, settings = SHAPES[shape]
    torch.manual_seed(0)
    encoder = random_encoder(kind, settings, positions=max(512, length))
    generator = np.random.default_rng(0)
    rows = batch_size * batches
    encoded = Encoded(
        ids=random_tokens(generator, rows * length),
        type_ids=None,
        starts=np.arange(rows + 1, dtype=np.int64) * length,
        truncated=0,
        pad_id=encoder.config.pad_token_id,
    )
    labels = generator.integers(CLASSES, size=rows)
    return Workload(
        label=f"{shape} shape, random, {length} tokens",
        model=Classifier(encoder, CLASSES).to(device).train(),
        batches=_batches(encoded, labels, batch_size, batches, device),
        criterion=CRITERIA["single_label"](),
        token_ids=np.append(np.arange(FIRST_TOKEN, FIRST_TOKEN + TOKENS_IN_USE), encoded.pad_id),
    )


def random_tokens(generator: np.random.Generator, count: int) -> np.ndarray:
    """Return token ids [count], uniform over the tokens in use."""
    return generator.integers(FIRST_TOKEN, FIRST_TOKEN + TOKENS_IN_USE, count).astype(np.int32)


def random_encoder(
    kind: str, settings: dict[str, Any], *, positions: int, **options: Any
) -> PreTrainedModel:
    """Return a BERT or RoBERTa with random weights, without the pooling layer that nothing uses."""
    from transformers import BertConfig, BertModel, RobertaConfig, RobertaModel

    if kind == "bert":
        config = BertConfig(**settings, max_position_embeddings=positions, **options)
        return BertModel(config, add_pooling_layer=False)
    # RoBERTa counts positions from its padding id on
    wide = RobertaConfig(
        **settings, max_position_embeddings=positions + 2, type_vocab_size=1, **options
    )
    return RobertaModel(wide, add_pooling_layer=False)


def save_encoder(folder: Path, kind: str, settings: dict[str, Any], *, positions: int) -> None:
    """Save an encoder with random weights and MiniLM's tokenizer, as `run_cv.py` takes it.

    Args:
        settings: of its config; without a vocabulary size it gets the tokenizer's.
    """
    tokenizer = load_tokenizer(find_model(DEFAULT_MODEL).folder)
    torch.manual_seed(0)
    sized = {"vocab_size": len(tokenizer), "pad_token_id": tokenizer.pad_token_id, **settings}
    random_encoder(kind, sized, positions=positions).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _batches(
    encoded: Encoded, labels: np.ndarray, batch_size: int, count: int, device: torch.device
) -> list[Batch]:
    order = length_bucketed(
        encoded.lengths, np.arange(len(encoded)), batch_size, np.random.default_rng(0)
    )
    full = [rows for rows in order if len(rows) == batch_size][:count]
    if len(full) < count:
        raise InputError(
            f"{len(encoded)} rows make {len(full)} batches of {batch_size}, {count} are wanted",
            remedy="use fewer --batches or a smaller --batch-size",
        )
    return [collate(encoded, rows, labels).to(device) for rows in full]
