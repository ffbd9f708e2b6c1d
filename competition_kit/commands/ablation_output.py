"""What `ablate` and `compare` print: the plan before hours are spent, the deltas after."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from competition_kit.harness.ablation import Study
    from competition_kit.harness.estimate import CellCost

__all__ = ["print_across", "print_deltas", "print_plan", "print_result", "write_report"]

log = logging.getLogger(__name__)


def print_plan(
    studies: Sequence[Study],
    costs: Mapping[str, CellCost],
    workers: int,
    time_budget: float | None,
) -> None:
    """Print cells, passes and expected time of every arm, and what the design could detect."""
    from competition_kit.harness.running import Task
    from competition_kit.results.tables import duration, text_table

    total = 0.0
    for study in studies:
        plan = study.baseline.plan
        base = costs[plan.arm.hash].units * plan.arm.training["epochs"]
        rows = []
        for arm in study.everything():
            cost = costs[arm.plan.arm.hash]
            units = cost.units * arm.plan.arm.training["epochs"]
            missing = sum(Task(arm.plan, cell).found() is None for cell in arm.plan.cells)
            total += missing * cost.seconds / workers
            rows.append(
                [
                    arm.name,
                    f"{missing} of {len(arm.plan.cells)}",
                    f"{units:g}",
                    f"{units / base:.2f}x",
                    duration(missing * cost.seconds / workers),
                ]
            )
        print(
            f"\n{study.competition.name}: {len(study.competition.train)} rows, "
            f"{plan.folds.count} folds x {_count(len(plan.seeds), 'seed')}, {study.metric.name}"
        )
        print(text_table(["arm", "cells to compute", "passes", "ratio", "expected"], rows))
        print(f"  {_detectable(study)}")
    print(f"\nexpected: {duration(total)} on {workers} worker{'s' * (workers > 1)}, ", end="")
    if time_budget is None:
        print("from a few batches of each arm or its finished cells")
    else:
        fits = "all of it fits" if total <= time_budget else "what fits runs, whole pairs first"
        print(f"time budget {duration(time_budget)}: {fits}")
    print(
        "  passes of a batch over all epochs in units of one forward (a backward is 2, for the "
        "input alone 1);\n  the time is that of training: start, floor and comparison come on top"
    )


def _detectable(study: Study) -> str:
    """Say which delta the design could see, in units of the noise, and in points where known."""
    try:
        from competition_kit.harness.ablation_result import pilot_spread
        from competition_kit.results.statistics import minimum_detectable
    except ModuleNotFoundError as error:
        return f"pip install {error.name}, and the smallest delta that it could detect stands here"

    plan = study.baseline.plan
    share = 1 / (plan.folds.count - 1)
    design = {"seeds": len(plan.seeds), "folds": plan.folds.count, "test_share": share}
    data = minimum_detectable(1.0, 0.0, **design)  # type: ignore[arg-type]
    seed = minimum_detectable(0.0, 1.0, **design)  # type: ignore[arg-type]
    if data.detectable is None or seed.detectable is None:
        return f"smallest delta that it could detect: {data.note or seed.note}"
    said = (
        f"smallest true delta that it finds 4 times in 5: {seed.detectable:.2f} SD of the paired "
        f"differences if their noise is the seeds', {data.detectable:.2f} SD if it is the data's"
    )
    spread = pilot_spread(study)
    if spread is not None:
        said += f"; by the cells on disk (SD {spread:.4f}) at least {seed.detectable * spread:.4f}"
    return said


def print_result(content: Mapping[str, Any], folder: Path, reports: Sequence[Path]) -> None:
    """Print the deltas of one competition, and where everything was written."""
    competition, design = content["competition"], content["design"]
    direction = "" if competition["greater_is_better"] else ", lower is better"
    print(
        f"\n{competition['name']}: {competition['metric']}{direction}, "
        f"{len(design['folds'])} folds x {_count(len(design['seeds']), 'seed')}"
    )
    print_deltas(content["arms"])
    print(
        f"  delta: positive is better; {design['level']:.0%} interval of each arm alone; p, and the "
        "verdict with it, adjusted (Holm)\n  over the declared arms; over exploratory arms and over "
        "what has equal compute among themselves"
    )
    print(f"  practically the same: within {design['rope']:.4f}; {design['rope_source']}")
    print("  w-t-l: pairs of one seed and fold in which the arm won, tied, lost")
    for title, key, name in (
        ("at equal compute", "equal_compute", "arm"),
        ("interactions", "interactions", "pair"),
    ):
        if content[key]:
            print(f"\n{title}:")
            for found in content[key]:
                against = f" against {found['against']}" if "against" in found else ""
                print(f"  {found[name]}{against}: {found['sentence']}")
    for line in design["missing"]:
        log.warning("%s: incomplete: %s", competition["name"], line)
    if design["missing"]:
        log.warning("the same command without --time-budget computes what is missing")
    if design["seeds_added_after_a_look"]:
        log.warning(
            "seeds %s were added after a first look at results: p-values are too small for that",
            " ".join(map(str, design["seeds_added_after_a_look"])),
        )
    print("written:")
    for path in (folder / "deltas.csv", folder / "ablation.json", *reports):
        print(f"  {path}")


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'s' * (number != 1)}"


def print_deltas(arms: Sequence[Mapping[str, Any]]) -> None:
    """Print one line per arm."""
    from competition_kit.results.tables import score_text, text_table

    header = ["arm", "CV mean", "delta", "interval", "p", "w-t-l", "passes", "verdict"]
    held_out = any(arm["held_out"] is not None for arm in arms)
    if held_out:
        header[6:6] = ["held-out", "held-out delta"]
    rows = []
    for arm in arms:
        known = arm["delta"] is not None
        p_value = arm["p_value"] if arm["p_holm"] is None else arm["p_holm"]
        row = [
            arm["arm"] + (" (exploratory)" if arm["role"] == "exploratory" else ""),
            score_text(arm["mean"]),
            f"{arm['delta']:+.4f}" if known else "",
            _interval(arm),
            "" if p_value is None else f"{p_value:.3f}",
            _wins(arm),
            _times(arm["cost"]["passes"]),
            _verdict(arm),
        ]
        if held_out:
            delta = arm["held_out_delta"]
            row[6:6] = [
                score_text(arm["held_out"]),
                f"{delta['delta']:+.4f} {_interval(delta)}" if delta else "",
            ]
        rows.append(row)
    print(text_table(header, rows))


def _wins(arm: Mapping[str, Any]) -> str:
    """Return won, tied and lost cells."""
    if not arm["pairs"]:
        return ""
    return f"{arm['wins']}-{arm['ties']}-{arm['pairs'] - arm['wins'] - arm['ties']}"


def _verdict(arm: Mapping[str, Any]) -> str:
    if arm["role"] != "baseline" and not arm["pairs"]:
        return "not run"
    return f"noise: {arm['verdict']}" if arm["role"] == "a/a" else arm["verdict"]


def _interval(numbers: Mapping[str, Any]) -> str:
    low, high = numbers["low"], numbers["high"]
    return "" if low is None or high is None else f"[{low:+.4f}, {high:+.4f}]"


def _times(ratio: float | None) -> str:
    return "-" if ratio is None else f"{ratio:.2f}x"


def write_report(folder: Path) -> list[Path]:
    """Write the reports; the numbers stand without the packages that these need."""
    from competition_kit.results.report import write_ablation_report

    try:
        return list(write_ablation_report(folder))
    except ModuleNotFoundError as error:
        log.warning("no report.html: %s is missing; pip install %s", error.name, error.name)
        return []


def print_across(contents: Sequence[Mapping[str, Any]]) -> None:
    """Rank the arms over several competitions, where there are enough of them."""
    if len(contents) < 2:
        return
    import pandas as pd

    from competition_kit.results.statistics import across_data_sets

    table = pd.DataFrame(
        {
            content["competition"]["name"]: {
                arm["arm"]: (1 if content["competition"]["greater_is_better"] else -1) * arm["mean"]
                for arm in content["arms"]
                if arm["role"] in ("baseline", "arm", "pair") and arm["mean"] is not None
            }
            for content in contents
        }
    ).T.dropna(axis=1)
    print(f"\nacross competitions: {across_data_sets(table).text}")
