"""Write `report.html` and `report.md` of an ablation from ablation.json and its run folders."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from competition_kit.data.competition import load_competition
from competition_kit.errors import InputError
from competition_kit.files import atomic_write, read_json
from competition_kit.results.report.ablation_file import read_ablation
from competition_kit.results.report.ablation_plots import cost_plot, forest_plot, pair_plot
from competition_kit.results.report.ablation_words import facts, headline
from competition_kit.results.report.curves import Curve, read_curve
from competition_kit.results.report.page import render_html, render_markdown
from competition_kit.results.report.plots import (
    MOST_CLASSES,
    confusion_plot,
    curve_plot,
    f1_plot,
)
from competition_kit.results.report.predictions import (
    Predictions,
    class_scores,
    confusion,
    find_flips,
    read_predictions,
)

__all__ = ["write_ablation_report"]

# what costs are called; the first one that is known stands in the plot
COSTS = {"time": "training time", "passes": "passes"}


def write_ablation_report(folder: Path, *, examples: bool = True) -> tuple[Path, Path]:
    """Write both reports into an ablation's folder; return the paths of HTML and Markdown.

    Args:
        folder: `runs/<competition>/ablation-<name>/`; the arms' run folders stand beside it.
        examples: show training rows whose prediction an arm changes (in HTML only). Leave them
            out where the data may not be passed on.

    Raises:
        InputError: if ablation.json is not there, or a file of the runs is damaged.
        ModuleNotFoundError: without Jinja2 or matplotlib.
    """
    ablation = read_ablation(folder)
    competition, arms = ablation["competition"], ablation["arms"]
    baseline = next((arm for arm in arms if arm["role"] == "baseline"), None)
    first = _read_member(baseline, folder.parent, competition) if baseline else None
    settings = first.settings if first else {}
    content = {
        "ablation": ablation,
        "headline": headline(ablation),
        "facts": facts(ablation, settings),
        "sections": [
            _section(number, _read_member(arm, folder.parent, competition), first, competition)
            for number, arm in enumerate(arms)
            if arm is not baseline
        ],
    }
    page = render_html(
        "ablation.html.j2",
        **content,
        **_overview(ablation),
        examples=examples,
        texts=_texts(competition["folder"], settings.get("data_hash")) if examples else {},
    )
    text = render_markdown("ablation.md.j2", **content)
    html, markdown = folder / "report.html", folder / "report.md"
    for path, written in ((html, page), (markdown, text)):
        with atomic_write(path) as file:
            file.write(written)
    return html, markdown


@dataclass(frozen=True)
class _Member:
    """An arm with what its run folder holds; None and {} for what is not there."""

    arm: dict[str, Any]
    settings: dict[str, Any]
    curve: Curve | None
    predictions: Predictions | None


def _read_member(arm: dict[str, Any], runs: Path, competition: dict[str, Any]) -> _Member:
    # averaged models have no folder of their own: they borrow that of one of their parts
    if arm["folder"] is None or arm["role"] == "equal seeds":
        return _Member(arm, {}, None, None)
    run, multi_label = runs / arm["folder"], competition["task"] == "multi_label"
    return _Member(
        arm,
        read_json(run / "config.json")["arm"] if (run / "config.json").is_file() else {},
        read_curve(run, arm["seeds"]),
        read_predictions(run, competition["classes"], multi_label, arm["seeds"]),
    )


def _overview(ablation: dict[str, Any]) -> dict[str, str | None]:
    """Return the plots of all arms together; None where there is nothing to draw."""
    shown = [x for x in ablation["arms"] if x["delta"] is not None and x["role"] != "baseline"]
    known = {cost: sum(arm["cost"][cost] is not None for arm in shown) for cost in COSTS}
    cost = max(COSTS, key=known.__getitem__)  # the first of equals
    design = ablation["design"]
    return {
        "forest": forest_plot("forest", shown, design["rope"], design["level"]) if shown else None,
        "costs": cost_plot("cost", shown, cost, COSTS[cost]) if known[cost] else None,
    }


def _section(
    number: int, member: _Member, baseline: _Member | None, competition: dict[str, Any]
) -> dict[str, Any]:
    """Return what is shown of one arm beside the baseline; None for what is not known."""
    arm, name = member.arm, member.arm["arm"]
    shown: dict[str, Any] = dict.fromkeys(("pairs", "curves", "classes", "flips"))
    if baseline is not None:
        shown["pairs"] = pair_plot(
            f"pairs{number}",
            arm,
            baseline.arm,
            competition["metric"],
            competition["greater_is_better"],
        )
        if member.predictions is not None and baseline.predictions is not None:
            key, both = f"classes{number}", (member.predictions, baseline.predictions)
            shown["classes"] = _class_plot(key, name, *both)
            shown["flips"] = find_flips(before=baseline.predictions, after=member.predictions)
    if member.curve is not None:
        title = f"Learning curves of the baseline and {name}"
        before = baseline.curve if baseline is not None else None
        shown["curves"] = curve_plot(f"curve{number}", title, member.curve, name, before)
    return {"arm": arm, **shown}


def _class_plot(key: str, name: str, arm: Predictions, baseline: Predictions) -> str:
    """Draw a confusion matrix; for several labels, or many classes, F1 of each."""
    if arm.multi_label or len(arm.classes) > MOST_CLASSES:
        scores = [[row["f1"] for row in class_scores(x)] for x in (arm, baseline)]
        return f1_plot(key, name, arm.classes, *scores)
    title = f"Confusion matrix of {name}, out of fold"
    return confusion_plot(key, title, arm.classes, confusion(arm), confusion(baseline))


def _texts(folder: str | None, data_hash: str | None) -> dict[str, tuple[str, ...]]:
    """Return the training texts by id; none if the folder is not what the arms were trained on."""
    if folder is None:
        return {}
    try:
        competition = load_competition(Path(folder))
    except (InputError, OSError):
        return {}
    if competition.data_hash != data_hash:
        return {}
    return dict(zip(competition.train.ids, competition.train.texts, strict=True))
