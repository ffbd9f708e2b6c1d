"""The two ways in which the kit stops: bad input (exit code 2) and failed work (exit code 1)."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from pathlib import Path

__all__ = ["InputError", "KitError", "did_you_mean", "examples", "shown"]


class KitError(Exception):
    """Work that could not be finished. The message is complete: users see it without a traceback."""

    exit_code = 1


class InputError(KitError):
    """Input that the user has to change.

    The message is one line: where (file, row, column), what is wrong (with the value), what to do.
    Rows are counted as a spreadsheet shows them: the header is row 1.
    """

    exit_code = 2

    def __init__(
        self,
        problem: str,
        *,
        file: Path | str | None = None,
        row: int | None = None,
        column: str | None = None,
        remedy: str | None = None,
    ) -> None:
        place = ", ".join(
            part
            for part in (
                str(file) if file is not None else "",
                f"row {row}" if row is not None else "",
                f"column {column!r}" if column is not None else "",
            )
            if part
        )
        message = f"{place}: {problem}" if place else problem
        if remedy:
            message = f"{message}; {remedy}"
        # one line, whatever a value held; and a single argument, so that workers can pickle it
        super().__init__(" ".join(message.split()))


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return ", did you mean 'x'?" for a near miss, else the list of what is known."""
    known = list(known)
    same = [other for other in known if other.casefold() == name.casefold()]
    close = same or difflib.get_close_matches(name, known, n=1)
    if close:
        return f", did you mean {close[0]!r}?"
    return f"; known: {', '.join(known)}"


def shown(value: str, limit: int = 40) -> str:
    """Return a value as it may stand in a message: quoted, control characters escaped, not long."""
    return repr(value if len(value) <= limit else value[: limit - 1] + "…")


def examples(values: Iterable[object], limit: int = 3) -> str:
    """Return the first values for a message: "'a', 'b', 'c' and 4 more"."""
    values = list(values)
    text = ", ".join(shown(str(value)) for value in values[:limit])
    return text if len(values) <= limit else f"{text} and {len(values) - limit} more"
