"""`ensemble`: blend finished runs, score every way to do it honestly, write one submission."""

from __future__ import annotations

import argparse
import logging
import shlex
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from competition_kit.errors import InputError, examples

if TYPE_CHECKING:
    from competition_kit.data.competition import Competition
    from competition_kit.data.folds import Folds
    from competition_kit.harness.run_folder import RunFolder
    from competition_kit.results.decision_rules import RuleKind
    from competition_kit.results.ensemble_outcome import EnsembleOutcome
    from competition_kit.results.members import Candidates, Member
    from competition_kit.results.metrics import Metric

__all__ = ["add"]

log = logging.getLogger(__name__)

METHODS = (
    "mean",
    "rank_mean",
    "logit_mean",
    "geometric",
    "best",
    "greedy",
    "weights",
    "stack",
    "stack_boosting",
)


def add(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command's parser."""
    ensemble = commands.add_parser(
        "ensemble",
        help="blend finished runs into one submission",
        description="Blend runs that share their folds. Every method is scored on rows that it was "
        "not fitted on; --method says which one makes the submission.",
    )
    ensemble.add_argument(
        "folders",
        type=Path,
        nargs="+",
        metavar="RUN",
        help="run folders, or folders from elsewhere with oof.csv and test_predictions.csv; "
        "runs/tweets/* will do: what is no finished run is left out",
    )
    ensemble.add_argument(
        "--method", choices=METHODS, default="mean", help="makes the submission (default: mean)"
    )
    ensemble.add_argument("--name", help="of the folder: ensemble-NAME (default: the method)")
    ensemble.add_argument(
        "--apply-rule",
        action="store_true",
        help="make the submission with the fitted decision rule that suits the metric: thresholds, "
        "class multipliers, cut points or temperature (its gain is always shown)",
    )
    ensemble.add_argument(
        "--include-ensembles",
        action="store_true",
        help="blend earlier ensembles among the folders, too",
    )
    ensemble.add_argument("--data", type=Path, help="competition folder (else the runs' own)")
    ensemble.add_argument("--metric", help="instead of the one that the runs were scored with")
    ensemble.add_argument(
        "--out", type=Path, default=Path("runs"), help="where run folders go (default: runs)"
    )
    ensemble.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    from competition_kit.data.competition import load_competition, slug
    from competition_kit.harness.run_folder import RunFolder
    from competition_kit.results.decision_rules import suitable_rule
    from competition_kit.results.members import find_candidates, read_member, shared_folds
    from competition_kit.results.metrics import find_metric

    candidates = find_candidates(options.folders, ensembles=options.include_ensembles)
    _say_skipped(candidates)
    paths = list(candidates.folders.values())
    data = options.data or _one_of(paths, "config.json", "competition_folder", "--data")
    name = options.metric or _one_of(paths, "metrics.json", "metric", "--metric", None)
    competition = load_competition(Path(data), metric=name)
    metric = find_metric(competition.rules.metric, competition.multi_label)
    kind = suitable_rule(metric, competition.multi_label)
    if options.apply_rule and kind is None:
        raise InputError(
            f"no decision rule can change {metric.name}: it looks at the order of rows alone",
            remedy="leave --apply-rule out",
        )
    folder = RunFolder(
        options.out / competition.name / f"ensemble-{slug(options.name or options.method)}"
    )
    if folder.path.resolve() in {path.resolve() for path in paths}:
        raise InputError(
            "is a member and the ensemble itself", file=folder.path, remedy="give another --name"
        )
    # in the order of their names: the order on the command line must not matter
    found = sorted(candidates.folders.items())
    members = [read_member(name, path, competition) for name, path in found]
    folds = shared_folds(members, competition)
    _warn(members, competition, metric, options.method)
    with folder.locked():
        return _blend(options, competition, metric, kind, members, folds, folder)


def _blend(
    options: argparse.Namespace,
    competition: Competition,
    metric: Metric,
    kind: RuleKind | None,
    members: Sequence[Member],
    folds: Folds,
    folder: RunFolder,
) -> int:
    import numpy as np
    from tqdm import tqdm

    from competition_kit.results.ensemble_files import ensemble_config, write_ensemble
    from competition_kit.results.ensemble_outcome import blend_members
    from competition_kit.results.objective import Objective

    steps = len(METHODS) + 1 + (kind is not None)
    with tqdm(total=steps, disable=None, leave=False, bar_format="{desc} {bar:20}") as bar:

        def on_step(step: str) -> None:
            bar.set_description_str(step)
            bar.update()

        outcome = blend_members(
            np.stack([member.oof for member in members]),
            Objective.of(competition, folds, metric),
            method=options.method,
            kind=kind,
            apply_rule=options.apply_rule,
            on_step=on_step,
        )
    config = ensemble_config(
        competition,
        folds,
        members,
        method=options.method,
        apply_rule=options.apply_rule,
        provenance=_provenance(),
    )
    write_ensemble(folder, competition, folds, members, outcome, config)
    _print_outcome(competition, members, outcome, folder, _write_report(folder))
    return 0


def _provenance() -> dict[str, Any]:
    from competition_kit import __version__
    from competition_kit.harness.provenance import git_commit, versions

    return {
        "command": "python run_cv.py " + shlex.join(sys.argv[1:]),
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "version": __version__,
        "versions": versions(),
        "git_commit": git_commit(),
    }


def _one_of(paths: Sequence[Path], file: str, key: str, flag: str, *default: Any) -> Any:
    """Return what all runs of the kit among the folders say, from one of their JSON files.

    Raises:
        InputError: if they say different things, or nothing and there is no default.
    """
    from competition_kit.files import read_json

    said = {
        path: content[key]
        for path in paths
        if (path / file).is_file() and key in (content := read_json(path / file))
    }
    values = list(dict.fromkeys(said.values()))
    if len(values) > 1:
        other = next(path for path, value in said.items() if value != values[0])
        raise InputError(
            f"{key} is {values[1]!r} there, and {values[0]!r} in {next(iter(said))}",
            file=other / file,
            remedy=f"say {flag}",
        )
    if not values and not default:
        raise InputError(
            f"no folder among {examples(paths)} is a run of this kit, so the competition is not known",
            remedy=f"say {flag}",
        )
    return values[0] if values else default[0]


def _say_skipped(candidates: Candidates) -> None:
    by_reason: dict[str, list[str]] = {}
    for path, reason in candidates.skipped.items():
        by_reason.setdefault(reason, []).append(path.name)
    for reason, names in by_reason.items():
        log.info("left out (%s): %s", reason, ", ".join(names))


def _warn(members: Sequence[Member], competition: Competition, metric: Metric, method: str) -> None:
    for member in members:
        if member.fold_of is None:
            log.warning(
                "%s does not say its folds: they are taken to be those of the others, which "
                "cannot be checked",
                member.name,
            )
        hashes = (member.config.get("data_hash"), member.config.get("arm", {}).get("data_hash"))
        if any(found not in (None, competition.data_hash) for found in hashes):
            log.warning(
                "%s was made from other texts than %s holds now (ids and labels are the same)",
                member.name,
                competition.folder,
            )
    if method == "rank_mean" and metric.name == "log_loss":
        log.warning("ranks are no probabilities: log_loss wants another --method")


def _write_report(folder: RunFolder) -> Path | None:
    """Write the HTML report; blending works without the packages that it needs."""
    try:
        from competition_kit.results.report.ensemble_report import write_ensemble_report

        return write_ensemble_report(folder)
    except ModuleNotFoundError as error:
        log.warning("no report.html: %s is missing; pip install %s", error.name, error.name)
        return None


def _print_outcome(
    competition: Competition,
    members: Sequence[Member],
    outcome: EnsembleOutcome,
    folder: RunFolder,
    report: Path | None,
) -> None:
    from competition_kit.files import read_json
    from competition_kit.results.tables import text_table

    metrics = read_json(folder.metrics)
    direction = "" if metrics["greater_is_better"] else ", lower is better"
    seeds = sum(member.seeds for member in members)
    print(
        f"\n{competition.name}: {metrics['metric']}{direction}; {len(members)} members, {seeds} "
        f"seeds, {len(competition.train)} rows, {len(outcome.chosen.fold_scores)} folds"
    )
    header = ["method", "OOF", "in sample", "optimism", "over mean", "95 % interval"]
    print(text_table(header, [_method_row(row, metrics) for row in metrics["methods"]]))
    print("  OOF: cross-fitted, each fold blended by what was fitted on the other folds")
    header = ["member", "seeds", "OOF", "greedy", "weights", "error corr.", "adds"]
    weights = {row["name"]: row["weights"] for row in metrics["methods"]}
    rows = [
        [
            member["name"],
            str(member["seeds"]),
            _score(member["score"]),
            *(f"{weights[name][number]:.2f}" for name in ("greedy", "weights")),
            _score(member["error_correlation"]),
            _signed(member["adds"]),
        ]
        for number, member in enumerate(metrics["members"])
    ]
    print("\n" + text_table(header, rows))
    print(
        f"  adds: what {metrics['method']} loses without the member; error corr.: with the others"
    )
    print()
    if (rule := metrics["rule"]) is not None:
        print(_rule_line(rule))
    for sentence in metrics["conclusions"]:
        print(sentence)
    if rule is not None and rule["applied"] and (rule["gain"]["delta"] or 0) <= 0:
        log.warning("the decision rule gains nothing on rows that it was not fitted on")
    if not len(competition.test):
        print("the competition has no test rows: there is no submission")
    print("written:")
    for path in (folder.oof, folder.test_predictions, folder.submission, folder.metrics, report):
        if path is not None and path.is_file():
            print(f"  {path}")


def _method_row(row: dict[str, Any], metrics: dict[str, Any]) -> list[str]:
    found = row["over_mean"]
    name = f"{row['name']} (chosen)" if row["name"] == metrics["method"] else row["name"]
    optimism = _gain(row["in_sample"], row["score"], metrics["greater_is_better"])
    fitted = [_score(row["in_sample"]), _signed(optimism)] if row["learns"] else ["", ""]
    compared = ["", ""] if row["name"] == "mean" else [_signed(found["delta"]), _between(found)]
    return [name, _score(row["score"]), *fitted, *compared]


def _rule_line(rule: dict[str, Any]) -> str:
    settings = ", ".join(f"{name} {value:.3g}" for name, value in rule["settings"].items())
    return (
        f"{rule['name']}: {_score(rule['without'])} -> {_score(rule['score'])} cross-fitted "
        f"({_signed(rule['gain']['delta'])} {_between(rule['gain'])}; in sample "
        f"{_signed(rule['in_sample_gain'])}); {'applied' if rule['applied'] else 'not applied'}; "
        f"on all rows: {settings}"
    )


def _gain(score: float | None, than: float | None, greater_is_better: bool) -> float | None:
    if score is None or than is None:
        return None
    return score - than if greater_is_better else than - score


def _score(value: float | None) -> str:
    from competition_kit.results.tables import score_text

    return score_text(value)


def _signed(value: float | None) -> str:
    return "-" if value is None else f"{round(value, 4) + 0.0:+.4f}"


def _between(found: dict[str, Any]) -> str:
    if found["low"] is None:
        return "no interval"
    return f"[{_signed(found['low'])}, {_signed(found['high'])}]"
