"""Plots of an ensemble: how alike its members err, what they weigh and what each adds."""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import takewhile
from typing import Any

import numpy as np

from competition_kit.results.report.plots import legend_below
from competition_kit.results.report.svg import ACCENT, BASE, INK, QUIET, picture, shorten

__all__ = ["MOST_MEMBERS", "adds_plot", "correlation_plot", "short_names", "weight_plot"]

MOST_MEMBERS = 20  # in a matrix; more would be unreadable


def short_names(names: Sequence[str]) -> list[str]:
    """Return what sets names apart: no prefix that all share, no hash at the end."""
    parts = [name.split("-") for name in names]
    columns = zip(*parts, strict=False)
    shared = len(list(takewhile(lambda column: len(set(column)) == 1, columns)))
    bare = [re.sub(r"-?[0-9a-f]{8}$", "", "-".join(part[shared:])) for part in parts]
    return bare if len(set(bare)) == len(bare) and all(bare) else list(names)


def correlation_plot(
    key: str, names: Sequence[str], correlation: Sequence[Sequence[float | None]]
) -> str:
    """Draw [K, K] correlations of the members' errors; the darker, the more alike."""
    count = len(names)
    side = 48 if count < 8 else 38
    values = np.array(correlation, dtype=float)
    # shades from the least alike to the same: errors on one task are always much alike
    low = min(np.nanmin(values, initial=1.0), 0.99)
    title = "Correlation of the members' errors"
    with picture(key, title, side * count + 200, side * count + 40) as drawn:
        axes = drawn.axes
        for row, column in np.ndindex(count, count):
            value = values[row, column]
            if np.isfinite(value) and row != column:
                shade = 0.05 + 0.5 * (value - low) / (1 - low)
                axes.bar(column, 1, 1, row - 0.5, color=ACCENT, alpha=shade, lw=0)
            text = "-" if not np.isfinite(value) else f"{value:.2f}"
            axes.text(column, row, text, ha="center", va="center", fontsize=10, color=INK)
        axes.set_xticks(range(count), [str(number + 1) for number in range(count)])
        axes.set_yticks(range(count), _numbered(names))
        axes.set(aspect="equal", xlim=(-0.5, count - 0.5), ylim=(count - 0.5, -0.5))
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)
    return drawn.svg


def weight_plot(
    key: str, names: Sequence[str], greedy: Sequence[float], weights: Sequence[float]
) -> str:
    """Draw each member's weight by the two methods that give weights, over the equal share."""
    with picture(key, "Weight of each member", 430, 100 + 26 * len(names)) as drawn:
        axes, places = drawn.axes, range(len(names))
        axes.axvline(1 / len(names), color=QUIET, lw=1, ls=(0, (2, 3)), label="equal")
        axes.hlines(places, greedy, weights, color=BASE, lw=1)
        axes.plot(greedy, places, "o", mfc="none", color=BASE, label="greedy")
        axes.plot(weights, places, "o", color=ACCENT, label="weights")
        _member_axis(axes, names)
        axes.set(xlabel="weight, fitted on all rows", xlim=(-0.02, None))
        legend_below(drawn.figure)
    return drawn.svg


def adds_plot(key: str, names: Sequence[str], adds: Sequence[float | None], method: str) -> str:
    """Draw what the blend loses without each member."""
    title = f"What each member adds to {method}"
    with picture(key, title, 430, 80 + 26 * len(names)) as drawn:
        axes = drawn.axes
        axes.axvline(0, color=QUIET, lw=1)
        known = [(number, value) for number, value in enumerate(adds) if value is not None]
        places, values = [number for number, _ in known], [value for _, value in known]
        axes.hlines(places, 0, values, color=ACCENT, lw=2)
        axes.plot(values, places, "o", color=ACCENT)
        _member_axis(axes, names)
        axes.set(xlabel="lost without it (right of 0: it helps)")
        axes.locator_params(axis="x", nbins=6)
    return drawn.svg


def _numbered(names: Sequence[str]) -> list[str]:
    return [f"{shorten(name, 26)} {number + 1}" for number, name in enumerate(names)]


def _member_axis(axes: Any, names: Sequence[str]) -> None:
    """Name the members, the first at the top."""
    axes.set_yticks(range(len(names)), [shorten(name, 26) for name in names])
    axes.set(ylim=(len(names) - 0.4, -0.6))
    axes.tick_params(axis="y", length=0, labelcolor=INK)
    axes.spines["left"].set_visible(False)
