"""What every benchmark says beside its figures: on which machine, with which versions, when."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from competition_kit.data.competition import slug
from competition_kit.files import write_json
from competition_kit.harness.provenance import git_commit, processor, versions
from competition_kit.results.tables import text_table

__all__ = ["RESULTS", "environment", "heading", "publish", "result_path"]

RESULTS = Path(__file__).parent / "results"


def environment(device: torch.device) -> dict[str, Any]:
    """Return hardware, versions, commit and date as a JSON object.

    `cores` are those that this process may use, `threads` those that torch uses now, `memory_gb`
    of the GPU is in units of 2**30 bytes; `gpu` is None for a measurement on the CPU.
    """
    gpu = None
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        gpu = {
            "name": properties.name,
            "memory_gb": round(properties.total_memory / 2**30, 1),
            "capability": f"{properties.major}.{properties.minor}",
            "cuda": torch.version.cuda,
        }
    cores = (
        len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    )
    return {
        "device": device.type,
        "cpu": {"model": processor(), "cores": cores, "threads": torch.get_num_threads()},
        "gpu": gpu,
        "system": platform.platform(terse=True),
        "versions": versions(),
        "git_commit": git_commit(),
        "date": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    }


def heading(facts: dict[str, Any]) -> str:
    """Return the environment as two lines of text."""
    cpu, gpu, found = facts["cpu"], facts["gpu"], facts["versions"]
    hardware = f"{cpu['model']}, {cpu['cores']} cores, {cpu['threads']} threads"
    if gpu is not None:
        hardware = f"{gpu['name']}, {gpu['memory_gb']:g} GiB, CUDA {gpu['cuda']}; {hardware}"
    commit = facts["git_commit"]
    short = "no commit" if commit is None else f"commit {commit[:10]}{commit[40:]}"
    return (
        f"{hardware}\npython {found['python']}, torch {found['torch']}, "
        f"transformers {found['transformers']}; {short}; {facts['date']}"
    )


def result_path(name: str, facts: dict[str, Any]) -> Path:
    """Return where a benchmark's JSON goes by default: one file for each kind of machine."""
    if facts["gpu"] is not None:
        device = facts["gpu"]["name"]
    else:
        device = f"{facts['cpu']['model']} {facts['cpu']['cores']} cores"
    return RESULTS / f"{name}-{slug(device)}.json"


def publish(
    facts: dict[str, Any],
    header: Sequence[str],
    rows: Sequence[Sequence[str]],
    figures: dict[str, Any],
    path: Path | None,
    notes: Sequence[str] = (),
) -> None:
    """Print environment, table and notes; write environment and figures to `path` if there is one."""
    print(f"\n{heading(facts)}\n\n{text_table(header, rows)}")
    for note in notes:
        print(f"  {note}")
    if path is not None:
        write_json(path, {"environment": facts, **figures})
        print(f"\nwritten: {path}")
