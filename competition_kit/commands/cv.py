"""`cv`: cross-validate one arm, predict the test rows, write a submission."""

from __future__ import annotations

import argparse
import logging
import shlex
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from competition_kit.approach import Approach
from competition_kit.commands.flags import (
    DATA,
    DEFAULT_COMPETITION,
    HelpWithDefaults,
    add_competition_flags,
    add_machine_flags,
    add_training_flags,
    count,
)
from competition_kit.commands.setup import Setup, set_up
from competition_kit.strategies import STRATEGIES

if TYPE_CHECKING:
    from competition_kit.harness.cells import Cell
    from competition_kit.harness.cross_validation import CVResult
    from competition_kit.harness.plan import Plan

__all__ = ["add", "add_flags", "run_plan"]

log = logging.getLogger(__name__)


def add(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command's parser."""
    cv = commands.add_parser(
        "cv",
        allow_abbrev=False,  # an abbreviated flag would escape the settings file's reader
        help="cross-validate, predict the test rows, write a submission (the default command)",
        formatter_class=HelpWithDefaults,
    )
    add_flags(cv)
    cv.set_defaults(run=run)


def add_flags(cv: argparse.ArgumentParser) -> None:
    """Add all flags of the command; they are the keys of its settings file, too."""
    what = cv.add_argument_group("what")
    what.add_argument(
        "--data",
        type=Path,
        default=DATA / DEFAULT_COMPETITION,
        help="competition folder",
    )
    what.add_argument(
        "--adv",
        default="none",
        metavar="STRATEGY",
        help=f'{", ".join(STRATEGIES)}; options in brackets, wrappers with +: "neftune(alpha=5)+fgm"',
    )
    what.add_argument(
        "--tricks",
        default="",
        metavar="LIST",
        help='losses, starts, rates, averages: "rdrop(alpha=0.5), ema, noisytune"',
    )
    what.add_argument(
        "--settings", type=Path, help="TOML file with flags as keys; flags given here go before it"
    )
    add_competition_flags(what)
    what.add_argument("--seeds", type=count(0), nargs="+", default=[0], help="one run for each")
    add_training_flags(cv)
    where = add_machine_flags(cv)
    where.add_argument("--save-models", action="store_true", help="keep each fold's weights")
    where.add_argument("--fresh", action="store_true", help="compute finished cells again")


def run(options: argparse.Namespace) -> int:
    started = time.monotonic()
    approach = Approach.of(options.adv, options.tricks)
    approach.check(options.epochs)
    setup = set_up(options, options.data)

    from competition_kit.harness.engines.local import get_ready

    if options.workers != 1:
        get_ready(setup.device)
    plan = setup.plan(approach, tuple(dict.fromkeys(options.seeds)))
    run_plan(setup, plan, options, started)
    return 0


def run_plan(setup: Setup, plan: Plan, options: argparse.Namespace, started: float) -> None:
    """Compute an arm's cells, write its run, print its scores.

    Args:
        options: with workers, save_models and fresh.
        started: `time.monotonic()` at the command's start.
    """
    from competition_kit.data.folds import audit
    from competition_kit.harness.cross_validation import cross_validate
    from competition_kit.harness.engines.local import place
    from competition_kit.progress import Progress
    from competition_kit.results.floor import cached_floor

    for finding in audit(setup.competition, plan.folds):
        log.warning(finding)
    placement = place(
        len(plan.cells),
        setup.device,
        options.workers,
        fast_paths=not options.no_fast_paths,
        deterministic=options.deterministic,
    )
    log.info(_headline(plan, placement.workers, setup.device))
    with plan.folder.locked():
        with Progress(
            {_label(cell): steps for cell, steps in plan.steps.items()},
            "folds",
            setup.recipe.epochs,
        ) as progress:

            def announce(cell: Cell, score: float, computed: bool) -> None:
                if computed:
                    said = f"{_label(cell)}: {setup.metric.name} {score:.4f}"
                    progress.finish(_label(cell), said)
                else:
                    progress.found(_label(cell))

            floor = cached_floor(
                plan.folder.path.parent / "floor",
                setup.competition,
                plan.folds,
                progress.floor(plan.folds.count),
            )
            outcome = cross_validate(
                plan,
                placement,
                floor,
                save_models=options.save_models,
                fresh=options.fresh,
                command=shlex.join(["python", "run_cv.py", *sys.argv[1:]]),
                on_step=lambda cell, step: progress.step(_label(cell), step / plan.steps[cell]),
                on_cell=announce,
            )
        written = _write_report(plan)
    _print_outcome(plan, outcome, time.monotonic() - started, placement.workers, written)


def _label(cell: Cell) -> str:
    return f"seed {cell.seed} fold {cell.fold}"


def _headline(plan: Plan, workers: int, device: str) -> str:
    competition, cells = plan.competition, len(plan.cells)
    return (
        f"{competition.rules.title}: {len(competition.train)} training rows, "
        f"{len(competition.classes)} classes; {_said(plan)}; {plan.source.short_name}, "
        f"lr {plan.arm.training['lr']:g}; {cells} cells on {workers} x {device}"
    )


def _said(plan: Plan) -> str:
    """Return strategy and tricks without what is at its default, for people."""
    return str(Approach.of(plan.arm.strategy, plan.arm.tricks))


def _write_report(plan: Plan) -> Path | None:
    """Write the HTML report; training works without the packages that it needs."""
    from competition_kit.results.report import write_run_report

    log.info("writing %s", plan.folder.report.name)  # matplotlib's first start takes seconds
    try:
        return write_run_report(plan.folder)
    except ModuleNotFoundError as error:
        log.warning("no report.html: %s is missing; pip install %s", error.name, error.name)
        return None


def _print_outcome(
    plan: Plan, outcome: CVResult, seconds: float, workers: int, report: Path | None
) -> None:
    from competition_kit.harness.cross_validation import mean_and_sd
    from competition_kit.results.tables import duration, score_text, text_table

    several = len(plan.seeds) > 1
    columns = [[score_text(score) for score in layer] for layer in outcome.fold_scores]
    columns = [
        [*column, "", *map(score_text, [*mean_and_sd(layer), pooled])]
        for column, layer, pooled in zip(
            columns, outcome.fold_scores, outcome.oof_scores, strict=True
        )
    ]
    header = ["fold", *(f"seed {seed}" for seed in plan.seeds)] if several else ["fold", "encoder"]
    if several:
        header.append("mean")
        means = [score_text(score) for score in outcome.fold_scores.mean(axis=0)]
        overall = [outcome.mean, outcome.sd, outcome.oof_of_mean]
        columns.append([*means, "", *map(score_text, overall)])
    header.append("TF-IDF floor")
    floor_mean, floor_sd = mean_and_sd(outcome.floor_scores)
    columns.append(
        [
            *map(score_text, outcome.floor_scores),
            "",
            *map(score_text, [floor_mean, floor_sd, outcome.floor_oof]),
        ]
    )
    names = [*plan.folds.names, "", "mean", "SD", "pooled OOF"]
    rows = [
        [] if not name else [name, *(column[i] for column in columns)]
        for i, name in enumerate(names)
    ]
    passes = outcome.cells[plan.cells[0]].passes
    fit = sum(result.fit_seconds for result in outcome.cells.values())
    counted = ", ".join(
        f"{count:g} {name.replace('_', '-').removesuffix('s' if count == 1 else '')}"
        for name, count in passes.items()
        if count
    )
    direction = "" if outcome.metric.greater_is_better else ", lower is better"
    print(f"\n{plan.competition.name}: {outcome.metric.name}{direction}, {_said(plan)}")
    print(text_table(header, rows))
    if several:
        print("  pooled OOF of 'mean': of the probabilities averaged over seeds")
    print(
        f"\ntime {duration(seconds)}; training {duration(fit)} in {len(outcome.cells)} cells "
        f"on {workers} worker{'s' * (workers > 1)} ({len(outcome.computed)} computed now); "
        f"per batch: {counted}"
    )
    folder = plan.folder
    paths = [
        folder.oof,
        folder.test_predictions,
        folder.submission,
        folder.metrics,
        report,
    ]
    print("written:")
    for path in paths:
        if path is not None and path.is_file():
            print(f"  {path}")
    pairs = ((outcome.mean, floor_mean), (outcome.oof_of_mean, outcome.floor_oof))
    for score, floor in pairs:
        if not outcome.metric.better(score, floor):
            log.warning(
                "THE ENCODER IS NOT BETTER THAN THE FLOOR (%s against %s): a linear model on word "
                "counts does as well; try more --epochs, another --lr, or another --model",
                score_text(score),
                score_text(floor),
            )
            break
