"""Labelled photos in plain folders: MaSS13K as released, or one's own.

A label map belongs to the photo of the same stem (``images/train/a.jpg`` and ``annotations/train/a.png``).
What can be wrong with the folders themselves is reported when the source is built, before training starts;
what only decoding can tell is reported with the file's name when the photo is read.
"""

from __future__ import annotations

import logging
import os
import unicodedata
from collections import defaultdict
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from src.data.classes import ClassMap
from src.data.partial_jpeg import read_window
from src.data.partial_png import PartialLabel
from src.data.preview import LabelPreview
from src.data.source import Window
from src.errors import UserError
from src.photos import LABEL_SUFFIXES, PHOTO_SUFFIXES, PhotoError, photo_header

log = logging.getLogger(__name__)

# Names under which the photos of MaSS13K are found: the release's own configuration reads images_pad for
# training and validation and images for the test.
IMAGE_FOLDERS = ("images", "images_pad", "images_copy")
LABEL_FOLDER = "annotations"
_LAYOUT = """Expected layout:
  {root}/
    images/{{train,val,test}}/*.jpg        (or images_pad, or images_copy)
    annotations/{{train,val,test}}/*.png   (8-bit class ids, same stems)
Set data.root to your copy, or data.folders to folders with other names.
The benchmark, MaSS13K, is published at https://github.com/xiechenxi99/MaSS13K (arXiv 2503.18364)."""
_SHOWN = 5  # file names that one message lists


class DatasetError(UserError):
    """A dataset's folders cannot be used as they are; the message names files and the cure."""


class SplitFolders(NamedTuple):
    """The two folders of one split."""

    images: Path
    labels: Path


class Pair(NamedTuple):
    """A photo and its label map."""

    name: str
    image: Path
    label: Path


def benchmark_folders(root: Path, split: str) -> SplitFolders:
    """Find a split in the layout of MaSS13K, whatever its image folder is called.

    Raises:
        DatasetError: the root or the split is not there; shows the layout and where the benchmark is
            published.
    """
    candidates = [root / name / split for name in IMAGE_FOLDERS]
    found = [folder for folder in candidates if holds_files(folder, PHOTO_SUFFIXES)]
    labels = root / LABEL_FOLDER / split
    if not found or not labels.is_dir():
        missing = labels if found else candidates[0]
        problem = "no photo in this folder" if missing.is_dir() else "no such folder"
        raise DatasetError(f"{missing}: {problem}. {_LAYOUT.format(root=root)}")
    if found[0] != candidates[0] or len(found) > 1:
        others = "".join(f"; not used: {folder}" for folder in found[1:])
        log.info("%s: photos are read from %s%s", split, found[0], others)
    return SplitFolders(found[0], labels)


def find_pairs(folders: SplitFolders) -> list[Pair]:
    """Match photos and label maps by stem.

    Returns:
        Pairs sorted by name, so that an index means the same photo on every machine.

    Raises:
        DatasetError: a folder is missing or has no files, a stem occurs twice, a photo has no label map, or
            files are empty. Label maps without a photo are only logged: one label folder may serve several
            photo folders.
    """
    pairs, missing = match_files(folders)
    if missing:
        photos = len(pairs) + len(missing)
        raise DatasetError(
            f"{folders.labels}: {len(missing)} of {photos} photos of {folders.images} have no label "
            f"map: {listed([f'{photo.stem}.png' for photo in missing])}. A label map is a PNG with the photo's "
            "stem; add the missing ones or move their photos elsewhere."
        )
    return pairs


def match_files(folders: SplitFolders) -> tuple[list[Pair], list[Path]]:
    """As ``find_pairs``, but photos without a label map are returned too, sorted by name."""
    images = files_by_stem(folders.images, PHOTO_SUFFIXES, "photo")
    labels = files_by_stem(folders.labels, LABEL_SUFFIXES, "label map")
    unused = sorted(labels.keys() - images.keys())
    if unused:
        log.warning(
            "%s: %d label maps have no photo and are not used: %s",
            folders.labels,
            len(unused),
            listed(unused),
        )
    pairs = [Pair(stem, images[stem], labels[stem]) for stem in sorted(images.keys() & labels.keys())]
    files = [file for pair in pairs for file in (pair.image, pair.label)]
    if lost := [str(file) for file in files if not file.exists()]:
        raise DatasetError(
            f"{len(lost)} files are links to nowhere: {listed(lost)}. Mend or delete the links."
        )
    empty = [str(file) for file in files if file.stat().st_size == 0]
    if empty:
        raise DatasetError(
            f"{len(empty)} files are empty (0 bytes): {listed(empty)}. Copy or download them again."
        )
    return pairs, [images[stem] for stem in sorted(images.keys() - labels.keys())]


class FolderSource:
    """A ``PhotoSource`` over plain files.

    Args:
        pairs: photos and label maps, see ``find_pairs``.
        class_map: translates the raw ids of the label files.
    """

    def __init__(self, pairs: Sequence[Pair], class_map: ClassMap) -> None:
        self._pairs = tuple(pairs)
        self._class_map = class_map
        self.names: Sequence[str] = tuple(pair.name for pair in pairs)

    def __len__(self) -> int:
        return len(self._pairs)

    def open(self, index: int) -> FilePhoto:
        return FilePhoto(self._pairs[index], self._class_map)


class FilePhoto:
    """A ``LabelledPhoto`` of two files; both are decoded down to the rows that are asked for."""

    def __init__(self, pair: Pair, class_map: ClassMap) -> None:
        self._pair = pair
        self._class_map = class_map
        self.preview: LabelPreview | None = None

    @property
    def name(self) -> str:
        return self._pair.name

    @property
    def size(self) -> tuple[int, int]:
        return self._header[0]

    def label(self, window: Window) -> NDArray[np.uint8]:
        """Class ids under the window.

        Raises:
            PhotoError: the label map is damaged or its size is not the photo's.
            ValueError: ids outside the class map.
        """
        return self._class_map(self.raw_label(window), str(self._pair.label))

    def image(self, window: Window) -> NDArray[np.uint8]:
        """RGB under the window; raises ``PhotoError`` when the photo is damaged."""
        return read_window(self._pair.image, window, *self._header)

    def raw_label(self, window: Window) -> NDArray[np.uint8]:
        """(height, width) uint8 ids as the file holds them; raises ``PhotoError`` as ``label`` does."""
        return self._label.read(window)

    @cached_property
    def _header(self) -> tuple[tuple[int, int], int]:
        return photo_header(self._pair.image)

    @cached_property
    def _label(self) -> PartialLabel:
        label = PartialLabel(self._pair.label)
        if label.size != self.size:
            height, width = self.size
            turned = ", which is the photo lying on its side" if label.size == (width, height) else ""
            raise PhotoError(
                f"{self._pair.label}: the label map is {label.size[1]}x{label.size[0]} pixels{turned}, "
                f"but its photo {self._pair.image} is {width}x{height} (upright, EXIF orientation "
                "applied). Label the upright photo at full resolution, or remove the photo's wrong EXIF "
                "orientation."
            )
        return label


def _files(folder: Path, suffixes: frozenset[str]) -> list[Path]:
    # Names starting with a dot are droppings of file managers ("._a.jpg"), never photos.
    return sorted(f for f in folder.iterdir() if f.suffix.lower() in suffixes and not f.name.startswith("."))


def in_subfolders(folder: Path, suffixes: frozenset[str]) -> int:
    """How many files of these kinds lie in a folder's visible sub-folders, which are not searched."""
    with os.scandir(folder) as entries:  # which knows folders without asking for every file
        inner = [Path(entry.path) for entry in entries if entry.is_dir() and not entry.name.startswith(".")]
    return sum(path.suffix.lower() in suffixes for place in inner for path in place.rglob("*"))


def holds_files(folder: Path, suffixes: frozenset[str]) -> bool:
    """Whether there is such a folder, with visible files of these kinds in it."""
    return folder.is_dir() and bool(_files(folder, suffixes))


def files_by_stem(
    folder: Path, suffixes: frozenset[str], kind: str, *, report_subfolders: bool = True
) -> dict[str, Path]:
    """The visible files of a folder by stem.

    Args:
        folder, suffixes: of the files. kind: what they are, for messages. report_subfolders: warn of such files below
            sub-folders, which are not used.

    Raises:
        DatasetError: there are none, or a stem occurs twice.
    """
    if not folder.is_dir():
        raise DatasetError(
            f"{folder}: no such folder. A photo and its label map have the same stem in two folders, as in "
            f"photos/train/a.jpg and labels/train/a.png: point data.root at the folder of both, or data.folders at "
            f"each (data.folders.train.images=<folder>, data.folders.train.labels=<folder>)."
        )
    by_stem: dict[str, list[Path]] = defaultdict(list)
    for file in _files(folder, suffixes):
        by_stem[stem_of(file)].append(file)
    inner = in_subfolders(folder, suffixes)
    if not by_stem:
        endings = ", ".join(sorted(suffixes))
        hint = (
            f" {inner} lie in sub-folders: move them up, or point data.folders at one of these."
            if inner
            else ""
        )
        raise DatasetError(
            f"{folder}: no {kind} in this folder; looked for files ending in {endings} (any case).{hint}"
        )
    if inner and report_subfolders:
        log.warning("%s: %d %ss in sub-folders are not used; move them up to use them", folder, inner, kind)
    twice = [" and ".join(file.name for file in files) for files in by_stem.values() if len(files) > 1]
    if twice:
        raise DatasetError(
            f"{folder}: {len(twice)} stems occur twice: {listed(twice)}. {kind.capitalize()}s are "
            "matched by stem; keep one file of each."
        )
    return {stem: files[0] for stem, files in by_stem.items()}


def stem_of(path: Path) -> str:
    """A file's name without suffix, which photos and maps share; accents composed, as macOS may part them."""
    return unicodedata.normalize("NFC", path.stem)


def listed(names: Sequence[str]) -> str:
    """The first few names, and how many more there are."""
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more
