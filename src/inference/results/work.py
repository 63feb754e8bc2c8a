"""The work of a prediction: one photo after the other."""

from __future__ import annotations

import errno
import logging
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from src.inference.predictor import Predictor
from src.inference.results.jobs import Job, fingerprint
from src.inference.results.outputs import Origin, OutputPlan, PhotoFiles
from src.photos import PhotoError, colour_profile, photo_size

log = logging.getLogger(__name__)

_LESS_MEMORY = {  # by whether photos are divided into windows
    True: "lower inference.memory_gb",
    False: "choose inference=auto (windows, of MaSSFormer's networks only) or a smaller inference.limit",
}
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT)
_MAKE_ROOM = (
    "Make room (results and, for large photos, the folder that TMPDIR names) and give the same command again."
)


def predict_all(
    jobs: Sequence[Job], plan: OutputPlan, predictor: Predictor, network_id: str, console: Console
) -> tuple[dict[Path, str], int]:
    """Write the files of every photo, with a progress bar; a photo's fault does not cost the others.

    Args:
        network_id: of the predictor's network, see ``Checkpoint.fingerprint``.

    Returns:
        The photos that failed, with the reason, and how many are done. A full disk ends the work.
    """
    failures: dict[Path, str] = {}
    done = 0
    sizes: dict[Path, tuple[int, int]] = {}
    for job in jobs:
        try:
            sizes[job.photo] = photo_size(job.photo)
        except (PhotoError, OSError) as error:
            failures[job.photo] = str(error)
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TextColumn("{task.percentage:.0f} %"),
    )
    with Progress(*columns, TimeRemainingColumn(elapsed_when_finished=True), console=console) as progress:
        pixels = {photo: height * width for photo, (height, width) in sizes.items()}
        task = progress.add_task("", total=sum(pixels.values()))
        completed = 0
        for job in jobs:
            if job.photo in failures:
                continue
            progress.update(task, description=job.photo.name)

            def on_progress(share: float, before: int = completed, size: int = pixels[job.photo]) -> None:
                progress.update(task, completed=before + share * size)

            try:
                _predict_one(job, plan, predictor, network_id, on_progress)
                done += 1
            except (PhotoError, OSError) as error:
                failures[job.photo] = str(error)
                if isinstance(error, OSError) and error.errno in _NO_ROOM:
                    left = sum(later.photo not in failures for later in jobs[jobs.index(job) + 1 :])
                    failures[job.photo] = f"{error.strerror}; photos not begun: {left}. {_MAKE_ROOM}"
                    break
            except Exception as error:  # one photo's fault must not cost the others
                if _is_out_of_memory(error):
                    failures[job.photo] = f"out of memory; {_LESS_MEMORY[predictor.divides]}"
                else:
                    failures[job.photo] = f"{type(error).__name__}: {error}"
                    log.warning("%s: an error that nobody expected", job.photo, exc_info=error)
                if torch.cuda.is_available():
                    with suppress(RuntimeError):  # of a device that is lost
                        torch.cuda.empty_cache()
            completed += pixels[job.photo]
            progress.update(task, completed=completed)
    return failures, done


def _is_out_of_memory(error: BaseException) -> bool:
    # the CPU's allocator raises a plain RuntimeError, OpenCV an error of its own
    words = ("can't allocate memory", "Insufficient memory")
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or any(
        word in str(error) for word in words
    )


def _predict_one(
    job: Job, plan: OutputPlan, predictor: Predictor, network_id: str, on_progress: Callable[[float], None]
) -> None:
    photo = predictor.open(job.photo)
    profile, origin = colour_profile(job.photo), Origin(fingerprint(job.photo), network_id)
    with PhotoFiles(plan, job.files, photo.size, profile, origin) as files:
        for band in predictor.bands(photo):
            below = band.top + band.scores.shape[1]
            files.write(band, photo.rows(band.top, below))
            on_progress(below / photo.size[0])
