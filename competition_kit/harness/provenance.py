"""Where numbers come from: versions, the kit's commit, a run's settings."""

from __future__ import annotations

import os
import platform
import subprocess
import time
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from typing import Any

from competition_kit.harness.engines.local import Placement
from competition_kit.harness.plan import Plan

__all__ = ["git_commit", "machine", "processor", "run_config", "versions"]


def run_config(plan: Plan, placement: Placement, command: str) -> dict[str, Any]:
    """Return what config.json says of a run."""
    competition = plan.competition
    return {
        "competition": competition.name,
        "competition_folder": str(competition.folder.resolve()),
        "rules": asdict(competition.rules),
        "classes": list(competition.classes),
        "train_rows": len(competition.train),
        "test_rows": len(competition.test),
        "arm": asdict(plan.arm),
        "arm_hash": plan.arm.hash,
        "seeds": list(plan.seeds),
        "placement": asdict(placement),
        "command": command,
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "versions": versions(),
        "machine": machine(placement.devices[0]),
        "git_commit": git_commit(),
    }


def versions() -> dict[str, str]:
    """Return the versions that numbers depend on."""
    names = ("torch", "transformers", "tokenizers", "scikit-learn", "numpy", "pandas")
    found = {"python": platform.python_version()}
    for name in names:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def git_commit() -> str | None:
    """Return the commit of the kit's own checkout, with a mark where it was changed; else None."""
    here = Path(__file__)
    environment = {**os.environ, "GIT_OPTIONAL_LOCKS": "0"}
    try:
        _, commit, changes = [
            subprocess.run(
                ["git", "-C", str(here.parent), *arguments],
                capture_output=True,
                text=True,
                timeout=5,
                check=True,
                env=environment,
            ).stdout.strip()
            for arguments in (
                # fails where the kit is installed inside somebody else's checkout
                ["ls-files", "--error-unmatch", here.name],
                ["rev-parse", "HEAD"],
                ["status", "--porcelain"],
            )
        ]
    except (OSError, subprocess.SubprocessError):
        return None
    return commit + ("+changes" if changes else "")


def machine(device: str) -> dict[str, Any]:
    """Return what a report says of the hardware; memory in GiB is the GPU's where there is one."""
    cores = (
        len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    )
    facts = {"processor": processor(), "cores": cores, "device": device, "memory_gb": None}
    if device.startswith("cuda"):
        import torch

        card = torch.cuda.get_device_properties(device)
        facts |= {"device": card.name, "memory_gb": round(card.total_memory / 2**30, 1)}
    return facts


def processor() -> str:
    """Return the processor's name; Python itself does not know it on Linux."""
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
