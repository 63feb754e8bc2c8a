"""SLURM, the job scheduler of many clusters: what runs are called there, and how they are queued again."""

from __future__ import annotations

import logging
import os
import subprocess
import zlib

log = logging.getLogger(__name__)

_NO_STEP = 0xFFFFFFF0  # numbers from here on are those of batch scripts and interactive shells
_PATIENCE = 30  # seconds for SLURM's answer


def resumable_name(default: str, resume: str | None, overrides: str) -> str:
    """A name for a run that ``srun`` has started with ``resume=auto``; the default for all others.

    All processes of a step have the same, also when its job is queued again; other runs in the same step have others.

    Args:
        resume: of the run. overrides: that tell it from others.
    """
    job, step = os.environ.get("SLURM_JOB_ID"), os.environ.get("SLURM_STEP_ID", "")
    interactive = os.environ.get("SLURM_JOB_NAME") in (
        "bash",
        "interactive",
    )  # shells, as Lightning tells them
    if resume != "auto" or job is None or interactive or not step.isdecimal() or int(step) >= _NO_STEP:
        return default
    return f"slurm_{job}_{step}_{zlib.crc32(overrides.encode('utf-8', 'surrogateescape')):08x}"


def requeue() -> None:
    """Queue the job that this process belongs to again; it keeps its number. A refusal is reported."""
    job = os.environ.get("SLURM_JOB_ID", "")
    if array := os.environ.get("SLURM_ARRAY_JOB_ID"):
        job = f"{array}_{os.environ.get('SLURM_ARRAY_TASK_ID', '')}"
    try:
        subprocess.run(
            ["scontrol", "requeue", job], check=True, capture_output=True, text=True, timeout=_PATIENCE
        )
    except (OSError, subprocess.SubprocessError) as error:
        reason = str(getattr(error, "stderr", "") or error).strip()
        log.warning("SLURM does not queue job %s again (%s): submit it again", job, reason)
    else:
        log.warning("SLURM queues job %s again", job)
