"""`report`: write the report of a run, an ablation or an ensemble again."""

from __future__ import annotations

import argparse
from pathlib import Path

from competition_kit.commands.finished import finished_run

__all__ = ["add"]


def add(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command's parser."""
    report = commands.add_parser(
        "report", help="write the report of a run, an ablation or an ensemble again"
    )
    report.add_argument(
        "folder", type=Path, metavar="FOLDER", help="of a run, an ablation or an ensemble"
    )
    report.add_argument(
        "--no-examples",
        action="store_true",
        help="leave the texts of training rows out of an ablation's report",
    )
    report.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    from competition_kit.files import read_json
    from competition_kit.results.members import ENSEMBLE
    from competition_kit.results.report import (
        write_ablation_report,
        write_ensemble_report,
        write_run_report,
    )

    if (options.folder / "ablation.json").is_file():
        for path in write_ablation_report(options.folder, examples=not options.no_examples):
            print(path)
    else:
        folder = finished_run(options.folder)
        blended = read_json(folder.config).get("kind") == ENSEMBLE
        print((write_ensemble_report if blended else write_run_report)(folder))
    return 0
