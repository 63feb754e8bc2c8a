"""How large blocks of memory come from the system and go back to it (Linux)."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # of mallopt, malloc.h


def use_large_pages() -> None:
    """Let PyTorch ask for pages of 2 MiB for its tensors, unless ``THP_MEM_ALLOC_ENABLE`` says otherwise.

    The system clears the pages of every large block anew, and with pages of 4 KiB that takes a tenth of the time of a
    12-megapixel photo. Acts on the whole process, and only before PyTorch makes the first tensor.
    """
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")


def keep_freed_memory() -> None:
    """Keep freed blocks for when the same sizes are needed again (glibc only): blocks of up to 1 GiB lie in the heap,
    of whose free end 256 MiB stay.

    Left alone, the C library gives blocks above 32 MiB back at once, and the pixels of every photo lie in pages that
    the system clears anew.
    """
    mallopt = _of_glibc("mallopt")
    if mallopt is not None:
        mallopt(_MMAP_THRESHOLD, 2**30)
        mallopt(_TRIM_THRESHOLD, 2**28)


def return_freed_memory() -> None:
    """Give the system back what the C library keeps, such as what building a network took (glibc only)."""
    trim = _of_glibc("malloc_trim")
    if trim is not None:
        trim(0)


def _of_glibc(name: str) -> Callable[..., int] | None:
    """A function of the C library, None where it has no such function."""
    return getattr(ctypes.CDLL(None), name, None) if os.name == "posix" else None
