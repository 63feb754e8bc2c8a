"""Large pages: asked for before PyTorch makes a tensor, and left alone where somebody says so."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

PAGES = Path("/sys/kernel/mm/transparent_hugepage/enabled")
PROGRAM = """
import resource
import src
import torch
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
torch.ones(32 * 2**20)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(**environment: str) -> int:
    """Page faults of filling a tensor of 128 MiB in a process of its own."""
    clean = {name: value for name, value in os.environ.items() if name != "THP_MEM_ALLOC_ENABLE"}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
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
    small_pages = 32 * 2**20 * 4 // 4096
    assert faults() < small_pages / 8
    assert faults(THP_MEM_ALLOC_ENABLE="0") >= small_pages
