"""A file that may be left out is there or is not; what only bears its name is refused."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from competition_kit.data.presence import is_there, no_file
from competition_kit.errors import InputError

NO_FILES: dict[str, Callable[[Path], None]] = {
    "is a folder": Path.mkdir,
    "is a broken link": lambda path: path.symlink_to("nowhere"),
    "is no file on a disk": lambda path: path.symlink_to(os.devnull),
}


@pytest.mark.parametrize("problem", NO_FILES)
def test_what_is_no_file_is_refused(problem: str, tmp_path: Path) -> None:
    path = tmp_path / "competition.toml"
    NO_FILES[problem](path)
    assert no_file(path) == problem
    with pytest.raises(InputError, match=f"competition.toml: {problem}; put a file in its place"):
        is_there(path)


def test_a_link_to_itself_is_refused(tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(InputError, match="loop: is a broken link"):
        is_there(tmp_path / "loop")


def test_a_file_is_there_by_its_name_or_a_link_and_nothing_is_not(tmp_path: Path) -> None:
    path, link = tmp_path / "train.csv", tmp_path / "link.csv"
    assert not is_there(path) and no_file(path) == "no such file"
    path.touch()
    link.symlink_to(path)
    assert is_there(path) and is_there(link) and no_file(link) is None
