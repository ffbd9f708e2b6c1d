"""The rules of a competition: `competition.toml`, read and checked."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from competition_kit.errors import InputError, did_you_mean, examples, shown

__all__ = ["SCHEMES", "CVRules", "Rules", "check_rules", "read_rules"]

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


def check_rules(rules: Rules, toml: Path) -> None:
    """Check what the rules say against each other, before any row is looked at.

    Raises:
        InputError: for two keys that do not go together, with what to write instead.
    """
    for key in ("text", "label", "classes"):
        names = getattr(rules, key)
        if repeated := sorted({name for name in names if names.count(name) > 1}):
            raise InputError(
                f"{key!r} repeats {examples(repeated)}", file=toml, remedy="name each once"
            )
    shared = sorted({rules.id, *rules.text} & set(rules.label))
    scheme, single = rules.cv.scheme, rules.task == "single_label"
    for is_wrong, problem, remedy in (
        (bool(shared), f"{examples(shared)} is a label and also the id or a text", "name another"),
        (rules.cv.folds < 2, f"{rules.cv.folds} folds", "cross-validation needs 2 or more"),
        (
            len(rules.text) > 2,
            f"{len(rules.text)} text columns",
            "give one, or two for sentence pairs",
        ),
        (
            single and len(rules.label) > 1,
            f"a single-label task with {len(rules.label)} label columns",
            'give one column, or say task = "multi_label"',
        ),
        (
            single and rules.label_separator is not None,
            "label_separator in a single-label task",
            'say task = "multi_label"',
        ),
        (
            single and scheme == "multilabel",
            "scheme 'multilabel' for a single-label task",
            'use "stratified"',
        ),
        (
            not single and len(rules.label) == 1 and rules.label_separator is None,
            "multi-label in one column without label_separator",
            'give label_separator = " " (or what stands between two labels)',
        ),
        (
            not single and scheme in ("stratified", "stratified_group"),
            f"scheme {scheme!r} cannot stratify several labels",
            'use "multilabel"',
        ),
        (
            not single and rules.submission == "probabilities",
            "submission 'probabilities' is for single-label tasks",
            'use "probability"',
        ),
        (
            scheme in ("group", "stratified_group") and rules.cv.group is None,
            f"scheme {scheme!r} without a group column",
            'give group = "..."',
        ),
        (
            scheme == "predefined" and rules.cv.fold is None,
            "scheme 'predefined' without folds",
            "give fold = a column, or a file id,fold",
        ),
    ):
        if is_wrong:
            raise InputError(problem, file=toml, remedy=remedy)
