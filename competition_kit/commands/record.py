"""`record`: what the competition said of a run's submission."""

from __future__ import annotations

import argparse
from pathlib import Path

from competition_kit.commands.finished import finished_run
from competition_kit.commands.flags import number
from competition_kit.errors import InputError

__all__ = ["add"]


def add(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command's parser."""
    record = commands.add_parser(
        "record", help="write down the leaderboard score of a run's submission"
    )
    record.add_argument("folder", type=Path, metavar="RUN", help="a run folder: runs/tweets/...")
    record.add_argument("--public", type=number, metavar="SCORE", help="on the public leaderboard")
    record.add_argument("--private", type=number, metavar="SCORE", help="on the private one")
    record.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    folder = finished_run(options.folder)
    if options.public is None and options.private is None:
        raise InputError("no score is given", remedy="say for instance --public 0.842")
    from competition_kit.results.recorded import record_score

    with folder.locked():
        recorded = record_score(folder, public=options.public, private=options.private)
    scores = {"public": recorded.public, "private": recorded.private}
    said = ", ".join(f"{name} {score:g}" for name, score in scores.items() if score is not None)
    print(f"{folder.recorded}: {said}, for {folder.submission.name} as it is now")
    return 0
