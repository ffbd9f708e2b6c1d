"""Cells whose batches the GPU's memory did not hold whole, and what that means for a comparison."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

__all__ = ["caution", "cut_batches"]


def cut_batches(arm: str, rows: Iterable[int | None], batch_size: int) -> list[dict[str, Any]]:
    """Return how many cells of an arm were cut, and to how few rows; empty if none was.

    Args:
        arm: its name.
        rows: rows at a time of each cell; None where it is not known.
        batch_size: what was asked for.
    """
    fewer = [count for count in rows if count is not None and count < batch_size]
    return [{"arm": arm, "cells": len(fewer), "rows": min(fewer)}] if fewer else []


def caution(found: Sequence[dict[str, Any]]) -> str:
    """Return a warning that batches were cut in some cells; "" if in none."""
    if not found:
        return ""
    listed = "; ".join(
        f"{entry['arm']}, {entry['cells']} cell{'s' * (entry['cells'] > 1)}, to {entry['rows']} rows"
        for entry in found
    )
    return (
        f"batches were cut as the GPU ran out of memory ({listed}): dropout, and what a strategy "
        "takes over a whole batch, are of the parts there, which is in the deltas, too; a smaller "
        "--batch-size with --accumulation-steps is the same for all arms"
    )
