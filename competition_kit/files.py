"""Files that are either whole or not there: atomic writes, hashes, JSON."""

from __future__ import annotations

import csv
import errno
import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from competition_kit.errors import InputError

if TYPE_CHECKING:
    import pandas as pd

__all__ = [
    "atomic_write",
    "hash_bytes",
    "hash_file",
    "hash_json",
    "read_json",
    "write_csv",
    "write_json",
]


@contextmanager
def atomic_write(path: Path, mode: str = "w") -> Iterator[IO[Any]]:
    """Open a temporary file that takes the name `path` only when the block ends well.

    Whoever looks sees the old file or the new one, never half of one: temporary file in the same
    folder, fsync, rename, fsync of the folder.

    Raises:
        InputError: if the disk is full or the folder cannot be written (nothing else is touched).
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        text = {} if "b" in mode else {"encoding": "utf-8", "newline": ""}
        with open(temporary, mode, **text) as file:  # type: ignore[call-overload]
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        _fsync_folder(path.parent)
    except OSError as error:
        raise _write_error(path, error) from error
    finally:
        with suppress(OSError):  # its folder may not be there
            temporary.unlink()


def _fsync_folder(folder: Path) -> None:
    """Make a rename last through a power cut (where folders can be synced: not on Windows)."""
    if hasattr(os, "O_DIRECTORY"):
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _write_error(path: Path, error: OSError) -> Exception:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return InputError(
            "the disk is full, the file was not written",
            file=path,
            remedy="free some space and run the same command again: finished cells are kept",
        )
    if error.errno in (
        errno.EACCES,
        errno.EROFS,
        errno.EPERM,
        errno.ENOTDIR,
        errno.EEXIST,
        errno.EISDIR,
    ):
        return InputError(
            f"cannot be written ({error.strerror})",
            file=path,
            remedy="choose a folder that you can write to, for runs with --out",
        )
    return error


def write_json(path: Path, content: Any) -> None:
    """Write JSON atomically, readable by people, numbers unrounded. NaN is refused."""
    with atomic_write(path) as file:
        json.dump(content, file, ensure_ascii=False, indent=2, allow_nan=False)
        file.write("\n")


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON file that the kit wrote.

    Raises:
        InputError: if it is no JSON object (someone edited it).
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(content, dict):
            raise ValueError("it holds no object")
    except ValueError as error:
        raise InputError(
            f"is not valid JSON ({error})",
            file=path,
            remedy="remove the file and run the command that made it again",
        ) from error
    return content


def write_csv(path: Path, frame: pd.DataFrame) -> None:
    """Write a frame as UTF-8 CSV, atomically, floats with all their digits."""
    texts = frame.select_dtypes(exclude="number")
    cells = [*map(str, frame.columns), *map(str, texts.to_numpy().ravel())]
    # Python's writer leaves a lone \r unquoted, which readers take for the end of the line
    returns = any("\r" in cell for cell in cells)
    with atomic_write(path) as file:
        frame.to_csv(
            file,
            index=False,
            lineterminator="\n",
            quoting=csv.QUOTE_NONNUMERIC if returns else csv.QUOTE_MINIMAL,
        )


def hash_bytes(*parts: bytes) -> str:
    """Return the sha256 of the parts, each preceded by its length so that borders count."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(len(part).to_bytes(8, "little"))
        digest.update(part)
    return digest.hexdigest()


def hash_json(content: Any) -> str:
    """Return the sha256 of a JSON value, independent of key order."""
    return hash_bytes(json.dumps(content, sort_keys=True, ensure_ascii=True).encode())


def hash_file(path: Path) -> str:
    """Return the sha256 of a file's bytes, as `sha256sum` prints it."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
