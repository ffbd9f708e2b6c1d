"""The same command again: computes what is missing, mixes nothing, and survives any stop."""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

import competition_kit.harness.train_cell as train_cell_module
from competition_kit.cli import main
from competition_kit.harness.cells import CellJob, CellResult
from competition_kit.harness.run_folder import RunFolder

ROOT = Path(__file__).parents[2]
WORDS = ("good great happy", "bad awful sad", "table chair river", "好 书 😀")


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    """Let runs in this process use one core: on a busy machine threads wait for each other."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "sched_getaffinity", lambda pid: {0}, raising=False)
        yield
    torch.set_num_threads(1)


def write_toy(folder: Path) -> Path:
    """Write 36 training and 6 test rows, two classes."""
    generator = np.random.default_rng(0)
    folder.mkdir(parents=True)

    def frame(part: str, rows: int) -> pd.DataFrame:
        texts = [
            f"{WORDS[i % 2]} {' '.join(generator.choice(WORDS, size=generator.integers(1, 4)))}"
            for i in range(rows)
        ]
        ids = [f"{part}{i}" for i in range(rows)]
        return pd.DataFrame({"id": ids, "text": texts, "label": ["yes", "no"] * (rows // 2)})

    frame("a", 36).to_csv(folder / "train.csv", index=False)
    frame("b", 6).drop(columns="label").to_csv(folder / "test.csv", index=False)
    return folder


# -- in this process: what is computed again, and what is not -------------------------------------


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Collect the names of the cells that are really trained."""
    names: list[str] = []
    original = train_cell_module.train_cell

    def counted(job: CellJob, on_step: Callable[[int], None]) -> CellResult:
        names.append(job.cell.name)
        return original(job, on_step)

    monkeypatch.setattr(train_cell_module, "train_cell", counted)
    monkeypatch.setattr(
        "competition_kit.commands.cv._write_report", lambda plan: None
    )  # a second each
    return names


@dataclass
class Toy:
    """A competition, a model and where runs go; `cv` is the command."""

    data: Path
    model: Path
    out: Path

    def arguments(self, *more: str) -> list[str]:
        options = {
            "--data": self.data,
            "--model": self.model,
            "--out": self.out,
            "--epochs": 1,
            "--folds": 2,
            "--lr": 1e-3,
            "--batch-size": 8,
            "--workers": 1,
            "--device": "cpu",
        }
        return [*(str(part) for pair in options.items() for part in pair), *more]

    def cv(self, *more: str) -> int:
        return main(self.arguments(*more))

    def run(self, pattern: str = "tiny-bert-none-*") -> Path:
        (found,) = (self.out / "toy").glob(pattern)
        return found


@pytest.fixture
def toy(tmp_path: Path, model_folder: Callable[[str], Path]) -> Toy:
    return Toy(write_toy(tmp_path / "toy"), model_folder("bert"), tmp_path / "runs")


def table(output: str) -> str:
    """Return what was printed without what differs from call to call: the line about time."""
    return "\n".join(line for line in output.splitlines() if not line.startswith("time "))


def stamps(run: Path) -> dict[str, int]:
    return {str(p.relative_to(run)): p.stat().st_mtime_ns for p in run.glob("cells/*/*")}


def test_the_same_command_again_computes_nothing_and_prints_the_same_table(
    toy: Toy, trained: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert toy.cv() == 0
    first, before = capsys.readouterr().out, stamps(toy.run())
    assert trained == ["seed0-fold0", "seed0-fold1"]
    oof = (toy.run() / "oof.csv").read_bytes()

    assert toy.cv() == 0

    again = capsys.readouterr().out
    assert trained == ["seed0-fold0", "seed0-fold1"]
    assert stamps(toy.run()) == before
    assert table(again) == table(first)
    assert "(2 computed now)" in first and "(0 computed now)" in again
    assert (toy.run() / "oof.csv").read_bytes() == oof


@pytest.mark.parametrize(
    "change",
    [
        ["--epochs", "2"],
        ["--lr", "2e-3"],
        ["--batch-size", "7"],
        ["--accumulation-steps", "2"],
        ["--max-length", "12"],
        ["--warmup-ratio", "0.3"],
        ["--schedule", "cosine"],
        ["--weight-decay", "0.1"],
        ["--max-grad-norm", "0"],
        ["--pooling", "max"],
        ["--dropout", "0.2"],
        ["--precision", "bf16"],
        ["--adv", "fgm"],
        ["--adv", "fgm(epsilon=0.5)"],
        ["--scheme", "kfold"],
    ],
    ids=" ".join,
)
def test_a_changed_setting_gets_cells_of_its_own(
    toy: Toy, trained: list[str], change: list[str], shared_first_run: Path
) -> None:
    shutil.copytree(shared_first_run, toy.out)
    before = stamps(toy.run())

    assert toy.cv(*change) == 0

    assert trained == ["seed0-fold0", "seed0-fold1"], "nothing of the other arm may be reused"
    arms = [path.parent for path in (toy.out / "toy").glob("*/metrics.json")]
    assert len(arms) == 2
    (first,) = [arm for arm in arms if stamps(arm) == before]
    assert sorted(path.name for path in (first / "cells").iterdir()) == trained


@pytest.fixture(scope="module")
def shared_first_run(
    tmp_path_factory: pytest.TempPathFactory, model_folder: Callable[[str], Path]
) -> Path:
    """Return the --out folder after the plain command."""
    place = tmp_path_factory.mktemp("first")
    toy = Toy(write_toy(place / "toy"), model_folder("bert"), place / "runs")
    assert toy.cv() == 0
    return toy.out


def test_another_seed_adds_its_cells_and_leaves_the_finished_ones(
    toy: Toy, trained: list[str], shared_first_run: Path
) -> None:
    shutil.copytree(shared_first_run, toy.out)
    before = stamps(toy.run())

    assert toy.cv("--seeds", "0", "3") == 0
    assert trained == ["seed3-fold0", "seed3-fold1"]
    assert before.items() <= stamps(toy.run()).items()
    assert sorted(pd.read_csv(toy.run() / "oof.csv")["seed"].unique()) == [0, 3]

    assert toy.cv("--seeds", "3") == 0
    assert len(trained) == 2
    assert pd.read_csv(toy.run() / "oof.csv")["seed"].unique().tolist() == [3]


def test_more_folds_are_other_cells(toy: Toy, trained: list[str], shared_first_run: Path) -> None:
    shutil.copytree(shared_first_run, toy.out)

    assert toy.cv("--folds", "3") == 0

    assert trained == ["seed0-fold0", "seed0-fold1", "seed0-fold2"]


@pytest.mark.parametrize("file", ["train.csv", "test.csv"])
def test_changed_data_never_meets_old_cells(
    toy: Toy, trained: list[str], shared_first_run: Path, file: str
) -> None:
    shutil.copytree(shared_first_run, toy.out)
    original = (toy.data / file).read_text(encoding="utf-8")
    (toy.data / file).write_text(original.replace("good", "fine", 1), encoding="utf-8")
    assert toy.cv() == 0
    assert trained == ["seed0-fold0", "seed0-fold1"]

    (toy.data / file).write_text(original, encoding="utf-8")
    assert toy.cv() == 0
    assert len(trained) == 2, "the cells of the first data are still there"


def test_a_changed_label_alone_is_changed_data(
    toy: Toy, trained: list[str], shared_first_run: Path
) -> None:
    shutil.copytree(shared_first_run, toy.out)
    train = pd.read_csv(toy.data / "train.csv")
    train.loc[0, "label"] = "no"
    train.to_csv(toy.data / "train.csv", index=False)

    assert toy.cv() == 0

    assert trained == ["seed0-fold0", "seed0-fold1"]


def test_a_changed_encoder_under_the_same_name_is_another_arm(
    toy: Toy, trained: list[str], tmp_path: Path
) -> None:
    toy.model = Path(shutil.copytree(toy.model, tmp_path / "tiny-bert"))
    assert toy.cv() == 0
    from safetensors.torch import load_file, save_file

    weights = load_file(toy.model / "model.safetensors")
    weights["embeddings.word_embeddings.weight"] += 1e-3
    save_file(weights, toy.model / "model.safetensors", metadata={"format": "pt"})

    assert toy.cv() == 0

    assert trained == 2 * ["seed0-fold0", "seed0-fold1"]


def test_fresh_computes_every_cell_again_with_the_same_numbers(
    toy: Toy, trained: list[str], shared_first_run: Path
) -> None:
    shutil.copytree(shared_first_run, toy.out)
    before, oof = stamps(toy.run()), (toy.run() / "oof.csv").read_bytes()

    assert toy.cv("--fresh") == 0

    assert trained == ["seed0-fold0", "seed0-fold1"]
    assert not before.items() & stamps(toy.run()).items()
    assert (toy.run() / "oof.csv").read_bytes() == oof


def _without(marker: Path) -> None:
    marker.unlink()


def _of_another_arm(marker: Path) -> None:
    content = json.loads(marker.read_text())
    marker.write_text(json.dumps({**content, "arm": "0" * 64}))


def _of_another_seed(marker: Path) -> None:
    content = json.loads(marker.read_text())
    marker.write_text(json.dumps({**content, "seed": 5}))


@pytest.mark.parametrize("spoil", [_without, _of_another_arm, _of_another_seed])
def test_a_cell_without_its_own_marker_is_computed_again_and_no_other(
    toy: Toy, trained: list[str], shared_first_run: Path, spoil: Callable[[Path], None]
) -> None:
    shutil.copytree(shared_first_run, toy.out)
    run = toy.run()
    oof = (run / "oof.csv").read_bytes()
    spoil(run / "cells" / "seed0-fold1" / "metrics.json")
    # what stands beside a missing marker must not matter either
    (run / "cells" / "seed0-fold1" / "predictions.npz").write_bytes(b"half a file")

    assert toy.cv() == 0

    assert trained == ["seed0-fold1"]
    assert (run / "oof.csv").read_bytes() == oof


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("predictions.npz", b""),
        ("predictions.npz", b"PK\x03\x04 not a zip file after all"),
        ("predictions.npz", b"no zip file"),
        ("log.jsonl", b"{"),
        ("metrics.json", b"{"),
        ("metrics.json", b"{}"),
        ("metrics.json", b"[]"),
    ],
)
def test_a_damaged_cell_is_one_clear_line_and_exit_2(
    toy: Toy,
    trained: list[str],
    shared_first_run: Path,
    capsys: pytest.CaptureFixture[str],
    name: str,
    content: bytes,
) -> None:
    shutil.copytree(shared_first_run, toy.out)
    damaged = toy.run() / "cells" / "seed0-fold1"
    (damaged / name).write_bytes(content)

    assert toy.cv() == 2

    errors = [x for x in capsys.readouterr().err.splitlines() if x.startswith("error: ")]
    assert len(errors) == 1
    assert str(damaged) in errors[0] and "remove the " in errors[0]
    assert trained == []

    shutil.rmtree(damaged)  # the remedy
    assert toy.cv() == 0
    assert trained == ["seed0-fold1"]


def test_weights_are_kept_on_request_and_cells_without_them_computed_again(
    toy: Toy, trained: list[str], shared_first_run: Path
) -> None:
    shutil.copytree(shared_first_run, toy.out)

    assert toy.cv("--save-models") == 0
    assert len(trained) == 2
    assert len(list(toy.run().glob("cells/*/model.safetensors"))) == 2

    assert toy.cv("--save-models") == 0
    assert toy.cv() == 0
    assert len(trained) == 2


# -- as processes: stopped from outside -----------------------------------------------------------

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
        "--data": write_toy(place / "toy"),
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
    until(lambda: not driver.workers(), "the workers' end", 10.0)
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
        until(lambda: len(driver.workers()) == 3, "two workers")

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
