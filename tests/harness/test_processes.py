"""Work in a process beside this one."""

from __future__ import annotations

import json
import multiprocessing
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from competition_kit.errors import InputError, KitError
from competition_kit.harness.engines.processes import beside

REPORT = """
import gc, json, os, sys, threading
import competition_kit.harness.engines.preload
there = ["competition_kit.harness.train_cell", "transformers.models.bert.modeling_bert"]
print(json.dumps({
    "imported": [name in sys.modules for name in there],
    "frozen": gc.get_freeze_count(),
    "collects": gc.isenabled(),
    "threads": threading.active_count(),
}), flush=True)
os._exit(0)  # all that is imported need not be taken down
"""
ORPHAN = """
import sys, threading, time

def say_when_begun():
    while "torch" not in sys.modules:
        time.sleep(0.01)
    print("begun", flush=True)

threading.Thread(target=say_when_begun).start()
import competition_kit.harness.engines.preload
open(sys.argv[1], "w").close()
"""
DRIVER = """
import subprocess, sys
child = subprocess.Popen([sys.executable, "-c", *sys.argv[1:]], stdout=subprocess.PIPE)
child.stdout.readline()
"""


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


def test_what_workers_share_is_imported_frozen_and_without_a_thread() -> None:
    done = subprocess.run([sys.executable, "-c", REPORT], capture_output=True, check=True)
    found = json.loads(done.stdout)
    assert found["imported"] == [True, True]
    assert found["frozen"] > 100_000
    assert found["collects"]
    assert found["threads"] == 1, "a process with threads must not be forked"


def test_imports_for_workers_end_with_the_driver(tmp_path: Path) -> None:
    """Else a command that ends with an error would hold its output open until they are done."""
    flag = tmp_path / "imported"
    command = [sys.executable, "-c", DRIVER, ORPHAN, str(flag)]
    subprocess.run(command, stderr=subprocess.PIPE, check=True)  # until none can write there
    assert not flag.exists()
