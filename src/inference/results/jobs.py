"""The photos of a prediction, and what earlier runs have left for them in its output."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from src.inference.results.outputs import read_origin
from src.photos import PhotoError, photo_size


class Job(NamedTuple):
    """A photo, the name of its files below the output, and the files themselves."""

    photo: Path
    name: str
    files: dict[str, Path]


def unfinished(jobs: Sequence[Job], failures: dict[Path, str]) -> list[Job]:
    """Jobs with those of their files that are not there: what exists may be someone's own.

    Photos whose files were made of other photos of that name are added to the failures.
    """
    todo = []
    for job in jobs:
        there = {place: path for place, path in job.files.items() if _has_content(path)}
        try:
            source, size = (fingerprint(job.photo), photo_size(job.photo)) if there else ("", (0, 0))
        except (PhotoError, OSError):  # told when its turn comes
            todo.append(job)
            continue
        if others := [path for path in there.values() if not _may_be_of(path, source, size)]:
            failures[job.photo] = (
                f"{others[0]} was made of another photo of this name, or of another version of it: choose another "
                "output, or delete it, or overwrite=true to make all files anew"
            )
        elif missing := {place: path for place, path in job.files.items() if place not in there}:
            todo.append(job._replace(files=missing))
    return todo


def kept_lines(jobs: Sequence[Job], todo: Sequence[Job], network: str) -> list[str]:
    """What to tell of files that are not made again.

    Args:
        jobs: all. todo: those of them that ``unfinished`` left. network: fingerprint of the weights in use.
    """
    missing = {job.photo: job.files for job in todo}
    kept = [
        [path for place, path in job.files.items() if place not in missing.get(job.photo, ())] for job in jobs
    ]
    done = len(jobs) - len(todo)
    beside_new = sum(len(paths) for job, paths in zip(jobs, kept, strict=True) if job.photo in missing)
    origins = [read_origin(path) for paths in kept for path in paths]
    by_others = sum(found is not None and found[0].network not in ("", network) for found in origins)
    lines = []
    if done:
        lines.append(
            f"{done} of {len(jobs)} photos are done already: their files are there, as an earlier run has made "
            "them (overwrite=true makes them anew)"
        )
    if beside_new:
        lines.append(
            f"{beside_new} of the files asked for are there and stay as an earlier run has made them "
            "(overwrite=true makes them anew)"
        )
    if by_others:
        lines.append(
            f"{by_others} of these files were made by another network than this checkpoint's: overwrite=true "
            "replaces them, another output keeps both"
        )
    return lines


def fingerprint(photo: Path) -> str:
    """What tells a photo from others of its name, which cameras give again and again."""
    return f"{photo.stat().st_size} bytes"


def _may_be_of(path: Path, photo: str, size: tuple[int, int]) -> bool:
    """Whether a file may be a result of a photo, of which its fingerprint and its size are given.

    A PNG that does not name its photo, such as one that was edited since, has to have the photo's size; what is no
    PNG may be anything.
    """
    found = read_origin(path)
    if found is None:
        return True
    origin, result_size = found
    return origin.photo == photo if origin.photo else result_size == size


def _has_content(path: Path) -> bool:
    """Whether a file is there; an empty one is what a power cut left of one."""
    return os.path.exists(path) and os.path.getsize(path) > 0
