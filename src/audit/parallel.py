"""Doing the same to many files on all cores, with a progress bar."""

from __future__ import annotations

import multiprocessing
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from typing import TypeVar

import cv2
from rich.console import Console
from rich.progress import track

Task = TypeVar("Task")
Result = TypeVar("Result")


def map_files(
    function: Callable[[Task], Result], tasks: Sequence[Task], workers: int, description: str
) -> list[Result]:
    """Results in the order of the tasks.

    Args:
        function: picklable; runs in other processes unless there is one worker only.
        tasks: its arguments.
        workers: processes.
        description: of the progress bar, which goes to standard error.
    """
    console = Console(stderr=True)
    if workers <= 1:
        return [function(task) for task in track(tasks, description, console=console, transient=True)]
    context = multiprocessing.get_context("fork" if sys.platform == "linux" else "spawn")
    # 0 turns the threads of OpenCV off; 1 would wait for threads that did not survive the fork.
    with ProcessPoolExecutor(workers, context, initializer=cv2.setNumThreads, initargs=(0,)) as pool:
        results = pool.map(function, tasks, chunksize=4)
        progress = track(results, description, total=len(tasks), console=console, transient=True)
        return list(progress)
