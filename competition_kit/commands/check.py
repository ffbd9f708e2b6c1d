"""`check`: a submission file against what the competition takes."""

from __future__ import annotations

import argparse
import logging
from pathlib import Path

from competition_kit.errors import InputError, examples

__all__ = ["add"]

log = logging.getLogger(__name__)

INVALID = 2


def add(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command's parser."""
    check = commands.add_parser(
        "check", help="check a submission file for whatever a competition rejects"
    )
    check.add_argument("file", type=Path, metavar="FILE", help="a submission: submission.csv")
    check.add_argument(
        "--data",
        type=Path,
        help="competition folder (else that of the run which the file lies in)",
    )
    check.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    from competition_kit.data.competition import load_competition
    from competition_kit.results.submission_check import check_file
    from competition_kit.results.submission_file import require_file

    require_file(options.file)
    data = options.data or _data_of_run(options.file)
    competition = load_competition(data)
    for line in competition.inferred:
        if line.startswith(("id", "label", "submission")):
            log.info("inferred: %s", line)
    checked = check_file(options.file, competition)
    for finding in checked.findings:
        print(finding.line(options.file))
    for line in checked.unchecked:
        print(f"not checked: {line}")
    counts = [
        f"{len(found)} {name}{'s' * (len(found) > 1)}"
        for name, found in (("error", checked.errors), ("warning", checked.warnings))
        if found
    ]
    if checked.errors:
        print(f"{options.file}: {', '.join(counts)}")
        return INVALID
    print(
        f"ok: {options.file} has {checked.rows} rows and the columns "
        f"{examples(checked.columns, 12)}" + (f" ({counts[0]})" if counts else "")
    )
    return 0


def _data_of_run(file: Path) -> Path:
    """Return the competition folder of the run whose folder the file lies in."""
    from competition_kit.files import read_json
    from competition_kit.harness.run_folder import RunFolder

    config = RunFolder(file.parent).config
    content = read_json(config, {"competition_folder?": str}) if config.is_file() else {}
    folder = content.get("competition_folder")
    if folder is None:
        raise InputError(
            "does not lie in a run folder, so its competition is not known",
            file=file,
            remedy="say it: --data data/tweets",
        )
    return Path(folder)
