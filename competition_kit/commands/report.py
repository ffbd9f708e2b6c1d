"""`report`: write a run's HTML report again."""

from __future__ import annotations

import argparse
from pathlib import Path

from competition_kit.commands.finished import finished_run

__all__ = ["add"]


def add(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command's parser."""
    report = commands.add_parser("report", help="write a run's report.html again")
    report.add_argument("folder", type=Path, metavar="RUN", help="a run folder: runs/tweets/...")
    report.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    from competition_kit.results.report import write_run_report

    print(write_run_report(finished_run(options.folder)))
    return 0
