"""Where large blocks of memory come from: each case in a process of its own."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

PAGES = Path("/sys/kernel/mm/transparent_hugepage/enabled")
SMALL_PAGE = 4096
FAULTS = "faults = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_minflt"


def printed(*lines: str, **environment: str) -> int:
    clean = {name: value for name, value in os.environ.items() if name != "THP_MEM_ALLOC_ENABLE"}
    done = subprocess.run(
        [sys.executable, "-c", "\n".join(lines)],
        cwd=Path(__file__).parents[1],
        env=clean | environment,
        capture_output=True,
        text=True,
        check=True,
    )
    return int(done.stdout)


@pytest.mark.skipif(
    not PAGES.is_file() or "[madvise]" not in PAGES.read_text(), reason="no pages on request here"
)
def test_tensors_lie_in_large_pages_unless_told_otherwise() -> None:
    # Asked of the mapping, not counted in faults: whether the system has large pages to give is its own affair.
    lines = (
        "import re, src, torch",
        "tensor = torch.ones(32 * 2**20)",
        "at = tensor.data_ptr() + 2**22",
        "asked = None",
        "for line in open('/proc/self/smaps'):",
        "    if found := re.match('([0-9a-f]+)-([0-9a-f]+) ', line):",
        "        inside = int(found[1], 16) <= at < int(found[2], 16)",
        "    elif inside and line.startswith('VmFlags:'):",
        "        asked = 'hg' in line.split()",
        "print(int(asked))",
    )
    assert printed(*lines) == 1
    assert printed(*lines, THP_MEM_ALLOC_ENABLE="0") == 0


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library")
@pytest.mark.parametrize("kept", [False, True])
def test_a_worker_keeps_the_memory_of_a_photo(kept: bool) -> None:
    """Pixels of a 12-megapixel photo, twice: the second time lie where the first did, or anywhere."""
    faults = printed(
        "import resource",
        "from src.allocation import keep_freed_memory",
        FAULTS,
        "keep_freed_memory()" if kept else "",
        "bytearray(36 * 2**20)",
        "before = faults()",
        "bytearray(36 * 2**20)",
        "print(faults() - before)",
    )
    always = PAGES.is_file() and "[always]" in PAGES.read_text()
    pages = 36 * 2**20 // (2**21 if always else SMALL_PAGE)
    assert faults < 16 if kept else faults >= pages
