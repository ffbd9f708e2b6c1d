"""Write `report.html`, `report.md` and its pictures, from ablation.json and the run folders."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from competition_kit.data.competition import load_competition
from competition_kit.errors import InputError
from competition_kit.files import atomic_write, read_json
from competition_kit.results.report.ablation_file import read_ablation
from competition_kit.results.report.ablation_plots import (
    cost_plot,
    fold_means,
    forest_plot,
    pair_plot,
)
from competition_kit.results.report.ablation_words import facts, headline
from competition_kit.results.report.across import (
    across_rows,
    across_table,
    write_overview_report,
)
from competition_kit.results.report.curves import Curve, read_curve
from competition_kit.results.report.page import (
    markdown_table,
    render_html,
    render_markdown,
    write_both,
)
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
from competition_kit.results.report.svg import standalone
from competition_kit.results.tables import score_text

__all__ = ["write_ablation_report"]

# what costs are called; the first one that is known stands in the plot
COSTS = {"time": "training time", "passes": "passes"}
FIGURES = "figures"  # folder of the pictures that the Markdown shows
PICTURES = ("pairs", "curves", "classes")  # of an arm


def write_ablation_report(folder: Path, *, examples: bool = True) -> tuple[Path, Path]:
    """Write both reports into an ablation's folder; return the paths of HTML and Markdown.

    The HTML holds its pictures; those of the Markdown go to the folder `figures`.

    Args:
        folder: `runs/<competition>/ablation-<name>/`, the arms' run folders beside it; or
            `runs/ablation-<name>/`, of several competitions.
        examples: show training rows whose prediction an arm changes (in HTML only). Leave them
            out where the data may not be passed on.

    Raises:
        InputError: if ablation.json is not there, or a file of the runs is damaged.
        ModuleNotFoundError: without Jinja2 or matplotlib.
    """
    path = folder / "ablation.json"
    content = read_json(path) if path.is_file() else {}
    if "across" in content and "competition" not in content:
        return write_overview_report(folder, content)
    ablation = read_ablation(folder)
    competition, arms = ablation["competition"], ablation["arms"]
    baseline = next((arm for arm in arms if arm["role"] == "baseline"), None)
    first = _read_member(baseline, folder.parent, competition) if baseline else None
    settings = first.settings if first else {}
    members = [_read_member(arm, folder.parent, competition) for arm in arms if arm is not baseline]
    across, overview = ablation["across"], _overview(ablation)
    sections = [
        _section(number, member, first, competition) for number, member in enumerate(members, 1)
    ]
    shown = {
        "ablation": ablation,
        "headline": headline(ablation),
        "facts": facts(ablation, settings),
        "sections": sections,
        "across": across,
    }
    page = render_html(
        "ablation.html.j2",
        **shown,
        **overview,
        across_rows=across_rows(across) if across else [],
        examples=examples,
        texts=_texts(competition["folder"], settings.get("data_hash")) if examples else {},
    )
    text = render_markdown(
        "ablation.md.j2",
        **shown,
        figures=_write_figures(folder / FIGURES, overview, sections),
        fold_scores=_fold_scores(ablation),
        class_f1=_class_f1([first, *members] if first else members),
        across_table=across_table(across) if across else "",
    )
    return write_both(folder, page, text)


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
        read_json(run / "config.json", {"arm.training?": dict})["arm"]
        if (run / "config.json").is_file()
        else {},
        read_curve(run, arm["seeds"]),
        read_predictions(
            run, competition["classes"], multi_label, arm["seeds"], competition["train_rows"]
        ),
    )


def _overview(ablation: dict[str, Any]) -> dict[str, str | None]:
    """Return the plots of all arms together; None where there is nothing to draw."""
    shown = [x for x in ablation["arms"] if x["delta"] is not None and x["role"] != "baseline"]
    known = {cost: sum(arm["cost"][cost] is not None for arm in shown) for cost in COSTS}
    cost = max(COSTS, key=known.__getitem__)  # the first of equals
    design, metric = ablation["design"], ablation["competition"]["metric"]
    return {
        "forest": forest_plot("forest", shown, design["rope"], design["level"], metric)
        if shown
        else None,
        "costs": cost_plot("cost", shown, cost, COSTS[cost], metric) if known[cost] else None,
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


def _write_figures(
    folder: Path, overview: dict[str, str | None], sections: list[dict[str, Any]]
) -> dict[str, str]:
    """Write each picture as a file, and remove those of an earlier report; return their paths.

    The key of an arm's picture is its number and what is shown, such as "1-pairs".
    """
    pictures = {**overview}
    for number, section in enumerate(sections, 1):
        pictures |= {f"{number}-{name}": section[name] for name in PICTURES}
    drawn = {key: svg for key, svg in pictures.items() if svg}
    for old in folder.glob("*.svg"):
        if old.stem not in drawn:
            old.unlink()
    for key, svg in drawn.items():
        with atomic_write(folder / f"{key}.svg") as file:
            file.write(standalone(svg))
    return {key: f"{folder.name}/{key}.svg" for key in drawn}


def _fold_scores(ablation: dict[str, Any]) -> str:
    """Return each arm's score on each fold, mean over seeds, as a table in Markdown."""
    folds = [f"fold {name}" for name in ablation["design"]["folds"]]
    rows = [[arm["arm"], *map(score_text, fold_means(arm))] for arm in ablation["arms"]]
    whole = [row for row in rows if len(row) == 1 + len(folds)]
    return markdown_table(["arm", *folds], whole) if whole and folds else ""


def _class_f1(members: list[_Member]) -> str:
    """Return each arm's F1 of each class, out of fold, as a table in Markdown."""
    known = {m.arm["arm"]: m.predictions for m in members if m.predictions is not None}
    if not known:
        return ""
    scores = {name: class_scores(found) for name, found in known.items()}
    classes = next(iter(scores.values()))
    rows = [
        [row["name"], str(row["rows"]), *(score_text(found[n]["f1"]) for found in scores.values())]
        for n, row in enumerate(classes)
    ]
    return markdown_table(["class", "rows", *scores], rows)


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
