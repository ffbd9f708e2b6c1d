"""Build `report.html` of an ensemble from its config.json and metrics.json."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from competition_kit.files import NUMBER, SCORE, Wanted, atomic_write, read_json
from competition_kit.harness.run_folder import RunFolder
from competition_kit.results.report.ablation_plots import forest_plot
from competition_kit.results.report.ensemble_plots import (
    MOST_MEMBERS,
    adds_plot,
    correlation_plot,
    short_names,
    weight_plot,
)
from competition_kit.results.report.page import render_html

__all__ = ["write_ensemble_report"]

# what the page says of config.json and metrics.json
_CONFIG: Wanted = {
    "rules.title": str,
    "classes.*": str,
    "train_rows": int,
    **dict.fromkeys(("command", "version", "versions.*", "data_hash", "fold_hash"), str),
}
_METRICS: Wanted = {
    **dict.fromkeys(("metric", "method", "conclusions.*"), str),
    "greater_is_better": bool,
    **dict.fromkeys(("mean", "sd", "oof_of_mean"), SCORE),
    **dict.fromkeys(("methods.*.name", "methods.*.summary"), str),
    "methods.*.learns": bool,
    "methods.*.weights": list | None,
    **{f"methods.*.{key}": SCORE for key in ("score", "in_sample")},
    **{f"methods.*.over_mean.{key}": SCORE for key in ("delta", "low", "high")},
    "methods.*.over_mean.level": NUMBER,
    "methods.*.over_mean.verdict": str,
    "members.*.name": str,
    "members.*.seeds": int,
    **{f"members.*.{key}": SCORE for key in ("score", "error_correlation", "adds")},
    "error_correlation.*.*": SCORE,
    "rule": dict | None,
}
_HELD_OUT: Wanted = {"score": NUMBER, "rows": int}


def write_ensemble_report(folder: RunFolder) -> Path:
    """Write `report.html` into an ensemble's folder; return its path.

    Raises:
        ModuleNotFoundError: without Jinja2 or matplotlib.
    """
    config, metrics = read_json(folder.config, _CONFIG), read_json(folder.metrics, _METRICS)
    page = render_html(
        "ensemble.html.j2",
        config=config,
        metrics=metrics,
        held_out=read_json(folder.held_out, _HELD_OUT) if folder.held_out.is_file() else None,
        methods=[_with_optimism(method, metrics) for method in metrics["methods"]],
        weights={method["name"]: method["weights"] for method in metrics["methods"]},
        plots=_plots(metrics),
    )
    with atomic_write(folder.report) as file:
        file.write(page)
    return folder.report


def _with_optimism(method: dict[str, Any], metrics: dict[str, Any]) -> dict[str, Any]:
    score, in_sample = method["score"], method["in_sample"]
    if not method["learns"] or score is None or in_sample is None:
        return {**method, "optimism": None}
    sign = 1 if metrics["greater_is_better"] else -1
    return {**method, "optimism": sign * (in_sample - score)}


def _plots(metrics: dict[str, Any]) -> dict[str, str | None]:
    """Return the pictures; None where there is nothing to draw."""
    members = metrics["members"]
    names = short_names([member["name"] for member in members])
    if len(members) < 2:
        return dict.fromkeys(("methods", "correlation", "weights", "adds"))
    weights = {method["name"]: method["weights"] for method in metrics["methods"]}
    compared = [
        {"arm": method["name"], "role": "arm", **method["over_mean"]}
        for method in metrics["methods"]
        if method["name"] != "mean"
    ]
    return {
        "methods": forest_plot("methods", compared, None, compared[0]["level"]),
        "correlation": correlation_plot("correlation", names, metrics["error_correlation"])
        if len(members) <= MOST_MEMBERS
        else None,
        "weights": weight_plot("weights", names, weights["greedy"], weights["weights"]),
        "adds": adds_plot("adds", names, [member["adds"] for member in members], metrics["method"]),
    }
