"""Cells on this machine: one after the other here, or in a pool of worker processes."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import queue
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, replace
from functools import partial
from multiprocessing import resource_tracker
from multiprocessing.connection import wait as wait_for_process
from typing import Any

from competition_kit.errors import KitError
from competition_kit.harness.cells import CellJob, CellResult

__all__ = ["Placement", "compute", "get_ready", "place"]

OnStep = Callable[[int, int], None]
Admit = Callable[[int], bool]
POLL_SECONDS = 0.1
PRELOAD = [  # what takes seconds to import
    "competition_kit.harness.train_cell",
    "transformers.modeling_utils",
    "transformers.models.bert.modeling_bert",
    "transformers.models.roberta.modeling_roberta",
]


@dataclass(frozen=True)
class Placement:
    """Where cells run.

    Attributes:
        workers: processes at a time; 1 means this process.
        threads: of each worker, on the CPU. Part of what decides a cell's last digits.
        devices: given out in turn.
        fast_paths, deterministic: how cells are computed there (see `CellJob`).
    """

    workers: int
    threads: int
    devices: tuple[str, ...]
    fast_paths: bool = True
    deterministic: bool = False


def place(
    cells: int,
    device: str | None,
    workers: int | None,
    *,
    fast_paths: bool = True,
    deterministic: bool = False,
) -> Placement:
    """Choose devices and workers: GPUs where there are any, else one process for each core.

    One process per core with one thread each does more cells an hour than one process with all.
    The number of cells is that of the whole plan, so that resuming changes no thread count.
    """
    import torch

    if device is None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cuda":
        devices = tuple(f"cuda:{number}" for number in range(torch.cuda.device_count()))
    else:
        devices = (device,)
    cores = (
        len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    )
    if workers is None:
        workers = min(cells, cores if devices == ("cpu",) else len(devices))
    workers = min(workers, cells)
    return Placement(workers, max(1, cores // workers), devices, fast_paths, deterministic)


def get_ready(device: str) -> None:
    """Begin to import what workers need, in the background, beside what the driver still does."""
    if _can_fork(device):
        from multiprocessing.forkserver import ensure_running

        with _stops_held_back():
            _context(device)
            ensure_running()


def _context(device: str) -> Any:
    """Return how workers start: on Linux from one process that has imported everything, else anew.

    That process has no thread of torch's and no CUDA: either, forked, would hang or fail.
    """
    if not _can_fork(device):
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOAD)
    return context


def _can_fork(device: str) -> bool:
    return sys.platform == "linux" and device == "cpu"


def compute(
    jobs: Sequence[CellJob],
    placement: Placement,
    *,
    on_step: Callable[[int, int], None] = lambda number, step: None,
    admit: Callable[[int], bool] = lambda number: True,
) -> Iterator[tuple[int, CellResult | BaseException]]:
    """Yield each job's number with its result, or with what it raised, as soon as it is there.

    Args:
        on_step: called with a job's number and its optimizer steps so far.
        admit: asked right before a job is started; one that is not admitted is never computed.

    Raises:
        KitError: if a worker process died, after the finished cells have been yielded.
    """
    if placement.workers == 1:
        yield from _here(jobs, placement, on_step, admit)
    else:
        yield from _pool(jobs, placement, on_step, admit)


def _here(
    jobs: Sequence[CellJob], placement: Placement, on_step: OnStep, admit: Admit
) -> Iterator[tuple[int, CellResult | BaseException]]:
    import torch

    from competition_kit.harness.train_cell import train_cell

    torch.set_num_threads(placement.threads)
    for number, job in enumerate(jobs):
        if not admit(number):
            continue
        job = replace(job, device=placement.devices[number % len(placement.devices)])
        try:
            outcome: CellResult | BaseException = train_cell(job, partial(on_step, number))
        except Exception as error:
            outcome = error
        yield number, outcome


def _pool(
    jobs: Sequence[CellJob], placement: Placement, on_step: OnStep, admit: Admit
) -> Iterator[tuple[int, CellResult | BaseException]]:
    context = _context(placement.devices[0])
    steps: Any = context.Queue()
    free: Any = context.Queue()
    for number in range(placement.workers):
        free.put(placement.devices[number % len(placement.devices)])
    pool = ProcessPoolExecutor(
        placement.workers, context, _start_worker, (placement.threads, steps, free)
    )
    numbers = iter(range(len(jobs)))
    running: dict[Future[CellResult], int] = {}
    died: BrokenProcessPool | None = None

    def start() -> None:
        """Give every worker something to do."""
        with _stops_held_back():  # submitting starts the workers
            while died is None and len(running) < placement.workers:
                number = next((number for number in numbers if admit(number)), None)
                if number is None:
                    return
                running[pool.submit(_work, number, jobs[number])] = number

    try:
        start()
        while running:
            done, _ = wait(running, timeout=POLL_SECONDS, return_when=FIRST_COMPLETED)
            with contextlib.suppress(queue.Empty):
                while True:
                    on_step(*steps.get_nowait())
            for future in done:
                number, error = running.pop(future), future.exception()
                if isinstance(error, BrokenProcessPool):
                    died = error
                else:
                    yield number, future.result() if error is None else error
            start()
    finally:
        if running:  # left early (an exception here, Ctrl-C, SIGTERM): nobody wants these cells
            for process in multiprocessing.active_children():
                process.terminate()
        pool.shutdown(wait=died is None, cancel_futures=True)  # would wait for them
    if died is not None:
        raise KitError(
            "a worker process died (was it out of memory?): finished cells are kept; run the same "
            "command again, with --workers 1 or a smaller --batch-size if it happens again"
        ) from died


@contextlib.contextmanager
def _stops_held_back() -> Iterator[None]:
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


# -- in the worker ------------------------------------------------------------------------------

_steps: Any = None
_device = "cpu"


def _start_worker(threads: int, steps: Any, free: Any) -> None:
    """Set a worker up: its device, its threads, and its end when the driver is gone."""
    global _steps, _device
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the driver's to handle
    threading.Thread(target=_end_with_parent, daemon=True).start()
    _steps, _device = steps, free.get()  # would wait for ever for a driver that is gone
    import torch

    torch.set_num_threads(threads)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait_for_process([parent.sentinel])
        os._exit(1)  # the driver was killed: nobody waits for this cell, and it holds memory


def _work(number: int, job: CellJob) -> CellResult:
    from competition_kit.harness.train_cell import train_cell

    job = replace(job, device=_device)
    return train_cell(job, lambda step: _steps.put((number, step)))
