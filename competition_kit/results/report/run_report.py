"""Build `report.html` of one run from config.json, metrics.json, oof.csv and the cells' logs."""

from __future__ import annotations

from pathlib import Path

from competition_kit.errors import InputError
from competition_kit.files import NUMBER, SCORE, Wanted, atomic_write, read_json
from competition_kit.harness.run_folder import RunFolder
from competition_kit.results.report.curves import read_curve
from competition_kit.results.report.page import render_html
from competition_kit.results.report.plots import (
    MOST_CLASSES,
    confusion_plot,
    curve_plot,
    fold_score_plot,
)
from competition_kit.results.report.predictions import (
    class_scores,
    confusion,
    read_predictions,
)

__all__ = ["write_run_report"]

# what the page says of config.json and metrics.json
_CONFIG: Wanted = {
    "rules.title": str,
    "rules.task": str,
    "classes.*": str,
    "train_rows": int,
    "test_rows": int,
    **{f"arm.{key}": str for key in ("model", "strategy", "tricks", "pooling", "version")},
    **{f"arm.{key}": str for key in ("data_hash", "fold_hash")},
    "arm.dropout": NUMBER | None,
    "arm.max_length": int,
    "arm.training": dict,
    "placement.workers": int,
    "command": str,
    "versions.*": str,
    "git_commit": str | None,
}
_METRICS: Wanted = {
    "metric": str,
    "greater_is_better": bool,
    **dict.fromkeys(("mean", "sd", "oof_of_mean", "floor.mean", "floor.folds.*"), SCORE),
    "passes.*": NUMBER,
    "cells.*.seed": int,
    "cells.*.fold": str,
    "cells.*.score": SCORE,
    **{f"cells.*.{key}": NUMBER for key in ("fit_seconds", "shift_norm", "peak_memory_mb")},
    "cells.*.device": str,
}
_HELD_OUT: Wanted = {"score": NUMBER, "rows": int}


def write_run_report(folder: RunFolder) -> Path:
    """Write `report.html` into a finished run folder; return its path.

    Raises:
        InputError: if a file of the run is missing or damaged.
        ModuleNotFoundError: without Jinja2 or matplotlib.
    """
    import jinja2  # noqa: F401  so that this one is named first where both are missing

    config, metrics = read_json(folder.config, _CONFIG), read_json(folder.metrics, _METRICS)
    classes, multi_label = config["classes"], config["rules"]["task"] == "multi_label"
    # config.json may name other seeds: a later command with other ones writes it before it trains
    seeds = list(dict.fromkeys(cell["seed"] for cell in metrics["cells"]))
    predictions = read_predictions(folder.path, classes, multi_label, seeds, config["train_rows"])
    if predictions is None:
        raise InputError(
            "no predictions", file=folder.oof, remedy="run the command that made it again"
        )
    curve = read_curve(folder.path, seeds)
    has_matrix = not multi_label and len(classes) <= MOST_CLASSES
    page = render_html(
        "run.html.j2",
        config=config,
        metrics=metrics,
        seeds=seeds,
        held_out=read_json(folder.held_out, _HELD_OUT) if folder.held_out.is_file() else None,
        scores=fold_score_plot("scores", metrics),
        curves=curve_plot("curves", "Learning curves of the cells", curve) if curve else None,
        classes=class_scores(predictions),
        confusion=confusion_plot(
            "confusion", "Confusion matrix, out of fold", classes, confusion(predictions)
        )
        if has_matrix
        else None,
    )
    with atomic_write(folder.report) as file:
        file.write(page)
    return folder.report
