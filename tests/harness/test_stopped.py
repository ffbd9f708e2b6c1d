"""A run that is stopped from outside, at any moment: the same command finishes it all the same."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from competition_kit.cli import main
from competition_kit.harness.run_folder import RunFolder

from .stored import write_competition

ROOT = Path(__file__).parents[2]

# A process that has imported everything once and then forks, so that a driver starts in no time.
# The fork runs run_cv.py itself, as `python run_cv.py ARGUMENTS` would. With `die` = [name, n] it
# kills itself right before the n-th file of that name takes its place.
SERVER = """
import fnmatch, json, os, runpy, signal, sys
import torch
torch.set_num_threads(1)
import jinja2, matplotlib.backends.backend_svg, matplotlib.figure
import sklearn.feature_extraction.text, sklearn.linear_model, sklearn.metrics, sklearn.pipeline
import competition_kit.harness.cross_validation, competition_kit.harness.train_cell
from transformers import AutoModel, AutoTokenizer, BertModel, PreTrainedTokenizerFast
cores = sorted(os.sched_getaffinity(0))
print("ready", flush=True)
for line in sys.stdin:
    request = json.loads(line)
    pid = os.fork()
    if pid == 0:
        os.setsid()
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        for number, name in ((1, "out"), (2, "err")):
            flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC
            os.dup2(os.open(request["log"] + "." + name, flags, 0o644), number)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        os.sched_setaffinity(0, cores[: request["cores"]])
        os.environ["KIT_TEST_RUN"] = request["log"]
        sys.argv = ["run_cv.py", *request["arguments"]]
        if request["die"]:
            replace, (name, left) = os.replace, request["die"]
            def replace_or_die(old, new):
                global left
                left -= fnmatch.fnmatch(os.path.basename(new), name)
                if left == 0:
                    os.kill(os.getpid(), signal.SIGKILL)
                replace(old, new)
            os.replace = replace_or_die
        runpy.run_path("run_cv.py", run_name="__main__")
    print(pid, flush=True)
    print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
"""


class Server:
    """Starts drivers, one at a time."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._count = 0
        self._process = subprocess.Popen(
            [sys.executable, "-c", SERVER],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )
        assert self.line() == "ready"

    def line(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline().strip()

    def start(
        self, arguments: list[str], *, cores: int = 2, die: tuple[str, int] | None = None
    ) -> Driver:
        self._count += 1
        log = self._folder / f"driver{self._count}"
        request: dict[str, Any] = {"arguments": arguments, "log": str(log)}
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({**request, "cores": cores, "die": die}) + "\n")
        self._process.stdin.flush()
        return Driver(int(self.line()), log, self)

    def finish(self, arguments: list[str], *, cores: int = 2) -> str:
        """Run a command to its end; return what it printed."""
        driver = self.start(arguments, cores=cores)
        assert driver.wait() == 0, driver.stderr
        return driver.stdout

    def close(self) -> None:
        self._process.communicate()


@dataclass
class Driver:
    """A running `python run_cv.py`."""

    pid: int
    log: Path
    server: Server

    def wait(self) -> int:
        return int(self.server.line())

    def send(self, number: signal.Signals) -> None:
        os.kill(self.pid, number)

    @property
    def stdout(self) -> str:
        return Path(f"{self.log}.out").read_text(encoding="utf-8")

    @property
    def stderr(self) -> str:
        return Path(f"{self.log}.err").read_text(encoding="utf-8")

    def workers(self) -> list[int]:
        """Return the processes that live of the one that workers start from, and of the workers."""
        found = []
        mark = f"KIT_TEST_RUN={self.log}\0".encode()
        for folder in Path("/proc").iterdir():
            with contextlib.suppress(OSError):
                if (
                    folder.name.isdigit()
                    and b"forkserver import main" in (folder / "cmdline").read_bytes()
                    and mark in (folder / "environ").read_bytes() + b"\0"
                ):
                    found.append(int(folder.name))
        return found


def until(true: Callable[[], object], what: str, seconds: float = 60.0) -> None:
    """Wait until something is so; fail loudly where it never is."""
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, f"waited {seconds} s for: {what}"
        time.sleep(0.002)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    if not sys.platform.startswith("linux"):
        pytest.skip("finds processes in /proc")
    made = Server(tmp_path_factory.mktemp("drivers"))
    yield made
    made.close()


@dataclass
class Command:
    """One command with its --out left open, and what an undisturbed run of it leaves behind."""

    arguments: list[str]
    calm: Path

    def at(self, out: Path, workers: int) -> list[str]:
        return [*self.arguments, "--out", str(out), "--workers", str(workers)]

    def assert_same_numbers(self, out: Path) -> None:
        run, calm = arm(out), arm(self.calm)
        assert run.name == calm.name
        for name in ("oof.csv", "test_predictions.csv", "submission.csv", "folds.csv"):
            assert (run / name).read_bytes() == (calm / name).read_bytes(), name
        assert scores(run) == scores(calm)
        assert (run / "report.html").is_file()


def arm(out: Path) -> Path:
    (found,) = (out / "toy").glob("tiny-bert-*")
    return found


def scores(run: Path) -> list[Any]:
    metrics = json.loads((run / "metrics.json").read_text(encoding="utf-8"))
    names = ("metric", "mean", "sd", "oof", "oof_of_mean", "floor", "passes")
    return [*(metrics[name] for name in names), [cell["score"] for cell in metrics["cells"]]]


@pytest.fixture(scope="module")
def command(
    tmp_path_factory: pytest.TempPathFactory, model_folder: Callable[[str], Path], server: Server
) -> Command:
    """Return a command whose cells run with one thread each, and its undisturbed run.

    One worker on one core and two workers on two have the same number of threads, so the same
    undisturbed run stands for both.
    """
    place = tmp_path_factory.mktemp("kill")
    options = {
        "--data": write_competition(place / "toy", rows=36),
        "--model": model_folder("bert"),
        "--adv": "freelb",
        "--epochs": 4,
        "--folds": 3,
        "--lr": 1e-3,
        "--batch-size": 4,
        "--device": "cpu",
    }
    made = Command([str(x) for pair in options.items() for x in pair], place / "calm")
    server.finish(made.at(made.calm, 1), cores=1)
    return made


def assert_stopped(driver: Driver, out: Path) -> None:
    """Check that nothing of a driver lives on, and that the run folder is free."""
    until(lambda: not driver.workers(), "the workers' end")
    for run in (out / "toy").glob("tiny-bert-*"):
        with RunFolder(run).locked():
            pass


@pytest.mark.parametrize(
    ("name", "number", "done"),
    [  # in the order in which a run writes its files; `done` cells are finished by then
        ("stratified-*.csv", 1, 0),
        ("*.safetensors", 1, 0),
        ("config.json", 1, 0),
        ("predictions.npz", 1, 0),
        ("log.jsonl", 1, 0),
        ("metrics.json", 1, 0),
        ("predictions.npz", 3, 2),
        ("test_predictions.csv", 1, 3),
        ("metrics.json", 4, 3),
        ("report.html", 1, 3),
    ],
)
def test_killed_before_a_file_takes_its_place_the_same_command_finishes_with_the_same_numbers(
    command: Command, server: Server, tmp_path: Path, name: str, number: int, done: int
) -> None:
    arguments = command.at(tmp_path, 1)
    driver = server.start(arguments, cores=1, die=(name, number))
    assert driver.wait() == -signal.SIGKILL
    assert_stopped(driver, tmp_path)
    finished = set(tmp_path.glob("toy/*/cells/*/metrics.json"))
    assert len(finished) == done
    before = {path: path.stat().st_mtime_ns for path in finished}

    server.finish(arguments, cores=1)

    command.assert_same_numbers(tmp_path)
    assert {path: path.stat().st_mtime_ns for path in finished} == before, "finished work is kept"


def test_killed_at_any_time_again_and_again_the_run_still_ends_with_the_same_numbers(
    command: Command, server: Server, tmp_path: Path
) -> None:
    arguments = command.at(tmp_path, 1)
    moments = random.Random(0)
    for _ in range(4):
        driver = server.start(arguments, cores=1)
        time.sleep(moments.uniform(0.0, 0.8))
        driver.send(signal.SIGKILL)
        assert driver.wait() in (-signal.SIGKILL, 0)
        assert_stopped(driver, tmp_path)

    server.finish(arguments, cores=1)

    command.assert_same_numbers(tmp_path)


def test_a_killed_driver_takes_its_workers_with_it_and_the_run_can_go_on(
    command: Command, server: Server, tmp_path: Path
) -> None:
    arguments = command.at(tmp_path, 2)

    def when_workers_start(driver: Driver) -> None:
        until(lambda: len(driver.workers()) >= 3, "two processes beside the first")

    def when_workers_load(driver: Driver) -> None:
        when_workers_start(driver)
        time.sleep(1.0)

    def when_a_cell_is_done(driver: Driver) -> None:
        until(lambda: list(tmp_path.glob("toy/*/cells/*/metrics.json")), "a finished cell")

    for moment in (when_workers_start, when_workers_load, when_a_cell_is_done):
        driver = server.start(arguments)
        moment(driver)
        driver.send(signal.SIGKILL)
        assert driver.wait() == -signal.SIGKILL
        assert_stopped(driver, tmp_path)

    printed = server.finish(arguments)

    assert "(3 computed now)" not in printed, "a finished cell is kept"
    command.assert_same_numbers(tmp_path)


@pytest.mark.parametrize("workers", [1, 2])
def test_ctrl_c_ends_with_130_without_a_traceback_and_the_run_can_go_on(
    command: Command, server: Server, tmp_path: Path, workers: int
) -> None:
    """A terminal sends SIGINT to the driver and to its workers alike."""
    arguments = command.at(tmp_path, workers)
    driver = server.start(arguments, cores=workers)
    until(lambda: list(tmp_path.glob("toy/*/cells/*/metrics.json")), "a finished cell")
    os.killpg(driver.pid, signal.SIGINT)
    assert driver.wait() == 130
    assert "stopped; the same command goes on from here" in driver.stderr
    assert "Traceback" not in driver.stderr
    assert_stopped(driver, tmp_path)

    printed = server.finish(command.at(tmp_path, 1), cores=1)

    assert "(3 computed now)" not in printed
    command.assert_same_numbers(tmp_path)


@pytest.mark.parametrize(("workers", "everybody"), [(1, False), (2, False), (2, True)])
def test_sigterm_ends_with_143_and_leaves_nothing_behind(
    command: Command, server: Server, tmp_path: Path, workers: int, everybody: bool
) -> None:
    """`kill` sends it to the driver, a scheduler to its workers as well."""
    driver = server.start(command.at(tmp_path, workers), cores=workers)
    until(lambda: list(tmp_path.glob("toy/*/cells/*/metrics.json")), "a finished cell")
    if everybody:
        os.killpg(driver.pid, signal.SIGTERM)
    else:
        driver.send(signal.SIGTERM)
    assert driver.wait() == 143
    assert "\nstopped; the same command goes on from here\n" in driver.stderr
    assert_stopped(driver, tmp_path)

    printed = server.finish(command.at(tmp_path, 1), cores=1)

    assert "(3 computed now)" not in printed
    command.assert_same_numbers(tmp_path)
    assert "leaked" not in driver.stderr and "Traceback" not in driver.stderr


@pytest.mark.parametrize("wait", [0.0, 0.1, 1.0])
def test_ctrl_c_while_workers_start_is_as_quiet(
    command: Command, server: Server, tmp_path: Path, wait: float
) -> None:
    driver = server.start(command.at(tmp_path, 2))
    until(driver.workers, "a worker")
    time.sleep(wait)
    os.killpg(driver.pid, signal.SIGINT)
    assert driver.wait() == 130
    assert_stopped(driver, tmp_path)
    assert "Traceback" not in driver.stderr


def test_a_worker_that_dies_is_one_clear_line_and_finished_cells_are_kept(
    command: Command, server: Server, tmp_path: Path
) -> None:
    driver = server.start(command.at(tmp_path, 2))
    until(lambda: list(tmp_path.glob("toy/*/cells/*/metrics.json")), "a finished cell")
    os.kill(max(driver.workers()), signal.SIGKILL)  # the youngest is a worker
    assert driver.wait() == 1
    errors = [line for line in driver.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1 and "a worker process died" in errors[0]
    assert "Traceback" not in driver.stderr
    assert_stopped(driver, tmp_path)

    printed = server.finish(command.at(tmp_path, 1), cores=1)

    assert "(3 computed now)" not in printed
    command.assert_same_numbers(tmp_path)


def test_a_second_driver_on_the_same_run_folder_is_refused_while_the_first_lives(
    command: Command, server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    driver = server.start(command.at(tmp_path, 1), cores=1)
    until(lambda: list(tmp_path.glob("toy/*/config.json")), "a locked run folder")
    driver.send(signal.SIGSTOP)  # it holds the lock and gets no further meanwhile
    try:
        assert main(command.at(tmp_path, 1)) == 2
    finally:
        driver.send(signal.SIGCONT)
    assert driver.wait() == 0
    command.assert_same_numbers(tmp_path)
    (error,) = [x for x in capsys.readouterr().err.splitlines() if x.startswith("error: ")]
    assert f"process {driver.pid} " in error and str(arm(tmp_path)) in error
