"""Build `report.html` of one run from config.json, metrics.json, oof.csv and the cells' logs."""

from __future__ import annotations

import io
import json
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from competition_kit.data.tables import read_table
from competition_kit.files import atomic_write, read_json
from competition_kit.harness.run_folder import RunFolder
from competition_kit.results.oof import split_labels
from competition_kit.results.tables import duration, score_text

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["write_run_report"]

MOST_CLASSES = 20  # in the confusion matrix; more would be unreadable
BLUE, GREY = "#3b76c4", "#8a8f98"  # readable on white and on dark


def write_run_report(folder: RunFolder) -> Path:
    """Write `report.html` into a finished run folder; return its path.

    Raises:
        ModuleNotFoundError: without Jinja2 or matplotlib.
    """
    import jinja2

    config, metrics = read_json(folder.config), read_json(folder.metrics)
    held_out = read_json(folder.held_out) if folder.held_out.is_file() else None
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,  # titles, class names and ids are other people's text
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(score=score_text, duration=duration)
    oof = read_table(folder.oof)
    page = environment.get_template("run.html.j2").render(
        config=config,
        metrics=metrics,
        held_out=held_out,
        scores=_svg(_score_figure(metrics)),
        curves=_svg(_curve_figure(folder)),
        classes=_class_table(oof, config),
        confusion=_svg(_confusion_figure(oof, config)) if _has_matrix(config) else None,
    )
    with atomic_write(folder.report) as file:
        file.write(page)
    return folder.report


def _has_matrix(config: dict[str, Any]) -> bool:
    return config["rules"]["task"] == "single_label" and len(config["classes"]) <= MOST_CLASSES


def _decisions(oof: pd.DataFrame, config: dict[str, Any]) -> tuple[list[str], list[str]]:
    """Return true and predicted class of each OOF row (single label)."""
    columns = [f"p_{name}" for name in config["classes"]]
    numbers = oof[columns].astype(float).to_numpy().argmax(axis=1)
    return oof["label"].tolist(), [config["classes"][number] for number in numbers]


def _class_table(oof: pd.DataFrame, config: dict[str, Any]) -> list[dict[str, Any]]:
    """Return name, rows, precision, recall and F1 of each class, on the out-of-fold rows."""
    from sklearn.metrics import precision_recall_fscore_support
    from sklearn.preprocessing import MultiLabelBinarizer

    from competition_kit.results.metrics import THRESHOLD

    classes = config["classes"]
    if config["rules"]["task"] == "single_label":
        scores = precision_recall_fscore_support(
            *_decisions(oof, config), labels=classes, zero_division=0
        )
    else:
        names = [split_labels(cell, classes) for cell in oof["label"]]
        truth = MultiLabelBinarizer(classes=classes).fit_transform(names)
        columns = [f"p_{name}" for name in classes]
        guess = oof[columns].astype(float).to_numpy() >= THRESHOLD
        scores = precision_recall_fscore_support(truth, guess, zero_division=0)
    seeds = oof["seed"].nunique()
    return [
        {
            "name": name,
            "rows": int(rows) // seeds,
            "precision": p,
            "recall": r,
            "f1": f1,
        }
        for name, p, r, f1, rows in zip(classes, *scores, strict=True)
    ]


def _new_figure(width: float, height: float) -> Figure:
    from matplotlib.figure import Figure  # the class alone: no window, no global state

    figure = Figure(figsize=(width, height), layout="constrained")
    figure.patch.set_alpha(0)
    return figure


def _plain_axes(axes: Any) -> None:
    """Take off what is not needed; grey reads on light and dark pages alike."""
    axes.patch.set_alpha(0)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set_color(GREY)
    axes.tick_params(colors=GREY)
    for label in (axes.xaxis.label, axes.yaxis.label):
        label.set_color(GREY)


def _score_figure(metrics: dict[str, Any]) -> Figure:
    """Draw one dot for each cell, the floor's scores beside them."""
    figure = _new_figure(6, 2.6)
    axes = figure.subplots()
    names = list(dict.fromkeys(cell["fold"] for cell in metrics["cells"]))
    place = {name: number for number, name in enumerate(names)}
    cells = [cell for cell in metrics["cells"] if cell["score"] is not None]
    axes.plot(
        [place[c["fold"]] for c in cells],
        [c["score"] for c in cells],
        "o",
        color=BLUE,
        label="encoder",
    )
    floors = [(n, s) for n, s in enumerate(metrics["floor"]["folds"]) if s is not None]
    axes.plot(
        [n for n, _ in floors],
        [s for _, s in floors],
        "_",
        ms=16,
        color=GREY,
        label="TF-IDF floor",
    )
    axes.set_xticks(range(len(names)), names)
    axes.set(xlabel="fold", ylabel=metrics["metric"], xlim=(-0.5, len(names) - 0.5))
    _plain_axes(axes)
    figure.legend(loc="outside right upper", frameon=False, labelcolor=GREY)
    return figure


def _curve_figure(folder: RunFolder) -> Figure:
    """Draw the training loss of each cell over its epochs."""
    figure = _new_figure(6, 2.6)
    axes = figure.subplots()
    for log in sorted(folder.path.glob("cells/*/log.jsonl")):
        lines = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]
        axes.plot(
            [x["epoch"] for x in lines],
            [x["loss"] for x in lines],
            lw=0.8,
            color=BLUE,
            alpha=0.6,
        )
    axes.set(xlabel="epoch", ylabel="training loss, first pass")
    _plain_axes(axes)
    return figure


def _confusion_figure(oof: pd.DataFrame, config: dict[str, Any]) -> Figure:
    """Draw shares of each true class, out of fold."""
    from sklearn.metrics import confusion_matrix

    classes = config["classes"]
    matrix = confusion_matrix(*_decisions(oof, config), labels=classes, normalize="true")
    size = 1.6 + 0.45 * len(classes)
    figure = _new_figure(size + 1.2, size)
    axes = figure.subplots()
    axes.imshow(matrix, cmap="Blues", vmin=0, vmax=1)
    for row, values in enumerate(matrix):
        for column, value in enumerate(values):
            color = "white" if value > 0.5 else "black"
            axes.text(
                column,
                row,
                f"{value:.2f}",
                ha="center",
                va="center",
                fontsize=8,
                color=color,
            )
    shown = [_plain(name) for name in classes]
    axes.set_xticks(range(len(classes)), shown, rotation=45, ha="right")
    axes.set_yticks(range(len(classes)), shown)
    axes.set(xlabel="predicted", ylabel="true")
    _plain_axes(axes)
    return figure


def _plain(name: str) -> str:
    """Return a class name as matplotlib draws it: no mathematics between dollar signs."""
    return (name if len(name) <= 24 else name[:23] + "…").replace("$", r"\$")


def _svg(figure: Figure) -> Any:
    """Return a figure as inline SVG; text stays text, drawn in the page's font."""
    import matplotlib
    from markupsafe import Markup

    buffer = io.StringIO()
    nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))  # no links to vocabularies
    with (
        warnings.catch_warnings(),
        matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "kit"}),
    ):
        # 好: matplotlib's own font only measures the text, the page's font draws it
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        figure.savefig(buffer, format="svg", metadata=nothing)
    svg = buffer.getvalue()
    return Markup(svg[svg.index("<svg") :])
