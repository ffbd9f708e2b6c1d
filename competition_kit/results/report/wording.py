"""Numbers as the reports write them, the same in HTML and in Markdown."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

__all__ = ["between", "delta", "p_value", "ratio", "share", "signed"]

NOTHING = "-"  # not known, or not defined; the reason stands beside it


def signed(number: float | None) -> str:
    """Return a difference with its sign and four digits."""
    if number is None:
        return NOTHING
    # rounded first, so that nothing reads as "−0.0000"
    return f"{round(number, 4) + 0.0:+.4f}".replace("-", "−")


def between(found: Mapping[str, Any]) -> str:
    """Return the interval of a delta: [−0.0031, +0.0115]."""
    if found["low"] is None or found["high"] is None:
        return "(no interval)"
    return f"[{signed(found['low'])}, {signed(found['high'])}]"


def delta(found: Mapping[str, Any] | None) -> str:
    """Return delta and interval, never the one without a word on the other."""
    if found is None or found["delta"] is None:
        return NOTHING
    return f"{signed(found['delta'])} {between(found)}"


def p_value(number: float | None) -> str:
    """Return a p-value with three digits."""
    if number is None:
        return NOTHING
    return "<0.001" if number < 0.0005 else f"{number:.3f}"


def share(number: float | None) -> str:
    """Return a probability or a share with two digits."""
    return NOTHING if number is None else f"{number:.2f}"


def ratio(number: float | None) -> str:
    """Return a cost as a multiple of the baseline's."""
    return NOTHING if number is None else f"{number:.2f}×"
