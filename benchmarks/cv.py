"""A whole cross-validation: where its time goes, and how long Trainer takes for the same, fold by fold.

    python -m benchmarks.cv                      # 5 folds, 2 seeds on tweets: where the time goes
    python -m benchmarks.cv --peer --precision bf16 --repetitions 5        # on a GPU

The kit's side is the command itself, `run_cv.py cv`, from its start to its end, in an empty folder:
start, tokens, floor, workers, training, predictions, files and report. With `--peer` a script that
trains the same folds one after the other with transformers' Trainer (texts of similar length
together, same encoder, epochs and batch size) and predicts the same rows runs in turn with it.

Outside training is what processor time the workers had (workers x seconds of the command) minus
what they spent in `fit_fold`. The predictions that cross-validation must make are shown apart.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.environment import environment, publish, result_path
from benchmarks.flags import (
    add_device_flags,
    add_model_flags,
    default_device,
    make_parser,
    prepared,
)
from benchmarks.spread import ratios, spread
from competition_kit.commands.flags import count
from competition_kit.errors import KitError
from competition_kit.files import read_json

__all__ = ["Run", "main", "run_kit"]

ROOT = Path(__file__).parents[1]
DATA = "tweets"
HEADER = ("side", "seconds", "min-max", "training", "predicting", "rest", "score")


class Run(dict[str, float]):
    """Seconds of one run, what part of the workers' time went where, and the score."""


def run_kit(data: Path, model: str, flags: Sequence[str]) -> Run:
    """Run the command in an empty folder and read off where its time went.

    Raises:
        KitError: if it does not end well.
    """
    with tempfile.TemporaryDirectory() as out:
        command = [sys.executable, str(ROOT / "run_cv.py"), "cv", "--data", str(data)]
        command += ["--model", model, "--out", out, *flags]
        start = time.perf_counter()
        ended = subprocess.run(command, capture_output=True, text=True, check=False)
        seconds = time.perf_counter() - start
        if ended.returncode != 0:
            raise KitError(f"{' '.join(command)} ended with {ended.returncode}:\n{ended.stderr}")
        (path,) = Path(out).glob("*/*/metrics.json")
        cells = read_json(path)["cells"]
        workers = read_json(path.with_name("config.json"))["placement"]["workers"]
    whole = workers * seconds
    fit = sum(cell["fit_seconds"] for cell in cells) / whole
    predicted = sum(cell["predict_seconds"] for cell in cells) / whole
    return Run(
        seconds=seconds,
        training=fit,
        predicting=predicted,
        rest=1.0 - fit - predicted,
        score=sum(cell["score"] for cell in cells) / len(cells),
    )


def run_peer(data: Path, model: str, flags: Sequence[str]) -> Run:
    """Run `benchmarks.peer_cv`, the same folds with transformers' Trainer.

    Raises:
        KitError: if it does not end well.
    """
    with tempfile.TemporaryDirectory() as out:
        path = Path(out) / "peer.json"
        command = [sys.executable, "-m", "benchmarks.peer_cv", "--data", str(data)]
        command += ["--model", model, "--json", str(path), *flags]
        start = time.perf_counter()
        ended = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
        seconds = time.perf_counter() - start
        if ended.returncode != 0:
            raise KitError(f"{' '.join(command)} ended with {ended.returncode}:\n{ended.stderr}")
        found = read_json(path)
    training, predicting = found["fit_seconds"] / seconds, found["predict_seconds"] / seconds
    return Run(
        seconds=seconds,
        training=training,
        predicting=predicting,
        rest=1.0 - training - predicting,
        score=found["score"],
    )


def _figures(runs: dict[str, list[Run]]) -> list[dict[str, Any]]:
    return [
        {"side": side, **{key: spread([run[key] for run in found]) for key in found[0]}}
        for side, found in runs.items()
    ]


def _row(side: dict[str, Any]) -> list[str]:
    seconds = side["seconds"]
    return [
        side["side"],
        f"{seconds['median']:.1f}",
        f"{seconds['min']:.1f}-{seconds['max']:.1f}",
        *(f"{side[part]['median']:.1%}" for part in ("training", "predicting", "rest")),
        f"{side['score']['median']:.4f}",
    ]


def _parser() -> argparse.ArgumentParser:
    parser = make_parser(
        "cv",
        "Where the time of a whole cross-validation goes, and what a peer takes.",
        repetitions=1,
    )
    add_model_flags(parser, DATA)
    add_device_flags(parser)
    parser.add_argument("--folds", type=count(2), default=5, help=" ")
    parser.add_argument("--seeds", type=count(0), nargs="+", default=[0, 1], help=" ")
    parser.add_argument("--epochs", type=count(1), default=2, help=" ")
    parser.add_argument("--max-length", type=count(4), default=128, help="tokens")
    parser.add_argument("--workers", type=count(1), help="of the kit (else its own choice)")
    parser.add_argument("--peer", action="store_true", help="measure Trainer, fold by fold, too")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print, write; return the exit code."""
    options = _parser().parse_args(arguments)
    device = default_device(options.device)
    shared = {
        "--folds": [options.folds],
        "--seeds": options.seeds,
        "--epochs": [options.epochs],
        "--batch-size": [options.batch_size],
        "--max-length": [options.max_length],
        "--device": [device],
        "--precision": [options.precision],
    }
    flags = [str(part) for flag, values in shared.items() for part in (flag, *values)]
    own = flags if options.workers is None else [*flags, "--workers", str(options.workers)]
    sides = {"kit": lambda: run_kit(options.data, options.model, own)}
    if options.peer:
        sides["Trainer, fold by fold"] = lambda: run_peer(options.data, options.model, flags)
    runs: dict[str, list[Run]] = {side: [] for side in sides}
    try:
        prepared(options.data)
        for repetition in range(options.repetitions):
            order = list(sides) if repetition % 2 == 0 else list(reversed(sides))
            for side in order:
                runs[side].append(sides[side]())
                print(f"{side}: {runs[side][-1]['seconds']:.1f} s", file=sys.stderr)
    except KitError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    figures: dict[str, Any] = {
        "settings": {
            "model": Path(options.model).name,
            "data": options.data.name,
            "flags": own,
        },
        "repetitions": options.repetitions,
        "sides": _figures(runs),
    }
    notes = [
        f"{options.data.name}, {Path(options.model).name}, {options.folds} folds, "
        f"{len(options.seeds)} seeds, {options.epochs} epochs, {options.precision}; "
        f"{options.repetitions} repetitions, medians",
        "training, predicting, rest: parts of the time that the workers had",
    ]
    if options.peer:
        seconds = {side: [run["seconds"] for run in found] for side, found in runs.items()}
        faster = spread(ratios(seconds["Trainer, fold by fold"], seconds["kit"]))
        figures["kit_is_times_as_fast"] = faster
        notes.append(
            f"the kit is {faster['median']:.2f} times as fast "
            f"({faster['min']:.2f}-{faster['max']:.2f})"
        )
    facts = environment(torch.device(device))
    path = options.json or result_path("cv", facts)
    publish(facts, HEADER, [_row(side) for side in figures["sides"]], figures, path, notes)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
