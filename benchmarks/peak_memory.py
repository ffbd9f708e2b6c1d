"""Peak memory of a piece of work, above what was there before."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

__all__ = ["MIB", "resident", "step_peak"]

MIB = 2**20


def step_peak(work: Callable[[], object], device: torch.device) -> float:
    """Return the most memory that `work` held at one time beyond what stood before it, in MiB.

    On CUDA this is the allocator's own high-water mark. On the CPU every allocation and release
    of torch's allocator is recorded by its profiler and summed up in time. That counts tensors
    exactly and repeatably, on both devices by the same rule, where the process's resident size
    would move with the C allocator's habits and hold the peak of whatever ran before. Scratch
    space inside matrix libraries is not in it.
    """
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        work()
        torch.cuda.synchronize(device)
        return (torch.cuda.max_memory_allocated(device) - before) / MIB
    return _recorded_peak(work) / MIB


def _recorded_peak(work: Callable[[], object]) -> int:
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # else it reports every start and stop
    activities = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=activities, profile_memory=True) as profile:
        work()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.json"
        profile.export_chrome_trace(str(path))
        events = json.loads(path.read_text(encoding="utf-8"))["traceEvents"]
    changes = [event for event in events if event.get("name") == "[memory]"]
    if not changes:
        raise RuntimeError("torch's profiler recorded no allocation: this torch cannot say")
    held = peak = 0
    for event in sorted(changes, key=lambda event: event["ts"]):
        held += event["args"]["Bytes"]
        peak = max(peak, held)
    return peak


def resident(model: nn.Module, optimizer: torch.optim.Optimizer) -> float:
    """Return the MiB that stay between steps: weights and the optimizer's state."""
    state = [
        value
        for values in optimizer.state.values()
        for value in values.values()
        if isinstance(value, torch.Tensor)
    ]
    tensors = [*model.parameters(), *model.buffers(), *state]
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors) / MIB
