"""`ensemble`: blend finished runs, score every way to do it honestly, write one submission."""

from __future__ import annotations

import argparse
import logging
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from competition_kit.commands.ensemble_output import print_outcome
from competition_kit.commands.output import command_line, report_if_possible
from competition_kit.errors import InputError, examples

if TYPE_CHECKING:
    from competition_kit.data.competition import Competition
    from competition_kit.data.folds import Folds
    from competition_kit.harness.run_folder import RunFolder
    from competition_kit.results.decision_rules import RuleKind
    from competition_kit.results.members import Candidates, Member
    from competition_kit.results.metrics import Metric

__all__ = ["add"]

log = logging.getLogger(__name__)

METHODS = (  # the names of `ensembling.METHODS`, which needs numpy
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
    ensemble.add_argument(
        "--name",
        help="of the folder: ensemble-NAME (default: the method; 'rule' for one run alone)",
    )
    ensemble.add_argument(
        "--replace",
        action="store_true",
        help="write over an earlier ensemble of this name that was made of other members",
    )
    ensemble.add_argument(
        "--apply-rule",
        action="store_true",
        help="make the submission with the fitted decision rule that suits the metric: thresholds, "
        "class multipliers, cut points or temperature (its gain is always shown); with this, one "
        "run alone will do",
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
    if data is None:
        raise InputError(
            f"no folder among {examples(paths)} is a run of this kit, so the competition is not known",
            remedy="say --data",
        )
    wanted = options.metric or _one_of(paths, "metrics.json", "metric", "--metric")
    competition = load_competition(Path(data), metric=wanted)
    metric = find_metric(competition.rules.metric, competition.multi_label)
    kind = suitable_rule(metric, competition.multi_label)
    if options.apply_rule and kind is None:
        raise InputError(
            f"no decision rule can change {metric.name}: it looks at the order of rows alone",
            remedy="leave --apply-rule out",
        )
    name = options.name or ("rule" if len(paths) == 1 else options.method)
    folder = RunFolder(options.out / competition.name / f"ensemble-{slug(name)}")
    if folder.path.resolve() in {path.resolve() for path in paths}:
        raise InputError(
            "is a member and the ensemble itself", file=folder.path, remedy="give another --name"
        )
    # in the order of their names: the order on the command line must not matter
    found = sorted(candidates.folders.items())
    members = [read_member(name, path, competition) for name, path in found]
    _check_distinct(members, options.apply_rule)
    folds = shared_folds(members, competition)
    _warn(members, competition, metric, options.method)
    with folder.locked():
        _check_earlier(folder, members, options)
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

    from competition_kit.progress import bar_of_unknown_length
    from competition_kit.results.ensemble_files import ensemble_config, write_ensemble
    from competition_kit.results.ensemble_outcome import blend_members
    from competition_kit.results.objective import Objective

    with bar_of_unknown_length("blending") as on_step:
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
    print_outcome(competition, folds, folder, _write_report(folder))
    return 0


def _check_distinct(members: Sequence[Member], apply_rule: bool) -> None:
    """Refuse a blend of one member, and say which members are the same.

    A decision rule on one run is a sensible use, so `--apply-rule` allows it.
    """
    first: dict[str, Member] = {}
    for member in members:
        twin = first.setdefault(member.oof_hash, member)
        if twin is not member:
            log.warning("%s holds the same oof.csv as %s: it counts twice", member.name, twin.name)
    if len(first) == 1 and not apply_rule:
        raise InputError(
            "one member alone: there is nothing to blend",
            file=members[0].folder,
            remedy="give two finished runs or more, or say --apply-rule to make its submission "
            "with a fitted decision rule",
        )


def _check_earlier(
    folder: RunFolder, members: Sequence[Member], options: argparse.Namespace
) -> None:
    """Refuse to write over an ensemble of other members, unless `--replace` is given."""
    from competition_kit.files import read_json

    if not folder.config.is_file():
        return
    earlier = read_json(
        folder.config, {f"members?.*.{key}": str for key in ("name", "folder", "oof_sha256")}
    )
    before = {(member["folder"], member["oof_sha256"]) for member in earlier.get("members", ())}
    now = {(str(member.folder.resolve()), member.oof_hash) for member in members}
    # the same folders, with more seeds perhaps; or the same predictions, moved elsewhere
    same = any({x[part] for x in before} == {x[part] for x in now} for part in (0, 1))
    if not same and not options.replace:
        raise InputError(
            f"holds an ensemble of other members: {_listed(earlier.get('members', ()))}",
            file=folder.path,
            remedy="give another --name, or say --replace to write over it",
        )
    if not same:
        log.warning("%s: the ensemble of other members is replaced", folder.path)
    elif earlier.get("method") != options.method:
        log.info("%s: was made by %s before", folder.path, earlier.get("method"))


def _listed(members: Sequence[dict[str, Any]]) -> str:
    return examples([member["name"] for member in members], 6) or "none"


def _provenance() -> dict[str, Any]:
    from competition_kit import __version__
    from competition_kit.harness.provenance import git_commit, versions

    return {
        "command": command_line(),
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "version": __version__,
        "versions": versions(),
        "git_commit": git_commit(),
    }


def _one_of(paths: Sequence[Path], file: str, key: str, flag: str) -> str | None:
    """Return what all runs of the kit among the folders say, from one of their JSON files.

    None where none of them says anything.

    Raises:
        InputError: if they say different things.
    """
    from competition_kit.files import read_json

    said = {
        path: content[key]
        for path in paths
        if (path / file).is_file() and key in (content := read_json(path / file, {f"{key}?": str}))
    }
    values = list(dict.fromkeys(said.values()))
    if len(values) > 1:
        other = next(path for path, value in said.items() if value != values[0])
        raise InputError(
            f"{key} is {values[1]!r} there, and {values[0]!r} in {next(iter(said))}",
            file=other / file,
            remedy=f"say {flag}",
        )
    return values[0] if values else None


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
    from competition_kit.results.report import write_ensemble_report

    return report_if_possible(lambda: write_ensemble_report(folder))
