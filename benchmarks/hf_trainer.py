"""transformers' Trainer as a competitor would set it up: the peer in speed measurements."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from competition_kit.data.encoding import Encoded
from competition_kit.errors import InputError
from competition_kit.training.recipe import Precision

if TYPE_CHECKING:
    from transformers import Trainer, TrainerCallback

__all__ = ["check_trainer", "make_trainer", "texts_of"]


def check_trainer() -> None:
    """Check that Trainer can be used here, before anything is measured.

    Raises:
        InputError: if not.
    """
    if importlib.util.find_spec("accelerate") is None:
        raise InputError(
            "transformers' Trainer, which the kit is measured against, needs accelerate",
            remedy="pip install -r tests/requirements.txt",
        )


def texts_of(encoded: Encoded, rows: np.ndarray, labels: np.ndarray | None) -> list[dict[str, Any]]:
    """Return rows as Trainer takes them, unpadded; `labels` ([N]) of all rows, or None."""
    texts: list[dict[str, Any]] = []
    for row in rows:
        ids = encoded.ids[encoded.starts[row] : encoded.starts[row + 1]].tolist()
        texts.append({"input_ids": ids} | ({} if labels is None else {"labels": int(labels[row])}))
    return texts


def make_trainer(
    model_folder: Path,
    texts: list[dict[str, Any]],
    *,
    classes: int,
    pad_id: int,
    out: Path,
    epochs: int,
    lr: float,
    batch_size: int,
    device: str,
    precision: Precision,
    order: str = "group_by_length",
    seed: int = 0,
    callbacks: Sequence[TrainerCallback] = (),
) -> Trainer:
    """Return a Trainer with dynamic padding that saves and prints nothing.

    Args:
        order: "random", or "group_by_length" (texts of similar length together).
    """
    from transformers import (
        AutoModelForSequenceClassification,
        PrinterCallback,
        Trainer,
        TrainingArguments,
        set_seed,
    )

    def pad(batch: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        ids = [torch.tensor(text["input_ids"]) for text in batch]
        padded = torch.nn.utils.rnn.pad_sequence(ids, batch_first=True, padding_value=pad_id)
        lengths = torch.tensor([len(text) for text in ids])
        inputs = {
            "input_ids": padded,
            "attention_mask": (torch.arange(padded.shape[1]) < lengths[:, None]).long(),
        }
        if "labels" in batch[0]:
            inputs["labels"] = torch.tensor([text["labels"] for text in batch])
        return inputs

    set_seed(seed)
    model = AutoModelForSequenceClassification.from_pretrained(
        model_folder, num_labels=classes, local_files_only=True, dtype=torch.float32
    )
    settings = TrainingArguments(
        str(out),
        num_train_epochs=epochs,
        per_device_train_batch_size=batch_size,
        per_device_eval_batch_size=64,
        learning_rate=lr,
        weight_decay=0.01,
        warmup_steps=0.1,
        train_sampling_strategy=order,
        bf16=precision == "bf16",
        fp16=precision == "fp16",
        use_cpu=device == "cpu",
        seed=seed,
        report_to="none",
        save_strategy="no",
        logging_strategy="no",
        disable_tqdm=True,
    )
    trainer = Trainer(
        model, settings, data_collator=pad, train_dataset=texts, callbacks=list(callbacks)
    )
    trainer.remove_callback(PrinterCallback)
    return trainer
