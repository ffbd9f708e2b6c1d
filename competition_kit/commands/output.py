"""What several commands print and record: their own command line, reports, where files are."""

from __future__ import annotations

import logging
import shlex
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TypeVar

__all__ = ["command_line", "print_written", "report_if_possible"]

log = logging.getLogger(__name__)

Report = TypeVar("Report")


def command_line() -> str:
    """Return the command as it was given, for whoever wants its results again."""
    return shlex.join(["python", "run_cv.py", *sys.argv[1:]])


def report_if_possible(write: Callable[[], Report]) -> Report | None:
    """Write a report; None where the packages that it needs are missing: the numbers stand."""
    try:
        return write()
    except ModuleNotFoundError as error:
        log.warning("no report.html: %s is missing; pip install %s", error.name, error.name)
        return None


def print_written(paths: Iterable[Path | None]) -> None:
    """Print which of these files there are."""
    print("written:")
    for path in paths:
        if path is not None and path.is_file():
            print(f"  {path}")
