"""The command line stops as it is told: by SIGTERM as by Ctrl-C."""

from __future__ import annotations

import argparse
import errno
import os
import signal
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from competition_kit.cli import main
from competition_kit.commands import runs

Capture = pytest.CaptureFixture[str]


@pytest.fixture(autouse=True)
def _default_handler() -> Iterator[None]:
    before = signal.signal(signal.SIGTERM, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGTERM, before)


def with_command(patch: pytest.MonkeyPatch, run: Callable[[], int]) -> None:
    """Let `runs` do something else."""

    def instead(options: argparse.Namespace) -> int:
        return run()

    patch.setattr(runs, "run", instead)


def test_sigterm_stops_a_command_with_143_and_the_next_one_would_kill(
    monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    handlers = []

    def run() -> int:
        try:
            signal.raise_signal(signal.SIGTERM)
        finally:
            handlers.append(signal.getsignal(signal.SIGTERM))
        return 0

    with_command(monkeypatch, run)
    assert main(["runs"]) == 143
    assert capsys.readouterr().err == "\nstopped; the same command goes on from here\n"
    assert handlers == [signal.SIG_DFL] == [signal.getsignal(signal.SIGTERM)]


def test_ctrl_c_stops_a_command_with_130(monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    def run() -> int:
        raise KeyboardInterrupt

    with_command(monkeypatch, run)
    assert main(["runs"]) == 130
    assert "stopped; the same command goes on" in capsys.readouterr().err
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


@pytest.mark.parametrize(
    ("number", "remedy"),
    [
        (errno.EACCES, "Permission denied; change its permissions, or use a copy that you may"),
        (errno.EROFS, "Read-only file system; use a copy on a disk that can be written"),
        (errno.ENOSPC, "No space left on device; free some space"),
        (errno.ENAMETOOLONG, "File name too long; use a shorter path"),
        (errno.EIO, "Input/output error; check this path and the disk that it is on"),
    ],
)
def test_a_path_that_the_system_refuses_is_one_line_with_a_remedy(
    number: int, remedy: str, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    def run() -> int:
        raise OSError(number, os.strerror(number), "some/oof.csv")

    with_command(monkeypatch, run)
    assert main(["runs"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: some/oof.csv: {remedy}")


def test_a_program_that_calls_the_kit_keeps_its_own_way_to_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    caught: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, frame: caught.append(number))

    def run() -> int:
        signal.raise_signal(signal.SIGTERM)
        return 7

    with_command(monkeypatch, run)
    assert main(["runs"]) == 7
    assert caught == [signal.SIGTERM]


def test_a_thread_may_run_a_command(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only the main thread can set handlers."""
    with_command(monkeypatch, lambda: 7)
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(main, ["runs"]).result() == 7


def test_output_that_finds_no_room_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    def full() -> int:
        raise OSError(errno.ENOSPC, "No space left on device")  # of stdout: no file name

    with_command(monkeypatch, full)

    assert main(["runs"]) == 2
    assert capsys.readouterr().err == "error: No space left on device; free some space\n"
