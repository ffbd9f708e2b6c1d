"""`ablate`: what each trick gives over the baseline, how sure that is, and what it costs."""

from __future__ import annotations

import argparse
import logging
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from competition_kit.approach import parse_approach
from competition_kit.commands.ablation_plan import (
    add_rivals,
    asked_arms,
    checked_seeds,
    make_study,
    measured_costs,
)
from competition_kit.commands.flags import (
    DATA,
    DEFAULT_COMPETITION,
    HelpWithDefaults,
    add_competition_flags,
    add_machine_flags,
    add_training_flags,
    count,
    duration,
    not_negative,
)
from competition_kit.commands.output import command_line, print_written
from competition_kit.commands.setup import set_up
from competition_kit.errors import InputError

if TYPE_CHECKING:
    from competition_kit.data.competition import Competition
    from competition_kit.harness.ablation import AblationArm, Cells, Study
    from competition_kit.harness.cells import Cell
    from competition_kit.harness.engines.local import Placement
    from competition_kit.harness.estimate import CellCost

__all__ = ["add", "add_flags"]

log = logging.getLogger(__name__)


def add(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command's parser."""
    ablate = commands.add_parser(
        "ablate",
        allow_abbrev=False,  # an abbreviated flag would escape the settings file's reader
        help="score deltas of arms over the baseline, with uncertainty, verdict and cost",
        formatter_class=HelpWithDefaults,
    )
    add_flags(ablate)
    ablate.set_defaults(run=run)


def add_flags(ablate: argparse.ArgumentParser) -> None:
    """Add all flags of the command; they are the keys of its settings file, too."""
    what = ablate.add_argument_group("what")
    what.add_argument(
        "--arms",
        nargs="+",
        default=["fgm"],
        metavar="ARM",
        help='strategies and tricks, one argument for each arm: fgm "neftune+fgm, ema" rdrop',
    )
    what.add_argument(
        "--baseline", default="none", metavar="ARM", help="what they are held against"
    )
    what.add_argument(
        "--pairs", action="store_true", help="also every two arms together, and their interaction"
    )
    what.add_argument(
        "--equal-compute",
        action="store_true",
        help="also the baseline with each arm's budget: more epochs, more seeds averaged (up to "
        "twice the work)",
    )
    what.add_argument(
        "--data",
        type=Path,
        nargs="+",
        default=[DATA / DEFAULT_COMPETITION],
        help="competition folders",
    )
    what.add_argument(
        "--settings", type=Path, help="TOML file with flags as keys; flags given here go before it"
    )
    add_competition_flags(what)
    what.add_argument(
        "--seeds", type=count(0), nargs="+", default=[0, 1, 2], help="paired over all arms"
    )
    what.add_argument(
        "--rope",
        type=not_negative,
        help="differences up to this are practically none (else from the A/A arm)",
    )
    what.add_argument("--name", help="of the result folder: ablation-NAME (else from the settings)")
    when = ablate.add_argument_group("when")
    when.add_argument("--dry-run", action="store_true", help="print the plan and stop")
    when.add_argument(
        "--time-budget", type=duration, help="run what fits, whole pairs first: 8h, 90m"
    )
    add_training_flags(ablate)
    add_machine_flags(ablate)


def run(options: argparse.Namespace) -> int:
    deadline = None if options.time_budget is None else time.monotonic() + options.time_budget
    baseline = parse_approach(options.baseline)
    asked = asked_arms(options.arms, baseline, pairs=options.pairs)
    for approach in (baseline, *(arm.approach for arm in asked)):
        approach.check(options.epochs)
    seeds = checked_seeds(options.seeds)
    asked_data: dict[Path, Path] = {}
    for data in options.data:
        asked_data.setdefault(data.resolve(), data)  # one folder may be given in two spellings
    setups = [set_up(options, data) for data in asked_data.values()]
    _check_names([setup.competition for setup in setups])

    from competition_kit.commands.ablation_output import print_plan
    from competition_kit.data.folds import audit
    from competition_kit.harness.ablation import ablation_folder, check_earlier
    from competition_kit.harness.engines.local import place

    studies = [make_study(setup, baseline, asked, seeds) for setup in setups]
    for study in studies:
        for finding in audit(study.competition, study.baseline.plan.folds):
            log.warning("%s: %s", study.competition.name, finding)
    folders = [ablation_folder(study, options.name) for study in studies]
    for study, folder in zip(studies, folders, strict=True):
        check_earlier(study, folder)
    placement = place(
        sum(len(arm.plan.cells) for study in studies for arm in study.everything()),
        setups[0].device,
        options.workers,
        fast_paths=not options.no_fast_paths,
        deterministic=options.deterministic,
    )
    costs = measured_costs(studies, placement, {})
    if options.equal_compute:
        for setup, study in zip(setups, studies, strict=True):
            add_rivals(setup, study, baseline, seeds, costs)
        costs = measured_costs(studies, placement, costs)
    print_plan(studies, costs, placement.workers, options.time_budget)
    if options.dry_run:
        return 0
    with ExitStack() as stack:  # the locks are held until everything is written
        cells = _compute(studies, placement, costs, deadline, stack)
        concluded = _conclude(studies, cells, folders, options)
    if concluded is not None:
        _print_results(*concluded)
    return 0


def _check_names(competitions: Sequence[Competition]) -> None:
    """Check that each competition has a name of its own, by which its results are kept apart.

    Raises:
        InputError: if two have the same.
    """
    seen: dict[str, Path] = {}
    for one in competitions:
        if one.name in seen:
            raise InputError(
                f"has the name {one.name!r}, as {seen[one.name]} has",
                file=one.folder,
                remedy="rename one of the folders, or ablate them one after the other with --out",
            )
        seen[one.name] = one.folder


def _compute(
    studies: Sequence[Study],
    placement: Placement,
    costs: Mapping[str, CellCost],
    deadline: float | None,
    stack: ExitStack,
) -> Cells:
    """Compute the floors and all cells under a bar; the run folders stay locked with the stack."""
    from competition_kit.harness.ablation import lock_folders, run_ablation
    from competition_kit.progress import Progress
    from competition_kit.results.floor import cached_floor

    names = {
        arm: (f"{study.competition.name}: " if len(studies) > 1 else "") + arm.name
        for study in studies
        for arm in study.everything()
    }

    def label(arm: AblationArm, cell: Cell) -> str:
        return f"{names[arm]}, seed {cell.seed} fold {cell.fold}"

    def announce(arm: AblationArm, cell: Cell, score: float, computed: bool) -> None:
        if computed:
            progress.finish(label(arm, cell), f"{label(arm, cell)}: {score:.4f}")
        else:
            progress.found(label(arm, cell))

    work = {
        label(arm, cell): costs[arm.plan.arm.hash].seconds
        for arm in names
        for cell in arm.plan.cells
    }
    epochs = studies[0].baseline.plan.arm.training["epochs"]
    progress = stack.enter_context(Progress(work, "cells", epochs))
    for study in studies:
        plan = study.baseline.plan
        study.floor = cached_floor(
            plan.folder.path.parent / "floor",
            study.competition,
            plan.folds,
            progress.floor(plan.folds.count),
        )
    lock_folders(studies, stack)
    return run_ablation(
        studies,
        placement,
        command=command_line(),
        seconds_of=lambda arm: costs[arm.plan.arm.hash].seconds,
        deadline=deadline,
        on_step=lambda arm, cell, share: progress.step(label(arm, cell), share),
        on_cell=announce,
    )


def _conclude(
    studies: Sequence[Study], cells: Cells, folders: Sequence[Path], options: argparse.Namespace
) -> tuple[list[dict[str, Any]], list[Path]] | None:
    """Compare the arms and write what that gives.

    Returns:
        What each competition's ablation.json says, and all files that were written; None where
        packages are missing: a machine that can train has not always all of them.
    """
    try:
        from competition_kit.harness.ablation_result import conclude, conclude_together
    except ModuleNotFoundError as error:
        log.warning(
            "all cells are computed; for the deltas pip install %s, here or where you take %s",
            error.name,
            options.out,
        )
        return None
    from competition_kit.commands.ablation_output import write_report
    from competition_kit.harness.ablation import overview_folder
    from competition_kit.progress import bar_of_unknown_length

    command, contents = command_line(), []
    for study, folder in zip(studies, folders, strict=True):
        with bar_of_unknown_length("comparing") as advance:
            contents.append(
                conclude(study, cells, folder, rope=options.rope, command=command, on_row=advance)
            )
    results = list(folders)
    if len(studies) > 1:
        overview = overview_folder(studies, options.name)
        conclude_together(contents, folders, overview, command=command)  # in `contents`, too
        results.append(overview)
    written: list[Path] = []
    for folder in results:
        reports = write_report(folder)
        written += [*sorted(folder.glob("*.csv")), folder / "ablation.json", *reports]
    return contents, written


def _print_results(contents: Sequence[dict[str, Any]], written: Iterable[Path]) -> None:
    from competition_kit.commands.ablation_output import print_across, print_legend, print_result

    for content in contents:
        print_result(content)
    if len(contents) > 1:
        print_across(contents[0]["across"])  # the same in each of them
    print_legend()
    print_written(written)
