"""Running out of disk space, told as the user's matter."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from src.errors import UserError


def is_full_disk(error: OSError) -> bool:
    """Whether there is no room, or no more for this user."""
    return error.errno in (errno.ENOSPC, errno.EDQUOT)


@contextmanager
def full_disk_explained(folder: Path) -> Iterator[None]:
    """Turn the system's error about a full disk into a ``UserError`` that names the folder and the cure."""
    try:
        yield
    except OSError as error:
        if is_full_disk(error):
            raise UserError(
                f"{folder}: the disk is full. Everything finished so far is whole; free some space and run the same "
                "command again: it continues."
            ) from error
        raise
