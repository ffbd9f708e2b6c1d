"""The most memory that a cell held, on the GPU or in this process."""

from __future__ import annotations

import contextlib
import re
import sys
from pathlib import Path

import torch

__all__ = ["peak_memory_mb", "reset_peak_memory"]

STATUS = Path("/proc/self/status")
CLEAR = Path("/proc/self/clear_refs")


def reset_peak_memory(device: torch.device) -> None:
    """Forget earlier peaks, so that a worker's second cell does not report the first one's.

    On the CPU this works on Linux; elsewhere the peak stays that of the process's whole life.
    """
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    else:
        with contextlib.suppress(OSError):  # another system, or a container that forbids it
            CLEAR.write_text("5")


def peak_memory_mb(device: torch.device) -> float:
    """Return the peak in MiB: of the GPU's allocator, or this process's resident size."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    if sys.platform == "win32":
        return 0.0  # Windows does not say
    with contextlib.suppress(OSError):
        if found := re.search(r"VmHWM:\s+(\d+) kB", STATUS.read_text()):
            return int(found[1]) / 2**10
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # bytes on macOS, else KiB
    return peak / (2**20 if sys.platform == "darwin" else 2**10)
