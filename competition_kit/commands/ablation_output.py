"""What `ablate` and `compare` print: the plan before hours are spent, the deltas after."""

from __future__ import annotations

import logging
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from competition_kit.commands.output import report_if_possible
from competition_kit.results.tables import duration, metric_text, score_text, text_table

if TYPE_CHECKING:
    from competition_kit.harness.ablation import Study
    from competition_kit.harness.estimate import CellCost

__all__ = [
    "print_across",
    "print_deltas",
    "print_legend",
    "print_plan",
    "print_result",
    "write_report",
]

log = logging.getLogger(__name__)

WIDTH = 100  # columns of what is printed


def print_plan(
    studies: Sequence[Study],
    costs: Mapping[str, CellCost],
    workers: int,
    time_budget: float | None,
) -> None:
    """Print cells, passes and expected time of every arm, and what the design could detect."""
    from competition_kit.harness.running import Task

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
        _say(_detectable(study))
    print(f"\nexpected: {duration(total)} on {workers} worker{'s' * (workers > 1)}, ", end="")
    if time_budget is None:
        print("from a few batches of each arm or its finished cells")
    else:
        fits = "all of it fits" if total <= time_budget else "what fits runs, whole pairs first"
        print(f"time budget {duration(time_budget)}: {fits}")
    _say(
        "passes of a batch over all epochs in units of one forward (a backward is 2, for the "
        "input alone 1), ratio to the baseline's; the time is that of training: start, floor and "
        "comparison come on top"
    )


def _detectable(study: Study) -> str:
    """Say which delta the design could see, in units of the noise, and in points where known."""
    try:
        from competition_kit.harness.ablation_result import pilot_spread, rows_tell
        from competition_kit.results.statistics import found_by, too_small
    except ModuleNotFoundError as error:
        return f"pip install {error.name}, and the smallest delta that it could detect stands here"

    plan = study.baseline.plan
    seeds, folds, tell = len(plan.seeds), plan.folds.count, rows_tell(plan)
    if said := too_small(seeds, folds, rows_tell=tell):
        return said
    least, most = found_by(seeds, folds, rows_tell=tell)
    said = "smallest true delta that it finds 4 times in 5, in SD of the paired differences: "
    said += (
        f"{least:.2f} if their noise is the seeds', {most:.2f} if it is the data's"
        if most > least
        else f"{least:.2f}; a second seed would tell the noise of seeds from the data's"
    )
    spread = pilot_spread(study)
    if spread is not None:
        unit = study.metric.name
        said += (
            f". By the cells on disk (SD {spread:.4f} {unit}) at least {least * spread:.4f} {unit}"
        )
    return said


def print_result(content: Mapping[str, Any]) -> None:
    """Print the deltas of one competition, and what one must know to believe them."""
    from competition_kit.results.cut_batches import caution
    from competition_kit.results.report.ablation_words import commits

    competition, design = content["competition"], content["design"]
    metric = competition["metric"]
    print(
        f"\n{competition['name']}: {metric_text(metric, competition['greater_is_better'])}, "
        f"{len(design['folds'])} folds x {_count(len(design['seeds']), 'seed')}"
    )
    on_cpu = content["machine"]["device"] == "cpu"
    print_deltas(content["arms"], level=design["level"], on_cpu=on_cpu)
    _say(f"practically the same: within ±{design['rope']:.4f} {metric}; {design['rope_source']}")
    for title, key, name in (
        ("at equal compute", "equal_compute", "arm"),
        ("interactions", "interactions", "pair"),
    ):
        if content[key]:
            print(f"\n{title}, in {metric}:")
            for found in content[key]:
                against = f" against {found['against']}" if "against" in found else ""
                p_value = "" if found["p_holm"] is None else f", p {found['p_holm']:.3f} (Holm)"
                _say(f"{found[name]}{against}: {found['sentence']}{p_value}")
    if design["too_small"]:
        log.warning("%s: %s", competition["name"], design["too_small"])
    for line in design["missing"]:
        log.warning("%s: incomplete: %s", competition["name"], line)
    if design["missing"]:
        log.warning("the same command without --time-budget computes what is missing")
    if design["seeds_added_after_a_look"]:
        log.warning(
            "seeds %s were added after a first look at results: p-values are too small for that",
            " ".join(map(str, design["seeds_added_after_a_look"])),
        )
    for said in (commits(content["cell_commits"]), caution(content["cut_batches"])):
        if said:
            log.warning("%s: %s", competition["name"], said)


def print_across(across: Mapping[str, Any]) -> None:
    """Print what several competitions say together."""
    print("\nacross competitions:")
    _say(across["text"])


def print_legend() -> None:
    """Print the units of all that `print_deltas` prints, and what is adjusted."""
    print()
    _say(
        "CV mean, SD over folds, deltas and intervals are in the metric; delta: positive is "
        "better, its interval is of each arm alone; p, and the verdict with it: Holm-adjusted over "
        "the declared arms (A/A's is not), over exploratory arms and over what has equal compute "
        "among themselves; w-t-l: pairs of one seed and fold in which the arm won, tied, lost; "
        "passes, time of training (on a CPU processor time) and peak memory are multiples of the "
        "baseline's; P: that the true delta is better, practically the same, worse; held-out: on "
        "held-back labels"
    )


def print_deltas(arms: Sequence[Mapping[str, Any]], *, level: float, on_cpu: bool) -> None:
    """Print what each arm gives and costs; no delta without its interval.

    Args:
        level: of the intervals.
        on_cpu: time is processor time: the clock also counts what else runs on the machine.
    """
    interval = f"[{level:.0%} interval]"
    _print_table(
        ["arm", "CV mean (SD)", f"delta {interval}", "p", "w-t-l", "verdict"],
        [[_name(arm), _mean(arm), _delta(arm), _p(arm), _wins(arm), _verdict(arm)] for arm in arms],
    )
    held_out = any(arm["held_out"] is not None for arm in arms)
    time = "cpu_seconds" if on_cpu else "seconds"
    print()
    _print_table(
        ["arm", "passes", "time", "memory", "P better/same/worse"]
        + (["held-out", f"delta {interval}"] if held_out else []),
        [
            [_name(arm)]
            + [_times(arm["cost"][cost]) for cost in ("passes", time, "peak_memory")]
            + [_chances(arm)]
            + ([score_text(arm["held_out"]), _delta(arm["held_out_delta"])] if held_out else [])
            for arm in arms
        ],
    )
    noted: dict[str, list[str]] = {}
    for arm in arms:
        if arm["role"] != "baseline" and (note := arm["note"] or arm["failure"]):
            noted.setdefault(note, []).append(arm["arm"])
    for note, names in noted.items():
        _say(f"{', '.join(names)}: {note}")


def _print_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a table of at most `WIDTH` columns: names that are too long get a line of their own."""
    others = text_table(["", *header[1:]], [["", *row[1:]] for row in rows]).splitlines()
    room = max(WIDTH - len(others[1]), len(header[0]))
    names = [row[0] if len(row[0]) <= room else "" for row in rows]
    lines = text_table(
        header, [[name, *row[1:]] for name, row in zip(names, rows, strict=True)]
    ).splitlines()
    print("\n".join(lines[:2]))
    for name, row, line in zip(names, rows, lines[2:], strict=True):
        if name != row[0]:
            _say(row[0])
        print(line)


def _say(text: str) -> None:
    print(
        textwrap.fill(
            text,
            WIDTH,
            initial_indent="  ",
            subsequent_indent="  ",
            break_long_words=False,
            break_on_hyphens=False,
        )
    )


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'s' * (number != 1)}"


def _name(arm: Mapping[str, Any]) -> str:
    return arm["arm"] + (" (exploratory)" if arm["role"] == "exploratory" else "")


def _mean(arm: Mapping[str, Any]) -> str:
    return score_text(arm["mean"]) + (f" ({arm['sd']:.4f})" if arm["sd"] is not None else "")


def _delta(numbers: Mapping[str, Any] | None) -> str:
    """Return a delta with its interval, never without a word on it."""
    if numbers is None or numbers["delta"] is None:
        return ""
    low, high = numbers["low"], numbers["high"]
    around = "(no interval)" if low is None or high is None else f"[{low:+.4f}, {high:+.4f}]"
    return f"{numbers['delta']:+.4f} {around}"


def _p(arm: Mapping[str, Any]) -> str:
    value = arm["p_value"] if arm["p_holm"] is None else arm["p_holm"]
    return "" if value is None else "<0.001" if value < 0.0005 else f"{value:.3f}"


def _wins(arm: Mapping[str, Any]) -> str:
    """Return won, tied and lost cells."""
    if not arm["pairs"]:
        return ""
    return f"{arm['wins']}-{arm['ties']}-{arm['pairs'] - arm['wins'] - arm['ties']}"


def _chances(arm: Mapping[str, Any]) -> str:
    chances = [arm[name] for name in ("p_better", "p_same", "p_worse")]
    return "" if None in chances else " / ".join(f"{chance:.0%}" for chance in chances)


def _verdict(arm: Mapping[str, Any]) -> str:
    if arm["role"] != "baseline" and not arm["pairs"]:
        return "not run"
    return f"noise: {arm['verdict']}" if arm["role"] == "a/a" else arm["verdict"]


def _times(ratio: float | None) -> str:
    return "-" if ratio is None else f"{ratio:.2f}x"


def write_report(folder: Path) -> list[Path]:
    """Write the reports of an ablation; return their paths, none where packages are missing."""
    from competition_kit.results.report import write_ablation_report

    return list(report_if_possible(lambda: write_ablation_report(folder)) or ())
