"""The main job, `run_cv.py`, end to end on a device, with its scores beside the CPU's."""

from __future__ import annotations

import contextlib
import math
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.checks import Check
from competition_kit.cli import main
from competition_kit.data.tables import read_table
from competition_kit.errors import KitError
from competition_kit.files import read_json
from competition_kit.model_source import DEFAULT_MODEL

__all__ = ["README_JOB", "MainJob", "check_main_job"]

# a device or a precision with other dropout masks is as good as another seed; the mean scores of
# two seeds differ with an SD of 0.016 (results/ablation-tweets), of which these are three
CPU_DIFFERENCE = 0.05  # of the mean score
PRECISION_DIFFERENCE = 0.05  # bf16 against fp32, same seed and device
RERUN_DIFFERENCE = 0.01  # same seed and device: atomic additions on a GPU come in any order
STORED = "cpu fp32, stored"  # the name of scores from a file


@dataclass(frozen=True)
class MainJob:
    """The settings of the main job that are compared; `workers` as for run_cv.py."""

    data: Path
    model: str
    adv: str
    epochs: int
    max_length: int
    workers: int | None = None

    def run(self, device: str, precision: str) -> Scores:
        """Run it in a temporary folder.

        Raises:
            KitError: if the command did not end well; it has said why on stderr.
        """
        with tempfile.TemporaryDirectory() as folder:
            flags: dict[str, object] = {
                "--data": self.data,
                "--model": self.model,
                "--adv": self.adv,
                "--epochs": self.epochs,
                "--max-length": self.max_length,
                "--device": device,
                "--precision": precision,
                "--out": folder,
            }
            if self.workers is not None:
                flags["--workers"] = self.workers
            start = time.perf_counter()
            with contextlib.redirect_stdout(sys.stderr):
                code = main(["cv", *(str(part) for flag in flags.items() for part in flag)])
            seconds = time.perf_counter() - start
            if code != 0:
                raise KitError(f"run_cv.py ended with exit code {code}")
            (metrics_file,) = Path(folder).glob("*/*/metrics.json")
            oof = read_table(metrics_file.with_name("oof.csv"))
            probabilities = oof[[name for name in oof.columns if name.startswith("p_")]]
            return scores(read_json(metrics_file), seconds, probabilities.to_numpy(float))


# `python run_cv.py --adv fgm`, whose other settings are the same defaults here and there
README_JOB = MainJob(Path("data") / "tweets", DEFAULT_MODEL, adv="fgm", epochs=2, max_length=128)


@dataclass(frozen=True)
class Scores:
    """What a run scored.

    Attributes:
        folds: one score for each cell.
        seconds: of the whole command.
        oof: [N, C] out-of-fold probabilities, None where only the scores are known.
    """

    metric: str
    mean: float
    pooled: float
    folds: list[float]
    seconds: float | None
    oof: np.ndarray | None

    def as_json(self) -> dict[str, Any]:
        numbers = asdict(self)
        del numbers["oof"]
        return numbers


def scores(metrics: dict[str, Any], seconds: float | None, oof: np.ndarray | None) -> Scores:
    """Return the scores in a run's metrics.json."""
    folds = [math.nan if cell["score"] is None else cell["score"] for cell in metrics["cells"]]
    return Scores(metrics["metric"], metrics["mean"], metrics["oof_of_mean"], folds, seconds, oof)


def check_main_job(
    job: MainJob, device: str, *, cpu_metrics: Path | None, with_cpu: bool
) -> tuple[list[Check], dict[str, Any]]:
    """Run in fp32 (again, and on two workers) and bf16; return the checks, and the scores as JSON.

    Args:
        cpu_metrics: metrics.json of an earlier run with the same settings on a CPU.
            Where `device` is the CPU too, a stored score goes beside the one made now.
        with_cpu: run it on the CPU now instead (minutes).
    """
    found: dict[str, Scores] = {}
    try:
        found[f"{device} fp32"] = job.run(device, "fp32")
        found[f"{device} fp32 again"] = job.run(device, "fp32")
        found[f"{device} fp32, 2 workers"] = replace(job, workers=2).run(device, "fp32")
        found[f"{device} bf16"] = job.run(device, "bf16")
        if with_cpu:
            found["cpu fp32"] = job.run("cpu", "fp32")
        elif cpu_metrics is not None:
            found[STORED] = scores(read_json(cpu_metrics), None, None)
    except KitError as error:
        print(f"error: {error}", file=sys.stderr)
        return [Check("main job", "runs to the end", math.nan, 1, at_least=True)], {}
    recorded = {
        "settings": {**asdict(job), "data": job.data.name, "model": Path(job.model).name},
        "scores": {name: result.as_json() for name, result in found.items()},
    }
    return list(_compare(found, device)), recorded


def _compare(found: dict[str, Scores], device: str) -> Iterator[Check]:
    first, again, half = (found[f"{device} {name}"] for name in ("fp32", "fp32 again", "bf16"))
    part = f"main job, mean {first.metric}"
    for name, result in found.items():
        yield Check(part, name, result.mean)
    of_cpu = found.get(STORED) or found.get("cpu fp32")
    if of_cpu is None:
        yield Check(part, "cpu fp32 (give --cpu-scores or --with-cpu)", None)
    else:
        gap = abs(first.mean - of_cpu.mean)
        yield Check(part, f"{device} fp32 - cpu fp32", gap, CPU_DIFFERENCE)
    yield Check(part, "bf16 - fp32", abs(half.mean - first.mean), PRECISION_DIFFERENCE)
    yield Check(part, "rerun - fp32", abs(again.mean - first.mean), RERUN_DIFFERENCE)
    workers = found[f"{device} fp32, 2 workers"]
    yield Check(part, "2 workers - fp32", abs(workers.mean - first.mean), RERUN_DIFFERENCE)
    assert first.oof is not None and again.oof is not None
    yield Check(
        part,
        "rerun, largest difference of a probability",
        float(np.abs(again.oof - first.oof).max()),
    )
    for name, result in found.items():
        if result.seconds is not None:
            yield Check("main job, seconds", name, result.seconds)
