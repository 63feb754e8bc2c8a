"""Finding what is wrong with a dataset before it costs a training run. Reads only, never writes.

What is looked for, and what it is called in a ``Fault``:

* ``unreadable``: an empty, truncated or damaged file, or one of another format than its name says.
* ``missing pair``: a photo without a label map or a label map without a photo; two files of one stem.
* ``size mismatch``: photo (upright, EXIF orientation applied) and label map differ in size.
* ``unknown ids``: ids outside the class map, with counts and where.
* ``binary mask``: nothing but 0 and 255. As ids these mean "first class" and "ignore", so a mask of some
  object would teach the first class around it.
* ``colour-coded``: a picture of colours instead of ids: an RGB PNG, or its grey version.
* ``leakage``: the same photo in two splits, byte by byte, re-encoded or resized.

    N photos   H W map height and width
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from src.data.classes import ClassMap, Taxonomy
from src.data.folder import SplitFolders
from src.errors import UserError
from src.photos import LABEL_SUFFIXES, PHOTO_SUFFIXES, PhotoError, read_label, read_photo
from src.structures import IGNORE

_THUMBNAIL = 32  # edge, pixels
_SAME_PHOTO = 2.0  # root mean square difference of thumbnails, of 255 levels; re-encoding stays below
_COLOURED_MODES = ("RGB", "RGBA", "LA")
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
        thumbnail: (32, 32) float32 grey levels 0..255; None for a photo that cannot be read.
    """

    faults: list[Fault]
    digest: bytes
    thumbnail: NDArray[np.float32] | None


class Task(NamedTuple):
    """A photo to check, with its label map if there is one."""

    split: str
    image: Path
    label: Path | None


def match_files(split: str, folders: SplitFolders) -> tuple[list[Task], list[Fault]]:
    """Pair photos and label maps by stem; whatever stays alone is a fault."""
    images, labels = _by_stem(folders.images, PHOTO_SUFFIXES), _by_stem(folders.labels, LABEL_SUFFIXES)
    faults = []
    for files in (*images.values(), *labels.values()):
        if len(files) > 1:
            twins = ", ".join(file.name for file in files[1:])
            faults.append(
                Fault("missing pair", split, files[0], f"has the stem of {twins} too; keep one of them")
            )
    others = sorted(folders.labels.iterdir()) if folders.labels.is_dir() else []
    for stem in sorted(images.keys() - labels.keys()):
        lossy = [file for file in others if file.stem == stem]
        hint = f"; {lossy[0].name} is no PNG, and lossy formats change ids" if lossy else ""
        detail = f"no label map {stem}.png in {folders.labels}{hint}"
        faults.append(Fault("missing pair", split, images[stem][0], detail))
    for stem in sorted(labels.keys() - images.keys()):
        faults.append(Fault("missing pair", split, labels[stem][0], f"no photo {stem} in {folders.images}"))
    tasks = [
        Task(split, images[stem][0], labels[stem][0] if stem in labels else None) for stem in sorted(images)
    ]
    return tasks, faults


def check_photo(task: Task, taxonomy: Taxonomy, class_map: ClassMap) -> PhotoCheck:
    """Decode a photo and its label map completely and look for faults."""
    faults: list[Fault] = []
    digest, thumbnail, size = b"", None, None
    try:
        digest = hashlib.blake2b(task.image.read_bytes(), digest_size=16).digest()
        photo = read_photo(task.image)
        size = photo.shape[:2]
        grey = cv2.cvtColor(photo, cv2.COLOR_RGB2GRAY)
        small = cv2.resize(grey, (_THUMBNAIL, _THUMBNAIL), interpolation=cv2.INTER_AREA)
        thumbnail = small.astype(np.float32)
    except (PhotoError, OSError) as error:
        faults.append(Fault("unreadable", task.split, task.image, _without_path(error, task.image)))
    if task.label is not None:
        faults += [
            Fault(kind, task.split, task.label, detail)
            for kind, detail in check_label(task.label, size, taxonomy, class_map)
        ]
    return PhotoCheck(faults, digest, thumbnail)


def check_label(
    path: Path, size: tuple[int, int] | None, taxonomy: Taxonomy, class_map: ClassMap
) -> list[tuple[str, str]]:
    """Kind and detail of every fault of a label map.

    Args:
        path: the file.
        size: height and width of its photo; None where that is unknown.
        taxonomy: the classes. class_map: known raw ids.
    """
    colours = _colours_of(path)
    if colours is not None:
        return [("colour-coded", _colour_advice(colours, taxonomy))]
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
    unknown = [index for index in ids.tolist() if not _knows(class_map, index)]
    if ids.tolist() == [0, IGNORE]:
        share = 100 * float((label == IGNORE).mean())
        detail = f"only 0 and 255 ({share:.1f} % of the pixels); a 0/255 mask? Replace 255 by the object's class id"
        faults.append(("binary mask", detail))
    elif unknown:
        greys = dict(zip(_luma(taxonomy.colours).tolist(), taxonomy.names, strict=True))
        if set(ids.tolist()) <= greys.keys() | {0, IGNORE}:
            names = ", ".join(f"{index} is the grey of {greys[index]}" for index in unknown if index in greys)
            faults.append(("colour-coded", f"grey levels of class colours instead of ids: {names}; save ids"))
        else:
            faults.append(("unknown ids", _where(label, unknown)))
    return faults


def find_leaks(tasks: Sequence[Task], checks: Sequence[PhotoCheck]) -> list[Fault]:
    """Photos of one split that are in another split too."""
    splits: dict[str, list[int]] = defaultdict(list)
    for index, task in enumerate(tasks):
        if checks[index].thumbnail is not None:
            splits[task.split].append(index)
    faults = []
    names = list(splits)
    for position, first in enumerate(names):
        for second in names[position + 1 :]:
            for one, other in _same_photos(splits[first], splits[second], checks):
                same = (
                    "byte by byte" if checks[one].digest == checks[other].digest else "re-encoded or resized"
                )
                detail = f"the same photo as {tasks[one].image} in {first} ({same}); keep it in one split"
                faults.append(Fault("leakage", second, tasks[other].image, detail))
    return faults


def _same_photos(
    first: Sequence[int], second: Sequence[int], checks: Sequence[PhotoCheck], block: int = 1024
) -> list[tuple[int, int]]:
    """Pairs whose thumbnails nearly agree."""

    def thumbnails(indices: Sequence[int]) -> NDArray[np.float32]:
        return np.stack([np.asarray(checks[index].thumbnail).ravel() for index in indices])

    others = thumbnails(second)
    limit = others.shape[1] * _SAME_PHOTO**2
    pairs = []
    for start in range(0, len(first), block):
        rows = first[start : start + block]
        ours = thumbnails(rows)
        # |a - b|^2 = |a|^2 + |b|^2 - 2ab: one product instead of all differences. Single precision is good for
        # some hundreds of 60 million at worst, so candidates are measured again.
        squared = (ours**2).sum(1)[:, None] + (others**2).sum(1) - 2 * ours @ others.T
        for row, column in np.argwhere(squared < limit + 1000):
            if ((ours[row] - others[column]) ** 2).sum() <= limit:
                pairs.append((rows[row], second[column]))
    return pairs


def _knows(class_map: ClassMap, raw: int) -> bool:
    try:
        class_map(np.array([[raw]], np.uint8), "")
    except UserError:
        return False
    return True


def _by_stem(folder: Path, suffixes: frozenset[str]) -> Mapping[str, list[Path]]:
    files: dict[str, list[Path]] = defaultdict(list)
    if folder.is_dir():
        for file in sorted(folder.iterdir()):
            if file.suffix.lower() in suffixes and not file.name.startswith("."):
                files[file.stem].append(file)
    return files


def _colours_of(path: Path) -> NDArray[np.uint8] | None:
    """(N, 3) distinct colours of a PNG with colour channels; None for any other file."""
    try:
        with Image.open(path, formats=["PNG"]) as picture:
            if picture.mode not in _COLOURED_MODES:
                return None
            pixels = np.asarray(picture.convert("RGB"))
    except (OSError, SyntaxError, ValueError):
        return None  # reading it as a label map will say what is wrong
    return np.unique(pixels.reshape(-1, 3), axis=0)


def _colour_advice(colours: NDArray[np.uint8], taxonomy: Taxonomy) -> str:
    known = {
        tuple(colour): f"{name} {index}"
        for index, (name, colour) in enumerate(zip(taxonomy.names, taxonomy.colours.tolist(), strict=True))
    }
    found = [known[tuple(colour)] for colour in colours.tolist() if tuple(colour) in known]
    matched = f", {len(found)} of them the colours of {', '.join(found)}" if found else ""
    return (
        f"{len(colours)} colours instead of ids in one channel{matched}; replace each colour by its class id"
    )


def _luma(colours: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """(K,) grey levels that the usual conversion makes of colours."""
    return np.asarray(Image.fromarray(colours[None]).convert("L"))[0]


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
