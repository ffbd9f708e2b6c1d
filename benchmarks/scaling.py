"""Cost against work: rows, folds and arms, doubled and doubled again.

    python -m benchmarks.scaling

Each measurement is a command in an empty folder, `run_cv.py cv` (`ablate` for the arms), with
one worker and a small random encoder, so that what surrounds the training weighs more than it does
in earnest. Cost is the processor time of the command and its workers, and the greatest memory of
any of them. A command has a fixed part (imports), so the largest size is compared with the straight
line through the smaller ones: 1 is linear; with sizes 1, 2, 4 and 8 quadratic cost would be above 1.5.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import pandas as pd
import torch

from benchmarks.environment import environment, publish, result_path
from benchmarks.flags import make_parser
from benchmarks.spread import spread
from benchmarks.workload import save_encoder
from competition_kit.commands.flags import count
from competition_kit.errors import KitError

__all__ = ["Size", "main", "measure"]

ROOT = Path(__file__).parents[1]
HEADER = ("what", "sizes", "trained rows", "processor seconds", "of linear", "min-max", "memory MB")
ENCODER = {
    "hidden_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 512,
}
WORDS = ("good", "bad", "fine", "poor", "table", "river", "walk", "song", "blue", "tall")
ARMS = tuple(f"fgm(epsilon={epsilon})" for epsilon in (0.5, 0.6, 0.7, 0.8, 0.9, 1.1, 1.2, 1.3))
PLAIN, ATTACKED = 3, 6  # passes of a step, in units of a forward

# runs one command; prints processor seconds and greatest resident size of it and its children
PROBE = """
import json, resource, subprocess, sys
ended = subprocess.run(sys.argv[1:], stdout=subprocess.DEVNULL)
used = resource.getrusage(resource.RUSAGE_CHILDREN)
print(json.dumps([ended.returncode, used.ru_utime + used.ru_stime, used.ru_maxrss / 1024]))
"""


@dataclass(frozen=True)
class Size:
    """One measured command."""

    rows: int
    folds: int = 2
    epochs: int = 1

    @property
    def trained(self) -> int:
        """Rows trained on in one arm, over all folds and epochs."""
        return self.epochs * self.rows * (self.folds - 1)


def measure(base: Size, doublings: int, repetitions: int) -> list[dict[str, Any]]:
    """Measure rows, folds and arms at sizes x 1, x 2, x 4 ...; return the figures."""
    factors = [2**power for power in range(doublings + 1)]
    plans: dict[str, list[tuple[int, Size, int]]] = {
        "rows": [(base.rows * k, Size(base.rows * k, base.folds, base.epochs), 0) for k in factors],
        "folds": [(1 + k, Size(base.rows, 1 + k, base.epochs), 0) for k in factors],
        "epochs": [
            (base.epochs * k, Size(base.rows, base.folds, base.epochs * k), 0) for k in factors
        ],
        "arms": [(k, base, k) for k in factors],
    }
    found = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        save_encoder(folder / "encoder", "bert", ENCODER, positions=64)
        for rows in {size.rows for sizes in plans.values() for _, size, _ in sizes}:
            _save_competition(folder / f"rows{rows}", rows)
        for what, sizes in plans.items():
            seconds: list[list[float]] = [[] for _ in sizes]
            memory: list[list[float]] = [[] for _ in sizes]
            for _ in range(repetitions):
                for number, (_, size, arms) in enumerate(sizes):
                    spent, peak = _run(folder, size, arms)
                    seconds[number].append(spent)
                    memory[number].append(peak)
            work = [size.trained * _units(arms) for _, size, arms in sizes]
            found.append(
                {
                    "what": what,
                    "sizes": [size for size, _, _ in sizes],
                    "trained_rows": [
                        size.trained * (arms + 2 if arms else 1) for _, size, arms in sizes
                    ],
                    "work": work,
                    "processor_seconds": [median(values) for values in seconds],
                    "of_linear": spread(
                        [_of_linear(list(times), work) for times in zip(*seconds, strict=True)]
                    ),
                    "memory_mb": [median(values) for values in memory],
                    "all_seconds": seconds,
                }
            )
            print(f"{what} done", file=sys.stderr)
    return found


def _units(arms: int) -> int:
    """Return forward units of a plain run, or of an ablation: baseline, A/A and so many arms."""
    return PLAIN if arms == 0 else 2 * PLAIN + ATTACKED * arms


def _of_linear(seconds: Sequence[float], work: Sequence[float]) -> float:
    """Return the largest size's cost over what a straight line through the smaller ones predicts."""
    line = np.polynomial.Polynomial.fit(work[:-1], seconds[:-1], deg=1)
    return seconds[-1] / float(line(work[-1]))


def _run(folder: Path, size: Size, arms: int) -> tuple[float, float]:
    with tempfile.TemporaryDirectory() as out:
        command = [sys.executable, str(ROOT / "run_cv.py")]
        command += ["ablate", "--arms", *ARMS[:arms]] if arms else ["cv"]
        command += ["--seeds", "0"]
        command += ["--data", str(folder / f"rows{size.rows}"), "--folds", str(size.folds)]
        command += ["--model", str(folder / "encoder"), "--epochs", str(size.epochs), "--out", out]
        command += ["--workers", "1", "--device", "cpu", "--max-length", "16"]
        probe = [sys.executable, "-c", PROBE, *command]
        ended = subprocess.run(probe, capture_output=True, text=True, check=True)
    code, seconds, peak = json.loads(ended.stdout)
    if code != 0:
        raise KitError(f"{' '.join(command)} ended with {code}:\n{ended.stderr}")
    return seconds, peak


def _save_competition(folder: Path, rows: int) -> None:
    """Write rows of 12 random words, each different, with a label that a word decides."""
    generator = np.random.default_rng(rows)
    words = generator.choice(WORDS, size=(rows + 20, 12))
    texts = [f"{' '.join(line)} {number}" for number, line in enumerate(words)]
    table = pd.DataFrame({"id": range(rows + 20), "text": texts})
    table["label"] = np.where(words[:, 0] < "g", "low", "high")
    folder.mkdir()
    table[:rows].to_csv(folder / "train.csv", index=False)
    table[rows:].drop(columns="label").to_csv(folder / "test.csv", index=False)


def _row(entry: dict[str, Any]) -> list[str]:
    ratio = entry["of_linear"]
    return [
        entry["what"],
        " ".join(map(str, entry["sizes"])),
        " ".join(map(str, entry["trained_rows"])),
        " ".join(f"{value:.1f}" for value in entry["processor_seconds"]),
        f"{ratio['median']:.2f}",
        f"{ratio['min']:.2f}-{ratio['max']:.2f}",
        " ".join(f"{value:.0f}" for value in entry["memory_mb"]),
    ]


def _parser() -> argparse.ArgumentParser:
    parser = make_parser(
        "scaling",
        "Cost against work: rows, folds, epochs and arms, doubled and doubled again.",
        repetitions=5,
    )
    parser.add_argument("--rows", type=count(1), default=1000, help="of the smallest competition")
    parser.add_argument(
        "--doublings",
        type=count(2),
        default=3,
        help="from 2 on: a line needs two sizes, and one more to be held against it",
    )
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print, write; return the exit code."""
    options = _parser().parse_args(arguments)
    try:
        found = measure(Size(options.rows), options.doublings, options.repetitions)
    except KitError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    facts = environment(torch.device("cpu"))
    path = options.json or result_path("scaling", facts)
    notes = [
        f"{options.repetitions} repetitions, medians; 2-layer random encoder of width 128, 1 worker",
        "of linear: the largest size's cost over what a line through the smaller ones predicts",
    ]
    figures = {"repetitions": options.repetitions, "scaling": found}
    publish(facts, HEADER, [_row(entry) for entry in found], figures, path, notes)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
