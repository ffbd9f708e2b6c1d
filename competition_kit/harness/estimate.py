"""How long cells will take on this machine: a few batches of each arm, measured."""

from __future__ import annotations

import math
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from competition_kit.data.encoding import Encoded
from competition_kit.harness.cells import Arm, Cell, CellJob, pass_units
from competition_kit.harness.engines.local import Placement
from competition_kit.harness.plan import Plan
from competition_kit.specs import parse_spec
from competition_kit.strategies import STRATEGIES
from competition_kit.strategies.base import start_epoch

__all__ = ["CellCost", "measure_cell"]

STEPS = 2  # an epoch: enough to leave the first one, which warms up, out
PREDICTED = 64  # rows


@dataclass(frozen=True)
class CellCost:
    """What a cell of an arm is expected to take: seconds, and passes per batch by kind."""

    seconds: float
    passes: dict[str, float]

    @property
    def units(self) -> float:
        """Passes of a batch in units of one forward."""
        return pass_units(self.passes)


def measure_cell(plan: Plan, placement: Placement) -> CellCost:
    """Train a few batches of an arm's own rows in this process; scale up to a whole cell.

    Other workers share memory and caches with this one later, which is not in the figure.

    Raises:
        KitError: what the training raised: better now than after hours.
    """
    import torch

    from competition_kit.harness.train_cell import train_cell

    torch.set_num_threads(placement.threads)
    competition, training = plan.competition, plan.arm.training
    encoded = Encoded.load(plan.encoded)
    generator = np.random.default_rng(0)
    n_train = min(
        _steps(plan.arm) * training["batch_size"] * training["accumulation_steps"],
        len(competition.train),
    )
    _, first = np.unique(competition.targets, axis=0, return_index=True)  # of every class one
    order = np.concatenate([first, generator.permutation(len(competition.train))])
    chosen = np.array(list(dict.fromkeys(order.tolist())))[: n_train + PREDICTED]
    times: list[float] = []
    with tempfile.TemporaryDirectory() as folder:
        tokens = Path(folder) / "tokens.safetensors"
        encoded.take(chosen).save(tokens)
        result = train_cell(
            CellJob(
                cell=Cell(0, 1),
                arm=plan.arm,
                task=competition.rules.task,  # type: ignore[arg-type]
                classes=len(competition.classes),
                encoded=tokens,
                labels=competition.targets[chosen],
                fold_of=(np.arange(len(chosen)) >= n_train).astype(np.int64),
                model_folder=plan.source.folder,
                device=placement.devices[0],
                fast_paths=placement.fast_paths,
                deterministic=placement.deterministic,
            ),
            lambda step: times.append(time.perf_counter()),
        )
    step = (times[-1] - times[0]) / (len(times) - 1) if len(times) > 1 else result.fit_seconds
    predicted = len(competition.train) / plan.folds.count + len(competition.test)
    predict = result.predict_seconds / max(len(chosen) - n_train, 1) * predicted
    steps = next(iter(plan.steps.values()))
    return CellCost(seconds=step * steps + predict, passes=result.passes)


def _steps(arm: Arm) -> int:
    """Return how many optimizer steps an epoch needs for every part of the strategy to begin."""
    left = arm.training["epochs"] - start_epoch(parse_spec(arm.strategy, STRATEGIES))
    return max(STEPS, math.floor(1 / left) + 1)
