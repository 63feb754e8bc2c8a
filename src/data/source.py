"""Where labelled photos come from: the interface between storage and everything that cuts crops.

    H, W  height and width of the upright photo, in pixels

``FolderSource`` (plain files) is one implementation. A store that can decode only a window of a photo
implements the same two protocols, and crops become cheaper without any other change.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from src.data.preview import LabelPreview


class Window(NamedTuple):
    """A rectangle of pixels: rows top..top+height, columns left..left+width."""

    top: int
    left: int
    height: int
    width: int

    @property
    def slices(self) -> tuple[slice, slice]:
        return slice(self.top, self.top + self.height), slice(self.left, self.left + self.width)


class LabelledPhoto(Protocol):
    """One photo and its label map, decoded on demand."""

    @property
    def name(self) -> str:
        """The file's stem, unique in its split."""

    @property
    def preview(self) -> LabelPreview | None:
        """What the label map shows, block by block, if that is cheaper to have than the label map."""

    @property
    def size(self) -> tuple[int, int]:
        """(H, W) of the upright photo, known without decoding pixels."""

    def label(self, window: Window) -> NDArray[np.uint8]:
        """(height, width) uint8 class ids under the window."""

    def image(self, window: Window) -> NDArray[np.uint8]:
        """(height, width, 3) uint8 RGB under the window."""


class PhotoSource(Protocol):
    """The labelled photos of one split."""

    names: Sequence[str]

    def __len__(self) -> int: ...

    def open(self, index: int) -> LabelledPhoto: ...
