"""The linter: a valid file passes, and any single corruption of one is found and named."""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from competition_kit.data.competition import Competition, Rows
from competition_kit.data.rules import Rules
from competition_kit.errors import InputError, KitError
from competition_kit.files import write_csv
from competition_kit.results.findings import Finding
from competition_kit.results.submission import make_submission
from competition_kit.results.submission_check import (
    Checked,
    check_file,
    check_table,
    refuse_invalid,
)

IDS = ("007", "12", "b 好", "1_1", "30", "x,y")
ORDER = (3, 0, 5, 1, 4, 2)  # of the sample; not that of test


@dataclass(frozen=True)
class Form:
    """A form of submission: its rules, its columns besides the id, and a valid cell for each row."""

    rules: Rules
    classes: tuple[str, ...]
    columns: tuple[str, ...]
    values: tuple[tuple[str, ...], ...]
    neutral: str  # what the sample has in every cell

    def competition(self, folder: Path = Path("nowhere"), sample: bool = True) -> Competition:
        columns = [self.rules.id, *self.columns]
        cells = [[IDS[row], *[self.neutral] * len(self.columns)] for row in ORDER]
        return Competition(
            name="toy",
            folder=folder,
            rules=self.rules,
            classes=self.classes,
            train=Rows((), ()),
            targets=np.zeros(0),
            groups=None,
            predefined=None,
            test=Rows(IDS, tuple(("text",) for _ in IDS)),
            sample=pd.DataFrame(cells, columns=columns, dtype=object) if sample else None,
            data_hash="0",
            inferred=(),
        )

    def sheet(self) -> Sheet:
        rows = [[IDS[row], *self.values[row]] for row in ORDER]
        return Sheet([self.rules.id, *self.columns], rows)


@dataclass
class Sheet:
    """A file that is about to be written, wrongly perhaps."""

    header: list[str]
    rows: list[list[str]]
    separator: str = ","
    newline: str = "\n"
    encode: Callable[[str], bytes] = field(default=lambda text: text.encode("utf-8"))
    has_header: bool = True

    def write(self, path: Path) -> Path:
        def cell(text: str) -> str:
            special = any(sign in text for sign in (self.separator, '"', "\n"))
            return f'"{text}"' if special else text

        lines = [self.header, *self.rows] if self.has_header else self.rows
        text = "".join(self.separator.join(map(cell, line)) + self.newline for line in lines)
        path.write_bytes(self.encode(text))
        return path


def one_column(*cells: str) -> tuple[tuple[str, ...], ...]:
    return tuple((cell,) for cell in cells)


FORMS = {
    "label": Form(
        Rules(),
        ("good", "so so", "坏"),
        ("label",),
        one_column("good", "坏", "so so", "good", "good", "坏"),
        "good",
    ),
    "number": Form(Rules(), ("0", "1", "2"), ("target",), one_column(*"012012"), "0"),
    "columns": Form(
        Rules(task="multi_label", label=("hot", "cold")),
        ("hot", "cold"),
        ("cold", "hot"),
        (("0", "1"), ("1", "1"), ("0", "0"), ("1", "0"), ("0", "1"), ("1", "1")),
        "0",
    ),
    "separated": Form(
        Rules(task="multi_label", label=("tags",), label_separator=";", empty_label="none"),
        ("cold one", "hot"),
        ("tags",),
        one_column("hot", "cold one;hot", "none", "hot; cold one", "cold one", "hot"),
        "none",
    ),
    "probability": Form(
        Rules(id="key", submission="probability"),
        ("no", "yes"),
        ("p",),
        one_column("0.25", "1e-3", "1", "0.875", "0", ".5"),
        "0.5",
    ),
    "probabilities": Form(
        Rules(submission="probabilities"),
        ("x", "y", "z"),
        ("z", "x", "y"),
        (
            ("0.2", "0.3", "0.5"),
            ("0.333", "0.333", "0.334"),
            ("1", "0", "0"),
            ("0.1", "0.1", "0.8"),
            ("0.6", "0.2", "0.2"),
            ("0.4", "0.35", "0.25"),
        ),
        "0.333",
    ),
    "multi-label probability": Form(
        Rules(task="multi_label", label=("hot", "cold"), submission="probability"),
        ("hot", "cold"),
        ("hot", "cold"),
        (("0.9", "0.8"), ("0.1", "0.2"), ("0", "1"), ("0.5", "0.5"), ("1", "1"), ("0.3", "0")),
        "0.5",
    ),
}
LABELS = ("label", "number", "columns", "separated")
PROBABILITIES = ("probability", "probabilities", "multi-label probability")


def found(checked: Checked, rule: str) -> list[Finding]:
    return [finding for finding in checked.findings if finding.rule == rule]


@pytest.mark.parametrize("sample", [True, False])
@pytest.mark.parametrize("name", FORMS)
def test_a_valid_file_has_no_findings(name: str, sample: bool, tmp_path: Path) -> None:
    form = FORMS[name]
    path = form.sheet().write(tmp_path / "submission.csv")
    checked = check_file(path, form.competition(sample=sample))
    assert checked.findings == ()
    assert checked.rows == len(IDS)
    assert checked.columns == (form.rules.id, *form.columns)
    assert bool(checked.unchecked) is not sample


# -- any single corruption ------------------------------------------------------------------------


@dataclass(frozen=True)
class Expected:
    rule: str
    row: int | None = None
    column: str | None = None
    value: str | None = None
    level: str = "error"


Corrupt = Callable[[Sheet, st.DataObject, Form], Expected]


def bad_cell(*values: str, rule: str, forms: tuple[str, ...]) -> tuple[Corrupt, tuple[str, ...]]:
    """Put a wrong value into any cell besides the id."""

    def corrupt(sheet: Sheet, data: st.DataObject, form: Form) -> Expected:
        row = data.draw(st.integers(0, len(sheet.rows) - 1))
        column = data.draw(st.integers(1, len(sheet.header) - 1))
        value = data.draw(st.sampled_from(values)).format(
            label=form.classes[0], value=sheet.rows[row][column]
        )
        sheet.rows[row][column] = value
        return Expected(rule, row + 2, sheet.header[column], value)

    return corrupt, forms


def bad_id(change: Callable[[str], str], why: str) -> tuple[Corrupt, tuple[str, ...]]:
    def corrupt(sheet: Sheet, data: st.DataObject, form: Form) -> Expected:
        able = [row for row, cells in enumerate(sheet.rows) if change(cells[0]) not in IDS]
        row = data.draw(st.sampled_from(able))
        sheet.rows[row][0] = change(sheet.rows[row][0])
        return Expected("unknown id", row + 2, form.rules.id, why)

    return corrupt, tuple(FORMS)


def lose_zeros(sheet: Sheet, data: st.DataObject, form: Form) -> Expected:
    row = next(row for row, cells in enumerate(sheet.rows) if cells[0] == "007")
    sheet.rows[row][0] = "7"
    return Expected("unknown id", row + 2, form.rules.id, "lost its leading zeros")


def drop_row(sheet: Sheet, data: st.DataObject, form: Form) -> Expected:
    row = data.draw(st.integers(0, len(sheet.rows) - 1))
    lost = sheet.rows.pop(row)[0]
    rule = data.draw(st.sampled_from(["missing id", "number of rows"]))
    return Expected(rule, value=lost if rule == "missing id" else "5 rows where 6")


def repeat_row(sheet: Sheet, data: st.DataObject, form: Form) -> Expected:
    row = data.draw(st.integers(0, len(sheet.rows) - 1))
    sheet.rows.append(list(sheet.rows[row]))
    return Expected("repeated id", len(sheet.rows) + 1, form.rules.id, sheet.rows[row][0])


def swap_rows(sheet: Sheet, data: st.DataObject, form: Form) -> Expected:
    one, two = sorted(data.draw(st.permutations(range(len(sheet.rows))))[:2])
    sheet.rows[one], sheet.rows[two] = sheet.rows[two], sheet.rows[one]
    return Expected("order of rows", one + 2, form.rules.id, sheet.rows[two][0])


def swap_columns(sheet: Sheet, data: st.DataObject, form: Form) -> Expected:
    one, two = sorted(data.draw(st.permutations(range(len(sheet.header))))[:2])
    for line in (sheet.header, *sheet.rows):
        line[one], line[two] = line[two], line[one]
    return Expected("order of columns", 1, sheet.header[one], sheet.header[two])


def rename_column(sheet: Sheet, data: st.DataObject, form: Form) -> Expected:
    column = data.draw(st.integers(0, len(sheet.header) - 1))
    right = sheet.header[column]
    sheet.header[column] = data.draw(st.sampled_from(["other", f" {right}", right.upper(), ""]))
    return Expected("column name", 1, sheet.header[column], right)


def drop_column(sheet: Sheet, data: st.DataObject, form: Form) -> Expected:
    column = data.draw(st.integers(0, len(sheet.header) - 1))
    name = sheet.header[column]
    for line in (sheet.header, *sheet.rows):
        del line[column]
    return Expected("missing column", 1, name)


def add_column(sheet: Sheet, data: st.DataObject, form: Form) -> Expected:
    sheet.header.append("extra")
    for row in sheet.rows:
        row.append("1")
    return Expected("unknown column", 1, "extra")


def repeat_column(sheet: Sheet, data: st.DataObject, form: Form) -> Expected:
    column = data.draw(st.integers(0, len(sheet.header) - 1))
    for line in (sheet.header, *sheet.rows):
        line.append(line[column])
    return Expected("repeated column", 1, sheet.header[-1])


def add_index(sheet: Sheet, data: st.DataObject, form: Form) -> Expected:
    name = data.draw(st.sampled_from(["", "Unnamed: 0", "index"]))
    sheet.header.insert(0, name)
    for number, row in enumerate(sheet.rows):
        row.insert(0, str(number))
    return Expected("index column", 1, name)


def no_header(sheet: Sheet, data: st.DataObject, form: Form) -> Expected:
    sheet.has_header = False
    return Expected("no header", 1, value=sheet.rows[0][0])


def other_width(sheet: Sheet, data: st.DataObject, form: Form) -> Expected:
    row = data.draw(st.integers(0, len(sheet.rows) - 1))
    if data.draw(st.booleans()):
        sheet.rows[row].append("0")
    else:
        sheet.rows[row].pop()
    width = len(sheet.rows[row])
    return Expected("number of values", row + 2, value=f"{width} value")


def open_quote(sheet: Sheet, data: st.DataObject, form: Form) -> Expected:
    sheet.encode = lambda text: (text + '"x').encode()
    return Expected("does not parse")


def zero_byte(sheet: Sheet, data: st.DataObject, form: Form) -> Expected:
    row = data.draw(st.integers(0, len(sheet.rows) - 1))
    sheet.rows[row][0] += "\0"
    return Expected("encoding", row + 2, value="zero byte")


def other_encoding(sheet: Sheet, data: st.DataObject, form: Form) -> Expected:
    encoding = data.draw(st.sampled_from(["utf-16", "gb18030"]))
    sheet.encode = lambda text: text.encode(encoding)
    return Expected("encoding", value="not UTF-8")


def other_separator(sheet: Sheet, data: st.DataObject, form: Form) -> Expected:
    sheet.separator = data.draw(st.sampled_from(["\t", "|"]))
    return Expected("separator", 1, value=repr(sheet.separator))


def byte_order_mark(sheet: Sheet, data: st.DataObject, form: Form) -> Expected:
    sheet.encode = lambda text: text.encode("utf-8-sig")
    return Expected("byte order mark", level="warning")


def windows_lines(sheet: Sheet, data: st.DataObject, form: Form) -> Expected:
    sheet.newline = data.draw(st.sampled_from(["\r\n", "\r"]))
    return Expected("line ends", level="warning")


def blank_line(sheet: Sheet, data: st.DataObject, form: Form) -> Expected:
    sheet.encode = lambda text: (text + "\n").encode()
    return Expected("blank line", len(sheet.rows) + 2, level="warning")


def other_sum(sheet: Sheet, data: st.DataObject, form: Form) -> Expected:
    row = data.draw(st.integers(0, len(sheet.rows) - 1))
    column = data.draw(st.integers(1, len(sheet.header) - 1))
    right = float(sheet.rows[row][column])
    far = st.floats(0, 1).filter(lambda value: abs(value - right) > 0.0025)  # 3 classes, rounded
    sheet.rows[row][column] = repr(data.draw(far))
    return Expected("sum of probabilities", row + 2, value="not to 1")


def cut_off(sheet: Sheet, data: st.DataObject, form: Form) -> Expected:
    """A copy that broke off before the last row, in the middle of a line perhaps."""
    whole = data.draw(st.integers(1, len(sheet.rows) - 2))

    def encode(text: str) -> bytes:
        header, *lines = text.splitlines(keepends=True)
        half = data.draw(st.integers(0, len(lines[whole]) - 2))
        rest = "" if '"' in lines[whole] else lines[whole][:half]
        return "".join([header, *lines[:whole], rest]).encode()

    sheet.encode = encode
    return Expected("missing id", column=form.rules.id)


def header_alone(sheet: Sheet, data: st.DataObject, form: Form) -> Expected:
    sheet.rows.clear()
    return Expected("no rows", value="nothing stands below the header")


def binary(sheet: Sheet, data: st.DataObject, form: Form) -> Expected:
    content, said = data.draw(st.sampled_from(BINARY))
    sheet.encode = lambda text: content
    return Expected("no text file", value=said)


def constant(sheet: Sheet, data: st.DataObject, form: Form) -> Expected:
    for row in sheet.rows:
        row[1:] = form.values[1]
    return Expected("constant predictions", value=form.values[1][0], level="warning")


def like_the_sample(sheet: Sheet, data: st.DataObject, form: Form) -> Expected:
    for row in sheet.rows:
        row[1:] = [form.neutral] * len(form.columns)
    return Expected("same as the sample", level="warning")


EVERY = tuple(FORMS)
BINARY = [
    (b"PK\x03\x04\x14\0\0\0", "a zip archive or an Excel workbook"),
    (b"\x1f\x8b\x08\0", "a gzip archive"),
    (b"PAR1\x15\x04", "a Parquet file"),
    (b"\xd0\xcf\x11\xe0\xa1", "an Excel workbook"),
    (bytes(range(256)), "29 of 256 bytes stand in no text"),
    (bytes(1000), "binary data"),
]
CORRUPTIONS: dict[str, tuple[Corrupt, tuple[str, ...]]] = {
    "empty": bad_cell("", "nan", "NaN", "NULL", "None", rule="missing value", forms=EVERY),
    "infinite": bad_cell("inf", "-inf", "Infinity", rule="infinite value", forms=EVERY),
    "unknown label": bad_cell("goood", "3", "-1", "??", rule="unknown label", forms=LABELS),
    "spaces": bad_cell(" {value}", "{value} ", rule="spaces", forms=("label", "number", "columns")),
    "float": bad_cell("{value}.0", "True", rule="type", forms=("number", "columns")),
    "probability": bad_cell("0.37", rule="probability for a label", forms=LABELS),
    "same label twice": bad_cell("hot;hot", rule="repeated label", forms=("separated",)),
    "range": bad_cell("1.01", "-0.2", "37", rule="range", forms=PROBABILITIES),
    "label": bad_cell("{label}", rule="label for a probability", forms=PROBABILITIES),
    "no number": bad_cell("0,5", "50%", "0_1", "a lot", rule="no number", forms=PROBABILITIES),
    "space in the id": bad_id(lambda row_id: f" {row_id}", "spaces around it"),
    "id with a point": bad_id(
        lambda row_id: f"{row_id}.0" if row_id.isdigit() else IDS[0], "a point"
    ),
    "other id": bad_id(lambda row_id: f"{row_id}x", "no id of the test file"),
    "no id": bad_id(lambda row_id: "", "'' is no id"),
    "zeros": (lose_zeros, EVERY),
    "row dropped": (drop_row, EVERY),
    "row repeated": (repeat_row, EVERY),
    "rows swapped": (swap_rows, EVERY),
    "columns swapped": (swap_columns, EVERY),
    "column renamed": (rename_column, EVERY),
    "column dropped": (drop_column, EVERY),
    "column added": (add_column, EVERY),
    "column repeated": (repeat_column, EVERY),
    "index": (add_index, EVERY),
    "no header": (no_header, EVERY),
    "width": (other_width, EVERY),
    "quote": (open_quote, EVERY),
    "zero byte": (zero_byte, EVERY),
    "encoding": (other_encoding, EVERY),
    "separator": (other_separator, EVERY),
    "byte order mark": (byte_order_mark, EVERY),
    "line ends": (windows_lines, EVERY),
    "blank line": (blank_line, EVERY),
    "sum": (other_sum, ("probabilities",)),
    "cut off": (cut_off, EVERY),
    "header alone": (header_alone, EVERY),
    "binary": (binary, EVERY),
    "constant": (constant, EVERY),
    "sample": (like_the_sample, tuple(name for name in EVERY if name != "probabilities")),
}


@pytest.mark.parametrize("corruption", CORRUPTIONS)
@settings(max_examples=15, deadline=None)
@given(data=st.data())
def test_any_single_corruption_is_found_and_named(
    corruption: str, data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """With its level, and where the corruption has them: its row, its column and its value."""
    corrupt, forms = CORRUPTIONS[corruption]
    form = FORMS[data.draw(st.sampled_from(forms))]
    sheet = form.sheet()
    expected = corrupt(sheet, data, form)
    path = sheet.write(tmp_path_factory.getbasetemp() / "corrupt.csv")

    checked = check_file(path, form.competition())

    places = [
        (expected.row in (None, finding.row), expected.column in (None, finding.column))
        for finding in found(checked, expected.rule)
        if finding.level == expected.level and (expected.value or "") in finding.problem
    ]
    assert (True, True) in places, [finding.line(path) for finding in checked.findings]
    if expected.level == "warning":
        assert not checked.errors
    for finding in checked.findings:
        assert finding.problem and finding.remedy


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_any_other_text_in_any_cell_is_found(
    data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Whatever it is: unless the text is a valid prediction, too, its cell is named."""
    form = FORMS[data.draw(st.sampled_from(EVERY))]
    toy, sheet = form.competition(), form.sheet()
    row = data.draw(st.integers(0, len(IDS) - 1))
    column = data.draw(st.integers(0, len(form.columns)))
    text = data.draw(st.text() | st.floats().map(repr) | st.integers().map(str))
    table = pd.DataFrame(sheet.rows, columns=sheet.header, dtype=object)
    table.iloc[row, column] = text
    assume(text != sheet.rows[row][column])
    assume(text.count("\0") < 2)  # in a file as small as this, more of them make it binary
    assume(column == 0 or not is_valid(text, form))

    path = tmp_path_factory.getbasetemp() / "any.csv"
    write_csv(path, table)
    checked = check_file(path, toy)

    # a line break in the text moves the rows below it, and a lost byte is named by its line alone
    at = {(finding.row, finding.column) for finding in checked.errors}
    assert at & {(row + 2, sheet.header[column]), (row + 2, None)}, (text, checked.findings)


def is_valid(text: str, form: Form) -> bool:
    """Return whether a competition takes this text as a prediction."""
    rules = form.rules
    if rules.submission != "label":
        try:
            number = float(text) if text.isascii() else math.nan
        except ValueError:
            return False
        return 0 <= number <= 1 and "_" not in text
    if rules.label_separator is None:
        return text in (form.classes if len(rules.label) == 1 else ("0", "1"))
    parts = [part.strip() for part in text.split(rules.label_separator) if part.strip()]
    return text == rules.empty_label or (
        bool(parts) and set(parts) <= set(form.classes) and len(set(parts)) == len(parts)
    )


def test_three_digits_are_enough_for_a_sum() -> None:
    """Each class may be rounded by 0.0005, however many there are."""
    classes = tuple(f"c{number:02d}" for number in range(40))
    form = replace(FORMS["probabilities"], classes=classes, columns=classes, neutral="0.025")
    toy = form.competition(sample=False)
    probabilities = np.random.default_rng(0).dirichlet(np.ones(40), size=len(IDS))
    for digits, passes in ((3, True), (1, False)):
        table = pd.DataFrame(np.round(probabilities, digits), columns=pd.Index(classes))
        table.insert(0, "id", list(IDS))
        assert (not check_table(table, toy).errors) is passes


def test_rows_that_do_not_sum_to_one() -> None:
    form = FORMS["probabilities"]
    table = pd.DataFrame(form.sheet().rows, columns=form.sheet().header)
    table.loc[[1, 4], "z"] = "0.9"
    (finding,) = check_table(table, form.competition()).findings
    assert (finding.rule, finding.row) == ("sum of probabilities", 3)
    assert finding.problem == "the row sums to 1.7, not to 1 (also row 6)"


# -- how it is said -------------------------------------------------------------------------------


def test_all_findings_come_at_once_and_rows_with_one_fault_share_a_line(tmp_path: Path) -> None:
    form = FORMS["label"]
    sheet = form.sheet()
    for row in (0, 2, 4):
        sheet.rows[row][1] = "Good"
    sheet.rows[5][1] = ""
    sheet.header = ["id", "labels"]
    path = sheet.write(tmp_path / "submission.csv")
    lines = [finding.line("s.csv") for finding in check_file(path, form.competition()).findings]
    assert lines == [
        "error: s.csv, row 1, column 'labels': column name: the sample calls it 'label'; rename it",
        "error: s.csv, row 2, column 'label': unknown label: 'Good', did you mean 'good'? "
        "(also rows 4, 6); the labels are 'good', 'so so', '坏'",
        "error: s.csv, row 7, column 'label': missing value: '' is no prediction; fill it",
    ]


def test_a_thousand_wrong_rows_are_one_line() -> None:
    form = FORMS["probability"]
    toy = form.competition(sample=False)
    table = pd.DataFrame({"key": range(1000), "p": np.linspace(2, 3, 1000)})
    findings = check_table(table, toy).findings
    assert {finding.rule for finding in findings} >= {"range", "number of rows", "unknown id"}
    assert len(findings) <= 5
    (wrong,) = (finding for finding in findings if finding.rule == "range")
    assert wrong.problem.endswith("(also rows 3, 4, 5, 6, 7 and 994 more)")


def test_what_the_sample_does_is_no_fault(tmp_path: Path) -> None:
    form = FORMS["label"]
    sample, mine = form.sheet(), form.sheet()
    for sheet in (sample, mine):
        sheet.newline, sheet.encode = "\r\n", lambda text: text.encode("utf-8-sig")
    sample.write(tmp_path / "sample_submission.csv")
    path = mine.write(tmp_path / "submission.csv")
    assert check_file(path, form.competition(tmp_path)).findings == ()


def test_another_encoding_is_a_warning_where_the_competition_has_it_too(tmp_path: Path) -> None:
    form = FORMS["label"]
    sheet = form.sheet()
    sheet.encode = lambda text: text.encode("gb18030")
    sheet.write(tmp_path / "sample_submission.csv")
    path = sheet.write(tmp_path / "submission.csv")
    (finding,) = check_file(path, form.competition(tmp_path)).findings
    assert (finding.rule, finding.level) == ("encoding", "warning")


def test_without_a_sample_names_and_order_are_said_to_be_unchecked(tmp_path: Path) -> None:
    form = FORMS["label"]
    sheet = form.sheet()
    sheet.header = ["id", "answer"]
    sheet.rows.reverse()
    path = sheet.write(tmp_path / "submission.csv")
    checked = check_file(path, form.competition(sample=False))
    assert checked.findings == ()
    (line,) = checked.unchecked
    assert "no sample_submission.csv" in line


def test_what_is_no_file_is_refused_with_a_remedy(tmp_path: Path) -> None:
    toy = FORMS["label"].competition()
    places = {
        tmp_path / "none.csv": "none.csv: no such file; give a submission's CSV file",
        tmp_path: "is a folder; give a CSV file in it",
        Path(os.devnull): "is no file on a disk, but a device or a pipe; give a submission's",
    }
    for path, said in places.items():
        with pytest.raises(InputError) as caught:
            check_file(path, toy)
        assert str(caught.value).startswith(f"{path}: ") and said in str(caught.value)
    (tmp_path / "submission.csv").touch()
    with pytest.raises(InputError, match=r"is a folder; give .*/submission\.csv$"):
        check_file(tmp_path, toy)


@pytest.mark.parametrize(
    ("content", "rule", "unchecked"),
    [
        (b"", "empty file", False),
        (b"\n \r\n", "empty file", False),
        (bytes(range(256)) * 4, "no text file", False),
        (b"id,label\n", "no rows", False),
        (b'id,label\n007,"good\n', "does not parse", True),
        ("id,label\n007,坏\n".encode("utf-16"), "encoding", False),
    ],
)
def test_a_file_with_nothing_to_check_is_one_finding(
    tmp_path: Path, content: bytes, rule: str, unchecked: bool
) -> None:
    path = tmp_path / "submission.csv"
    path.write_bytes(content)
    checked = check_file(path, FORMS["label"].competition())
    assert next(finding.rule for finding in checked.findings) == rule
    if rule != "encoding":  # there the rest can be read, and its rows are checked
        assert len(checked.findings) == 1
    assert [bool(line) for line in checked.unchecked] == [True] * unchecked


def test_a_header_alone_is_refused_where_no_test_file_says_how_many_rows(tmp_path: Path) -> None:
    toy = replace(FORMS["label"].competition(sample=False), test=Rows((), ()))
    path = tmp_path / "submission.csv"
    path.write_text("id,label\n", encoding="utf-8")
    (finding,) = check_file(path, toy).findings
    assert finding.rule == "no rows"


# -- before the kit writes one --------------------------------------------------------------------


@pytest.mark.parametrize("name", FORMS)
def test_what_the_kit_makes_passes(name: str) -> None:
    form = FORMS[name]
    toy = form.competition()
    probabilities = np.random.default_rng(0).dirichlet(np.ones(len(toy.classes)), size=len(IDS))
    assert check_table(make_submission(toy, probabilities), toy).errors == ()


def test_a_submission_that_would_be_rejected_is_not_made() -> None:
    toy = FORMS["probabilities"].competition()
    broken = np.full((len(IDS), 3), np.nan)
    with pytest.raises(KitError, match="a bug of the kit") as caught:
        make_submission(toy, broken)
    assert "missing value: 'nan' is no prediction" in str(caught.value)
    assert not isinstance(caught.value, InputError)
    with pytest.raises(KitError, match="sum of probabilities"):
        make_submission(toy, np.full((len(IDS), 3), 0.5))


def test_warnings_are_said_and_stop_nothing(caplog: pytest.LogCaptureFixture) -> None:
    toy = FORMS["label"].competition()
    constant = np.tile([0.1, 0.8, 0.1], (len(IDS), 1))
    with caplog.at_level(logging.WARNING):
        table = make_submission(toy, constant)
    assert "the submission: constant predictions: every row says 'so so'; look" in caplog.text
    assert [finding.rule for finding in check_table(table, toy).findings] == [
        "constant predictions"
    ]
    refuse_invalid(table, toy)
