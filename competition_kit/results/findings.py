"""What a check finds: one line for each thing that is wrong or odd."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from competition_kit.errors import InputError

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["Finding", "also", "by_reason"]

ROWS_SHOWN = 5  # of the rows that share a fault


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One thing that is wrong with a file, or odd.

    Attributes:
        rule: what was broken, in a word or two; the same for all findings of a kind.
        level: "error": competitions reject such files; "warning": they take it, but look.
        row: as a spreadsheet counts (the header is row 1); None where no single row is meant.
    """

    rule: str
    problem: str
    remedy: str
    level: Literal["error", "warning"] = "error"
    row: int | None = None
    column: str | None = None

    def said(self, file: Path | str | None = None) -> str:
        """Say it in one line: place, problem, remedy."""
        return str(
            InputError(
                f"{self.rule}: {self.problem}",
                file=file,
                row=self.row,
                column=self.column,
                remedy=self.remedy,
            )
        )

    def line(self, file: Path | str | None = None) -> str:
        """Say it in one line, the level first."""
        return f"{self.level}: {self.said(file)}"


def also(rows: Sequence[int] | pd.Index) -> str:
    """Return "" for one row, else which others share its fault: " (also rows 5, 9 and 4 more)"."""
    others = [str(row) for row in itertools.islice(rows, 1, 1 + ROWS_SHOWN)]
    if not others:
        return ""
    more = len(rows) - 1 - len(others)
    counted = f" and {more} more" if more else ""
    return f" (also row{'s' * (len(rows) > 2)} {', '.join(others)}{counted})"


def by_reason(values: pd.Series, why: Callable[[str], str]) -> dict[str, pd.Series]:
    """Return texts by the reason that `why` gives for each; those with the reason "" are left out.

    Reasons and texts are in order of appearance. `why` is asked once for each distinct text.
    """
    reasons = values.map({value: why(value) for value in values.unique()})
    return {reason: values[reasons == reason] for reason in reasons.unique() if reason}
