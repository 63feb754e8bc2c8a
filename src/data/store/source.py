"""Labelled photos from a store; the same pixels and labels as from the files it was made of."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from unicodedata import normalize

import numpy as np
from numpy.typing import NDArray

from src.data.classes import ClassMap
from src.data.folder import Pair
from src.data.preview import MIXED, LabelPreview
from src.data.source import Window
from src.data.store.entry import SUFFIX, Entry, StoreError
from src.data.store.manifest import Manifest

log = logging.getLogger(__name__)


class StoreSource:
    """A ``PhotoSource`` over one split of a store.

    Args:
        folder: of the split.
        class_map: translates the raw ids of the label maps.

    Raises:
        StoreError: there is no finished store in the folder, or entries are missing.
    """

    def __init__(self, folder: Path, class_map: ClassMap) -> None:
        manifest = Manifest.read(folder)
        self._folder = folder
        self._class_map = class_map
        self._records = manifest.entries
        self._failed = manifest.failed
        self.names: Sequence[str] = tuple(sorted(manifest.entries))
        present = {normalize("NFC", path.name) for path in folder.iterdir()}  # some file systems part accents
        missing = [name for name in self.names if name + SUFFIX not in present]
        if missing or not self.names:
            raise StoreError(
                f"{folder}: {len(missing)} of {len(self.names)} entries are missing ({', '.join(missing[:5])}). "
                "Run src.prepare again: it makes the missing ones."
            )
        if self._failed:
            log.warning(
                "%s: %d photos were left out when the store was made: %s",
                folder,
                len(self._failed),
                ", ".join(sorted(self._failed)[:5]),
            )

    def check_source(self, pairs: Sequence[Pair]) -> None:
        """Compare the store with the files that it was made of.

        Raises:
            StoreError: files were added, removed or changed since.
        """
        files = {pair.name: pair for pair in pairs if pair.name not in self._failed}
        differing = sorted(files.keys() ^ self._records.keys())
        known = {name: record for name, record in self._records.items() if name in files}
        redated = sum(not record.is_dated(files[name]) for name, record in known.items())
        if redated:
            log.info(
                "%s: %d photos have other dates than when the store was made, as copies do, and are read to compare; "
                "src.prepare, run again, notes the new dates",
                self._folder,
                redated,
            )
        differing += sorted(name for name, record in known.items() if not record.made_of(files[name]))
        if differing:
            raise StoreError(
                f"{self._folder}: {len(differing)} photos or label maps were added, removed or changed since "
                f"the store was made ({', '.join(differing[:5])}). Run src.prepare again: it converts "
                "them."
            )

    def __len__(self) -> int:
        return len(self.names)

    def open(self, index: int) -> StorePhoto:
        path = self._folder / (self.names[index] + SUFFIX)

        def read(offset: int, length: int) -> bytes:
            # Opened anew each time: a worker keeps no file open, and a photo is read from four times.
            with path.open("rb", buffering=0) as file:
                file.seek(offset)
                return file.read(length)

        return StorePhoto(self.names[index], Entry(read, path.stat().st_size, str(path)), self._class_map)


class StorePhoto:
    """A ``LabelledPhoto`` that decodes only the windows it is asked for.

    Args:
        name: the photo's stem.
        entry: where it lies.
        class_map: translates raw ids.
    """

    def __init__(self, name: str, entry: Entry, class_map: ClassMap) -> None:
        self.name = name
        self._entry = entry
        self._class_map = class_map
        self._place = f"label map of {name}"

    @property
    def size(self) -> tuple[int, int]:
        return self._entry.info.size

    def label(self, window: Window) -> NDArray[np.uint8]:
        """Class ids under the window; raises ``StoreError`` where damaged, ``UserError`` for ids outside the map."""
        return self._class_map(self._entry.label(window), self._place)

    def image(self, window: Window) -> NDArray[np.uint8]:
        """RGB under the window; raises ``StoreError`` where damaged."""
        return self._entry.image(window)

    @cached_property
    def preview(self) -> LabelPreview:
        blocks, mixed = self._entry.preview()
        mapped = np.where(mixed, np.uint8(MIXED), self._class_map(blocks, self._place))
        return LabelPreview(mapped.astype(np.uint8, copy=False))
