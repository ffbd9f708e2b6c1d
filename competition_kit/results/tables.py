"""Plain-text tables for the terminal."""

from __future__ import annotations

import math
from collections.abc import Sequence

__all__ = ["duration", "metric_text", "score_text", "text_table"]


def score_text(score: float | None) -> str:
    """Return a score with four digits; "-" where it is not defined."""
    return "-" if score is None or not math.isfinite(score) else f"{score:.4f}"


def metric_text(name: str, greater_is_better: bool) -> str:
    """Return a metric's name, with a word on its direction where that is not the usual one."""
    return name if greater_is_better else f"{name}, lower is better"


def duration(seconds: float) -> str:
    """Return seconds as people say them: 41 s, 3 min 12 s, 2 h 05 min."""
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    return (
        f"{minutes} min {rest:02d} s"
        if minutes < 60
        else f"{minutes // 60} h {minutes % 60:02d} min"
    )


def text_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return an aligned table; the first column is left-aligned, the others right-aligned.

    An empty row becomes a rule.
    """
    filled = [row for row in rows if row]
    widths = [max(len(line[i]) for line in [header, *filled]) for i in range(len(header))]

    def line(cells: Sequence[str]) -> str:
        first, *others = (
            cell.ljust(width) if i == 0 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(cells, widths, strict=True))
        )
        return "  ".join(["", first, *others]).rstrip()

    rule = "  " + "-" * (sum(widths) + 2 * (len(widths) - 1))
    return "\n".join([line(header), rule, *(line(row) if row else rule for row in rows)])
