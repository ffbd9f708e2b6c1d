"""Plots that the reports share. Each returns an inline SVG."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from competition_kit.results.report.curves import Curve
from competition_kit.results.report.svg import ACCENT, BASE, INK, picture, shorten

__all__ = [
    "MOST_CLASSES",
    "confusion_plot",
    "curve_plot",
    "f1_plot",
    "fold_score_plot",
    "legend_below",
]

MOST_CLASSES = 12  # in a confusion matrix; more would be unreadable
MOST_LABELS = 30  # in a plot of F1 per class


def legend_below(figure: Any) -> None:
    """Put one legend under the axes, where it covers nothing."""
    figure.legend(loc="outside lower center", ncols=3, handlelength=1.4, columnspacing=1.2)


def fold_score_plot(key: str, metrics: dict[str, Any]) -> str:
    """Draw one dot for each cell of a run, the floor's scores beside them."""
    names = list(dict.fromkeys(cell["fold"] for cell in metrics["cells"]))
    cells = [cell for cell in metrics["cells"] if cell["score"] is not None]
    floors = [(n, s) for n, s in enumerate(metrics["floor"]["folds"]) if s is not None]
    with picture(key, f"{metrics['metric']} of each fold and seed", 420, 250) as drawn:
        axes = drawn.axes
        axes.plot(
            [names.index(cell["fold"]) for cell in cells],
            [cell["score"] for cell in cells],
            "o",
            color=ACCENT,
            alpha=0.8,
            label="encoder",
        )
        axes.plot(*_columns(floors), "_", ms=18, mew=2, color=BASE, label="TF-IDF floor")
        axes.set_xticks(range(len(names)), [shorten(name, 8) for name in names])
        axes.set(xlabel="fold", ylabel=shorten(metrics["metric"]), xlim=(-0.5, len(names) - 0.5))
        legend_below(drawn.figure)
    return drawn.svg


def curve_plot(
    key: str, title: str, curve: Curve, name: str = "mean over cells", baseline: Curve | None = None
) -> str:
    """Draw a mean learning curve; its cells around it, or the baseline's mean behind it."""
    with picture(key, title, 330, 250) as drawn:
        axes = drawn.axes
        if baseline is None:
            for cell in curve.cells:
                axes.plot(curve.steps, cell, lw=0.6, color=BASE, alpha=0.6)
            axes.plot([], [], lw=0.6, color=BASE, label="one cell")
        else:
            axes.plot(baseline.steps, baseline.mean, lw=1.6, color=BASE, label="baseline")
        axes.plot(curve.steps, curve.mean, lw=2, color=ACCENT, label=shorten(name))
        axes.set(xlabel="optimizer step", ylabel="loss of the clean pass", xlim=(0, None))
        legend_below(drawn.figure)
    return drawn.svg


def confusion_plot(
    key: str,
    title: str,
    classes: Sequence[str],
    shares: np.ndarray,
    baseline: np.ndarray | None = None,
) -> str:
    """Draw [C, C] shares of each true class, in brackets below them the baseline's."""
    count, names = len(classes), [shorten(name) for name in classes]
    side = 52 if baseline is not None or count < 6 else 36
    widest = round(6.4 * max(map(len, names)))
    turned = widest > side
    with picture(
        key, title, side * count + widest + 40, side * count + (widest if turned else 20) + 40
    ) as drawn:
        axes = drawn.axes
        for row, column in np.ndindex(count, count):
            value = shares[row, column]
            # vector squares in the page's own colour: an image could not follow light and dark
            axes.bar(column, 1, 1, row - 0.5, color=ACCENT, alpha=0.6 * value, lw=0)
            text = f"{value:.2f}"
            if baseline is not None:
                text += f"\n({baseline[row, column]:.2f})"
            axes.text(column, row, text, ha="center", va="center", fontsize=11, color=INK)
        axes.set_xticks(range(count), names, rotation=45 if turned else 0)
        if turned:
            for label in axes.get_xticklabels():
                label.set(ha="right", rotation_mode="anchor")
        axes.set_yticks(range(count), names)
        axes.set(xlabel="predicted", ylabel="true", aspect="equal")
        axes.set(xlim=(-0.5, count - 0.5), ylim=(count - 0.5, -0.5))
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)
    return drawn.svg


def f1_plot(
    key: str,
    name: str,
    classes: Sequence[str],
    scores: Sequence[float],
    baseline: Sequence[float],
) -> str:
    """Draw F1 of each class in the arm `name` and in the baseline; of many, what moved most."""
    moved = np.abs(np.subtract(scores, baseline))
    kept = np.sort(np.argsort(-moved, kind="stable")[:MOST_LABELS])
    with picture(key, f"F1 of each class, baseline and {name}", 420, 80 + 22 * len(kept)) as drawn:
        axes, places = drawn.axes, range(len(kept))
        old, new = np.take(baseline, kept), np.take(scores, kept)
        axes.hlines(places, old, new, color=BASE, lw=1.2)
        axes.plot(old, places, "o", mfc="none", color=BASE, label="baseline")
        axes.plot(new, places, "o", color=ACCENT, label=shorten(name))
        axes.set_yticks(places, [shorten(classes[number], 20) for number in kept])
        axes.set(xlabel="F1, out of fold", ylim=(len(kept) - 0.5, -0.5))
        legend_below(drawn.figure)
    return drawn.svg


def _columns(pairs: Sequence[tuple[float, float]]) -> tuple[list[float], list[float]]:
    return [first for first, _ in pairs], [second for _, second in pairs]
