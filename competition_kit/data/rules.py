"""The rules of a competition: `competition.toml`, checked, and what is inferred without one."""

from __future__ import annotations

import json
import tomllib
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from competition_kit.errors import InputError, did_you_mean, examples, shown

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["SCHEMES", "CVRules", "Rules", "infer_rules", "read_rules"]

TASKS = ("single_label", "multi_label")
SUBMISSIONS = ("label", "probability", "probabilities")
SCHEMES = (
    "stratified",
    "group",
    "stratified_group",
    "multilabel",
    "kfold",
    "predefined",
)

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
class CVRules:
    """How the training rows are split. None means: chosen from the task (and reported)."""

    scheme: str | None = None
    folds: int = 5
    group: str | None = None
    fold: str | None = None


@dataclass(frozen=True)
class Rules:
    """What the columns mean and how predictions are judged and handed in.

    Attributes:
        label: one column, or for multi-label several columns of 0 and 1.
        label_separator: for multi-label in one column: what stands between two labels.
        empty_label: for multi-label in one column: the word that stands for "no label".
        classes: order of the classes, where it matters (QWK); empty: sorted, numbers by value.
        positive: the class whose probability a `probability` submission holds.
        metric: a name from `competition_kit.results.metrics.METRICS`, or "module:function".
        encoding: of the CSV files; None: UTF-8 or what the bytes show.
    """

    title: str = ""
    task: str = "single_label"
    id: str = "id"
    text: tuple[str, ...] = ("text",)
    label: tuple[str, ...] = ("label",)
    label_separator: str | None = None
    empty_label: str | None = None
    classes: tuple[str, ...] = ()
    positive: str | None = None
    metric: str = "macro_f1"
    submission: str = "label"
    encoding: str | None = None
    cv: CVRules = field(default_factory=CVRules)


def read_rules(path: Path) -> dict[str, Any]:
    """Read competition.toml: only the keys that are there, checked for names, types and values.

    Raises:
        InputError: naming the key, what was meant, and what is allowed.
    """
    try:
        content = tomllib.loads(path.read_bytes().decode("utf-8-sig"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InputError(
            f"is not valid TOML ({error})",
            file=path,
            remedy="see docs/competition_folder.md",
        ) from None
    table = content.pop("cv", {})
    if not isinstance(table, dict):
        raise InputError("'cv' must be a table", file=path, remedy="write [cv] on its own line")
    rules: dict[str, Any] = _checked(content, _RULE_KEYS, path, "")
    rules["cv"] = _checked(table, _CV_KEYS, path, "cv.")
    return rules


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) and value else None


def _texts(value: Any) -> tuple[str, ...] | None:
    values = [value] if isinstance(value, str) else value
    if isinstance(values, list) and values and all(isinstance(v, str) and v for v in values):
        return tuple(values)
    return None


def _labels(value: Any) -> tuple[str, ...] | None:
    """Class names may be written as numbers: classes = [0, 1, 2]."""
    if isinstance(value, list) and value and all(isinstance(v, str | int) for v in value):
        return tuple(str(v) for v in value)
    return None


def _count(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) else None


# key -> (reader that returns None for a wrong type, what is expected, allowed values or None)
_RULE_KEYS: dict[str, tuple[Any, str, tuple[str, ...] | None]] = {
    "title": (_text, "a text", None),
    "task": (_text, "a text", TASKS),
    "id": (_text, "the name of a column", None),
    "text": (_texts, "the name of a column, or a list of one or two", None),
    "label": (_texts, "the name of a column, or a list of them", None),
    "label_separator": (_text, 'a text such as " "', None),
    "empty_label": (_text, "a text", None),
    "classes": (_labels, "a list of class names", None),
    "positive": (_text, "a class name in quotes", None),
    "metric": (_text, "the name of a metric", None),
    "submission": (_text, "a text", SUBMISSIONS),
    "encoding": (_text, "the name of an encoding", None),
}
_CV_KEYS: dict[str, tuple[Any, str, tuple[str, ...] | None]] = {
    "scheme": (_text, "a text", SCHEMES),
    "folds": (_count, "a whole number", None),
    "group": (_text, "the name of a column", None),
    "fold": (_text, "a column of train.csv, or a file with the columns id,fold", None),
}


def _checked(
    table: dict[str, Any],
    keys: dict[str, tuple[Any, str, tuple[str, ...] | None]],
    path: Path,
    prefix: str,
) -> dict[str, Any]:
    checked = {}
    for key, value in table.items():
        if key not in keys:
            known, remedy = did_you_mean(key, keys), "see docs/competition_folder.md"
            if prefix and key in _RULE_KEYS:  # TOML's own trap: below [cv] all keys are cv's
                known, remedy = "", "write it above the line [cv]"
            elif not prefix and key in _CV_KEYS:
                known, remedy = "", "write it below a line [cv]"
            raise InputError(f"unknown key '{prefix}{key}'{known}", file=path, remedy=remedy)
        reader, expected, allowed = keys[key]
        read = reader(value)
        if read is None:
            raise InputError(
                f"'{prefix}{key}' is {shown(str(value))}",
                file=path,
                remedy=f"it takes {expected}",
            )
        if allowed is not None and read not in allowed:
            raise InputError(
                f"'{prefix}{key}' is {shown(read)}{did_you_mean(read, allowed)}",
                file=path,
                remedy=f"it takes one of {', '.join(allowed)}",
            )
        checked[key] = read
    return checked


def infer_rules(
    given: dict[str, Any],
    folder: Path,
    train: pd.DataFrame,
    test: pd.DataFrame | None,
    sample: pd.DataFrame | None,
) -> tuple[Rules, list[str]]:
    """Fill in what competition.toml leaves open from the three files.

    Returns:
        The rules, and one line for each thing that was inferred (to be shown to the user).

    Raises:
        InputError: where the files leave a doubt; the remedy is the line to put in the TOML file.
    """
    inferred: list[str] = []
    columns = [str(column) for column in train.columns]
    hint = f"say it in {folder / 'competition.toml'}"
    values = dict(given)

    def settle(key: str, value: Any, why: str) -> None:
        values[key] = value
        inferred.append(f"{key} = {_toml(value)} ({why})")

    if "id" not in values:
        shared = [] if sample is None else [str(name) for name in sample.columns]
        if test is not None:  # a label column is in the sample and in train, never in test
            shared = [name for name in shared if name in test.columns]
        found = next((name for name in (*shared, *ID_NAMES) if name in columns), None)
        if found is None:
            raise InputError(
                f"no id column found among {examples(columns, 8)}",
                file=folder,
                remedy=f'{hint}: id = "..."',
            )
        settle("id", found, "first column of sample_submission" if found in shared else "name")

    others = [name for name in columns if name != values["id"]]
    if "label" not in values:
        handed_in = (
            [str(c) for c in sample.columns if c != values["id"]] if sample is not None else []
        )
        only_train = (
            [name for name in others if name not in test.columns] if test is not None else others
        )
        cv = values.get("cv", {})
        taken = {cv.get("group"), cv.get("fold"), *values.get("text", ())}
        only_train = [name for name in only_train if name not in taken]
        if handed_in and all(name in columns for name in handed_in):
            settle("label", tuple(handed_in), "columns of sample_submission")
        elif test is not None and len(only_train) == 1:
            settle("label", (only_train[0],), "the one column that test lacks")
        elif found := next((name for name in LABEL_NAMES if name in only_train), None):
            settle("label", (found,), "name")
        else:
            flags = [name for name in only_train if _holds_flags(train[name])]
            line = f"label = {_toml(flags)}" if flags else 'label = "..."'
            raise InputError(
                f"no label column found among {examples(columns, 8)}",
                file=folder,
                remedy=f"{hint}: {line}",
            )
    if "task" not in values:
        many = len(values["label"]) > 1 or "label_separator" in values
        settle("task", "multi_label" if many else "single_label", "label columns")

    if "text" not in values:
        reserved = {values["id"], *values["label"], *values.get("cv", {}).values()}
        free = [
            name
            for name in others
            if name not in reserved and (test is None or name in test.columns)
        ]
        wordy = [name for name in free if not _looks_numeric(train[name])]
        pair = next((p for p in PAIR_NAMES if set(p) <= set(wordy)), None)
        named = [name for name in TEXT_NAMES if name in wordy]
        if len(wordy) == 1:
            settle("text", tuple(wordy), "the only text column")
        elif pair is not None:
            settle("text", pair, "names of a pair")
        elif named:
            settle("text", (named[0],), "name")
        else:
            raise InputError(
                f"cannot tell the text columns among {examples(free or columns, 8)}",
                file=folder,
                remedy=f'{hint}: text = ["..."]',
            )

    if "submission" not in values:
        settle("submission", *_infer_submission(values, train, sample))
    if "metric" not in values:
        settle("metric", "macro_f1", "default; --metric changes it")
    split = CVRules(**values.pop("cv", {}))
    if split.scheme is None:
        if split.fold is not None:
            scheme, why = "predefined", "cv.fold is given"
        elif split.group is not None:
            single = values["task"] == "single_label"
            scheme, why = (
                ("stratified_group" if single else "group"),
                "cv.group is given",
            )
        else:
            single = values["task"] == "single_label"
            scheme, why = ("stratified" if single else "multilabel"), "from the task"
        split = replace(split, scheme=scheme)
        inferred.append(f'cv.scheme = "{scheme}" ({why})')
    values.setdefault("title", folder.resolve().name)
    return Rules(**values, cv=split), inferred


def _infer_submission(
    values: dict[str, Any], train: pd.DataFrame, sample: pd.DataFrame | None
) -> tuple[str, str]:
    if sample is None:
        return "label", "default: there is no sample_submission"
    columns = [name for name in sample.columns if name != values["id"]]
    cells = {str(value) for name in columns for value in sample[name]}
    if values["task"] == "multi_label":
        if len(values["label"]) > 1 and not cells <= {"0", "1"}:
            return "probability", "sample_submission holds numbers other than 0 and 1"
        return "label", "sample_submission holds labels"
    label = values["label"][0]
    known = {str(value) for value in train[label]} if label in train.columns else set()
    if len(columns) > 1:
        return "probabilities", "sample_submission has several columns"
    if cells and not cells <= known and all(_is_probability(value) for value in cells):
        return "probability", "sample_submission holds numbers that are no labels"
    return "label", "sample_submission holds labels"


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
