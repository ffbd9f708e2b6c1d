"""Progress of a run, as bars on a terminal and as lines in a log; log lines that tear no bar."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import TracebackType
from typing import Protocol

from tqdm import tqdm

__all__ = ["BarHandler", "Progress", "bar_of_unknown_length"]

BAR = "{desc}: {percentage:3.0f}%|{bar:20}| [{elapsed}, {remaining} left]{postfix}"
LINE = "{desc}: {percentage:3.0f}% [{elapsed}, {remaining} left]{postfix}"
SECONDS_BETWEEN_LINES = 30.0


class BarHandler(logging.Handler):
    """Writes the kit's log to stderr, above the bars; warnings say that they are."""

    def emit(self, record: logging.LogRecord) -> None:
        mark = f"{record.levelname.lower()}: " if record.levelno >= logging.WARNING else ""
        tqdm.write(mark + self.format(record), file=sys.stderr)


class Progress:
    """One bar over all work of a run, with its ETA and what each worker is at.

    Args:
        work: of each cell, by its name in words: how much there is to do, in any one unit.
        title: what the bar counts: "folds", "cells".
        epochs: of each cell.
    """

    def __init__(self, work: Mapping[str, float], title: str, epochs: int) -> None:
        self._work = dict(work)
        self._name = title
        self._epochs = epochs
        self._running: dict[str, float] = {}
        self._finished: set[str] = set()
        self._total = sum(self._work.values())
        self._bar: Bar | None = None

    def __enter__(self) -> Progress:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._bar is not None:
            self._bar.close()

    def floor(self, folds: int) -> Callable[[int], None]:
        """Return the callback that shows the floor's folds."""
        bar: list[Bar] = []

        def advance(fold: int) -> None:
            if not bar:
                bar.append(_bar(folds, "TF-IDF floor"))
            bar[0].update()
            if fold + 1 == folds:
                bar[0].close()

        return advance

    def step(self, cell: str, share: float) -> None:
        """Show that a share of a cell (0 to 1) is done."""
        if cell in self._finished:  # a worker's message that its result has overtaken
            return
        if self._bar is None:
            self._bar = _bar(self._total, self._title())
        before = self._running.get(cell, 0.0)
        self._running[cell] = share
        self._bar.set_postfix_str(self._at(), refresh=False)
        left = max(0.0, self._total - self._bar.n)  # rounding must not lead past the end
        self._bar.update(min((share - before) * self._work[cell], left))

    def found(self, cell: str) -> None:
        """Take out a cell that was on disk: no work is left there, and it must not flatter the ETA."""
        self._total -= self._work[cell]
        self._finished.add(cell)

    def finish(self, cell: str, announcement: str) -> None:
        """Announce a cell that was computed now."""
        self.step(cell, 1.0)
        self._running.pop(cell, None)
        self._finished.add(cell)
        tqdm.write(announcement, file=sys.stderr)
        if self._bar is not None:
            self._bar.set_postfix_str(self._at(), refresh=False)
            self._bar.set_description_str(self._title())

    def _title(self) -> str:
        return f"{self._name} {len(self._finished)}/{len(self._work)}"

    def _at(self) -> str:
        """Say what is being computed: "fold 1 epoch 2/3, fold 2 epoch 1/3"."""
        return ", ".join(
            f"{cell} epoch {min(self._epochs, 1 + int(share * self._epochs))}/{self._epochs}"
            for cell, share in self._running.items()
        )


class Bar(Protocol):
    """What is used of a tqdm bar."""

    n: float

    def update(self, n: float = 1) -> object: ...

    def set_postfix_str(self, s: str, refresh: bool = True) -> None: ...

    def set_description_str(self, desc: str) -> None: ...

    def close(self) -> None: ...


class Lines:
    """A bar for logs, which have no cursor to move back: a line now and then, and the last state."""

    def __init__(self, total: float, title: str) -> None:
        self.n = 0.0
        self._total, self._title, self._postfix = total, title, ""
        self._started = self._written = time.monotonic()

    def update(self, n: float = 1) -> None:
        """Count; write a line if the last one is long ago."""
        self.n += n
        if time.monotonic() - self._written >= SECONDS_BETWEEN_LINES:
            self._write()

    def set_postfix_str(self, s: str, refresh: bool = True) -> None:
        """Say what is being done; shown with the next line."""
        self._postfix = s

    def set_description_str(self, desc: str) -> None:
        """Change the title; shown with the next line."""
        self._title = desc

    def close(self) -> None:
        """Write the last state."""
        self._write()

    def _write(self) -> None:
        self._written = time.monotonic()
        line = tqdm.format_meter(
            self.n,
            self._total,
            self._written - self._started,
            prefix=self._title,
            bar_format=LINE,
            postfix=self._postfix,
        )
        print(line, file=sys.stderr, flush=True)


def _bar(total: float, title: str) -> Bar:
    if not sys.stderr.isatty():
        return Lines(total, title)
    return tqdm(
        total=total,
        desc=title,
        bar_format=BAR,
        file=sys.stderr,
        mininterval=0.2,
        dynamic_ncols=True,
    )


@contextmanager
def bar_of_unknown_length(title: str) -> Iterator[Callable[[int, int], None]]:
    """Give a callback (steps so far, steps in all) that shows a bar from its first call on."""
    bars: list[Bar] = []

    def advance(step: int, total: int) -> None:
        if not bars:
            bars.append(_bar(total, title))
        bars[0].update(step - bars[0].n)

    try:
        yield advance
    finally:
        for bar in bars:
            bar.close()
