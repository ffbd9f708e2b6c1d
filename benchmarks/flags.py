"""Flags and defaults that the speed benchmarks share."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import get_args

import torch

from benchmarks.workload import SHAPES
from competition_kit.commands.flags import count
from competition_kit.data.prepare import SETS, prepare
from competition_kit.model_source import DEFAULT_MODEL
from competition_kit.training.recipe import Precision

__all__ = [
    "add_device_flags",
    "add_model_flags",
    "add_shape_flag",
    "add_shape_flags",
    "default_device",
    "make_parser",
    "prepared",
]


def make_parser(name: str, description: str, *, repetitions: int) -> argparse.ArgumentParser:
    """Return the parser of `python -m benchmarks.<name>`, with the flags that all have."""
    parser = argparse.ArgumentParser(
        prog=f"python -m benchmarks.{name}",
        description=description,
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--repetitions", type=count(1), default=repetitions, help="interleaved")
    parser.add_argument("--json", type=Path, help="where figures go (else benchmarks/results)")
    return parser


def add_model_flags(parser: argparse.ArgumentParser, data: str) -> None:
    """Add encoder, competition (the prepared one called `data` by default) and batch size."""
    parser.add_argument("--model", default=DEFAULT_MODEL, help="model folder or hub name")
    parser.add_argument("--data", type=Path, default=Path("data") / data, help="competition folder")
    parser.add_argument("--batch-size", type=count(1), default=16, help="rows")


def add_shape_flag(parser: argparse.ArgumentParser, what: str = "weights") -> None:
    """Add what replaces the encoder (and more, if `what` says so) by a random one of a known size."""
    parser.add_argument("--shape", choices=tuple(SHAPES), help=f"random {what} instead")


def add_shape_flags(parser: argparse.ArgumentParser) -> None:
    """Add what replaces encoder and texts by random ones of a known size."""
    add_shape_flag(parser, "weights and tokens")
    parser.add_argument(
        "--length", type=count(4), default=128, help="tokens of a row, with --shape"
    )


def add_device_flags(parser: argparse.ArgumentParser) -> None:
    """Add device and precision."""
    parser.add_argument("--device", help="cpu or cuda (else cuda where there is one)")
    parser.add_argument("--precision", choices=get_args(Precision), default="fp32", help=" ")


def default_device(named: str | None) -> str:
    """Return the device that was named, else the best one here."""
    return named or ("cuda" if torch.cuda.is_available() else "cpu")


def prepared(data: Path) -> Path:
    """Return the competition folder; if it is one of the kit's own it is made where it is missing."""
    if data.parent == Path("data") and data.name in SETS:
        prepare(data.name, data.parent)
    return data
