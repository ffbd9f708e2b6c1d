"""Check a submission before it is handed in: the reasons for which competitions reject a file."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from competition_kit.data.competition import Competition
from competition_kit.data.tables import FIRST_ROW
from competition_kit.errors import KitError, examples, shown
from competition_kit.results.findings import Finding, also, by_reason
from competition_kit.results.submission_file import read_damaged, require_file
from competition_kit.results.submission_values import check_values

__all__ = ["Checked", "check_file", "check_table", "refuse_invalid", "wanted_columns"]

log = logging.getLogger(__name__)

INDEX_COLUMN = re.compile(r"|index|Unnamed: \d+")  # what an index is called in a file


@dataclass(frozen=True)
class Checked:
    """All that was found.

    Attributes:
        rows: below the header.
        unchecked: what could not be checked, and why.
    """

    findings: tuple[Finding, ...]
    rows: int
    columns: tuple[str, ...]
    unchecked: tuple[str, ...]

    @property
    def errors(self) -> tuple[Finding, ...]:
        return tuple(finding for finding in self.findings if finding.level == "error")

    @property
    def warnings(self) -> tuple[Finding, ...]:
        return tuple(finding for finding in self.findings if finding.level == "warning")


def check_file(path: Path, competition: Competition) -> Checked:
    """Check a submission file: its bytes, its form, its ids and its values.

    Raises:
        InputError: if there is no such file.
    """
    require_file(path)
    table, findings = read_damaged(path, competition, wanted_columns(competition))
    if table is None:
        has_content = not {finding.rule for finding in findings} & {"empty file", "no text file"}
        unchecked = ("columns, ids and values: the file cannot be read",) if has_content else ()
        return Checked(tuple(findings), 0, (), unchecked)
    inside = _check(table, competition)
    return Checked((*findings, *inside.findings), inside.rows, inside.columns, inside.unchecked)


def check_table(table: pd.DataFrame, competition: Competition) -> Checked:
    """Check a submission that is not written yet; rows are numbered as the file will have them."""
    rows = pd.RangeIndex(FIRST_ROW, FIRST_ROW + len(table))
    return _check(table.set_axis(rows, axis=0), competition)


def refuse_invalid(table: pd.DataFrame, competition: Competition) -> None:
    """Stop if a submission that the kit made would be rejected; warn if it is odd.

    Raises:
        KitError: naming everything that is wrong with it.
    """
    checked = check_table(table, competition)
    if checked.errors:
        raise KitError(
            "the submission that was made would be rejected, so it is not written; this is a bug "
            "of the kit, please report it: "
            + " | ".join(finding.line() for finding in checked.errors)
        )
    for finding in checked.warnings:
        log.warning("the submission: %s", finding.said())


def wanted_columns(competition: Competition) -> list[str]:
    """Return the columns that a submission has: the sample's, or without one id and labels."""
    rules = competition.rules
    if competition.sample is not None:
        return [str(name) for name in competition.sample.columns]
    one = rules.submission == "probability" and not competition.multi_label
    if rules.submission == "label" or one:
        return [rules.id, *rules.label]
    return [rules.id, *competition.classes]


def _check(table: pd.DataFrame, competition: Competition) -> Checked:
    """Check a table whose index holds row numbers."""
    header = tuple(map(str, table.columns))
    table, findings = _columns(table, competition)
    values = [name for name in wanted_columns(competition) if name != competition.rules.id]
    present = table[[name for name in values if name in table.columns]]
    findings += _ids(table, competition)
    findings += check_values(present, competition)
    findings += _odd(table, present, competition)
    return Checked(tuple(findings), len(table), header, tuple(_unchecked(competition)))


def _unchecked(competition: Competition) -> Iterator[str]:
    if competition.sample is None:
        yield (
            "names and order of the columns, order of the rows: there is no sample_submission.csv, "
            "compare them with the competition's description"
        )
    if not len(competition.test):
        yield "ids and number of rows: there is no test.csv"


def _columns(table: pd.DataFrame, competition: Competition) -> tuple[pd.DataFrame, list[Finding]]:
    """Compare the header with what is wanted.

    Returns:
        The table with the names that were meant, so that the rest of it is checked as well; and
        what is wrong.
    """
    wanted = wanted_columns(competition)
    header = [str(name) for name in table.columns]
    meant = _meant_columns(header, wanted)
    surplus = [name for name in header if name not in wanted]
    found = [_surplus_column(name, meant.get(name), wanted, competition) for name in surplus]
    findings = [finding for finding in found if finding is not None]
    missing = [name for name in wanted if name not in {*header, *meant.values()}]
    findings += [
        Finding(
            rule="missing column",
            problem=f"the header is {examples(header, 12)}",
            row=1,
            column=name,
            remedy=f"the columns are {examples(wanted, 12)}",
        )
        for name in missing
    ]
    table = table.rename(columns=meant)
    order = [name for name in table.columns if name in wanted]
    wrong = [place for place, name in enumerate(order) if name != wanted[place]]
    if competition.sample is not None and not missing and wrong:
        findings.append(
            Finding(
                rule="order of columns",
                problem=f"it stands where the sample has {shown(wanted[wrong[0]])}",
                row=1,
                column=order[wrong[0]],
                remedy=f"the order is {examples(wanted, 12)}",
            )
        )
    return table, findings


def _meant_columns(header: Sequence[str], wanted: Sequence[str]) -> dict[str, str]:
    """Return which wanted column each misnamed one stands for."""
    missing = [name for name in wanted if name not in header]
    surplus = [name for name in header if name not in wanted]
    if len(surplus) == len(missing) == 1:  # whatever it is called, it stands for the other one
        return {surplus[0]: missing[0]}
    meant = {}
    for name in surplus:
        right = next((right for right in missing if _folded(right) == _folded(name)), None)
        if right is not None:
            missing.remove(right)
            meant[name] = right
    return meant


def _surplus_column(
    name: str, meant: str | None, wanted: Sequence[str], competition: Competition
) -> Finding | None:
    """Return what is wrong with a column that is not wanted by this name; None for nothing."""
    has_sample = competition.sample is not None
    source = "the sample" if has_sample else "the competition"
    if meant is not None:
        if not has_sample and meant != competition.rules.id and len(wanted) <= 2:
            return None  # nobody has said what the only column besides the id is called
        return Finding(
            rule="column name",
            problem=f"{source} calls it {shown(meant)}",
            row=1,
            column=name,
            remedy="rename it",
        )
    if INDEX_COLUMN.fullmatch(name):
        return Finding(
            rule="index column",
            problem="row numbers, which pandas writes unless it is told not to",
            row=1,
            column=name,
            remedy="write the file with index=False",
        )
    return Finding(
        rule="unknown column",
        problem=f"{source} has no such column",
        row=1,
        column=name,
        remedy=f"leave it out; the columns are {examples(wanted, 12)}",
    )


def _folded(name: str) -> str:
    return "".join(name.split()).casefold()


def _ids(table: pd.DataFrame, competition: Competition) -> Iterator[Finding]:
    column, test = competition.rules.id, competition.test.ids
    if not len(table):
        wanted = f"each of the {len(test)} ids" if test else "each id"
        yield Finding(
            rule="no rows",
            problem="nothing stands below the header",
            remedy=f"hand in one row for {wanted} of the test file",
        )
        return
    if column not in table.columns:
        return
    ids = table[column].map(str)
    findings = [*_repeated_ids(ids), *(_other_ids(ids, test) if test else ())]
    yield from findings
    if test and competition.sample is not None and not findings:
        yield from _order_of_rows(ids, competition.sample[column].tolist())


def _repeated_ids(ids: pd.Series) -> Iterator[Finding]:
    repeated = ids[ids.duplicated()]
    if len(repeated):
        first = ids.index[ids == repeated.iloc[0]][0]
        yield Finding(
            rule="repeated id",
            problem=f"{shown(repeated.iloc[0])} was in row {first} already{also(repeated.index)}",
            row=int(repeated.index[0]),
            column=str(ids.name),
            remedy="hand in each id once",
        )


def _other_ids(ids: pd.Series, test: Sequence[str]) -> Iterator[Finding]:
    """Compare the ids with those of the test file."""
    if len(ids) != len(test):
        yield Finding(
            rule="number of rows",
            problem=f"{len(ids)} rows where {len(test)} are wanted",
            remedy="hand in one row for each id of the test file",
        )
    known = set(test)
    unknown = ids[~ids.isin(known)]
    for reason, bad in by_reason(unknown, lambda value: _why_unknown(value, known)).items():
        yield Finding(
            rule="unknown id",
            problem=f"{shown(bad.iloc[0])} is {reason}{also(bad.index)}",
            row=int(bad.index[0]),
            column=str(ids.name),
            remedy="hand in the ids of the test file, read and written as text (dtype=str)",
        )
    present = set(ids)
    missing = [row_id for row_id in test if row_id not in present]
    if missing:
        yield Finding(
            rule="missing id",
            problem=f"there is no row for {examples(missing)}",
            column=str(ids.name),
            remedy="hand in one row for each id of the test file",
        )


def _order_of_rows(ids: pd.Series, order: Sequence[str]) -> Iterator[Finding]:
    wrong = [place for place, row_id in enumerate(ids) if row_id != order[place]]
    if wrong:
        yield Finding(
            rule="order of rows",
            problem=f"id {shown(ids.iloc[wrong[0]])} stands where the sample has "
            f"{shown(order[wrong[0]])}{also(ids.index[wrong])}",
            row=int(ids.index[wrong[0]]),
            column=str(ids.name),
            remedy="sort the rows as in the sample",
        )


def _why_unknown(value: str, known: set[str]) -> str:
    """Say what probably happened to an id."""
    if not value.strip():
        return "no id"
    if value.strip() in known:
        return "an id with spaces around it"
    if re.fullmatch(r"-?\d+\.0+", value) and value.partition(".")[0] in known:
        return "an id that was made a number with a point"
    if value.isdigit() and any(value.zfill(width) in known for width in set(map(len, known))):
        return "an id that has lost its leading zeros"
    return "no id of the test file"


def _odd(table: pd.DataFrame, values: pd.DataFrame, competition: Competition) -> Iterator[Finding]:
    """Yield what is allowed, but hardly meant."""
    if len(values) < 2 or not values.shape[1]:
        return
    if _is_sample(table, values, competition):
        yield Finding(
            rule="same as the sample",
            level="warning",
            problem="all predictions are those of the sample",
            remedy="hand in your own",
        )
    elif len(values.drop_duplicates()) == 1:
        first = values.iloc[0].map(str)
        yield Finding(
            rule="constant predictions",
            level="warning",
            problem=f"every row says {examples(first, 6)}",
            remedy="look whether the models learned anything",
        )


def _is_sample(table: pd.DataFrame, values: pd.DataFrame, competition: Competition) -> bool:
    sample, column = competition.sample, competition.rules.id
    if sample is None or column not in table.columns or len(sample) != len(table):
        return False
    mine = values.set_axis(pd.Index(table[column].map(str)), axis=0)
    if set(mine.index) != set(sample[column]) or not mine.index.is_unique:
        return False
    theirs = sample.set_index(column).reindex(mine.index)
    return all(_equal(mine[name], theirs[name]) for name in values)


def _equal(one: pd.Series, other: pd.Series) -> bool:
    """Compare values as texts, and as numbers where they are some: 0.5 is 0.50."""
    texts = one.map(str).to_numpy() == other.map(str).to_numpy()
    numbers = [pd.to_numeric(column, errors="coerce").to_numpy() for column in (one, other)]
    return bool(np.all(texts | (numbers[0] == numbers[1])))
