"""A check: a figure against its bound."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import isfinite
from typing import Any

__all__ = ["HEADER", "Check", "as_json", "table"]

HEADER = ("check", "figure", "bound", "")


@dataclass(frozen=True)
class Check:
    """One figure and what it must not exceed (or fall below); NaN never passes.

    Attributes:
        figure: None where it was not measured.
        bound: None where the figure is only reported.
        at_least: whether the bound is a lower one.
    """

    part: str
    name: str
    figure: float | None
    bound: float | None = None
    at_least: bool = False

    @property
    def ok(self) -> bool:
        if self.figure is None or self.bound is None:
            return True
        return self.figure >= self.bound if self.at_least else self.figure <= self.bound

    @property
    def verdict(self) -> str:
        if not self.ok:
            return "FAILED"
        if self.figure is None:
            return "not measured"
        return "reported" if self.bound is None else "ok"


def table(checks: Sequence[Check]) -> list[list[str]]:
    """Return the lines of the printed table, a rule between parts."""
    lines: list[list[str]] = []
    for number, check in enumerate(checks):
        if number and checks[number - 1].part != check.part:
            lines.append([])
        sign = ">=" if check.at_least else "<="
        lines.append(
            [
                f"{check.part}: {check.name}",
                "-" if check.figure is None else f"{check.figure:.6g}",
                "-" if check.bound is None else f"{sign} {check.bound:.4g}",
                check.verdict,
            ]
        )
    return lines


def as_json(checks: Sequence[Check]) -> list[dict[str, Any]]:
    """Return the checks as JSON objects; a figure that is no number becomes a string."""
    return [
        {
            "part": check.part,
            "check": check.name,
            "figure": str(check.figure)
            if check.figure is not None and not isfinite(check.figure)
            else check.figure,
            "bound": check.bound,
            "bound_is": "least" if check.at_least else "most",
            "verdict": check.verdict,
        }
        for check in checks
    ]
