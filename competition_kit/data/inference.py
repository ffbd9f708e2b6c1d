"""What `competition.toml` leaves open, inferred from the three files and reported."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from competition_kit.data.rules import CVRules, Rules
from competition_kit.errors import InputError, examples

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["infer_rules"]

TEXT_NAMES = (
    "text",
    "sentence",
    "sentence1",
    "content",
    "comment",
    "review",
    "title",
    "tweet",
)
PAIR_NAMES = (
    ("text", "text_b"),
    ("text_a", "text_b"),
    ("text1", "text2"),
    ("sentence1", "sentence2"),
    ("sentence_a", "sentence_b"),
    ("question1", "question2"),
    ("premise", "hypothesis"),
    ("query", "title"),
    ("q1", "q2"),
)
LABEL_NAMES = ("label", "target", "labels", "class", "category", "sentiment", "score")
ID_NAMES = ("id", "ID", "Id", "index", "idx", "textid", "text_id", "uid")


@dataclass(frozen=True)
class _Files:
    """The competition's tables, as read."""

    folder: Path
    train: pd.DataFrame
    test: pd.DataFrame | None
    sample: pd.DataFrame | None

    @property
    def columns(self) -> list[str]:
        """Names of the columns of train."""
        return [str(name) for name in self.train.columns]

    def handed_in(self, row_id: str) -> list[str]:
        """Return the columns of the sample submission besides the id."""
        columns = () if self.sample is None else self.sample.columns
        return [str(name) for name in columns if name != row_id]

    def doubt(self, problem: str, line: str) -> InputError:
        """Return the error that asks for a line of competition.toml."""
        toml = self.folder / "competition.toml"
        return InputError(problem, file=self.folder, remedy=f"say it in {toml}: {line}")


def infer_rules(
    given: dict[str, Any],
    folder: Path,
    train: pd.DataFrame,
    test: pd.DataFrame | None,
    sample: pd.DataFrame | None,
) -> tuple[Rules, list[str]]:
    """Fill in what competition.toml leaves open from the three files.

    Args:
        given: what `read_rules` returned.

    Returns:
        The rules, and one line for each thing that was inferred (to be shown to the user).

    Raises:
        InputError: where the files leave a doubt; the remedy is the line to put in the TOML file.
    """
    files = _Files(folder, train, test, sample)
    values = {"title": folder.resolve().name, **given}
    inferred = []
    for key, infer in _INFER.items():
        if key not in values:
            values[key], why = infer(files, values)
            inferred.append(f"{key} = {_toml(values[key])} ({why})")
    split = CVRules(**values.pop("cv"))
    if split.scheme is None:
        scheme, why = _infer_scheme(split, single_label=values["task"] == "single_label")
        split = replace(split, scheme=scheme)
        inferred.append(f"cv.scheme = {_toml(scheme)} ({why})")
    return Rules(**values, cv=split), inferred


def _infer_id(files: _Files, values: dict[str, Any]) -> tuple[str, str]:
    shared = [] if files.sample is None else [str(name) for name in files.sample.columns]
    if files.test is not None:  # a label column is in the sample and in train, never in test
        shared = [name for name in shared if name in files.test.columns]
    found = next((name for name in (*shared, *ID_NAMES) if name in files.columns), None)
    if found is None:
        raise files.doubt(f"no id column found among {examples(files.columns, 8)}", 'id = "..."')
    return found, "first column of sample_submission" if found in shared else "name"


def _infer_label(files: _Files, values: dict[str, Any]) -> tuple[tuple[str, ...], str]:
    handed_in = files.handed_in(values["id"])
    if handed_in and all(name in files.columns for name in handed_in):
        return tuple(handed_in), "columns of sample_submission"
    taken = {values["id"], *values.get("text", ()), *_split_columns(values)}
    if files.test is not None:
        taken |= set(files.test.columns)
    only_train = [name for name in files.columns if name not in taken]
    if files.test is not None and len(only_train) == 1:
        return (only_train[0],), "the one column that test lacks"
    if found := next((name for name in LABEL_NAMES if name in only_train), None):
        return (found,), "name"
    flags = [name for name in only_train if _holds_flags(files.train[name])]
    raise files.doubt(
        f"no label column found among {examples(files.columns, 8)}",
        f"label = {_toml(flags)}" if flags else 'label = "..."',
    )


def _infer_task(files: _Files, values: dict[str, Any]) -> tuple[str, str]:
    many = len(values["label"]) > 1 or "label_separator" in values
    return "multi_label" if many else "single_label", "label columns"


def _infer_text(files: _Files, values: dict[str, Any]) -> tuple[tuple[str, ...], str]:
    reserved = {values["id"], *values["label"], *_split_columns(values)}
    free = [
        name
        for name in files.columns
        if name not in reserved and (files.test is None or name in files.test.columns)
    ]
    wordy = [name for name in free if not _looks_numeric(files.train[name])]
    if len(wordy) == 1:
        return tuple(wordy), "the only text column"
    if pair := next((names for names in PAIR_NAMES if set(names) <= set(wordy)), None):
        return pair, "names of a pair"
    if named := next((name for name in TEXT_NAMES if name in wordy), None):
        return (named,), "name"
    raise files.doubt(
        f"cannot tell the text columns among {examples(free or files.columns, 8)}",
        'text = ["..."]',
    )


def _infer_submission(files: _Files, values: dict[str, Any]) -> tuple[str, str]:
    if files.sample is None:
        return "label", "default: there is no sample_submission"
    columns = files.handed_in(values["id"])
    cells = {str(value) for name in columns for value in files.sample[name]}
    if values["task"] == "multi_label":
        if len(values["label"]) > 1 and not cells <= {"0", "1"}:
            return "probability", "sample_submission holds numbers other than 0 and 1"
        return "label", "sample_submission holds labels"
    label = values["label"][0]
    known = {str(value) for value in files.train[label]} if label in files.columns else set()
    if len(columns) > 1:
        return "probabilities", "sample_submission has several columns"
    if cells and not cells <= known and all(_is_probability(value) for value in cells):
        return "probability", "sample_submission holds numbers that are no labels"
    return "label", "sample_submission holds labels"


def _infer_metric(files: _Files, values: dict[str, Any]) -> tuple[str, str]:
    return "macro_f1", "default; --metric changes it"


# in this order: each may look at what those before it have settled
_INFER: dict[str, Callable[[_Files, dict[str, Any]], tuple[Any, str]]] = {
    "id": _infer_id,
    "label": _infer_label,
    "task": _infer_task,
    "text": _infer_text,
    "submission": _infer_submission,
    "metric": _infer_metric,
}


def _infer_scheme(split: CVRules, *, single_label: bool) -> tuple[str, str]:
    if split.fold is not None:
        return "predefined", "cv.fold is given"
    if split.group is not None:
        return "stratified_group" if single_label else "group", "cv.group is given"
    return "stratified" if single_label else "multilabel", "from the task"


def _split_columns(values: dict[str, Any]) -> set[str | None]:
    """Return the columns that only say how to split."""
    return {values["cv"].get("group"), values["cv"].get("fold")}


def _is_probability(value: str) -> bool:
    try:
        return 0.0 <= float(value) <= 1.0
    except ValueError:
        return False


def _looks_numeric(column: pd.Series) -> bool:
    """Return whether every one of the first values is a number or empty (then it is no text)."""
    head = [str(value).strip() for value in column.head(200)]
    return bool(head) and all(
        not value or value.replace(".", "", 1).replace("-", "", 1).isdigit() for value in head
    )


def _holds_flags(column: pd.Series) -> bool:
    """Return whether there is nothing but 0 and 1, as in the label columns of a multi-label task."""
    found = {str(value).strip() for value in column}
    return bool(found) and found <= {"0", "1"}


def _toml(value: Any) -> str:
    """Return a text, or a list of them, as TOML writes it: the same escapes as JSON."""
    return json.dumps(value, ensure_ascii=False)
