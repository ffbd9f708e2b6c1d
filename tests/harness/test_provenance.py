"""Whose commit a run names."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from competition_kit.harness import provenance


def git(folder: Path, *arguments: str) -> str:
    who = ("-c", "user.name=n", "-c", "user.email=e", "-c", "commit.gpgsign=false")
    run = ["git", "-C", str(folder), *who, *arguments]
    return subprocess.run(run, check=True, capture_output=True, text=True).stdout.strip()


def test_the_commit_is_that_of_the_kits_own_checkout(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "kit" / "provenance.py"
    file.parent.mkdir()
    file.write_text("", encoding="utf-8")
    monkeypatch.setattr(provenance, "__file__", str(file))
    assert provenance.git_commit() is None, "no checkout at all"
    git(tmp_path, "init")
    git(tmp_path, "commit", "--allow-empty", "--message", "a user's own project")
    assert provenance.git_commit() is None, "installed inside somebody else's checkout"
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "--message", "the kit")
    commit = git(tmp_path, "rev-parse", "HEAD")
    assert provenance.git_commit() == commit
    file.write_text("changed", encoding="utf-8")
    assert provenance.git_commit() == f"{commit}+changes"
