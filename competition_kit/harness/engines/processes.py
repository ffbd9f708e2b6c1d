"""How processes of the kit start on this machine, and how they end."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import resource_tracker
from multiprocessing.connection import wait as wait_for_process
from typing import Any, TypeVar

from competition_kit.errors import KitError

__all__ = [
    "begin_worker_imports",
    "beside",
    "can_fork",
    "process_context",
    "serve_parent",
    "stop_children",
    "stops_held_back",
]

Found = TypeVar("Found")
PRELOAD = "competition_kit.harness.engines.preload"


def begin_worker_imports(device: str) -> None:
    """Begin to import what workers need, in the background, beside what the driver still does."""
    if can_fork(device):
        from multiprocessing.forkserver import ensure_running

        with stops_held_back():
            process_context(device)
            ensure_running()


def process_context(device: str) -> Any:
    """Return how workers start: on Linux from one process that has imported everything, else anew.

    That process has no thread of torch's and no CUDA: either, forked, would hang or fail.
    """
    if not can_fork(device):
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([PRELOAD])
    return context


def can_fork(device: str) -> bool:
    """Return whether workers for this device can start from one that has imported everything."""
    return sys.platform == "linux" and device == "cpu"


@contextlib.contextmanager
def beside(
    device: str, work: Callable[..., Found], *arguments: Any
) -> Iterator[Callable[[], Found]]:
    """Run `work` in a process of its own while the block runs; give what waits for its result.

    Leaving the block before that ends the process. What `work` raises, the result raises.

    Args:
        device: on which cells run meanwhile: it decides how processes start.
        work: a function that another process can import, as the arguments can be pickled.
    """
    with stops_held_back():
        pool = ProcessPoolExecutor(1, process_context(device), serve_parent)
        future = pool.submit(work, *arguments)
    pool.shutdown(wait=False)  # its process ends with the work

    def result() -> Found:
        try:
            return future.result()
        except BrokenProcessPool as error:
            raise KitError(
                f"the process of {work.__name__} died (was it out of memory?): run the same "
                "command again; finished cells are kept"
            ) from error

    try:
        yield result
    finally:
        if not future.done():
            stop_children()


def stop_children() -> None:
    """End all processes that this one has started: nobody wants their results any more."""
    for process in multiprocessing.active_children():
        process.terminate()


@contextlib.contextmanager
def stops_held_back() -> Iterator[None]:
    """Let Ctrl-C and SIGTERM wait until the block ends: half a pool could not be taken down.

    Of Ctrl-C, processes that start inside never hear: a terminal sends it to all of them, and one
    that is still importing would print a traceback. SIGTERM must stay deadly to them.
    """
    here = threading.current_thread() is threading.main_thread()
    if not here or not hasattr(signal, "pthread_sigmask"):  # the latter: Windows
        yield
        return
    resource_tracker.ensure_running()  # its start ends with Ctrl-C unblocked
    caught: list[int] = []
    handlers = {
        number: signal.signal(number, lambda number, frame: caught.append(number))
        for number in (signal.SIGINT, signal.SIGTERM)
    }
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})  # which children inherit
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        for number, handler in handlers.items():
            signal.signal(number, handler)
        if caught:  # even where what it did to the processes that start is an error by now
            signal.raise_signal(caught[0])


# -- in the process -----------------------------------------------------------------------------


def serve_parent() -> None:
    """Leave Ctrl-C to the parent, and end when it is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait_for_process([parent.sentinel])
        os._exit(1)  # the driver was killed: nobody waits for this cell, and it holds memory
