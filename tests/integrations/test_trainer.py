"""AdversarialTrainer against Trainer, against the kit's own loop, and on models of several kinds."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from transformers import Trainer

from competition_kit.data.encoding import Encoded
from competition_kit.integrations import AdversarialTrainer
from competition_kit.strategies import STRATEGIES
from competition_kit.strategies.fgm import FGM
from competition_kit.training.fit import fit_fold
from competition_kit.training.model import EncoderModel
from competition_kit.training.objectives import CrossEntropy, Once
from competition_kit.training.recipe import Recipe
from competition_kit.training.seeds import FoldSeeds
from competition_kit.training.step import Step

from .models import batch, build, distance, hooks, texts, train, weights


class GlobalNoise(AdversarialTrainer):
    """Draws its noise where Trainer's own NEFTune does."""

    def attack_generator(self, micro: int, device: torch.device) -> torch.Generator:
        return torch.default_generator


def test_neftune_padded_is_trainers_own(tmp_path: Path) -> None:
    """Bit for bit, over several steps.

    Both draw from torch's global generator, and without dropout nothing else does. Trainer draws
    uniform_(-m, m) with m = alpha / sqrt(T d), the kit uniform_(-1, 1) times m: with T d = 8 * 32
    and alpha = 4, m is 1/4, and both round nowhere.
    """
    options = {"rows": 16, "num_train_epochs": 2}
    own = train(tmp_path, build(), None, cls=Trainer, neftune_noise_alpha=4, **options)
    ours = train(tmp_path, build(), "neftune(alpha=4, length=padded)", cls=GlobalNoise, **options)
    plain = train(tmp_path, build(), None, cls=Trainer, **options)
    assert distance(weights(own.model), weights(ours.model)) == 0.0
    assert distance(weights(own.model), weights(plain.model)) > 1e-5


@pytest.mark.parametrize("strategy", ["none", "neftune(alpha=0)"])
def test_strength_0_is_plain_trainer(tmp_path: Path, strategy: str) -> None:
    options: dict[str, Any] = {"rows": 16, "num_train_epochs": 2}
    plain = train(tmp_path, build(dropout=0.1), None, cls=Trainer, **options)
    ours = train(tmp_path, build(dropout=0.1), strategy, **options)
    assert distance(weights(plain.model), weights(ours.model)) == 0.0
    losses = [
        [line["loss"] for line in t.state.log_history if "loss" in line] for t in (plain, ours)
    ]
    assert losses[0] == losses[1]


def summed(output: Any, labels: Tensor, num_items_in_batch: Tensor) -> Tensor:
    loss = nn.functional.cross_entropy(output.logits, labels, reduction="sum")
    return loss / num_items_in_batch


HEEDING: dict[str, dict[str, Any]] = {
    "smoothing": {"label_smoothing_factor": 0.1},
    "function": {"options": {"compute_loss_func": summed}},
}


@pytest.mark.parametrize("loss", HEEDING)
def test_accumulation_is_trainers(tmp_path: Path, loss: str) -> None:
    """Where the loss heeds num_items_in_batch, as label smoothing does, both agree bit for bit."""
    options = {"gradient_accumulation_steps": 2, **HEEDING[loss]}
    plain = train(tmp_path, build(), None, cls=Trainer, **options)
    ours = train(tmp_path, build(), "none", **options)
    assert distance(weights(plain.model), weights(ours.model)) == 0.0
    assert plain.state.log_history[0]["loss"] == ours.state.log_history[0]["loss"]


class Whole(EncoderModel):
    """A transformers classifier in the shape that the kit's loop takes."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.encoder = model

    def forward(self, ids: Tensor, mask: Tensor, types: Tensor | None = None) -> Tensor:
        return self.encoder(input_ids=ids, attention_mask=mask).logits


@pytest.mark.parametrize("scope", ["table", "example"])
def test_fgm_is_the_kits_own(tmp_path: Path, scope: Any) -> None:
    strategy = FGM(epsilon=0.5, scope=scope)
    start = weights(build(double=True))
    ours = train(tmp_path, build(double=True), strategy, per_device_train_batch_size=8)

    rows = batch()
    lengths = rows["attention_mask"].sum(dim=1).numpy()
    ids = rows["input_ids"][rows["attention_mask"] == 1].numpy().astype(np.int32)
    encoded = Encoded(ids, None, np.cumsum([0, *lengths]), truncated=0, pad_id=0)
    kit = Whole(build(double=True))
    log = fit_fold(
        kit,
        encoded,
        rows["labels"].numpy(),
        np.arange(8),
        strategy=strategy,
        objective=Once(CrossEntropy()),
        recipe=Recipe(epochs=1, lr=1e-3, batch_size=8, warmup_ratio=0, schedule="constant",
                      weight_decay=0.0),
        seeds=FoldSeeds(seed=0, fold=0),
    )  # fmt: skip
    assert log.steps == ours.state.global_step == 1
    assert distance(weights(kit.encoder), weights(ours.model)) < 1e-6
    assert distance(weights(ours.model), start) > 1e-4
    assert ours.state.log_history[0]["shift_norm"] == pytest.approx(log.shift_norm, rel=1e-5)


@dataclass(frozen=True)
class Regularised:
    """A regulariser that draws nothing: a fixed shift of every token."""

    strength: float = 1.0

    def __call__(self, step: Step) -> Generator[Tensor, None, None]:
        loss, clean = step.supervised()
        shift = step.new_shift().detach() + 0.1 * step.mask
        yield loss + 3.0 * step.divergence("symmetric", clean, shift)


@pytest.mark.parametrize("strategy", [FGM(epsilon=0.5, scope="example"), Regularised()])
@pytest.mark.parametrize("loss", ["model", *HEEDING])
def test_accumulation_is_a_larger_batch(tmp_path: Path, loss: str, strategy: Any) -> None:
    """Also where the model ignores num_items_in_batch; a regulariser keeps its weight beside it."""
    options = HEEDING.get(loss, {})
    whole, parts = (
        train(tmp_path, build(double=True), strategy, **batches, **options)
        for batches in ({"per_device_train_batch_size": 8}, {"gradient_accumulation_steps": 2})
    )
    assert whole.state.global_step == parts.state.global_step == 1
    assert distance(weights(whole.model), weights(parts.model)) < 1e-9
    for name in ("loss", "grad_norm", "shift_norm"):
        values = [trainer.state.log_history[0][name] for trainer in (whole, parts)]
        assert values[0] == pytest.approx(values[1], rel=1e-5)


SPECS = {"awp": "awp(start_epoch=0)", "r3f": "r3f(epsilon=0.01)"}


@pytest.mark.parametrize("name", [*STRATEGIES, "awp(kind=momentum, start_epoch=0)", "neftune+awp(start_epoch=0)+fgm"])  # fmt: skip
def test_every_strategy_runs(tmp_path: Path, name: str) -> None:
    model = build(dropout=0.1)
    before = weights(model)
    trainer = train(tmp_path, model, SPECS.get(name, name), gradient_accumulation_steps=1)
    assert trainer.state.global_step == 2
    assert hooks(model) == 0
    assert distance(before, weights(model)) > 0
    log = trainer.state.log_history[1]
    assert log["forwards"] >= 1
    if name != "none":
        assert max(log["shift_norm"], log.get("weight_shift", 0.0)) > 0
    assert not trainer._memory


@pytest.mark.parametrize("kind", ["roberta", "llama"])
@pytest.mark.parametrize("strategy", ["neftune+pgd(steps=2)", "smart", "sam"])
def test_other_models(tmp_path: Path, kind: str, strategy: str) -> None:
    model = build(kind)
    before = weights(model)
    train(tmp_path, model, strategy)
    assert distance(before, weights(model)) > 0
    assert hooks(model) == 0


# peft 0.21 asks transformers by a name that transformers 5.23 calls deprecated
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")
@pytest.mark.parametrize("kind", ["bert", "llama"])
@pytest.mark.parametrize("strategy", ["neftune+fgm", "vat", "awp(start_epoch=0)", "smart"])
def test_lora(tmp_path: Path, kind: str, strategy: str) -> None:
    """Only the adapters and the head are trained, and the frozen embeddings are shifted anyway."""
    from peft import LoraConfig, get_peft_model

    targets = ["query", "value"] if kind == "bert" else ["q_proj", "v_proj"]
    model = get_peft_model(
        build(kind), LoraConfig(task_type="SEQ_CLS", target_modules=targets, r=2)
    )
    before = weights(model)
    trainer = train(tmp_path, model, strategy)
    after = weights(model)
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed and all("lora" in name or "modules_to_save" in name for name in changed)
    assert any("lora" in name for name in changed)
    assert hooks(model) == 0
    log = trainer.state.log_history[1]
    assert max(log["shift_norm"], log.get("weight_shift", 0.0)) > 0


def test_bf16_and_several_labels(tmp_path: Path) -> None:
    model = build()
    model.config.problem_type = "multi_label_classification"
    rows = [{**row, "labels": torch.eye(3)[row["labels"]]} for row in texts()]
    trainer = train(
        tmp_path, model, "neftune+vat", bf16=True, options={"train_dataset": rows},
    )  # fmt: skip
    assert trainer.state.log_history[0]["forwards"] == 3


class Broken(Exception):
    pass


@dataclass(frozen=True)
class Breaks:
    """Fails in the middle of a pass whose embeddings are shifted."""

    strength: float = 1.0

    def __call__(self, step: Step) -> Generator[Tensor, None, None]:
        yield step.loss()
        if step.number == 1:
            raise Broken
        yield step.loss(step.uniform())


def test_nothing_is_left_after_an_exception(tmp_path: Path) -> None:
    """Weights are where one whole step had put them, though the second was being made at others."""
    from competition_kit.strategies.awp import AWP

    model, one_step = build(), build()
    strategy = AWP(start_epoch=0, gamma=0.1, inner=Breaks())
    with pytest.raises(Broken):
        train(tmp_path, model, strategy)
    train(tmp_path, one_step, strategy, max_steps=1)
    assert distance(weights(model), weights(one_step)) == 0.0
    assert hooks(model) == 0


def test_an_exception_in_backward_puts_weights_back(tmp_path: Path) -> None:
    class Fails(AdversarialTrainer):
        def create_accelerator_and_postprocess(self) -> None:
            super().create_accelerator_and_postprocess()

            def fail(loss: Tensor) -> None:
                raise Broken

            self.accelerator.backward = fail

    model = build()
    before = weights(model)
    with pytest.raises(Broken):
        train(tmp_path, model, "neftune+sam+fgm", cls=Fails)
    assert distance(before, weights(model)) == 0.0
    assert hooks(model) == 0


def test_noise_disturbs_neither_dropout_nor_order(tmp_path: Path) -> None:
    """With a strength of almost nothing, training with dropout is plain training but for rounding."""
    options: dict[str, Any] = {"rows": 16, "num_train_epochs": 2}
    plain = train(tmp_path, build(dropout=0.1, double=True), "none", **options)
    noisy = train(tmp_path, build(dropout=0.1, double=True), "neftune(alpha=1e-9)", **options)
    assert 0 < distance(weights(plain.model), weights(noisy.model)) < 1e-6


def test_noise_follows_seed_and_step(tmp_path: Path) -> None:
    trainer = train(tmp_path, build(), "neftune")

    def draw(micro: int = 0, **state: Any) -> list[float]:
        trainer.state.global_step = state.get("step", 0)
        generator = trainer.attack_generator(micro, torch.device("cpu"))
        return torch.rand(3, generator=generator).tolist()

    assert draw() == draw()
    assert len({tuple(draw(*place, step=step)) for place in [(0,), (1,)] for step in (0, 1)}) == 4
