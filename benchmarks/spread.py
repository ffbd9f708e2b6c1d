"""Medians with their spread, and ratios of figures taken side by side."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median

__all__ = ["ratios", "spread"]


def spread(values: Sequence[float]) -> dict[str, float]:
    """Return median, least and greatest value."""
    return {"median": median(values), "min": min(values), "max": max(values)}


def ratios(over: Sequence[float], under: Sequence[float]) -> list[float]:
    """Return over / under, repetition by repetition: a slow spell falls on both sides."""
    return [a / b for a, b in zip(over, under, strict=True)]
