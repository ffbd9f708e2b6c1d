"""What `ensemble` prints: ways to blend, members, the decision rule."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

from competition_kit.commands.output import print_written
from competition_kit.files import read_json
from competition_kit.results.tables import metric_text, score_text, text_table

if TYPE_CHECKING:
    from competition_kit.data.competition import Competition
    from competition_kit.data.folds import Folds
    from competition_kit.harness.run_folder import RunFolder

__all__ = ["print_outcome", "rule_lines"]

log = logging.getLogger(__name__)

MOST_SETTINGS = 12  # lines of a rule with more classes would hide the rest


def print_outcome(
    competition: Competition, folds: Folds, folder: RunFolder, report: Path | None
) -> None:
    """Print what an ensemble's metrics.json says, and where its files are."""
    metrics = read_json(folder.metrics)
    rule, alone = metrics["rule"], len(metrics["members"]) == 1
    print(f"\n{_headline(competition, folds, metrics)}")
    if not alone:
        print(f"{_method_table(metrics)}\n\n{_member_table(metrics)}\n")
    if rule is not None:
        print("\n".join(rule_lines(rule, len(competition.train))))
    for sentence in metrics["conclusions"]:
        print(sentence)
    if rule is not None and rule["applied"] and (rule["gain"]["delta"] or 0) <= 0:
        log.warning("the decision rule gains nothing on rows that it was not fitted on")
    if not len(competition.test):
        print("the competition has no test rows: there is no submission")
    print_written((folder.oof, folder.test_predictions, folder.submission, folder.metrics, report))


def _headline(competition: Competition, folds: Folds, metrics: dict[str, Any]) -> str:
    counts = {
        "member": len(metrics["members"]),
        "seed": sum(member["seeds"] for member in metrics["members"]),
        "row": len(competition.train),
        "fold": folds.count,
    }
    counted = ", ".join(f"{count} {name}{'s' * (count != 1)}" for name, count in counts.items())
    metric = metric_text(metrics["metric"], metrics["greater_is_better"])
    return f"{competition.name}: {metric}; {counted}"


def _method_table(metrics: dict[str, Any]) -> str:
    header = ["method", "OOF", "in sample", "optimism", "over mean", "95 % interval"]
    table = text_table(header, [_method_row(row, metrics) for row in metrics["methods"]])
    return f"{table}\n  OOF: cross-fitted, each fold blended by what was fitted on the other folds"


def _method_row(row: dict[str, Any], metrics: dict[str, Any]) -> list[str]:
    found = row["over_mean"]
    name = f"{row['name']} (chosen)" if row["name"] == metrics["method"] else row["name"]
    optimism = _gain(row["in_sample"], row["score"], metrics["greater_is_better"])
    fitted = [score_text(row["in_sample"]), _signed(optimism)] if row["learns"] else ["", ""]
    compared = ["", ""] if row["name"] == "mean" else [_signed(found["delta"]), _between(found)]
    return [name, score_text(row["score"]), *fitted, *compared]


def _member_table(metrics: dict[str, Any]) -> str:
    header = ["member", "seeds", "OOF", "greedy", "weights", "error corr.", "adds"]
    weights = {row["name"]: row["weights"] for row in metrics["methods"]}
    rows = [
        [
            member["name"],
            str(member["seeds"]),
            score_text(member["score"]),
            *(f"{weights[name][number]:.2f}" for name in ("greedy", "weights")),
            score_text(member["error_correlation"]),
            _signed(member["adds"]),
        ]
        for number, member in enumerate(metrics["members"])
    ]
    return (
        f"{text_table(header, rows)}\n"
        f"  adds: what {metrics['method']} loses without the member; error corr.: with the others"
    )


def rule_lines(rule: dict[str, Any], rows: int) -> list[str]:
    """Return what a decision rule gained and what was fitted, class by class.

    Args:
        rule: as metrics.json has it.
        rows: on which it was fitted.
    """
    lines = [
        f"{rule['name']}: {score_text(rule['without'])} -> {score_text(rule['score'])} cross-fitted "
        f"({_signed(rule['gain']['delta'])} {_between(rule['gain'])}; in sample "
        f"{_signed(rule['in_sample_gain'])}); {'applied' if rule['applied'] else 'not applied'}"
    ]
    if rule["unchanged"]:
        so = ", so the submission has none" if rule["applied"] else ""
        return [*lines, f"  unchanged: on all rows no {rule['name']} beat the plain decision{so}"]
    settings, neutral = rule["settings"], rule["neutral"]
    if len(settings) == 1:
        ((name, value),) = settings.items()
        return [*lines, f"  fitted on all rows: {name} {value:.3f}"]
    shown = list(settings)
    if len(shown) > MOST_SETTINGS and neutral is not None:
        shown.sort(key=lambda name: -abs(settings[name] - neutral))
    shown = shown[:MOST_SETTINGS]
    cells = [
        [name, f"{settings[name]:.3f}{' unchanged' if settings[name] == neutral else ''}"]
        for name in shown
    ]
    lines.append(text_table(rule["columns"], cells))
    if len(shown) < len(settings):
        lines.append(f"  and {len(settings) - len(shown)} more: metrics.json")
    changed = f"; {rule['changed_rows']} of {rows} rows are decided otherwise"
    return [*lines, f"  fitted on all rows{changed if rule['changed_rows'] else ''}"]


def _gain(score: float | None, than: float | None, greater_is_better: bool) -> float | None:
    if score is None or than is None:
        return None
    return score - than if greater_is_better else than - score


def _signed(value: float | None) -> str:
    return "-" if value is None else f"{round(value, 4) + 0.0:+.4f}"


def _between(found: dict[str, Any]) -> str:
    if found["low"] is None:
        return "no interval"
    return f"[{_signed(found['low'])}, {_signed(found['high'])}]"
