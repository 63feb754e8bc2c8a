"""Writing files so that a reader, or a run that dies, never meets half of one."""

from __future__ import annotations

import os
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from src.errors import UserError

TEMPORARY = ".unfinished-"
"""How names of files begin while they are written: their own may be as long as names can be already."""

_UMASK = threading.Lock()


def given_path(value: Any, key: str) -> Path:
    """The path that an option gives, ``~`` expanded.

    Raises:
        UserError: it is no text, as Hydra reads 2024 and 1e3.
    """
    if not isinstance(value, str | os.PathLike):
        raise UserError(
            f"{key}={value} was read as a number; put a path before it ({key}=./...), or quotes in quotes: "
            f"'{key}=\"...\"'"
        )
    return Path(value).expanduser()


def check_writable(folder: Path, key: str) -> None:
    """Make a folder, and see that files can be made in it, before any work is done for it.

    Raises:
        UserError: they cannot.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise UserError(f"{key}={folder} cannot be written: {error.strerror}") from error


def remove_leftovers(folder: Path, before: float) -> None:
    """Delete what runs that were killed while they wrote have left in a folder under temporary names.

    Args:
        before: seconds since the epoch; younger files may belong to a run beside this one.
    """
    for path in folder.glob(f"{TEMPORARY}*"):
        with suppress(OSError):  # finished by a run beside this one, or someone else's
            if path.stat().st_mtime < before:
                path.unlink()


def new_file_mode() -> int:
    """The permissions of a new file; temporary ones are private."""
    with _UMASK:  # it is the whole process's, and is read by changing it
        mask = os.umask(0o022)
        os.umask(mask)
    return 0o666 & ~mask


def to_disk(file: IO[bytes]) -> None:
    """Wait until a file's content lies on the disk: a name that a power cut leaves without it is worth nothing."""
    file.flush()
    os.fsync(file.fileno())


def write_atomically(path: Path, content: bytes) -> None:
    """Write a whole file, as ``atomic_file`` does."""
    with atomic_file(path) as file:
        file.write(content)


@contextmanager
def atomic_file(path: Path) -> Iterator[IO[bytes]]:
    """A file that is written under a temporary name in its folder, and renamed when the block ends well.

    Args:
        path: the file; its folder is created, an existing file is replaced.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, temporary = tempfile.mkstemp(prefix=TEMPORARY, dir=path.parent)
    try:
        with os.fdopen(descriptor, "wb") as file:
            yield file
            to_disk(file)
        os.chmod(temporary, new_file_mode())
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise
