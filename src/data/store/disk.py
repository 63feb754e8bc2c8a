"""Running out of disk space, told as the user's matter."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from src.errors import UserError


@contextmanager
def full_disk_explained(folder: Path) -> Iterator[None]:
    """Turn the system's error about a full disk into a ``UserError`` that names the folder and the cure."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise UserError(
                f"{folder}: the disk is full. Everything finished so far is whole; free some space and run the same "
                "command again: it continues."
            ) from error
        raise
