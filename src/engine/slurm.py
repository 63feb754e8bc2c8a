"""SLURM, the job scheduler of many clusters: what runs are called there, and how they are queued again."""

from __future__ import annotations

import logging
import os
import subprocess

log = logging.getLogger(__name__)

_PATIENCE = 30  # seconds for SLURM's answer


def step_name(default: str) -> str:
    """A name of the step that ``srun`` has started, or the default where there is none.

    All processes of a step have the same, also when its job is queued again.
    """
    job, step = os.environ.get("SLURM_JOB_ID"), os.environ.get("SLURM_STEP_ID")
    interactive = os.environ.get("SLURM_JOB_NAME") in (
        "bash",
        "interactive",
    )  # shells, as Lightning tells them
    return default if job is None or step is None or interactive else f"slurm_{job}_{step}"


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
