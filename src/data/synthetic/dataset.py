"""Write synthetic scenes to disk in MaSS13K's layout: once, resumably, and safely from several processes.

<root>/images_pad/<split>/scene_00000.jpg
<root>/annotations/<split>/scene_00000.png    8-bit class ids with a colour palette
<root>/synthetic.json                         what the folder holds, and whether it is complete
"""

from __future__ import annotations

import io
import json
import logging
import multiprocessing
import os
import re
import sys
import zlib
from collections.abc import Iterable, Mapping
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
import simplejpeg
from filelock import FileLock, Timeout
from PIL import Image
from rich.progress import track

from src.data.folder import DatasetError
from src.data.synthetic.scene import check_request, draw_scene
from src.errors import UserError
from src.machine import available_cores

GENERATOR_VERSION = (
    1  # raise it whenever a scene would look different: scenes that were drawn before are then refused
)
MANIFEST = "synthetic.json"

_IMAGES, _LABELS = "images_pad", "annotations"
_LOCK = ".synthetic.lock"
_OURS = re.compile(rf"({_IMAGES}|{_LABELS})/[^/]+/\.?scene_\d{{5}}\.(jpg|png)(\.tmp)?")
_JPEG_QUALITY = 90
_PORTRAIT_EVERY = 4
# Viewers show the label maps in these colours; nothing reads them back.
_COLOURS: Mapping[str, tuple[int, int, int]] = {
    "background": (0, 0, 0),
    "person": (255, 0, 0),
    "building": (64, 34, 64),
    "tree": (0, 255, 0),
    "ground": (93, 64, 0),
    "sky": (0, 0, 255),
    "water": (0, 255, 255),
}

log = logging.getLogger(__name__)


class _Task(NamedTuple):
    """One scene to draw: its seed and size, and the two files that it becomes."""

    seed: int
    height: int
    width: int
    image: Path
    label: Path
    class_ids: dict[str, int]


def write_synthetic_dataset(
    root: Path | str,
    splits: Mapping[str, int],
    height: int,
    width: int,
    class_ids: Mapping[str, int],
    seed: int = 0,
    workers: int | None = None,
) -> None:
    """Make sure that a folder holds exactly the asked-for scenes; draw those that are missing.

    Costs nothing when they are there. An interrupted run continues where it stopped. Processes that start together
    wait for the first one. Splits never share a scene, and a split's scenes do not depend on the other splits. Every
    fourth scene is portrait.

    Args:
        root: folder of the dataset, created if needed.
        splits: number of scenes of each split.
        height: of landscape scenes in pixels; portrait ones exchange it with `width`.
        width: of landscape scenes in pixels.
        class_ids: id of each class name, see `draw_scene`.
        seed: another seed gives other scenes.
        workers: processes that draw; None for one per available core.

    Raises:
        DatasetError: the folder has files that this function did not write, or scenes of other parameters or another
            version, which a run may be using; nothing is touched then.
        UserError: a split has no scenes, or `check_request` refuses.
    """
    root = Path(root)
    check_request(height, width, class_ids)
    if not splits or min(splits.values()) < 1:
        raise UserError(f"data.synthetic.splits is {dict(splits)}: ask for one scene or more in each split")
    wanted = _manifest(splits, height, width, class_ids, seed)
    if _read_manifest(root) == {**wanted, "complete": True}:
        return
    _refuse_foreign(root)
    root.mkdir(parents=True, exist_ok=True)
    lock = FileLock(root / _LOCK)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        log.info("%s: another process draws the synthetic scenes; waiting for it", root)
        lock.acquire()
    try:
        found = _read_manifest(root)
        if found == {**wanted, "complete": True}:
            return
        if found != {**wanted, "complete": False}:
            _keep_others(root, found, wanted)
            _write(root / MANIFEST, json.dumps({**wanted, "complete": False}, indent=2).encode())
        _draw(_missing(root, splits, height, width, dict(class_ids), seed), workers)
        _write(root / MANIFEST, json.dumps({**wanted, "complete": True}, indent=2).encode())
    finally:
        lock.release()


def holds_scenes(
    root: Path | str,
    splits: Mapping[str, int],
    height: int,
    width: int,
    class_ids: Mapping[str, int],
    seed: int = 0,
) -> bool:
    """Whether a folder holds all scenes that ``write_synthetic_dataset`` would put there, and no others."""
    return _read_manifest(Path(root)) == {
        **_manifest(splits, height, width, class_ids, seed),
        "complete": True,
    }


def _manifest(
    splits: Mapping[str, int], height: int, width: int, class_ids: Mapping[str, int], seed: int
) -> dict[str, Any]:
    return {
        "generator": GENERATOR_VERSION,
        "seed": seed,
        "height": height,
        "width": width,
        "splits": dict(splits),
        "class_ids": dict(class_ids),
    }


def _missing(
    root: Path, splits: Mapping[str, int], height: int, width: int, class_ids: dict[str, int], seed: int
) -> list[_Task]:
    tasks = []
    for split, count in splits.items():
        for folder in (_IMAGES, _LABELS):
            (root / folder / split).mkdir(parents=True, exist_ok=True)
        for index in range(count):
            image = root / _IMAGES / split / f"scene_{index:05d}.jpg"
            label = root / _LABELS / split / f"scene_{index:05d}.png"
            if image.exists() and label.exists():
                continue
            size = (width, height) if index % _PORTRAIT_EVERY == _PORTRAIT_EVERY - 1 else (height, width)
            tasks.append(_Task(_scene_seed(seed, split, index), *size, image, label, class_ids))
    return tasks


def _scene_seed(seed: int, split: str, index: int) -> int:
    """A 64-bit seed of its own for every scene of every split."""
    sequence = np.random.SeedSequence([seed, zlib.crc32(split.encode()), index])
    return int(sequence.generate_state(1, np.uint64)[0])


def _draw(tasks: list[_Task], workers: int | None) -> None:
    workers = min(workers or available_cores(), len(tasks))
    if workers <= 1:
        _progress(map(_draw_one, tasks), len(tasks))
        return
    # Forked workers start at once and do not import the main program again, as spawned ones would.
    context = multiprocessing.get_context("fork" if sys.platform == "linux" else "spawn")
    # 0 turns the threads of OpenCV off; 1 would wait for threads that did not survive the fork.
    pool = ProcessPoolExecutor(workers, context, initializer=cv2.setNumThreads, initargs=(0,))
    try:
        futures = [pool.submit(_draw_one, task) for task in tasks]
        _progress((future.result() for future in as_completed(futures)), len(tasks))
    finally:
        pool.shutdown(cancel_futures=True)


def _progress(steps: Iterable[None], total: int) -> None:
    for _ in track(steps, "Drawing synthetic scenes", total, transient=True):
        pass


def _draw_one(task: _Task) -> None:
    image, label = draw_scene(task.seed, task.height, task.width, task.class_ids)
    _write(task.image, simplejpeg.encode_jpeg(image, quality=_JPEG_QUALITY))
    picture = Image.fromarray(label, "P")
    table = np.zeros((256, 3), np.uint8)
    for name, class_id in task.class_ids.items():
        table[class_id] = _COLOURS.get(name, (255, 255, 255))
    picture.putpalette(table.tobytes())
    encoded = io.BytesIO()
    picture.save(encoded, "PNG")
    _write(task.label, encoded.getvalue())


def _write(path: Path, data: bytes) -> None:
    """Write a file so that nobody ever sees half of it."""
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_bytes(data)
    os.replace(temporary, path)


def _read_manifest(root: Path) -> dict[str, Any] | None:
    path = root / MANIFEST
    if not path.exists():
        return None
    try:
        manifest: dict[str, Any] = json.loads(path.read_bytes())
    except ValueError as error:
        raise DatasetError(
            f"{path}: not the JSON that the generator writes ({error}). "
            "Delete the folder or set data.root to another."
        ) from error
    return manifest


def _refuse_foreign(root: Path) -> None:
    """Only ever write into an empty folder or one of our own."""
    if not root.exists() or (root / MANIFEST).exists():
        return
    foreign = [
        path for path in _files(root) if not _OURS.fullmatch(path) and path not in (_LOCK, f".{MANIFEST}.tmp")
    ]
    if foreign:
        raise DatasetError(
            f"{root}: the folder has files that are not synthetic scenes, for example {min(foreign)}. "
            "Set data.root to an empty or new folder; nothing was changed."
        )


def _keep_others(root: Path, found: dict[str, Any] | None, wanted: dict[str, Any]) -> None:
    """Scenes of other parameters may be those of a run that goes on, or of results to compare with."""
    if found is None:  # what they are is not known any more
        for path in _files(root):
            if _OURS.fullmatch(path):
                (root / path).unlink()
        return
    others = [
        f"{key} {found.get(key)}, not {value}" for key, value in wanted.items() if found.get(key) != value
    ]
    raise DatasetError(
        f"{root} holds scenes of other settings ({'; '.join(others)}). Give data.root=<new folder> for these, or "
        "delete the folder."
    )


def _files(root: Path) -> list[str]:
    return [path.relative_to(root).as_posix() for path in root.rglob("*") if not path.is_dir()]
