"""Finding what is wrong with a dataset before it costs a training run. Reads only, never writes.

What is looked for, and what it is called in a ``Fault``:

* ``unreadable``: an empty, truncated or damaged file, or one of another format than its name says; a pseudo label of
  another size than its photo.
* ``missing pair``: a photo without a label map or a label map without a photo; two files of one stem; a split of
  ``data.folders`` with neither.
* ``size mismatch``: photo (upright, EXIF orientation applied) and label map differ in size.
* ``unknown ids``: ids outside the class map, with counts and where.
* ``binary mask``: nothing but 0 and 255. As ids these mean "first class" and "ignore", so a mask of some
  object would teach the first class around it. Also a map of nothing but ignored pixels.
* ``colour-coded``: a picture of colours instead of ids: an RGB PNG, its grey version, or a PNG whose palette
  shows class colours at the ids of other classes, as converting a picture to a palette leaves it.
* ``leakage``: the same photo in two splits, byte by byte, re-encoded or resized.

    N photos   H W map height and width
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from src.audit.colours import coloured_picture, foreign_palette, grey_picture, meaning
from src.audit.leakage import same_photos, thumbnail
from src.data.classes import ClassMap, Taxonomy
from src.data.folder import SplitFolders, in_subfolders, stem_of
from src.data.pseudo_labels import PseudoLabels, read_map
from src.errors import UserError
from src.photos import LABEL_SUFFIXES, PHOTO_SUFFIXES, PhotoError, read_label, read_photo
from src.structures import IGNORE

_MOST_IDS = 8


class Fault(NamedTuple):
    """One thing that is wrong.

    Attributes:
        kind: see the head of this file.
        split: where it was found.
        file: the file to look at.
        detail: what is wrong with it and what to do.
    """

    kind: str
    split: str
    file: Path
    detail: str


class PhotoCheck(NamedTuple):
    """What reading a photo and its label map told.

    Attributes:
        faults: of the two files.
        digest: of the photo's bytes.
        thumbnail: (T,) grey levels 0..255, see ``leakage.thumbnail``; None for a photo that cannot be read.
    """

    faults: list[Fault]
    digest: bytes
    thumbnail: NDArray[np.float32] | None


class Task(NamedTuple):
    """A photo to check, with its label map if there is one."""

    split: str
    image: Path
    label: Path | None
    pseudo_labels: tuple[Path, ...] = ()


def match_files(
    split: str, folders: SplitFolders, pseudo_labels: PseudoLabels | None = None
) -> tuple[list[Task], list[Fault]]:
    """Pair photos and label maps by stem; whatever stays alone is a fault, but for photos with pseudo labels."""
    images, labels = _by_stem(folders.images, PHOTO_SUFFIXES), _by_stem(folders.labels, LABEL_SUFFIXES)
    faults = []
    if not images and not labels:
        faults.append(Fault("missing pair", split, folders.images, "no photo and no label map in this split"))
    for files in (*images.values(), *labels.values()):
        if len(files) > 1:
            twins = ", ".join(file.name for file in files[1:])
            faults.append(
                Fault("missing pair", split, files[0], f"has the stem of {twins} too; keep one of them")
            )
    others: dict[str, Path] = {}
    for file in sorted(folders.labels.iterdir()) if folders.labels.is_dir() else []:
        others.setdefault(stem_of(file), file)
    pseudo = set() if pseudo_labels is None else pseudo_labels.names
    for stem in sorted(images.keys() - labels.keys() - pseudo):
        hint = f"; {others[stem].name} is no PNG, and lossy formats change ids" if stem in others else ""
        detail = f"no label map {stem}.png in {folders.labels}{hint}"
        faults.append(Fault("missing pair", split, images[stem][0], detail))
    for stem in sorted(labels.keys() - images.keys()):
        faults.append(Fault("missing pair", split, labels[stem][0], f"no photo {stem} in {folders.images}"))
    for folder, suffixes in ((folders.images, PHOTO_SUFFIXES), (folders.labels, LABEL_SUFFIXES)):
        if folder.is_dir() and (inner := in_subfolders(folder, suffixes)):
            faults.append(
                Fault(
                    "missing pair", split, folder, f"{inner} files in sub-folders are not used; move them up"
                )
            )
    tasks = [
        Task(
            split,
            images[stem][0],
            labels[stem][0] if stem in labels else None,
            () if pseudo_labels is None else tuple(pseudo_labels.files(stem)),
        )
        for stem in sorted(images)
    ]
    return tasks, faults


def check_photo(task: Task, taxonomy: Taxonomy, class_map: ClassMap) -> PhotoCheck:
    """Decode a photo and its label map completely and look for faults."""
    faults: list[Fault] = []
    digest, small, size = b"", None, None
    try:
        digest = hashlib.blake2b(task.image.read_bytes(), digest_size=16).digest()
        photo = read_photo(task.image)
        size = photo.shape[:2]
        small = thumbnail(photo)
    except (PhotoError, OSError) as error:
        faults.append(Fault("unreadable", task.split, task.image, _without_path(error, task.image)))
    if task.label is not None:
        faults += [
            Fault(kind, task.split, task.label, detail)
            for kind, detail in check_label(task.label, size, taxonomy, class_map)
        ]
    for path in task.pseudo_labels:
        try:
            read_map(path, read_label(path).shape if size is None else size)
        except (PhotoError, OSError) as error:
            faults.append(Fault("unreadable", task.split, path, _without_path(error, path)))
    return PhotoCheck(faults, digest, small)


def check_label(
    path: Path, size: tuple[int, int] | None, taxonomy: Taxonomy, class_map: ClassMap
) -> list[tuple[str, str]]:
    """Kind and detail of every fault of a label map.

    Args:
        path: the file.
        size: height and width of its photo; None where that is unknown.
        taxonomy: the classes. class_map: known raw ids.
    """
    coloured = coloured_picture(path, taxonomy)
    if coloured is not None:
        return [("colour-coded", coloured)]
    try:
        label = read_label(path)
    except (PhotoError, OSError) as error:
        return [("unreadable", _without_path(error, path))]
    faults = []
    if size is not None and label.shape != size:
        turned = ", its photo lying on its side" if label.shape == size[::-1] else ""
        detail = f"{label.shape[1]}x{label.shape[0]} pixels{turned}; the photo has {size[1]}x{size[0]}"
        faults.append(("size mismatch", detail))
    ids = np.flatnonzero(np.bincount(label.ravel(), minlength=256))
    unknown = [raw for raw in ids.tolist() if meaning(class_map, raw) is None]
    # or 255 is the id of a class, or maps of one class have nothing but 0 and 255
    ignores = meaning(class_map, IGNORE) == IGNORE and len(taxonomy.names) > 1
    if ignores and ids.tolist() == [0, IGNORE]:
        share = 100 * float((label == IGNORE).mean())
        detail = f"only 0 and 255 ({share:.1f} % of the pixels); a 0/255 mask? Replace 255 by the object's class id"
        faults.append(("binary mask", detail))
    elif ignores and ids.tolist() == [IGNORE]:
        detail = "only 255, which ignores the whole photo; a 0/255 mask? Replace 255 by the object's class id"
        faults.append(("binary mask", detail))
    elif colours := foreign_palette(path, ids, taxonomy, class_map):
        faults.append(("colour-coded", colours))
    elif unknown and (greys := grey_picture(ids, taxonomy)):
        faults.append(("colour-coded", greys))
    elif unknown:
        faults.append(("unknown ids", _where(label, unknown)))
    return faults


def find_leaks(tasks: Sequence[Task], checks: Sequence[PhotoCheck]) -> list[Fault]:
    """Photos of one split that are in another split too."""
    splits: dict[str, list[int]] = defaultdict(list)
    thumbnails: dict[str, list[NDArray[np.float32]]] = defaultdict(list)
    for index, (task, check) in enumerate(zip(tasks, checks, strict=True)):
        if check.thumbnail is not None:
            splits[task.split].append(index)
            thumbnails[task.split].append(check.thumbnail)
    faults = []
    for first, second in combinations(splits, 2):
        for one, other in same_photos(np.stack(thumbnails[first]), np.stack(thumbnails[second])):
            ours, theirs = splits[first][one], splits[second][other]
            copied = checks[ours].digest == checks[theirs].digest
            same = "byte by byte" if copied else "re-encoded or resized"
            detail = f"the same photo as {tasks[ours].image} in {first} ({same}); keep it in one split"
            faults.append(Fault("leakage", second, tasks[theirs].image, detail))
    return faults


def _by_stem(folder: Path, suffixes: frozenset[str]) -> Mapping[str, list[Path]]:
    files: dict[str, list[Path]] = defaultdict(list)
    if folder.is_dir():
        for file in sorted(folder.iterdir()):
            if file.suffix.lower() in suffixes and not file.name.startswith("."):
                files[stem_of(file)].append(file)
    return files


def _where(label: NDArray[np.uint8], unknown: Sequence[int]) -> str:
    parts = []
    for index in unknown[:_MOST_IDS]:
        rows, columns = np.nonzero(label == index)
        parts.append(
            f"{index} ({len(rows)} pixels, rows {rows.min()}-{rows.max()}, columns {columns.min()}-{columns.max()})"
        )
    more = f" and {len(unknown) - _MOST_IDS} more ids" if len(unknown) > _MOST_IDS else ""
    return f"{', '.join(parts)}{more}; add them to data.class_map (255 ignores) or correct the file"


def _without_path(error: Exception, path: Path) -> str:
    return (
        str(error).removeprefix(f"{path}: ") if isinstance(error, UserError) else f"cannot be read: {error}"
    )
