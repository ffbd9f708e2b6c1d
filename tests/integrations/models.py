"""Tiny models with a classification head, and texts for them; every weight random."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    LlamaConfig,
    LlamaForSequenceClassification,
    PreTrainedModel,
    RobertaConfig,
    RobertaForSequenceClassification,
    TrainingArguments,
)

from competition_kit.integrations import AdversarialTrainer

VOCABULARY, WIDTH, LENGTH, CLASSES = 30, 32, 8, 3


def build(kind: str = "bert", *, dropout: float = 0.0, double: bool = False) -> PreTrainedModel:
    """Return a 2-layer model of three classes, on the CPU."""
    size = {
        "vocab_size": VOCABULARY,
        "hidden_size": WIDTH,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 64,
        "num_labels": CLASSES,
        "pad_token_id": 0,
        "max_position_embeddings": 32,
    }
    noise = {"hidden_dropout_prob": dropout, "attention_probs_dropout_prob": dropout}
    torch.manual_seed(0)
    model: PreTrainedModel
    if kind == "bert":
        model = BertForSequenceClassification(BertConfig(**size, **noise))
    elif kind == "roberta":
        model = RobertaForSequenceClassification(RobertaConfig(**size, **noise))
    else:
        model = LlamaForSequenceClassification(LlamaConfig(**size, num_key_value_heads=2))
    return model.double() if double else model


def texts(rows: int = 8, *, seed: int = 0) -> list[dict[str, Any]]:
    """Return tokenised texts of 3 to 8 tokens, padded on the right to 8, with their labels."""
    generator = torch.Generator().manual_seed(seed)
    made = []
    for row in range(rows):
        length = LENGTH if row == 0 else int(torch.randint(3, LENGTH + 1, (), generator=generator))
        ids = torch.randint(2, VOCABULARY, (LENGTH,), generator=generator)
        ids[length:] = 0
        label = int(torch.randint(CLASSES, (), generator=generator))
        made.append({"input_ids": ids, "attention_mask": (ids != 0).long(), "labels": label})
    return made


def batch(rows: int = 8) -> dict[str, Tensor]:
    """Return the same texts as one batch."""
    made = texts(rows)
    stacked = {key: torch.stack([row[key] for row in made]) for key in made[0] if key != "labels"}
    return {**stacked, "labels": torch.tensor([row["labels"] for row in made])}


def arguments(folder: Path, **changes: Any) -> TrainingArguments:
    settings: dict[str, Any] = {
        "per_device_train_batch_size": 4,
        "num_train_epochs": 1,
        "learning_rate": 1e-3,
        "lr_scheduler_type": "constant",
        "weight_decay": 0.0,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "use_cpu": True,
        "disable_tqdm": True,
        "dataloader_pin_memory": False,
        "seed": 3,
    }
    return TrainingArguments(output_dir=str(folder), **{**settings, **changes})


def train(
    folder: Path,
    model: nn.Module,
    strategy: Any,
    *,
    rows: int = 8,
    cls: type = AdversarialTrainer,
    options: dict[str, Any] | None = None,
    **changes: Any,
) -> Any:
    """Train on `texts`; return the trainer."""
    how = {} if strategy is None else {"strategy": strategy}
    trainer = cls(
        model=model,
        args=arguments(folder, **changes),
        **how,
        **{"train_dataset": texts(rows), **(options or {})},
    )
    trainer.remove_callback(_printer())
    trainer.train()
    return trainer


def _printer() -> type:
    from transformers.trainer_callback import PrinterCallback

    return PrinterCallback


def weights(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in model.named_parameters()}


def distance(one: dict[str, Tensor], other: dict[str, Tensor]) -> float:
    return max(float((one[name] - other[name]).abs().max()) for name in one)


def hooks(model: nn.Module) -> int:
    return sum(len(module._forward_hooks) for module in model.modules())
