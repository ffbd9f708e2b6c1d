"""`prepare`: make real competition folders."""

from __future__ import annotations

import argparse
from pathlib import Path

from competition_kit.commands.flags import DATA

__all__ = ["PREPARED", "add"]

PREPARED = ("tweets", "tweets_full", "movies", "amazon", "nyt")


def add(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command's parser."""
    make = commands.add_parser("prepare", help="make real competition folders under data/")
    make.add_argument("name", nargs="+", choices=PREPARED, metavar="NAME", help=", ".join(PREPARED))
    make.add_argument("--data", type=Path, default=DATA, help="where to put them (default: data)")
    make.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    from competition_kit.data.prepare import prepare

    for name in options.name:
        folder = prepare(name, options.data)
        rows = {stem: _lines(folder / f"{stem}.csv") for stem in ("train", "test")}
        print(f"{folder}: {rows['train']} training rows, {rows['test']} test rows")
    return 0


def _lines(path: Path) -> int:
    from competition_kit.data.tables import read_table

    return len(read_table(path))
