"""Pseudo labels of new classes beside precise labels: their files, and photos that have either or both.

A folder of pseudo labels belongs to a folder of photos, file by file through the stem:

    <folder>/<stem>.png           index map: one id per pixel, for all new classes at once
    <folder>/<class>/<stem>.png   soft map of one class, 0 (certainly not) to 255; goes before the index map

Where a photo has neither file for a class, nothing is known about that class in it.

    H, W photo size   h, w window   N new classes
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from src.data.folder import DatasetError, files_by_stem, holds_files, listed, stem_of
from src.data.preview import LabelPreview
from src.data.source import LabelledPhoto, PhotoSource, Window
from src.errors import UserError
from src.photos import LABEL_SUFFIXES, PhotoError, photo_size, read_label, read_photo
from src.structures import CERTAIN, EVEN, IGNORE

log = logging.getLogger(__name__)


class PseudoLabels:
    """The pseudo labels of a folder.

    Args:
        folder: see the module.
        new_classes: N names.
        class_map: id in index maps -> name of a new class, or ``ignore``; ids it does not name are none of the new
            classes. None for 1, 2, ... in the order of ``new_classes`` and 255 for ignore.

    Raises:
        DatasetError: there is no such folder, or no pseudo label in it.
        UserError: the class map names something else.
    """

    def __init__(
        self, folder: Path, new_classes: Sequence[str], class_map: Mapping[int, str] | None = None
    ) -> None:
        self.new_classes = tuple(new_classes)
        if class_map is None:
            class_map = dict(enumerate(self.new_classes, start=1))
        self._tables = np.zeros((len(self.new_classes), 256), np.uint8)
        self._tables[:, IGNORE] = IGNORE
        for raw, name in class_map.items():
            if name not in (*self.new_classes, "ignore") or not 0 <= int(raw) <= 255:
                raise UserError(
                    f"data.pseudo_class_map: {raw} maps to {name!r}; give ids from 0 to 255 and one of "
                    f"{', '.join(self.new_classes)}, or ignore"
                )
            if name == "ignore":
                self._tables[:, int(raw)] = IGNORE
            else:
                self._tables[self.new_classes.index(name), int(raw)] = CERTAIN
        if not folder.is_dir():
            raise DatasetError(
                f"{folder}: no such folder. Set data.pseudo_labels to the pseudo labels of the training photos "
                "(scripts/make_pseudo_labels.py makes them)."
            )
        self._index = _maps(folder)
        self._soft = [_maps(folder / name) for name in self.new_classes]
        if not self._index and not any(self._soft):
            raise DatasetError(
                f"{folder}: no pseudo label in this folder; looked for {folder}/*.png and "
                f"{', '.join(f'{folder}/{name}/*.png' for name in self.new_classes)}"
            )

    @property
    def names(self) -> set[str]:
        """Stems of the photos that have any."""
        return set(self._index).union(*self._soft)

    def files(self, name: str) -> list[Path]:
        """The maps of a photo."""
        return [maps[name] for maps in (self._index, *self._soft) if name in maps]

    def scores(self, name: str, size: tuple[int, int]) -> NDArray[np.uint8]:
        """Scores (H, W, N) of a photo, 0..254, ``IGNORE`` where nothing is known.

        Raises:
            PhotoError: a file is damaged, or its size is not the photo's.
        """
        scores = np.full((*size, len(self.new_classes)), IGNORE, np.uint8)
        index = read_map(self._index[name], size) if name in self._index else None
        for channel, soft in enumerate(self._soft):
            if name in soft:
                scores[..., channel] = _SOFT[read_map(soft[name], size)]
            elif index is not None:
                scores[..., channel] = self._tables[channel][index]
        return scores


_SOFT = np.rint(np.arange(256) * (CERTAIN / 255)).astype(np.uint8)


def _maps(folder: Path) -> dict[str, Path]:
    if not holds_files(folder, LABEL_SUFFIXES):
        return {}
    # soft maps lie in sub-folders beside the index maps
    return files_by_stem(folder, LABEL_SUFFIXES, "pseudo label", report_subfolders=False)


def read_map(path: Path, size: tuple[int, int]) -> NDArray[np.uint8]:
    """A map of a photo of (height, width) pixels; raises ``PhotoError`` as ``PseudoLabels.scores``."""
    label = read_label(path)
    if label.shape != size:
        raise PhotoError(
            f"{path}: the pseudo label is {label.shape[1]}x{label.shape[0]} pixels, but its photo is "
            f"{size[1]}x{size[0]} (upright). Make it at the photo's full resolution."
        )
    return label


def merge(
    label: NDArray[np.uint8], scores: NDArray[np.uint8], first: int, others: int, labelled: bool
) -> NDArray[np.uint8]:
    """Put new classes into a precise label map.

    A pixel that the precise label calls "others" belongs to the new class of the highest score if that exceeds one
    half. Named classes stay. In a photo without precise labels every pixel may become a new class.

    Args:
        label: (h, w) precise class ids, ``IGNORE`` everywhere without precise labels.
        scores: (h, w, N) as ``PseudoLabels.scores``.
        first: class id of the first new class; the others follow it.
        others: class id of "others", or ``IGNORE``.
        labelled: whether there are precise labels.
    """
    known = np.where(scores == IGNORE, EVEN, scores)
    found = known.max(-1) > EVEN
    if labelled:
        found &= label == others
    return np.where(found, first + known.argmax(-1), label).astype(np.uint8)


class PseudoLabelledPhoto:
    """A ``LabelledPhoto`` whose label has N+1 channels: merged class ids, then the scores of the new classes.

    Args:
        photo: with precise labels, or with none (``UnlabelledPhoto``).
        pseudo: pseudo labels of the dataset.
        first, others: see ``merge``.
    """

    # Merged labels differ from the stored ones, which a preview shows.
    preview: LabelPreview | None = None

    def __init__(self, photo: LabelledPhoto, pseudo: PseudoLabels, first: int, others: int) -> None:
        self._photo = photo
        self._pseudo = pseudo
        self._first = first
        self._others = others

    @property
    def name(self) -> str:
        return self._photo.name

    @property
    def size(self) -> tuple[int, int]:
        return self._photo.size

    def image(self, window: Window) -> NDArray[np.uint8]:
        return self._photo.image(window)

    def label(self, window: Window) -> NDArray[np.uint8]:
        """(h, w, N+1) uint8 under the window."""
        scores = self._scores[window.slices]
        labelled = not isinstance(self._photo, UnlabelledPhoto)
        merged = merge(self._photo.label(window), scores, self._first, self._others, labelled)
        return np.concatenate((merged[..., None], scores), axis=-1)

    @cached_property
    def _scores(self) -> NDArray[np.uint8]:
        return self._pseudo.scores(self.name, self.size)


class UnlabelledPhoto:
    """A ``LabelledPhoto`` whose label is ``IGNORE`` everywhere."""

    preview: LabelPreview | None = None

    def __init__(self, path: Path) -> None:
        self._path = path

    @property
    def name(self) -> str:
        return stem_of(self._path)

    @cached_property
    def size(self) -> tuple[int, int]:
        return photo_size(self._path)

    def label(self, window: Window) -> NDArray[np.uint8]:
        return np.full((window.height, window.width), IGNORE, np.uint8)

    def image(self, window: Window) -> NDArray[np.uint8]:
        return self._pixels[window.slices]

    @cached_property
    def _pixels(self) -> NDArray[np.uint8]:
        return read_photo(self._path)


class PseudoLabelSource:
    """A ``PhotoSource`` of photos that have precise labels, pseudo labels or both; those with neither are left out.

    Args:
        precise: photos with precise labels.
        unlabelled: photos without.
        pseudo: pseudo labels. first, others: see ``merge``.
        where: the split, for messages.

    Raises:
        DatasetError: no photo has a pseudo label.
    """

    def __init__(
        self,
        precise: PhotoSource,
        unlabelled: Sequence[Path],
        pseudo: PseudoLabels,
        first: int,
        others: int,
        where: str,
    ) -> None:
        self._precise = precise
        known = pseudo.names
        self._unlabelled = [photo for photo in unlabelled if stem_of(photo) in known]
        self._pseudo = pseudo
        self._ids = first, others
        self.names: Sequence[str] = (*precise.names, *(stem_of(photo) for photo in self._unlabelled))
        with_pseudo = len(known.intersection(self.names))
        if with_pseudo == 0:
            raise DatasetError(
                f"{where}: none of the {len(self.names)} photos has a pseudo label of its stem, as in "
                f"{listed(sorted(known))}; correct data.pseudo_labels"
            )
        log.info(
            "%s: %d photos, %d with precise labels, %d with pseudo labels of %s",
            where,
            len(self.names),
            len(precise),
            with_pseudo,
            ", ".join(pseudo.new_classes),
        )
        bare = sorted(stem_of(photo) for photo in unlabelled if stem_of(photo) not in known)
        if bare:
            log.warning("%s: %d photos have no label of any kind: %s", where, len(bare), listed(bare))

    def __len__(self) -> int:
        return len(self.names)

    def open(self, index: int) -> PseudoLabelledPhoto:
        photo: LabelledPhoto
        if index < len(self._precise):
            photo = self._precise.open(index)
        else:
            photo = UnlabelledPhoto(self._unlabelled[index - len(self._precise)])
        return PseudoLabelledPhoto(photo, self._pseudo, *self._ids)
