"""Find a finished run."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from competition_kit.harness.run_folder import RunFolder

__all__ = ["finished_run"]


def finished_run(path: Path, *, cells: bool = False) -> RunFolder:
    """Return a run folder that has results.

    Args:
        cells: whether every cell of it is needed, too, not only its results.

    Raises:
        InputError: if it is no run, or is not finished.
    """
    from competition_kit.harness.finished import check_finished
    from competition_kit.harness.run_folder import RunFolder

    folder = RunFolder(path)
    check_finished(folder, cells=cells)
    return folder
