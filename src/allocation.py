"""How the C library hands out and takes back large blocks.

Left alone, glibc asks the system for every block above 32 MiB anew and returns it when it is freed. The system then
clears it in pages of 4 KiB, one fault each, again and again: a tenth to a sixth of the time of a step or a photo.
Elsewhere than on Linux with glibc nothing here does anything.
"""

from __future__ import annotations

import ctypes
import functools
import os
from collections.abc import Callable

_LARGE_PAGES = "THP_MEM_ALLOC_ENABLE"  # PyTorch's own switch
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # mallopt's names for them, malloc.h
_KEPT_BLOCK = 64 * 2**20  # larger blocks go back at once: keeping them would raise the peak
_KEPT_IN_ALL = 256 * 2**20


def reuse_large_blocks() -> None:
    """Keep freed blocks of up to 64 MiB, 256 MiB of them, and ask for large pages for PyTorch's tensors.

    Acts on the whole process, and on tensors only before PyTorch makes the first. Whoever has set
    ``THP_MEM_ALLOC_ENABLE=0`` or one of glibc's ``MALLOC_*_THRESHOLD_`` variables keeps what he has chosen.
    """
    os.environ.setdefault(_LARGE_PAGES, "1")
    chosen = {"MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_"} & os.environ.keys()
    mallopt = _c_function("mallopt")
    if os.environ[_LARGE_PAGES] == "0" or chosen or mallopt is None:
        return
    mallopt(_MMAP_THRESHOLD, _KEPT_BLOCK)
    mallopt(_TRIM_THRESHOLD, _KEPT_IN_ALL)


def return_freed_memory() -> None:
    """Give the operating system back all that the C library keeps, such as what building a network took."""
    trim = _c_function("malloc_trim")
    if trim is not None:
        trim(0)


@functools.cache
def _c_function(name: str) -> Callable[..., int] | None:
    """A function of glibc; None where there is no such library."""
    if os.name != "posix":
        return None
    return getattr(ctypes.CDLL(None), name, None)
