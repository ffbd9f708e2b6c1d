"""Flags that several commands share, and the kinds of numbers that they take."""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable
from pathlib import Path
from typing import get_args

from competition_kit.data.rules import SCHEMES
from competition_kit.model_source import DEFAULT_MODEL
from competition_kit.training.recipe import Pooling, Recipe, Schedule

__all__ = [
    "DATA",
    "DEFAULT_COMPETITION",
    "HelpWithDefaults",
    "add_competition_flags",
    "add_machine_flags",
    "add_training_flags",
    "count",
    "duration",
    "not_negative",
    "number",
    "positive",
    "ratio",
]


class HelpWithDefaults(argparse.ArgumentDefaultsHelpFormatter):
    """Says defaults, where there is something to say."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        if action.default in (None, "", False, argparse.SUPPRESS):
            return action.help
        if isinstance(action.default, list):
            return f"{action.help} (default: {' '.join(map(str, action.default))})"
        return super()._get_help_string(action)


DATA = Path("data")
DEFAULT_COMPETITION = "tweets"


def add_competition_flags(group: argparse._ArgumentGroup) -> None:
    """Add what may be said instead of competition.toml, and the encoder."""
    group.add_argument("--model", default=DEFAULT_MODEL, help="model folder or hub name")
    group.add_argument(
        "--metric", help='instead of competition.toml\'s; a name or "module:function"'
    )
    group.add_argument("--scheme", choices=SCHEMES, help="instead of competition.toml's")
    group.add_argument("--folds", type=count(2), help="instead of competition.toml's (else 5)")


def add_training_flags(parser: argparse.ArgumentParser) -> None:
    """Add the numbers of the loop and of the head."""
    recipe = Recipe()
    how = parser.add_argument_group("training")
    how.add_argument("--epochs", type=count(1), default=recipe.epochs, help="passes over the rows")
    how.add_argument(
        "--lr",
        type=positive,
        help="peak learning rate (else from the encoder's width)",
    )
    how.add_argument("--batch-size", type=count(1), default=recipe.batch_size, help="rows")
    how.add_argument(
        "--accumulation-steps",
        type=count(1),
        default=recipe.accumulation_steps,
        help="batches per optimizer step",
    )
    how.add_argument("--max-length", type=count(4), help="tokens; longer texts are cut (else 128)")
    how.add_argument(
        "--warmup-ratio",
        type=ratio(True),
        default=recipe.warmup_ratio,
        help="of the steps",
    )
    how.add_argument(
        "--schedule",
        choices=get_args(Schedule),
        default=recipe.schedule,
        help="after warm-up",
    )
    how.add_argument(
        "--weight-decay",
        type=ratio(False),
        default=recipe.weight_decay,
        help="of matrices",
    )
    how.add_argument(
        "--max-grad-norm",
        type=ratio(False),
        default=recipe.max_grad_norm,
        help="0: no clipping",
    )
    how.add_argument("--pooling", choices=get_args(Pooling), default="mean", help="tokens to text")
    how.add_argument("--dropout", type=ratio(True), default=0.1, help="before the last layer")


def add_machine_flags(parser: argparse.ArgumentParser) -> argparse._ArgumentGroup:
    """Add where cells run and where their files go; return the group, for a command's own."""
    where = parser.add_argument_group("machine and files")
    where.add_argument("--out", type=Path, default=Path("runs"), help="where run folders go")
    where.add_argument("--device", help="cpu, cuda, cuda:1, mps (else cuda where there is one)")
    where.add_argument("--workers", type=count(1), help="processes (else one per GPU or CPU core)")
    where.add_argument(
        "--precision",
        choices=("auto", "fp32", "bf16", "fp16"),
        default="auto",
        help="auto: bf16 (fp16 on older cards) on CUDA, fp32 elsewhere",
    )
    where.add_argument(
        "--deterministic",
        action="store_true",
        help="the same bits in every run on one machine, on CUDA too (slower there)",
    )
    where.add_argument(
        "--no-fast-paths",
        action="store_true",
        help="none of the shortcuts that change numbers by rounding only",
    )
    return where


def count(least: int) -> Callable[[str], int]:
    """Return the type of a whole number that is at least `least`."""

    def whole_number(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{text!r} is not a whole number") from None
        if value < least:
            raise argparse.ArgumentTypeError(f"{value} is less than {least}")
        return value

    return whole_number


def ratio(below_one: bool) -> Callable[[str], float]:
    """Return the type of a number from 0 on."""

    def bounded(text: str) -> float:
        value = number(text)
        if not 0.0 <= value < (1.0 if below_one else float("inf")):
            raise argparse.ArgumentTypeError(
                f"{text} is not {'at least 0 and below 1' if below_one else '0 or more'}"
            )
        return value

    return bounded


def number(text: str) -> float:
    """Read a number."""
    try:
        return float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number") from None


def positive(text: str) -> float:
    """Read a finite number above 0."""
    value = number(text)
    if not 0.0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} is not above 0")
    return value


def not_negative(text: str) -> float:
    """Read a finite number from 0 on."""
    return ratio(False)(text)


def duration(text: str) -> float:
    """Read a length of time, 8h, 90m or 1h30m; return seconds."""
    found = re.fullmatch(r"(?:(\d+(?:\.\d+)?)h)?(?:(\d+(?:\.\d+)?)m)?(?:(\d+)s)?", text.strip())
    if not text.strip() or found is None:
        raise argparse.ArgumentTypeError(f"{text!r} is no length of time; write 8h, 90m or 1h30m")
    hours, minutes, seconds = (float(part or 0) for part in found.groups())
    return positive(str(hours * 3600 + minutes * 60 + seconds))
