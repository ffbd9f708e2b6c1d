"""Find a finished run."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from competition_kit.errors import InputError

if TYPE_CHECKING:
    from competition_kit.harness.run_folder import RunFolder

__all__ = ["finished_run"]


def finished_run(path: Path) -> RunFolder:
    """Return a run folder that has results.

    Raises:
        InputError: if it has none.
    """
    from competition_kit.harness.run_folder import RunFolder

    folder = RunFolder(path)
    if not folder.metrics.is_file():
        raise InputError(
            "is no finished run (no metrics.json)",
            file=path,
            remedy="give a folder such as runs/tweets/all-minilm-l6-v2-fgm-1a2b3c4d",
        )
    return folder
