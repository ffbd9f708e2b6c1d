"""Read a submission file that may be damaged, noting what is wrong with its bytes and lines."""

from __future__ import annotations

import codecs
import csv
import io
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import pandas as pd

from competition_kit.data.competition import Competition
from competition_kit.data.tables import decode, find_table, no_table
from competition_kit.errors import InputError, examples
from competition_kit.results.findings import Finding, also

__all__ = ["read_damaged", "require_file"]

QUOTED = re.compile(r'"[^"]*"')
SEPARATORS = ",;\t|"
CONTROL = bytes({*range(32), 127} - set(b"\t\n\f\r"))  # bytes that stand in no text
MOST_CONTROL = 0.05  # of a text's bytes: a stray one is a fault of its own


def require_file(path: Path) -> None:
    """Check that there is a file that can be read to its end.

    Raises:
        InputError: for a missing one, a folder, a device or a pipe.
    """
    if path.is_file():
        return
    if path.is_dir():
        inside = path / "submission.csv"
        which = inside if inside.is_file() else "a CSV file in it"
        raise InputError("is a folder", file=path, remedy=f"give {which}")
    raise InputError(
        "is no file on a disk, but a device or a pipe" if path.exists() else "no such file",
        file=path,
        remedy="give a submission's CSV file",
    )


def read_damaged(
    path: Path, competition: Competition, wanted: Sequence[str]
) -> tuple[pd.DataFrame | None, list[Finding]]:
    """Read what can be read.

    Args:
        wanted: the columns that the header should have.

    Returns:
        A table of `str` whose index holds row numbers, None where nothing can be made of the file;
        and what is wrong. What the competition's own sample does, too, is no fault.
    """
    findings: list[Finding] = []
    text = _text(path, competition, findings)
    lines = [] if text is None else _lines(text, _separator(text, path, wanted, findings), findings)
    if not lines:
        return None, findings
    header = _header(lines, competition, wanted, findings)
    cells = [_filled(row, cells, len(header), findings) for row, cells in lines]
    table = pd.DataFrame(
        cells,
        columns=pd.Index(header, dtype=object),
        index=pd.Index([row for row, _ in lines], dtype=int),
        dtype=object,
    )
    return table.loc[:, ~table.columns.duplicated()], findings


def _text(path: Path, competition: Competition, findings: list[Finding]) -> str | None:
    """Decode the bytes; None where they are no text."""
    raw = path.read_bytes()
    sample_path = find_table(competition.folder, "sample_submission")
    sample = b"" if sample_path is None else sample_path.read_bytes()
    if (finding := _no_text(raw)) is not None:
        findings.append(finding)
        return None
    findings += _encoding(raw, sample)
    is_utf8 = _no_utf8(raw) is None
    try:
        text = decode(raw, path, None if is_utf8 else competition.rules.encoding)
    except InputError:
        return None  # said above
    if "\r" in QUOTED.sub("", text) and b"\r" not in sample:
        findings.append(
            Finding(
                rule="line ends",
                level="warning",
                problem="lines end with \\r, as Windows writes them",
                remedy='write it with lineterminator="\\n"',
            )
        )
    return text


def _no_text(raw: bytes) -> Finding | None:
    if not raw.strip():
        return Finding(
            rule="empty file",
            problem="nothing is in it",
            remedy="write a header and one row for each id of the test file",
        )
    if (binary := _what_binary(raw)) is not None:
        what, remedy = binary
        return Finding(rule="no text file", problem=f"this is {what}", remedy=remedy)
    return None


def _encoding(raw: bytes, sample: bytes) -> Iterator[Finding]:
    """Yield what readers of UTF-8 stumble over, unless the competition's own sample has it."""
    if raw.startswith(codecs.BOM_UTF8) and not sample.startswith(codecs.BOM_UTF8):
        yield Finding(
            rule="byte order mark",
            level="warning",
            problem="the file starts with one, which some graders take for a part of the first "
            "column's name",
            remedy='write it with encoding="utf-8", not "utf-8-sig"',
        )
    fault = _no_utf8(raw)
    if fault is not None:
        yield Finding(
            rule="encoding",
            level="error" if _no_utf8(sample) is None else "warning",
            problem=f"byte 0x{raw[fault]:02x} is not UTF-8",
            row=raw.count(b"\n", 0, fault) + 1,
            remedy='write it with encoding="utf-8"',
        )
    elif b"\0" in raw:
        yield Finding(
            rule="encoding",
            problem="a zero byte, which no text holds",
            row=raw.count(b"\n", 0, raw.index(b"\0")) + 1,
            remedy='write a plain CSV file with encoding="utf-8"',
        )


def _what_binary(raw: bytes) -> tuple[str, str] | None:
    """Return what a file is that is no text, and what to do with it; None for a text."""
    if (other := no_table(raw)) is not None:
        return other
    if raw.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return None  # a text, which has zero bytes in this encoding
    if b"\0" not in raw and _no_utf8(raw) is None:
        return None
    odd = len(raw) - len(raw.translate(None, CONTROL))
    if odd <= MOST_CONTROL * len(raw):
        return None
    return f"binary data, {odd} of {len(raw)} bytes stand in no text", "give a CSV file"


def _no_utf8(raw: bytes) -> int | None:
    """Return the place of the first byte that is not UTF-8, None where all are."""
    try:
        raw.decode("utf-8")
    except UnicodeDecodeError as error:
        return error.start
    return None


def _separator(text: str, path: Path, wanted: Sequence[str], findings: list[Finding]) -> str:
    right = "\t" if path.suffix == ".tsv" else ","
    first = text.lstrip().splitlines()[0] if text.strip() else ""
    found = max(SEPARATORS, key=first.count)
    if len(wanted) == 1 or right in first or found not in first:
        return right
    findings.append(
        Finding(
            rule="separator",
            problem=f"values are separated by {found!r}",
            row=1,
            remedy=f"separate them by {right!r}",
        )
    )
    return found


def _lines(text: str, separator: str, findings: list[Finding]) -> list[tuple[int, list[str]]]:
    """Return (row number, cells) of all lines that are not blank; none where they do not parse."""
    csv.field_size_limit(2**31 - 1)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
    lines: list[tuple[int, list[str]]] = []
    row, blank = 0, []
    try:
        for row, cells in enumerate(reader, 1):
            if cells:
                lines.append((row, cells))
            else:
                blank.append(row)
    except csv.Error as error:
        findings.append(
            Finding(
                rule="does not parse",
                problem=str(error),
                row=row + 1,
                remedy='look for a quote that is never closed (inside a value it is written "")',
            )
        )
        return []
    if blank:
        findings.append(
            Finding(
                rule="blank line",
                level="warning",
                problem=f"nothing stands here{also(blank)}",
                row=blank[0],
                remedy="remove it",
            )
        )
    return lines


def _header(
    lines: list[tuple[int, list[str]]],
    competition: Competition,
    wanted: Sequence[str],
    findings: list[Finding],
) -> list[str]:
    """Take the header off the lines; where there is none, return what is wanted."""
    row, header = lines[0]
    data = not set(header) & set(wanted) and bool(set(header) & set(competition.test.ids))
    if data and len(header) == len(wanted):
        findings.append(
            Finding(
                rule="no header",
                problem=f"the first line is data, {examples(header)}",
                row=row,
                remedy=f"write {','.join(wanted)} above it",
            )
        )
        return list(wanted)
    del lines[0]
    repeated = sorted({name for name in header if header.count(name) > 1})
    if repeated:
        findings.append(
            Finding(
                rule="repeated column",
                problem=f"the header repeats {examples(repeated)}",
                row=row,
                column=repeated[0],
                remedy="keep one of them",
            )
        )
    return header


def _filled(row: int, cells: list[str], width: int, findings: list[Finding]) -> list[str]:
    if len(cells) != width:
        findings.append(
            Finding(
                rule="number of values",
                problem=f"{len(cells)} values where the header has {width}",
                row=row,
                remedy="quote values that hold the separator, a quote or a line break",
            )
        )
    return (cells + [""] * width)[:width]
