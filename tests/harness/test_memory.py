"""What a cell says of its memory."""

from __future__ import annotations

import ctypes
import platform
import sys

import pytest
import torch

from competition_kit.harness.memory import (
    CLEAR,
    can_keep_freed_memory,
    keep_freed_memory,
    peak_memory_mb,
    reset_peak_memory,
)

CPU = torch.device("cpu")


@pytest.mark.skipif(not CLEAR.exists(), reason="the peak can be reset on Linux alone")
def test_an_earlier_peak_is_forgotten():
    keep_freed_memory()  # for good, as a worker does: the block is not given back when it is freed
    held = torch.ones(50_000_000)  # 200 MB
    high = peak_memory_mb(CPU)
    del held
    reset_peak_memory(CPU)
    assert peak_memory_mb(CPU) < high - 100


@pytest.mark.skipif(sys.platform == "win32", reason="Windows does not say")
def test_a_peak_outlives_what_made_it():
    reset_peak_memory(CPU)
    before = peak_memory_mb(CPU)
    held = torch.ones(50_000_000)
    del held
    assert peak_memory_mb(CPU) > before + 100


def test_whether_freed_memory_can_be_kept_depends_on_the_c_library(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert can_keep_freed_memory() == (platform.libc_ver()[0] == "glibc")
    monkeypatch.setattr(ctypes, "CDLL", lambda name: object())
    assert not can_keep_freed_memory()
    keep_freed_memory()  # does nothing, and says so nowhere: the driver did
