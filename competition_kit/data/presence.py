"""Whether a file is there. What bears its name and is no file is refused, never overlooked."""

from __future__ import annotations

import os
from pathlib import Path

from competition_kit.errors import InputError

__all__ = ["is_there", "no_file"]


def no_file(path: Path) -> str | None:
    """Say why a path cannot be read as a file; None where it can."""
    if path.is_file():
        return None
    if path.exists():
        return "is a folder" if path.is_dir() else "is no file on a disk"
    return "is a broken link" if path.is_symlink() else "no such file"


def is_there(path: Path) -> bool:
    """Return whether a file is there that may also be left out.

    Raises:
        InputError: if a folder, a broken link or a device bears its name: whoever put it there
            means it to be read.
    """
    problem = no_file(path)
    if problem is not None and os.path.lexists(path):
        raise InputError(problem, file=path, remedy="put a file in its place, or remove it")
    return problem is None
