"""The most memory that a cell held, on the GPU or in this process."""

from __future__ import annotations

import contextlib
import ctypes
import re
import sys
from collections.abc import Callable
from pathlib import Path

import torch

__all__ = [
    "can_keep_freed_memory",
    "keep_freed_memory",
    "peak_memory_mb",
    "reset_peak_memory",
]

STATUS = Path("/proc/self/status")
CLEAR = Path("/proc/self/clear_refs")
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # of glibc's mallopt


def keep_freed_memory() -> None:
    """Let this process use its freed memory again, and never hand it back to the system.

    glibc takes blocks of more than 32 MiB from the system and gives them back when they are freed:
    each training step then pays a page fault for every 4 KiB of its large gradients. With another C
    library nothing happens (`can_keep_freed_memory`).
    """
    _call_c("mallopt", M_MMAP_MAX, 0)
    _call_c("mallopt", M_TRIM_THRESHOLD, 2**31 - 1)


def can_keep_freed_memory() -> bool:
    """Return whether `keep_freed_memory` does anything here."""
    return _of_c("mallopt") is not None


def _call_c(name: str, *arguments: int) -> None:
    """Call a function of the C library; nothing where it has none of this name (all but glibc)."""
    if function := _of_c(name):
        function(*arguments)


def _of_c(name: str) -> Callable[..., int] | None:
    try:
        return getattr(ctypes.CDLL(None), name)
    except (AttributeError, OSError, TypeError):
        return None


def reset_peak_memory(device: torch.device) -> None:
    """Forget earlier peaks, so that a worker's second cell does not report the first one's.

    On the CPU this works on Linux; elsewhere the peak stays that of the process's whole life.
    """
    if device.type == "cuda":
        torch.cuda.init()  # a worker's first call to the GPU
        torch.cuda.reset_peak_memory_stats(device)
    else:
        _call_c("malloc_trim", 0)  # what `keep_freed_memory` kept is not this cell's
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
