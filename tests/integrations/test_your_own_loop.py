"""The recipes of docs/your_own_loop.md, run as they stand there; and imports without accelerate."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from competition_kit.errors import InputError
from competition_kit.integrations import ModelStep

from .models import arguments, batch, build, distance, hooks, texts, weights

ROOT = Path(__file__).parents[2]
BLOCKS = re.findall(
    r"```python\n(.*?)```", (ROOT / "docs" / "your_own_loop.md").read_text(), flags=re.DOTALL
)


@pytest.mark.parametrize("block", BLOCKS, ids=["trainer", "plain", "accelerate"])
def test_recipe(block: str, tmp_path: Path) -> None:
    model = build(dropout=0.1).train()
    before = weights(model)
    scope: dict[str, Any] = {
        "model": model,
        "args": arguments(tmp_path),
        "dataset": texts(),
        "loader": torch.utils.data.DataLoader(texts(), batch_size=4),
        "optimizer": torch.optim.AdamW(model.parameters(), lr=1e-3),
    }
    exec(compile(block, "your_own_loop.md", "exec"), scope)
    assert distance(before, weights(model)) > 0
    assert hooks(model) == 0


def test_a_batch_without_labels_or_tokens() -> None:
    generator, model = torch.Generator(), build()
    inputs = {key: value for key, value in batch().items() if key != "labels"}
    with pytest.raises(InputError, match="returned no loss"):
        ModelStep(model, inputs, generator).loss()
    with pytest.raises(InputError, match="no input_ids"):
        ModelStep(model, {}, generator)
    with pytest.raises(InputError, match=r"attention_mask is \[8, 1, 8\]"):
        ModelStep(model, {**inputs, "attention_mask": torch.ones(8, 1, 8)}, generator)


def test_no_mask_means_that_all_are_tokens() -> None:
    inputs = {"input_ids": batch()["input_ids"], "labels": batch()["labels"]}
    assert ModelStep(build(), inputs, torch.Generator()).mask.all()


def test_without_accelerate() -> None:
    """One message with the command; what needs no accelerate works all the same."""
    code = """
import sys
sys.modules["accelerate"] = None  # as if it were not installed
from competition_kit.integrations import ModelStep
try:
    from competition_kit.integrations import AdversarialTrainer
except ImportError as error:
    print(error)
"""
    run = [sys.executable, "-c", code]
    done = subprocess.run(run, capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout == "AdversarialTrainer needs accelerate: pip install 'accelerate>=1.0'\n"
