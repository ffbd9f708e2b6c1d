"""`export`: a run's fold models as a folder that predicts by itself, offline."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

__all__ = ["add"]


def add(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command's parser."""
    export = commands.add_parser(
        "export", help="make a folder of a run that predicts offline, for code competitions"
    )
    export.add_argument("folder", type=Path, metavar="RUN", help="a run folder: runs/tweets/...")
    export.add_argument("--to", type=Path, required=True, metavar="FOLDER", help="a new folder")
    export.add_argument("--data", type=Path, help="competition folder (else where it was)")
    export.add_argument(
        "--fp16", action="store_true", help="half the size; probabilities change a little"
    )
    export.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    from competition_kit.harness.stored_run import open_stored_run

    stored = open_stored_run(options.folder)
    os.environ["HF_HUB_OFFLINE"] = (
        "1"  # before transformers is imported: all that is needed is here
    )
    from competition_kit.data.competition import load_competition
    from competition_kit.harness.bundle import export_bundle

    competition = load_competition(options.data or stored.competition_folder)
    outcome = export_bundle(stored, competition, options.to, fp16=options.fp16)
    size = sum(path.stat().st_size for path in options.to.rglob("*") if path.is_file())
    print(f"self-test in a fresh process, network refused: {outcome}")
    print(
        f"{options.to}: {len(stored.models)} models, {size / 1e6:.0f} MB; how to use it: README.txt"
    )
    return 0
