"""Plots of an ablation: deltas, what they cost, and the pairs of scores behind them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from competition_kit.results.report.plots import legend_below
from competition_kit.results.report.svg import (
    ACCENT,
    BASE,
    GOOD,
    INK,
    POOR,
    QUIET,
    RULE,
    picture,
    shorten,
)

__all__ = ["cost_plot", "fold_means", "forest_plot", "pair_plot"]

# form and colour both say the verdict: not everyone sees the colours
_MARKS = {
    "better": {"marker": "^", "color": GOOD, "ms": 8},
    "worse": {"marker": "v", "color": POOR, "ms": 8},
    "practically the same": {"marker": "s", "color": QUIET, "ms": 6},
    "no evidence": {"marker": "o", "color": ACCENT, "ms": 6, "mfc": "none"},
}


def forest_plot(
    key: str,
    arms: Sequence[dict[str, Any]],
    rope: float | None,
    level: float,
    metric: str | None = None,
) -> str:
    """Draw each arm's delta and interval over the intervals of the A/A arms, the first at the top."""
    shown = [arm for arm in arms if arm["delta"] is not None]
    title = f"Delta of each arm over the baseline with its {100 * level:g} % interval"
    with picture(key, title, 430, 110 + 30 * len(shown)) as drawn:
        axes = drawn.axes
        for number, arm in enumerate(arm for arm in shown if _has_band(arm)):
            label = "noise: the A/A interval" if number == 0 else None
            axes.axvspan(arm["low"], arm["high"], color=BASE, alpha=0.18, lw=0, label=label)
        axes.axvline(0, color=QUIET, lw=1)
        if rope:
            for number, edge in enumerate((-rope, rope)):
                label = "practically the same" if number == 0 else None
                axes.axvline(edge, color=QUIET, lw=1, ls=(0, (2, 3)), label=label)
        for place, arm in enumerate(shown):
            if arm["low"] is not None and arm["high"] is not None:
                axes.hlines(place, arm["low"], arm["high"], color=_mark(arm)["color"], lw=2)
            axes.plot(arm["delta"], place, ls="none", **_mark(arm))
        axes.set_yticks(range(len(shown)), [shorten(arm["arm"]) for arm in shown])
        axes.set(xlabel=_delta_label("right of 0: better", metric), ylim=(len(shown) - 0.4, -0.6))
        axes.tick_params(axis="y", length=0, labelcolor=INK)
        axes.spines["left"].set_visible(False)
        axes.locator_params(axis="x", nbins=6)
        if axes.get_legend_handles_labels()[0]:
            legend_below(drawn.figure)
    return drawn.svg


def cost_plot(
    key: str, arms: Sequence[dict[str, Any]], cost: str, unit: str, metric: str | None = None
) -> str:
    """Draw delta against the cost named `cost`, each point named at the right edge."""
    shown = [arm for arm in arms if arm["delta"] is not None and arm["cost"][cost] is not None]
    shown.sort(key=lambda arm: -arm["delta"])
    title = f"Delta of each arm against its cost in {unit}"
    with picture(key, title, 430, max(260, 70 + 20 * len(shown))) as drawn:
        axes = drawn.axes
        axes.axhline(0, color=QUIET, lw=1)
        axes.plot(1, 0, "o", color=BASE)
        for arm in shown:
            x = arm["cost"][cost]
            if arm["low"] is not None and arm["high"] is not None:
                axes.vlines(x, arm["low"], arm["high"], color=RULE, lw=2)
            axes.plot(x, arm["delta"], ls="none", **_mark(arm))
        axes.margins(x=0.08)
        low, high = axes.get_ylim()
        heights = [(arm["delta"] - low) / (high - low) for arm in shown]
        for arm, height in zip(shown, _spread(heights, 17 / 200), strict=True):
            axes.annotate(
                shorten(arm["arm"], 20),
                (arm["cost"][cost], arm["delta"]),
                (1.06, height),
                textcoords="axes fraction",
                va="center",
                arrowprops={"arrowstyle": "-", "color": RULE, "lw": 0.8, "shrinkB": 5},
            )
        axes.set(
            xlabel=f"{unit}, as a multiple of the baseline",
            ylabel=_delta_label("up: better", metric),
        )
    return drawn.svg


def pair_plot(
    key: str, arm: dict[str, Any], baseline: dict[str, Any], metric: str, greater: bool
) -> str | None:
    """Draw baseline and arm for each pair of cells, and thick for each fold's mean.

    Returns:
        None where no pair of cells is complete.
    """
    before, after = paired_scores(baseline, arm)
    if not (complete := ~np.isnan(before) & ~np.isnan(after)).any():
        return None
    before, after = np.where(complete, before, np.nan), np.where(complete, after, np.nan)
    title = f"{metric} of each fold, from the baseline to {arm['arm']}"
    with picture(key, title, 310, 250) as drawn:
        axes = drawn.axes
        for old, new in zip(before[complete], after[complete], strict=True):
            axes.plot((0, 1), (old, new), color=BASE, lw=0.7, alpha=0.6)
        for fold in np.flatnonzero(complete.any(axis=0)):
            old, new = np.nanmean(before[:, fold]), np.nanmean(after[:, fold])
            color = QUIET if old == new else GOOD if (new > old) == greater else POOR
            axes.plot((0, 1), (old, new), "o-", color=color, lw=2, ms=5)
        for label, color in (("seed", BASE), ("fold better", GOOD), ("fold worse", POOR)):
            axes.plot([], [], color=color, lw=0.7 if color == BASE else 2, label=label)
        axes.set_xticks((0, 1), ("baseline", shorten(arm["arm"])))
        axes.set(xlim=(-0.25, 1.25), ylabel=shorten(metric))
        legend_below(drawn.figure)
    return drawn.svg


def paired_scores(baseline: dict[str, Any], arm: dict[str, Any]) -> tuple[np.ndarray, np.ndarray]:
    """Return the two arms' scores [S, K] of the seeds that both have; NaN where there is none.

    Arms without a common seed (A/A) are paired as they stand.
    """
    before, after = (_matrix(x["scores"]) for x in (baseline, arm))
    shared = [seed for seed in baseline["seeds"] if seed in arm["seeds"]]
    if shared:
        before = before[[baseline["seeds"].index(seed) for seed in shared]]
        after = after[[arm["seeds"].index(seed) for seed in shared]]
    count = min(len(before), len(after))
    return before[:count], after[:count]


def fold_means(arm: dict[str, Any]) -> list[float]:
    """Return an arm's score on each fold, mean over the seeds that have one; NaN where none has."""
    scores = _matrix(arm["scores"])
    there = np.isfinite(scores)
    counts = there.sum(axis=0)
    sums = np.where(there, scores, 0.0).sum(axis=0)
    return np.divide(sums, counts, out=np.full(len(counts), np.nan), where=counts > 0).tolist()


def _matrix(scores: list[list[float | None]]) -> np.ndarray:
    return np.array(scores, dtype=float, ndmin=2)


def _delta_label(direction: str, metric: str | None) -> str:
    return f"delta{f' in {shorten(metric)}' if metric else ''} ({direction})"


def _has_band(arm: dict[str, Any]) -> bool:
    return arm["role"] == "a/a" and arm["low"] is not None and arm["high"] is not None


def _mark(arm: dict[str, Any]) -> dict[str, Any]:
    return _MARKS.get(arm["verdict"], _MARKS["no evidence"])


def _spread(heights: Sequence[float], gap: float) -> list[float]:
    """Return falling heights moved apart to at least `gap`, as a block around their middle."""
    spread: list[float] = []
    for height in heights:
        spread.append(min(height, spread[-1] - gap) if spread else height)
    lift = (sum(heights) - sum(spread)) / len(heights) if heights else 0.0
    return [height + lift for height in spread]
