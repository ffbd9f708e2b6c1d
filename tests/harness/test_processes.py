"""Work in a process beside this one."""

from __future__ import annotations

import multiprocessing
import os
import time

import pytest

from competition_kit.errors import InputError, KitError
from competition_kit.harness.engines.processes import beside


def own_number(least: int) -> int:
    return max(least, os.getpid())


def refuse() -> None:
    raise InputError("no rows", file="train.csv")


def die() -> None:
    os._exit(9)


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_the_result_comes_from_another_process(device: str) -> None:
    with beside(device, own_number, 1) as result:
        assert result() not in (1, os.getpid())
        assert result() == result()


def test_what_the_work_raises_the_result_raises() -> None:
    with beside("cpu", refuse) as result, pytest.raises(InputError, match=r"train\.csv: no rows"):
        result()


def test_a_process_that_dies_is_one_clear_error() -> None:
    with beside("cpu", die) as result, pytest.raises(KitError, match="process of die died"):
        result()


def test_leaving_early_ends_the_process() -> None:
    start = time.monotonic()
    with pytest.raises(ValueError, match="early"), beside("cpu", time.sleep, 600):
        raise ValueError("early")
    while multiprocessing.active_children():
        assert time.monotonic() - start < 300, "it sleeps on"
        time.sleep(0.01)
