"""Progress: a bar on a terminal, a line now and then in a log, the last state in both."""

from __future__ import annotations

import sys

import pytest

from competition_kit import progress
from competition_kit.progress import Progress, bar_of_unknown_length

Capture = pytest.CaptureFixture[str]


class Clock:
    """Stands where `time` does, in the module under test."""

    def __init__(self) -> None:
        self.now = 100.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(progress, "time", made)
    return made


def test_a_log_gets_a_line_every_half_minute_and_the_last_state(
    clock: Clock, capsys: Capture
) -> None:
    work = {"seed 0 fold 0": 10.0, "seed 0 fold 1": 10.0}
    with Progress(work, "folds", epochs=2) as bar:
        for step in range(1, 101):  # 200 s, an update every 2 s
            clock.now += 2.0
            bar.step("seed 0 fold 0", step / 100)
        bar.finish("seed 0 fold 0", "seed 0 fold 0: accuracy 0.5000")
        clock.now += 5.0
        bar.step("seed 0 fold 1", 0.5)
    output, error = capsys.readouterr()
    assert output == "" and "\r" not in error
    lines = error.splitlines()
    assert len(lines) == 6 + 1 + 1
    assert lines[0] == "folds 0/2:   8% [00:30, 05:45 left], seed 0 fold 0 epoch 1/2"
    assert lines[-2] == "seed 0 fold 0: accuracy 0.5000"
    assert lines[-1] == "folds 1/2:  75% [03:23, 01:07 left], seed 0 fold 1 epoch 2/2"


def test_what_is_quick_is_one_line_in_a_log(clock: Clock, capsys: Capture) -> None:
    with bar_of_unknown_length("fold models") as on_model:
        for done in range(4):
            clock.now += 1.0
            on_model(done, 3)
    assert capsys.readouterr().err == "fold models: 100% [00:03, 00:00 left]\n"
    with Progress({}, "folds", epochs=1) as bar:
        advance = bar.floor(2)
        advance(0)
        clock.now += 1.0
        advance(1)
    assert capsys.readouterr().err == "TF-IDF floor: 100% [00:01, 00:00 left]\n"


def test_what_is_stopped_leaves_its_last_state(clock: Clock, capsys: Capture) -> None:
    def stopped() -> None:
        with Progress({"fold 0": 8.0}, "folds", epochs=4) as bar:
            bar.step("fold 0", 0.0)
            clock.now += 5.0
            bar.step("fold 0", 0.25)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stopped()
    assert capsys.readouterr().err == "folds 0/1:  25% [00:05, 00:15 left], fold 0 epoch 2/4\n"


def test_nothing_to_do_is_no_line(capsys: Capture) -> None:
    with Progress({"fold 0": 8.0}, "folds", epochs=4) as bar:
        bar.found("fold 0")
    with bar_of_unknown_length("fold models"):
        pass
    assert capsys.readouterr().err == ""


def test_a_terminal_gets_a_bar(monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    with bar_of_unknown_length("fold models") as on_model:
        on_model(0, 2)
        on_model(2, 2)
    error = capsys.readouterr().err
    assert "\r" in error and "fold models: 100%|" in error
