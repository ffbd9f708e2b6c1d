"""An ablation: the baseline, an A/A arm and any arms, on shared folds and paired seeds."""

from __future__ import annotations

import logging
import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from competition_kit.data.competition import Competition
from competition_kit.data.presence import is_there
from competition_kit.errors import InputError, KitError
from competition_kit.files import hash_json, read_json
from competition_kit.harness.cells import Cell, CellResult
from competition_kit.harness.cross_validation import cell_score, gather, prepare_run, write_results
from competition_kit.harness.engines.local import Placement
from competition_kit.harness.plan import Plan
from competition_kit.harness.running import Task, run_tasks
from competition_kit.harness.upkeep import keep_settings, with_written_seeds
from competition_kit.results.metrics import Metric

if TYPE_CHECKING:
    from competition_kit.results.ablation import Role

__all__ = [
    "AblationArm",
    "Averaged",
    "Cells",
    "Study",
    "ablation_folder",
    "check_earlier",
    "lock_folders",
    "overview_folder",
    "run_ablation",
]

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, eq=False)
class AblationArm:
    """An arm of an ablation.

    Attributes:
        name: as people write it.
        plan: its seeds are paired with the baseline's by their place.
        writes_run: whether its run folder gets results of its own: not for the A/A arm, which is
            the baseline's folder with other seeds.
        parts: names of the two arms that a pair is made of.
        failures: what its cells raised.
        computed: its cells that this process computed; the others were found.
    """

    name: str
    role: Role
    plan: Plan
    writes_run: bool = True
    parts: tuple[str, str] | None = None
    failures: list[KitError] = field(default_factory=list)
    computed: list[Cell] = field(default_factory=list)


@dataclass(frozen=True, eq=False)
class Averaged:
    """Several runs of the baseline whose probabilities are averaged."""

    name: str
    parts: tuple[AblationArm, ...]


@dataclass(kw_only=True)
class Study:
    """All arms of one competition.

    Attributes:
        longer, averaged: the baseline with an arm's budget, in epochs and in averaged seeds.
        floor: [N, C] out-of-fold probabilities of the TF-IDF floor; needed when the arms run.
    """

    metric: Metric
    baseline: AblationArm
    aa: AblationArm
    arms: list[AblationArm]
    longer: dict[AblationArm, AblationArm] = field(default_factory=dict)
    averaged: dict[AblationArm, Averaged] = field(default_factory=dict)
    floor: np.ndarray = field(default_factory=lambda: np.zeros((0, 0)))

    @property
    def competition(self) -> Competition:
        return self.baseline.plan.competition

    @property
    def experiment(self) -> dict[str, str]:
        """What tells this experiment from others, whichever arms and seeds it has."""
        return {"baseline": self.baseline.plan.arm.hash, "metric": self.metric.name}

    def everything(self) -> tuple[AblationArm, ...]:
        """Return every arm once, the baseline first."""
        parts = [arm for averaged in self.averaged.values() for arm in averaged.parts]
        found = (self.baseline, self.aa, *self.arms, *self.longer.values(), *parts)
        return tuple(dict.fromkeys(found))


Cells = Mapping[AblationArm, dict[Cell, CellResult]]


def ablation_folder(study: Study, name: str | None) -> Path:
    """Return where the results go; the same experiment goes to the same place, whatever the arms.

    Raises:
        InputError: for a name that is no folder name.
    """
    name = hash_json(study.experiment)[:8] if name is None else name
    if not name or name != Path(name).name or name.startswith("."):
        raise InputError(f"--name {name!r} is no folder name", remedy="use letters and digits")
    return study.baseline.plan.folder.path.parent / f"ablation-{name}"


def check_earlier(study: Study, folder: Path) -> None:
    """Check that a folder holds no ablation of another experiment.

    Its looks at results would make this one's arms exploratory, and it would be lost.

    Raises:
        InputError: if it does.
    """
    path = folder / "ablation.json"
    if not is_there(path):
        return
    earlier = read_json(path, {"competition.metric": str, "experiment?": dict})
    wanted = study.experiment
    # a kit that did not note the baseline noted the metric
    found = earlier.get("experiment", {**wanted, "metric": earlier["competition"]["metric"]})
    if found != wanted:
        raise InputError(
            "holds an ablation with other settings",
            file=folder,
            remedy="give another --name, or none",
        )


def overview_folder(studies: Sequence[Study], name: str | None) -> Path:
    """Return where the results of several competitions go together, beside their own folders."""
    hashes = sorted(hash_json(study.experiment) for study in studies)
    name = hash_json(hashes)[:8] if name is None else name
    return studies[0].baseline.plan.folder.path.parent.parent / f"ablation-{name}"


def lock_folders(studies: Iterable[Study], stack: ExitStack) -> None:
    """Hold the lock of every arm's run folder until the stack ends.

    Raises:
        InputError: if another live process holds one of them.
    """
    plans = [arm.plan for study in studies for arm in study.everything()]
    for folder in {plan.folder.path: plan.folder for plan in plans}.values():
        stack.enter_context(folder.locked())


def run_ablation(
    studies: Sequence[Study],
    placement: Placement,
    *,
    command: str,
    seconds_of: Callable[[AblationArm], float],
    deadline: float | None = None,
    on_step: Callable[[AblationArm, Cell, float], None] = lambda arm, cell, share: None,
    on_cell: Callable[[AblationArm, Cell, float, bool], None] = lambda arm, cell, score, now: None,
) -> Cells:
    """Compute what is missing, whole pairs first, and write the runs of the arms that are whole.

    The order is seed, fold, competition, arm: whenever it stops, what is there can be compared. An
    arm whose training fails is left out from then on, and says so; the others go on. A run's
    config.json says who computed its cells, so it is written when the first of them starts, and an
    arm with nothing to compute keeps the one that it has. Must be called with the folders locked
    (`lock_folders`).

    Args:
        seconds_of: estimate of a cell's duration, until cells of its arm have been measured.
        deadline: `time.monotonic()` after which nothing may still run; cells that would are skipped.
        on_step: a cell and which share of its steps is done.
        on_cell: a finished cell, its score, and whether it was computed now.

    Raises:
        KitError: if a worker process died, or the time is too short for any cell; whatever a
            baseline raised, as nothing stands without.
    """
    owner: dict[Task, tuple[Study, AblationArm]] = {}
    for study in studies:
        # a metric that cannot be computed says so here, before hours are spent
        study.metric.score(study.competition.targets, study.floor, study.competition.classes)
        for arm in study.everything():
            owner |= {Task(arm.plan, cell): (study, arm) for cell in arm.plan.cells}
    in_order = sorted(
        owner, key=lambda task: (task.plan.seeds.index(task.cell.seed), task.cell.fold)
    )
    measured: dict[AblationArm, list[float]] = {}
    prepared: set[AblationArm] = set()

    def admit(task: Task) -> bool:
        study, arm = owner[task]
        if arm.failures or study.baseline.failures:
            return False
        known = measured.get(arm)
        expected = statistics.fmean(known) if known else seconds_of(arm)
        if deadline is not None and time.monotonic() + expected > deadline:
            return False
        if arm.writes_run and arm not in prepared:
            prepare_run(arm.plan, placement, command)
            prepared.add(arm)
        return True

    results: dict[AblationArm, dict[Cell, CellResult]] = {arm: {} for _, arm in owner.values()}
    for task, outcome, computed in run_tasks(
        in_order,
        placement,
        on_step=lambda task, step: on_step(owner[task][1], task.cell, step / task.steps),
        admit=admit,
    ):
        study, arm = owner[task]
        if isinstance(outcome, BaseException):
            if not isinstance(outcome, KitError):
                raise outcome
            arm.failures.append(outcome)
            log.warning("%s fails and is left out from here on: %s", arm.name, outcome)
            continue
        results[arm][task.cell] = outcome
        if computed:
            arm.computed.append(task.cell)
            seconds = outcome.fit_seconds + outcome.predict_seconds
            measured.setdefault(arm, []).append(seconds)
        score = cell_score(study.metric, study.competition, outcome)
        on_cell(arm, task.cell, score, computed)
    for study in studies:
        _check_baseline(study, results)
        for arm in study.everything():
            whole = len(results[arm]) == len(arm.plan.cells)
            if not (arm.writes_run and whole):
                continue
            if arm in prepared:
                write_results(arm.plan, gather(arm.plan, study.metric, results[arm], study.floor))
            else:
                _keep_up(study, arm, results[arm], placement, command)
    return results


def _keep_up(
    study: Study,
    arm: AblationArm,
    results: Mapping[Cell, CellResult],
    placement: Placement,
    command: str,
) -> None:
    """Bring a run up to date of which nothing was computed; it keeps its seeds if it has more."""
    plan = with_written_seeds(arm.plan)
    found = {cell: results.get(cell) or Task(plan, cell).found() for cell in plan.cells}
    whole = {cell: result for cell, result in found.items() if result is not None}
    if len(whole) < len(found):
        log.info("%s: has results of more seeds than it has cells, and is left alone", arm.name)
        return
    keep_settings(plan, placement, command)
    write_results(plan, gather(plan, study.metric, whole, study.floor), anew=False)


def _check_baseline(study: Study, results: Cells) -> None:
    """Raise where there is nothing to compare with: the baseline failed, or time ran out."""
    if study.baseline.failures:
        raise study.baseline.failures[0]
    if not results[study.baseline]:
        raise KitError(
            f"the time budget ran out before a cell of {study.competition.name} was computed; "
            "give more, or run it without --time-budget"
        )
