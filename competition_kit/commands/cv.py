"""`cv`: cross-validate one arm, predict the test rows, write a submission."""

from __future__ import annotations

import argparse
import logging
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
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
from competition_kit.commands.output import command_line, print_written, report_if_possible
from competition_kit.commands.setup import Setup, set_up
from competition_kit.strategies import STRATEGIES

if TYPE_CHECKING:
    import numpy as np

    from competition_kit.harness.cells import Cell
    from competition_kit.harness.cross_validation import CVResult
    from competition_kit.harness.engines.local import Placement
    from competition_kit.harness.plan import Plan
    from competition_kit.progress import Progress

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
    from competition_kit.results.report import import_for_reports

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
            left = len(plan.cells)

            def announce(cell: Cell, score: float, computed: bool) -> None:
                nonlocal left
                left -= 1
                if left == placement.workers - 1:  # from here on a worker is idle
                    import_for_reports()
                if computed:
                    said = f"{_label(cell)}: {setup.metric.name} {score:.4f}"
                    progress.finish(_label(cell), said)
                else:
                    progress.found(_label(cell))

            with _floor(plan, placement, progress) as floor:
                outcome = cross_validate(
                    plan,
                    placement,
                    floor,
                    save_models=options.save_models,
                    fresh=options.fresh,
                    command=command_line(),
                    on_step=lambda cell, step: progress.step(_label(cell), step / plan.steps[cell]),
                    on_cell=announce,
                )
        written = _write_report(plan)
    _print_outcome(plan, outcome, time.monotonic() - started, placement.workers, written)


@contextmanager
def _floor(
    plan: Plan, placement: Placement, progress: Progress
) -> Iterator[Callable[[], np.ndarray]]:
    """Give what returns the floor's predictions, made beside the cells where those leave room."""
    from competition_kit.harness.engines.processes import beside
    from competition_kit.results.floor import cached_floor, floor_file

    arguments = (plan.folder.path.parent / "floor", plan.competition, plan.folds)
    device = placement.devices[0]
    if (placement.workers == 1 and device == "cpu") or floor_file(*arguments).is_file():
        floor = cached_floor(*arguments, progress.floor(plan.folds.count))
        yield lambda: floor
    else:
        with beside(device, cached_floor, *arguments) as wait_for_floor:
            yield wait_for_floor


def _label(cell: Cell) -> str:
    return f"seed {cell.seed} fold {cell.fold}"


def _headline(plan: Plan, workers: int, device: str) -> str:
    competition, cells = plan.competition, len(plan.cells)
    precision = plan.arm.training["precision"]
    arithmetic = "" if (device, precision) == ("cpu", "fp32") else f" in {precision}"
    return (
        f"{competition.rules.title}: {len(competition.train)} training rows, "
        f"{len(competition.classes)} classes; {_said(plan)}; {plan.source.short_name}, "
        f"lr {plan.arm.training['lr']:g}; {cells} cells on {workers} x {device}{arithmetic}"
    )


def _said(plan: Plan) -> str:
    """Return strategy and tricks without what is at its default, for people."""
    return str(Approach.of(plan.arm.strategy, plan.arm.tricks))


def _write_report(plan: Plan) -> Path | None:
    from competition_kit.results.report import write_run_report

    log.info("writing %s", plan.folder.report.name)  # matplotlib's first start takes seconds
    return report_if_possible(lambda: write_run_report(plan.folder))


def _print_outcome(
    plan: Plan, outcome: CVResult, seconds: float, workers: int, report: Path | None
) -> None:
    from competition_kit.results.tables import duration, metric_text

    passes = outcome.cells[plan.cells[0]].passes
    fit = sum(result.fit_seconds for result in outcome.cells.values())
    counted = ", ".join(
        f"{count:g} {name.replace('_', '-').removesuffix('s' if count == 1 else '')}"
        for name, count in passes.items()
        if count
    )
    metric = metric_text(outcome.metric.name, outcome.metric.greater_is_better)
    print(f"\n{plan.competition.name}: {metric}, {_said(plan)}")
    print(_score_table(plan, outcome))
    if len(plan.seeds) > 1:
        print("  pooled OOF of 'mean': of the probabilities averaged over seeds")
    print(
        f"\ntime {duration(seconds)}; training {duration(fit)} in {len(outcome.cells)} cells "
        f"on {workers} worker{'s' * (workers > 1)} ({len(outcome.computed)} computed now); "
        f"per batch: {counted}"
    )
    folder = plan.folder
    print_written((folder.oof, folder.test_predictions, folder.submission, folder.metrics, report))
    _warn_of_floor(outcome)


def _score_table(plan: Plan, outcome: CVResult) -> str:
    """Return scores fold by fold, with mean, SD and pooled OOF: of each seed, of all, of the floor."""
    from competition_kit.harness.cross_validation import mean_and_sd
    from competition_kit.results.tables import score_text, text_table

    def column(folds: Iterable[float], mean: float, sd: float, pooled: float) -> list[str]:
        return [*map(score_text, folds), "", *map(score_text, (mean, sd, pooled))]

    several = len(plan.seeds) > 1
    header = ["fold", *(f"seed {seed}" for seed in plan.seeds)] if several else ["fold", "encoder"]
    columns = [
        column(layer, *mean_and_sd(layer), pooled)
        for layer, pooled in zip(outcome.fold_scores, outcome.oof_scores, strict=True)
    ]
    if several:
        header.append("mean")
        folds = outcome.fold_scores.mean(axis=0)
        columns.append(column(folds, outcome.mean, outcome.sd, outcome.oof_of_mean))
    header.append("TF-IDF floor")
    floors = outcome.floor_scores
    columns.append(column(floors, *mean_and_sd(floors), outcome.floor_oof))
    names = [*plan.folds.names, "", "mean", "SD", "pooled OOF"]
    return text_table(
        header, [[*row] if row[0] else [] for row in zip(names, *columns, strict=True)]
    )


def _warn_of_floor(outcome: CVResult) -> None:
    """Warn if a linear model does as well, by the mean over folds or by the pooled predictions."""
    from competition_kit.harness.cross_validation import mean_and_sd
    from competition_kit.results.tables import score_text

    floor_mean, _ = mean_and_sd(outcome.floor_scores)
    pairs = ((outcome.mean, floor_mean), (outcome.oof_of_mean, outcome.floor_oof))
    for score, floor in pairs:
        if not outcome.metric.better(score, floor):
            log.warning(
                "THE ENCODER IS NOT BETTER THAN THE FLOOR (%s against %s): a linear model on word "
                "counts does as well; try more --epochs, another --lr, or another --model",
                score_text(score),
                score_text(floor),
            )
            return
