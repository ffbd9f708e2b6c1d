"""Progress bars of a run, and log lines that do not tear them."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import TracebackType
from typing import TYPE_CHECKING

from tqdm import tqdm

if TYPE_CHECKING:
    from competition_kit.harness.cells import Cell

__all__ = ["BarHandler", "Progress", "bar_of_unknown_length"]

BAR = "{desc}: {percentage:3.0f}%|{bar:20}| [{elapsed}, {remaining} left]{postfix}"


class BarHandler(logging.Handler):
    """Writes the kit's log to stderr, above the bars; warnings say that they are."""

    def emit(self, record: logging.LogRecord) -> None:
        mark = f"{record.levelname.lower()}: " if record.levelno >= logging.WARNING else ""
        tqdm.write(mark + self.format(record), file=sys.stderr)


class Progress:
    """One bar over all optimizer steps of a run, with its ETA and what each worker is at.

    Args:
        steps: optimizer steps of each cell of the plan.
        epochs: of each cell.
        metric: name of the score that finished cells are announced with.
    """

    def __init__(self, steps: Mapping[Cell, int], epochs: int, metric: str) -> None:
        self._steps = dict(steps)
        self._epochs = epochs
        self._metric = metric
        self._running: dict[Cell, int] = {}
        self._finished: set[Cell] = set()
        self._total = sum(self._steps.values())
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

    def step(self, cell: Cell, step: int) -> None:
        """Show that a cell has taken so many optimizer steps."""
        if cell in self._finished:  # a worker's message that its result has overtaken
            return
        if self._bar is None:
            self._bar = _bar(self._total, self._title())
        before = self._running.get(cell, 0)
        self._running[cell] = step
        self._bar.set_postfix_str(self._at(), refresh=False)
        self._bar.update(step - before)

    def cell(self, cell: Cell, score: float, computed: bool) -> None:
        """Announce a finished cell, computed now or found on disk."""
        if not computed:  # no work left there, and it must not flatter the ETA
            self._total -= self._steps[cell]
            self._finished.add(cell)
            return
        self.step(cell, self._steps[cell])
        del self._running[cell]
        self._finished.add(cell)
        tqdm.write(
            f"seed {cell.seed} fold {cell.fold}: {self._metric} {score:.4f}", file=sys.stderr
        )
        if self._bar is not None:
            self._bar.set_postfix_str(self._at(), refresh=False)
            self._bar.set_description_str(self._title())

    def _title(self) -> str:
        return f"folds {len(self._finished)}/{len(self._steps)}"

    def _at(self) -> str:
        """Say what is being computed: "fold 1 epoch 2/3, fold 2 epoch 1/3"."""
        return ", ".join(self._place(cell, step) for cell, step in sorted(self._running.items()))

    def _place(self, cell: Cell, step: int) -> str:
        epoch = min(self._epochs, 1 + step * self._epochs // self._steps[cell])
        seed = f"seed {cell.seed} " if cell.seed else ""
        return f"{seed}fold {cell.fold} epoch {epoch}/{self._epochs}"


def _bar(total: int, title: str) -> tqdm:
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
