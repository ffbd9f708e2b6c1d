"""Tokenised rows, batches and their order."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from competition_kit.data.competition import Rows
from competition_kit.data.encoding import (
    BUCKET_BATCHES,
    Encoded,
    collate,
    encode,
    length_bucketed,
    length_sorted,
)
from competition_kit.training.model import load_tokenizer

PAD = 7


def encoded_from(texts: list[list[int]], types: list[list[int]] | None = None) -> Encoded:
    return Encoded(
        ids=np.array([token for text in texts for token in text], np.int32),
        type_ids=None
        if types is None
        else np.array([token for text in types for token in text], np.int32),
        starts=np.cumsum([0, *map(len, texts)]),
        truncated=0,
        pad_id=PAD,
    )


def rows_of(*texts: tuple[str, ...]) -> Rows:
    return Rows(tuple(str(number) for number in range(len(texts))), texts)


@st.composite
def token_rows(draw: st.DrawFn) -> tuple[list[list[int]], list[list[int]] | None, list[int]]:
    token = st.integers(0, 12)  # few distinct ones, the padding id among them
    texts = draw(st.lists(st.lists(token, min_size=1, max_size=9), min_size=1, max_size=8))
    types = draw(
        st.none()
        | st.tuples(
            *(st.lists(st.integers(0, 1), min_size=len(t), max_size=len(t)) for t in texts)
        ).map(list)
    )
    order = draw(st.lists(st.integers(0, len(texts) - 1), min_size=1, max_size=8))
    return texts, types, order


@settings(max_examples=200, deadline=None)
@given(token_rows())
def test_a_batch_is_what_a_loop_over_rows_and_tokens_makes(
    case: tuple[list[list[int]], list[list[int]] | None, list[int]],
) -> None:
    texts, types, order = case
    labels = 10 * np.arange(len(texts))

    batch = collate(encoded_from(texts, types), np.array(order), labels)

    width = max(len(texts[row]) for row in order)
    assert batch.input_ids.shape == (len(order), width)
    assert len(batch) == len(order)
    for line, row in enumerate(order):
        for place in range(width):
            there = place < len(texts[row])
            assert batch.input_ids[line, place] == (texts[row][place] if there else PAD)
            assert batch.attention_mask[line, place] == int(there)
            if types is None:
                assert batch.type_ids is None
            else:
                assert batch.type_ids is not None
                assert batch.type_ids[line, place] == (types[row][place] if there else 0)
    assert batch.labels is not None and batch.labels.tolist() == [10 * row for row in order]
    # slots number the distinct ids of the batch: same slot where and only where the id is the same
    distinct = batch.input_ids.unique()
    assert batch.distinct == len(distinct)
    assert torch.equal(distinct[batch.slots], batch.input_ids)


def test_labels_of_several_columns_follow_their_rows_and_may_be_absent() -> None:
    encoded = encoded_from([[1, 2], [3], [4, 5, 6]])
    labels = np.array([[0, 1], [1, 1], [1, 0]])

    batch = collate(encoded, np.array([2, 0]), labels)

    assert batch.labels is not None and batch.labels.tolist() == [[1, 0], [0, 1]]
    assert collate(encoded, np.array([1]), None).labels is None


@settings(max_examples=100, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 20), min_size=1, max_size=60),
    batch_size=st.integers(1, 9),
    seed=st.integers(0, 9),
)
def test_an_epoch_covers_every_row_once_in_full_batches_but_one_for_each_chunk(
    lengths: list[int], batch_size: int, seed: int
) -> None:
    rows = np.arange(len(lengths)) * 3 + 1  # any row numbers
    everywhere = np.zeros(rows[-1] + 1, int)
    everywhere[rows] = lengths

    batches = length_bucketed(everywhere, rows, batch_size, np.random.default_rng(seed))

    assert sorted(np.concatenate(batches).tolist()) == rows.tolist()
    assert all(1 <= len(batch) <= batch_size for batch in batches)
    assert len(batches) == -(-len(rows) // batch_size), "as many as `optimizer_steps` counts on"


def test_batches_hold_texts_of_similar_length_and_another_set_every_epoch() -> None:
    generator = np.random.default_rng(0)
    lengths = generator.integers(3, 100, size=8 * BUCKET_BATCHES)
    rows = np.arange(len(lengths))

    first = length_bucketed(lengths, rows, 8, np.random.default_rng(1))
    second = length_bucketed(lengths, rows, 8, np.random.default_rng(2))
    again = length_bucketed(lengths, rows, 8, np.random.default_rng(1))

    padded = sum(len(batch) * lengths[batch].max() for batch in first)
    assert padded < 1.1 * lengths.sum()
    unsorted = lengths.reshape(-1, 8).max(axis=1).sum() * 8
    assert unsorted > 1.5 * lengths.sum(), "without buckets there would be much padding"
    longest = [int(lengths[batch].max()) for batch in first]
    assert longest not in (sorted(longest), sorted(longest, reverse=True)), "batches are shuffled"
    assert {frozenset(b.tolist()) for b in first} != {frozenset(b.tolist()) for b in second}
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))


def test_prediction_goes_from_the_longest_text_to_the_shortest() -> None:
    lengths = np.array([5, 9, 2, 9, 7])

    parts = list(length_sorted(lengths, np.array([4, 0, 1, 2]), 3))

    assert [part.tolist() for part in parts] == [[1, 4, 0], [2]]


@pytest.mark.parametrize("types", [None, [[0, 0, 1], [0], [0, 1]]])
def test_tokens_read_back_are_those_that_were_saved(
    tmp_path: Path, types: list[list[int]] | None
) -> None:
    encoded = encoded_from([[1, 2, 3], [4], [5, 6]], types)
    encoded = Encoded(encoded.ids, encoded.type_ids, encoded.starts, truncated=2, pad_id=PAD)
    encoded.save(tmp_path / "tokens.safetensors")

    loaded = Encoded.load(tmp_path / "tokens.safetensors")

    np.testing.assert_array_equal(loaded.ids, encoded.ids)
    np.testing.assert_array_equal(loaded.starts, encoded.starts)
    assert (loaded.type_ids is None) == (types is None)
    if loaded.type_ids is not None:
        np.testing.assert_array_equal(loaded.type_ids, encoded.type_ids)
    assert (loaded.truncated, loaded.pad_id) == (2, PAD)
    assert loaded.lengths.tolist() == [3, 1, 2]


def tokenizer(model_folder: Callable[[str], Path], kind: str) -> Any:
    return load_tokenizer(model_folder(kind))


@pytest.mark.parametrize("kind", ["bert", "roberta"])
def test_only_texts_that_lost_tokens_count_as_truncated(
    model_folder: Callable[[str], Path], kind: str
) -> None:
    """A text of n words has n + 2 tokens; one that fills the limit exactly was not cut."""
    texts = [(" ".join(["good"] * words),) for words in (3, 4, 5, 9)]

    encoded = encode(tokenizer(model_folder, kind), rows_of(*texts), max_length=6)

    assert encoded.lengths.tolist() == [5, 6, 6, 6]
    assert encoded.truncated == 2


def test_each_row_starts_and_ends_with_the_special_tokens_also_when_it_was_cut(
    model_folder: Callable[[str], Path],
) -> None:
    reader = tokenizer(model_folder, "bert")
    encoded = encode(reader, rows_of(("good 好 😀",), ("sad " * 30,), ("river",)), max_length=8)

    for row, words in enumerate([["good", "好", "😀"], ["sad"] * 6, ["river"]]):
        ids = encoded.ids[encoded.starts[row] : encoded.starts[row + 1]].tolist()
        assert reader.convert_ids_to_tokens(ids) == ["[CLS]", *words, "[SEP]"]
    assert encoded.pad_id == reader.pad_token_id


def test_a_bert_pair_has_both_texts_and_their_segments(
    model_folder: Callable[[str], Path],
) -> None:
    reader = tokenizer(model_folder, "bert")

    encoded = encode(reader, rows_of(("good film", "bad 书 book"), ("sad", "song")), max_length=32)

    first = slice(encoded.starts[0], encoded.starts[1])
    tokens = reader.convert_ids_to_tokens(encoded.ids[first].tolist())
    assert tokens == ["[CLS]", "good", "film", "[SEP]", "bad", "[UNK]", "book", "[SEP]"]
    assert encoded.type_ids is not None
    assert encoded.type_ids[first].tolist() == [0, 0, 0, 0, 1, 1, 1, 1]
    assert encoded.lengths.tolist() == [8, 5]


def test_a_roberta_pair_has_both_texts_and_no_segments(
    model_folder: Callable[[str], Path],
) -> None:
    reader = tokenizer(model_folder, "roberta")

    encoded = encode(reader, rows_of(("good film", "bad book")), max_length=32)

    assert encoded.type_ids is None
    tokens = reader.convert_ids_to_tokens(encoded.ids.tolist())
    assert tokens == ["<s>", "good", "film", "</s>", "bad", "book", "</s>"]


def test_a_pair_that_is_too_long_keeps_something_of_both_texts(
    model_folder: Callable[[str], Path],
) -> None:
    reader = tokenizer(model_folder, "bert")

    encoded = encode(reader, rows_of(("good " * 20, "sad " * 9)), max_length=11)

    tokens = reader.convert_ids_to_tokens(encoded.ids.tolist())
    assert len(tokens) == 11 and encoded.truncated == 1
    assert tokens.count("good") >= 2 and tokens.count("sad") >= 2 and tokens.count("[SEP]") == 2


def test_no_rows_are_no_tokens(model_folder: Callable[[str], Path]) -> None:
    encoded = encode(tokenizer(model_folder, "bert"), Rows((), ()), max_length=8)

    assert len(encoded) == 0 and len(encoded.ids) == 0
