"""`ablate`: what each trick gives over the baseline, how sure that is, and what it costs."""

from __future__ import annotations

import argparse
import itertools
import logging
import shlex
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from competition_kit.approach import Approach, combined, parse_approach
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
from competition_kit.commands.setup import Setup, set_up
from competition_kit.errors import InputError
from competition_kit.strategies.base import layers
from competition_kit.strategies.none import Plain

if TYPE_CHECKING:
    from competition_kit.harness.ablation import AblationArm, Study
    from competition_kit.harness.cells import Cell
    from competition_kit.harness.engines.local import Placement
    from competition_kit.harness.estimate import CellCost
    from competition_kit.results.ablation import Role

__all__ = ["add", "add_flags"]

log = logging.getLogger(__name__)

AA = "A/A"
OTHER_SEEDS = 1000  # how far away the seeds of the A/A arm and of further averaged seeds are


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


@dataclass(frozen=True)
class Asked:
    """An arm as asked for, the same for every competition.

    Attributes:
        parts: names of the two arms that a pair is made of.
    """

    name: str
    role: Role
    approach: Approach
    parts: tuple[str, str] | None = None


def run(options: argparse.Namespace) -> int:
    """Run the command."""
    command = shlex.join(["python", "run_cv.py", *sys.argv[1:]])
    deadline = None if options.time_budget is None else time.monotonic() + options.time_budget
    baseline = parse_approach(options.baseline)
    asked = _asked(options, baseline)
    for arm in (Asked("", "baseline", baseline), *asked):
        arm.approach.check(options.epochs)
    seeds = tuple(dict.fromkeys(options.seeds))
    if max(seeds) - min(seeds) >= OTHER_SEEDS:
        raise InputError(
            f"--seeds {min(seeds)} and {max(seeds)} are {OTHER_SEEDS} or more apart",
            remedy=f"use nearer ones: the A/A arm has each seed + {OTHER_SEEDS}",
        )
    setups = [set_up(options, data) for data in dict.fromkeys(options.data)]

    from competition_kit.commands.ablation_output import (
        print_across,
        print_legend,
        print_plan,
        print_result,
        print_written,
        write_report,
    )
    from competition_kit.data.folds import audit
    from competition_kit.harness.ablation import (
        ablation_folder,
        lock_folders,
        overview_folder,
        run_ablation,
    )
    from competition_kit.harness.engines.local import place
    from competition_kit.progress import Progress, bar_of_unknown_length
    from competition_kit.results.floor import cached_floor

    studies = [_study(setup, baseline, asked, seeds) for setup in setups]
    for study in studies:
        for finding in audit(study.competition, study.baseline.plan.folds):
            log.warning("%s: %s", study.competition.name, finding)
    folders = [ablation_folder(study, options.name) for study in studies]
    cells = sum(len(arm.plan.cells) for study in studies for arm in study.everything())
    placement = place(
        cells,
        setups[0].device,
        options.workers,
        fast_paths=not options.no_fast_paths,
        deterministic=options.deterministic,
    )
    costs = _costs(studies, placement, {})
    if options.equal_compute:
        for setup, study in zip(setups, studies, strict=True):
            _add_rivals(setup, study, baseline, seeds, costs)
        costs = _costs(studies, placement, costs)
    print_plan(studies, costs, placement.workers, options.time_budget)
    if options.dry_run:
        return 0

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
    with ExitStack() as stack:
        progress = stack.enter_context(Progress(work, "cells", setups[0].recipe.epochs))
        for study in studies:
            plan = study.baseline.plan
            study.floor = cached_floor(
                plan.folder.path.parent / "floor",
                study.competition,
                plan.folds,
                progress.floor(plan.folds.count),
            )
        lock_folders(studies, stack)
        results = run_ablation(
            studies,
            placement,
            command=command,
            seconds_of=lambda arm: costs[arm.plan.arm.hash].seconds,
            deadline=deadline,
            on_step=lambda arm, cell, share: progress.step(label(arm, cell), share),
            on_cell=announce,
        )
        try:
            from competition_kit.harness.ablation_result import conclude, conclude_together
        except ModuleNotFoundError as error:  # a machine that can train has not always all of them
            log.warning(
                "all cells are computed; for the deltas pip install %s, here or where you take %s",
                error.name,
                options.out,
            )
            return 0
        contents = []
        for study, folder in zip(studies, folders, strict=True):
            with bar_of_unknown_length("comparing") as advance:
                contents.append(
                    conclude(
                        study, results, folder, rope=options.rope, command=command, on_row=advance
                    )
                )
        if len(studies) > 1:
            overview = overview_folder(studies, options.name)
            across = conclude_together(contents, folders, overview, command=command)["across"]
            folders.append(overview)
        reports = [write_report(folder) for folder in folders]
    for content in contents:
        print_result(content)
    if len(studies) > 1:
        print_across(across)
    print_legend()
    print_written(
        path
        for folder, written in zip(folders, reports, strict=True)
        for path in (*sorted(folder.glob("*.csv")), folder / "ablation.json", *written)
    )
    return 0


def _asked(options: argparse.Namespace, baseline: Approach) -> list[Asked]:
    """Return the arms without the baseline: those named, and with `--pairs` every two of them."""
    found: dict[Approach, Asked] = {}
    for text in options.arms:
        approach = parse_approach(text)
        if approach == baseline:
            log.info("%s is the baseline; it runs anyway", text)
        else:
            found.setdefault(approach, Asked(str(approach), "arm", approach))
    if not found:
        raise InputError("--arms names nothing but the baseline", remedy="add an arm, such as fgm")
    singles = list(found.values())
    if options.pairs:
        for one, other in itertools.combinations(singles, 2):
            if _parts(one.approach) & _parts(other.approach):
                log.info("no pair of %s and %s: they have a part in common", one.name, other.name)
                continue
            try:
                both = combined(one.approach, other.approach)
            except InputError as error:
                log.warning("no pair of %s and %s: %s", one.name, other.name, error)
                continue
            if both in found:  # asked for by name, too
                found[both] = replace(found[both], parts=(one.name, other.name))
            else:
                found[both] = Asked(str(both), "pair", both, (one.name, other.name))
    return list(found.values())


def _parts(approach: Approach) -> set[type]:
    return {*map(type, layers(approach.strategy)), *map(type, approach.tricks)} - {Plain}


def _study(
    setup: Setup, baseline: Approach, asked: Sequence[Asked], seeds: tuple[int, ...]
) -> Study:
    from competition_kit.harness.ablation import AblationArm, Study

    other = tuple(seed + OTHER_SEEDS for seed in seeds)
    return Study(
        metric=setup.metric,
        baseline=AblationArm(name=str(baseline), role="baseline", plan=setup.plan(baseline, seeds)),
        aa=AblationArm(name=AA, role="a/a", plan=setup.plan(baseline, other), writes_run=False),
        arms=[
            AblationArm(
                name=arm.name,
                role=arm.role,
                plan=setup.plan(arm.approach, seeds),
                parts=arm.parts,
            )
            for arm in asked
        ],
    )


def _add_rivals(
    setup: Setup,
    study: Study,
    baseline: Approach,
    seeds: tuple[int, ...],
    costs: Mapping[str, CellCost],
) -> None:
    """Give the baseline each arm's budget, in epochs and in averaged seeds."""
    from competition_kit.harness.ablation import AblationArm, Averaged

    name, epochs = study.baseline.name, setup.recipe.epochs
    longer: dict[int, AblationArm] = {}
    others: dict[int, AblationArm] = {1: study.aa}
    for arm in study.arms:
        factor = costs[arm.plan.arm.hash].units / costs[study.baseline.plan.arm.hash].units
        more, runs = round(epochs * factor), round(factor)
        if more > epochs:
            if more not in longer:
                recipe = replace(setup.recipe, epochs=more)
                longer[more] = AblationArm(
                    name=f"{name}, {more} epochs",
                    role="equal epochs",
                    plan=replace(setup, recipe=recipe).plan(baseline, seeds),
                )
            study.longer[arm] = longer[more]
        if runs > 1:
            for number in range(1, runs):
                if number not in others:
                    shifted = tuple(seed + number * OTHER_SEEDS for seed in seeds)
                    others[number] = AblationArm(
                        name=f"{name}, seeds + {number * OTHER_SEEDS}",
                        role="equal seeds",
                        plan=setup.plan(baseline, shifted),
                        writes_run=False,
                    )
            parts = (study.baseline, *(others[number] for number in range(1, runs)))
            study.averaged[arm] = Averaged(f"{name}, {runs} seeds averaged", parts)
        if more <= epochs and runs <= 1:
            log.info("%s costs no more than the baseline: equal compute is the delta", arm.name)


def _costs(
    studies: Sequence[Study], placement: Placement, known: Mapping[str, CellCost]
) -> dict[str, CellCost]:
    """Return what a cell takes, by the arm's hash: from cells on disk, else measured now."""
    from competition_kit.harness.estimate import CellCost, measure_cell
    from competition_kit.harness.running import Task
    from competition_kit.progress import bar_of_unknown_length
    from competition_kit.training.journal import TrainingError

    costs = dict(known)
    missing: dict[str, AblationArm] = {}
    for arm in (arm for study in studies for arm in study.everything()):
        plan = arm.plan
        if plan.arm.hash in costs:
            continue
        tasks = [Task(plan, cell) for cell in plan.cells]
        found = [result for task in tasks if (result := task.found()) is not None]
        if found:
            seconds = sum(cell.fit_seconds + cell.predict_seconds for cell in found)
            costs[plan.arm.hash] = CellCost(seconds / len(found), found[0].passes)
        else:
            missing[plan.arm.hash] = arm
    with bar_of_unknown_length("timing a few batches") as advance:
        for number, (key, arm) in enumerate(missing.items(), 1):
            if key not in costs:  # the A/A arm may have found cells of the baseline's settings
                try:
                    costs[key] = measure_cell(arm.plan, placement)
                except TrainingError as error:
                    raise TrainingError(
                        f"{arm.name} fails in its first batches: {error}"
                    ) from error
            advance(number, len(missing))
    return costs
