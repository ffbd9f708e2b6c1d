"""Progress bars of a run, and log lines that do not tear them."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import TracebackType

from tqdm import tqdm

__all__ = ["BarHandler", "Progress", "bar_of_unknown_length"]

BAR = "{desc}: {percentage:3.0f}%|{bar:20}| [{elapsed}, {remaining} left]{postfix}"


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
        self._bar: tqdm | None = None

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
        bar: list[tqdm] = []

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


def _bar(total: float, title: str) -> tqdm:
    quiet = not sys.stderr.isatty()
    return tqdm(
        total=total,
        desc=title,
        bar_format=BAR,
        file=sys.stderr,
        mininterval=15.0 if quiet else 0.2,  # a log file gets a line now and then
        dynamic_ncols=True,
    )


@contextmanager
def bar_of_unknown_length(title: str) -> Iterator[Callable[[int, int], None]]:
    """Give a callback (steps so far, steps in all) that shows a bar from its first call on."""
    bars: list[tqdm] = []

    def advance(step: int, total: int) -> None:
        if not bars:
            bars.append(_bar(total, title))
        bars[0].update(step - bars[0].n)

    try:
        yield advance
    finally:
        for bar in bars:
            bar.close()
