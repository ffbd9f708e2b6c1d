"""A run folder on disk: one arm of one competition, one writer at a time."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from competition_kit.errors import InputError
from competition_kit.files import atomic_write
from competition_kit.harness.cells import Cell

__all__ = ["RunFolder"]


class RunFolder:
    """Paths inside `runs/<competition>/<arm>/`.

    Args:
        path: the arm's folder.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.config = path / "config.json"
        self.folds = path / "folds.csv"
        self.oof = path / "oof.csv"
        self.test_predictions = path / "test_predictions.csv"
        self.metrics = path / "metrics.json"
        self.submission = path / "submission.csv"
        self.report = path / "report.html"
        self.encoder = path / "encoder"
        self.held_out = path / "held_out.json"
        self.recorded = path / "recorded.json"

    def cell(self, cell: Cell) -> Path:
        """Return the folder of a cell."""
        return self.path / "cells" / cell.name

    def weights(self, cell: Cell) -> Path:
        """Return the file of a cell's trained weights."""
        return self.cell(cell) / "model.safetensors"

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the folder's lock; the operating system lets go of it when this process ends.

        Raises:
            InputError: if another live process holds it; says which.
        """
        holder = self.path / ".lock.json"
        lock = FileLock(self.path / ".lock", timeout=0)
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            lock.acquire()
        except Timeout:
            raise InputError(
                f"another process is writing here ({_read_holder(holder)})",
                file=self.path,
                remedy="wait for it, or stop it",
            ) from None
        except OSError as error:
            raise InputError(
                f"cannot be made or locked ({error.strerror})",
                file=self.path,
                remedy="make it a folder that you can write to, or use one elsewhere: a copy of "
                "the run, for a new run another --out",
            ) from error
        try:
            for left in self.path.rglob(".*.tmp"):  # of a process that was killed while it wrote
                if left.is_file():  # a folder is a bundle that is being made
                    left.unlink(missing_ok=True)
            with atomic_write(holder) as file:
                json.dump({"pid": os.getpid(), "host": socket.gethostname()}, file)
            yield
        finally:
            holder.unlink(missing_ok=True)
            lock.release()


def _read_holder(path: Path) -> str:
    try:
        holder = json.loads(path.read_text(encoding="utf-8"))
        return f"process {holder['pid']} on {holder['host']}"
    except (OSError, ValueError, KeyError):
        return "it has just started"
