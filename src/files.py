"""Writing files so that a reader, or a run that dies, never meets half of one."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path


def _umask() -> int:
    mask = os.umask(0o022)
    os.umask(mask)
    return mask


# Read once: it is the whole process's, and can only be read by changing it, which threads must not do.
NEW_FILE_MODE = 0o666 & ~_umask()


def write_atomically(path: Path, content: bytes) -> None:
    """Write a whole file under a temporary name in its folder, then rename it.

    Args:
        path: the file; its folder is created, an existing file is replaced.
        content: all of it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
        os.chmod(temporary, NEW_FILE_MODE)  # mkstemp's files are private
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise
