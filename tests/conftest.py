"""Small real encoders and competition folders, made here: nothing is downloaded."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"  # before transformers is imported: no test may reach a hub
os.environ["TOKENIZERS_PARALLELISM"] = "false"

import numpy as np
import pandas as pd
import pytest
import torch

KINDS = ("bert", "roberta")
WORDS = (
    "good great fine lovely happy bad awful poor sad angry plain table chair river stone "
    "walk talk film book song 好 坏 😀"
).split()
RUN_FILES = {  # of a finished run, its cells apart
    "config.json",
    "folds.csv",
    "oof.csv",
    "test_predictions.csv",
    "metrics.json",
    "submission.csv",
    "report.html",
}


def pytest_configure() -> None:
    torch.set_num_threads(1)  # tiny matrices: more threads only wait for each other


@pytest.fixture(scope="module")
def one_core() -> Iterator[None]:
    """Let runs in this process use one core: on a busy machine threads wait for each other."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "sched_getaffinity", lambda pid: {0}, raising=False)
        yield
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Return a function: kind ("bert", "roberta") -> folder of a small random encoder."""
    made: dict[str, Path] = {}

    def make(kind: str) -> Path:
        if kind not in made:
            made[kind] = make_model(tmp_path_factory.mktemp(kind) / f"tiny-{kind}", kind)
        return made[kind]

    return make


def make_model(folder: Path, kind: str, *, width: int = 32, dropout: float = 0.1) -> Path:
    """Save a 2-layer encoder with random weights, and a tokenizer trained on `WORDS`."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers
    from transformers import (
        BertConfig,
        BertModel,
        PreTrainedTokenizerFast,
        RobertaConfig,
        RobertaModel,
    )

    special = (
        ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
        if kind == "bert"
        else ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    )
    pad, unknown, start, end = (
        ("[PAD]", "[UNK]", "[CLS]", "[SEP]")
        if kind == "bert"
        else ("<pad>", "<unk>", "<s>", "</s>")
    )
    tokenizer = Tokenizer(models.WordLevel(unk_token=unknown))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.train_from_iterator(
        [" ".join(WORDS)], trainers.WordLevelTrainer(special_tokens=special, show_progress=False)
    )
    segment = ":1" if kind == "bert" else ":0"
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{start} $A {end}",
        pair=f"{start} $A {end} $B{segment} {end}{segment}",
        special_tokens=[(token, tokenizer.token_to_id(token)) for token in (start, end)],
    )
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=pad,
        unk_token=unknown,
        cls_token=start,
        sep_token=end,
        mask_token=special[-1],
        model_input_names=["input_ids", "attention_mask"]
        + (["token_type_ids"] if kind == "bert" else []),
    )
    settings = {
        "vocab_size": tokenizer.get_vocab_size(),
        "hidden_size": width,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 2 * width,
        "max_position_embeddings": 66,
        "hidden_dropout_prob": dropout,
        "attention_probs_dropout_prob": dropout,
        "pad_token_id": tokenizer.token_to_id(pad),
    }
    torch.manual_seed(0)
    if kind == "bert":
        model = BertModel(BertConfig(**settings))
    else:
        model = RobertaModel(RobertaConfig(**settings, type_vocab_size=1))
    model.save_pretrained(folder)
    fast.save_pretrained(folder)
    return folder


@pytest.fixture
def competition_folder(tmp_path: Path) -> Callable[..., Path]:
    """Return a function that writes a small, learnable competition folder."""

    def make(
        name: str = "toy",
        *,
        task: str = "single_label",
        pair: bool = False,
        groups: bool = False,
        rows: int = 60,
        test_rows: int = 12,
        seed: int = 0,
    ) -> Path:
        folder = tmp_path / name
        folder.mkdir()
        generator = np.random.default_rng(seed)

        def texts(count: int) -> list[str]:
            return [
                " ".join(generator.choice(WORDS, size=generator.integers(3, 12)))
                for _ in range(count)
            ]

        frames = {}
        for part, count in (("train", rows), ("test", test_rows)):
            frame = pd.DataFrame({"id": [f"{part}-{i:03d}" for i in range(count)]})
            frame["text"] = texts(count)
            if pair:
                frame["text_b"] = texts(count)
            if groups:
                frame["doc"] = [f"d{i % 10}" for i in range(count)]
            good = frame["text"].str.count("good|great|fine|lovely|happy|好|😀")
            bad = frame["text"].str.count("bad|awful|poor|sad|angry|坏")
            if task == "multi_label":
                frame["is_good"] = (good > 0).astype(int)
                frame["is_bad"] = (bad > 0).astype(int)
            else:
                frame["label"] = np.select([good > bad, bad > good], ["good", "bad"], "so-so")
            frames[part] = frame
        labels = ["is_good", "is_bad"] if task == "multi_label" else ["label"]
        frames["train"].to_csv(folder / "train.csv", index=False)
        frames["test"].drop(columns=labels).to_csv(folder / "test.csv", index=False)
        # not the order of test.csv: it has to be matched by id
        frames["test"][["id", *labels]].iloc[::-1].to_csv(folder / "solution.csv", index=False)
        sample = frames["test"][["id", *labels]].copy()
        for label in labels:
            sample[label] = 0 if task == "multi_label" else "bad"
        # not the order of test.csv: the submission has to follow the sample
        sample.iloc[::-1].to_csv(folder / "sample_submission.csv", index=False)
        if groups:
            (folder / "competition.toml").write_text(
                '[cv]\nscheme = "group"\ngroup = "doc"\n', encoding="utf-8"
            )
        return folder

    return make
