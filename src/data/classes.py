"""Which classes there are, and how ids in label files become class ids.

K     number of classes
H, W  height and width of a label map
"""

from __future__ import annotations

import colorsys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Self

import cv2
import numpy as np
from numpy.typing import NDArray

from src.errors import UserError
from src.structures import IGNORE

IGNORE_COLOUR = (255, 255, 255)
_RESERVED = {"mean": "the mean of the classes", "ignore": "pixels that count nowhere"}


@dataclass(frozen=True, eq=False)
class Taxonomy:
    """The classes of a dataset; a class's position is its id.

    Attributes:
        names: K distinct names.
        colours: (K, 3) uint8 RGB, one colour per class.
    """

    names: tuple[str, ...]
    colours: NDArray[np.uint8]

    @classmethod
    def from_mapping(cls, classes: Mapping[str, Sequence[int]]) -> Self:
        """Build from an ordered mapping of name to RGB colour, as the configuration holds it.

        Raises:
            ValueError: no class, more than 254, a name that is no text or means something else ("mean", "ignore"),
                or a colour that is not three numbers from 0 to 255.
        """
        if not isinstance(classes, Mapping):
            raise UserError("data.classes is a mapping of names to colours, such as {sky: [70, 130, 180]}")
        if not 1 <= len(classes) < IGNORE:
            raise UserError(
                f"the taxonomy has {len(classes)} classes; 1 to {IGNORE - 1} fit 8-bit label maps"
            )
        for name, colour in classes.items():
            if not isinstance(name, str) or not name:
                raise UserError(
                    f"class {name!r}: a name is text; put it in quotes, where YAML reads a number or a truth value"
                )
            if name in _RESERVED:
                raise UserError(
                    f"a class named {name} would be taken for {_RESERVED[name]}; choose another name"
                )
            parts = list(colour) if isinstance(colour, Sequence) else []
            if len(parts) != 3 or not all(isinstance(part, int) and 0 <= part <= 255 for part in parts):
                raise UserError(f"class {name!r}: colour {colour} is not [red, green, blue], each 0 to 255")
        return cls(tuple(classes), np.array([list(c) for c in classes.values()], dtype=np.uint8))

    @property
    def num_classes(self) -> int:
        return len(self.names)

    @property
    def ids(self) -> dict[str, int]:
        """Class id by name."""
        return {name: index for index, name in enumerate(self.names)}


def extend_classes(known: Mapping[str, Sequence[int]], new: Sequence[str]) -> dict[str, list[int]]:
    """A taxonomy's classes with new ones after them, so that ids in existing label maps stay as they are.

    Args:
        known: name to RGB colour. new: names; they get colours of their own.
    """
    classes = {name: list(colour) for name, colour in known.items()}
    return classes | {name: _distinct_colour(index) for index, name in enumerate(new)}


def _distinct_colour(index: int) -> list[int]:
    """Colours that differ from each other: hues apart by the golden ratio, from orange on."""
    return [round(255 * part) for part in colorsys.hsv_to_rgb((0.09 + 0.618034 * index) % 1, 0.85, 1.0)]


class ClassMap:
    """Translates the raw ids of label files to class ids through a 256-entry table.

    Args:
        taxonomy: the classes to translate to.
        mapping: raw id to class, given by name or id; ``ignore`` or 255 means "counts nowhere". None keeps
            ids as they are. Raw 255 is ignore unless the mapping says otherwise.

    Raises:
        ValueError: the mapping names a raw id outside 0..255 or a class that does not exist.
    """

    _UNKNOWN = IGNORE - 1  # free: a taxonomy has at most 254 classes, ids 0..253

    def __init__(self, taxonomy: Taxonomy, mapping: Mapping[int, int | str] | None = None) -> None:
        if mapping is None:
            mapping = {class_id: class_id for class_id in range(taxonomy.num_classes)}
        self._table = np.full(256, self._UNKNOWN, dtype=np.uint8)
        self._table[IGNORE] = IGNORE
        for raw, target in mapping.items():
            if not isinstance(raw, int):
                raise UserError(f"class_map: {raw!r} is no raw id; write id: class, such as 3: sky")
            if not 0 <= raw <= 255:
                raise UserError(f"class_map: raw id {raw} is outside 0..255, the range of 8-bit label maps")
            self._table[raw] = self._class_id(taxonomy, raw, target)
        # Where the ids 0..n-1 and 255 stay what they are and no other is known, a look is quicker than a table.
        known = np.flatnonzero(self._table != self._UNKNOWN)
        stays = np.array_equal(self._table[known], known)
        is_range = np.array_equal(known[:-1], np.arange(len(known) - 1))
        self._unchanged = len(known) - 1 if stays and is_range and known[-1] == IGNORE else 0

    @staticmethod
    def _class_id(taxonomy: Taxonomy, raw: int, target: int | str) -> int:
        if target in ("ignore", IGNORE):
            return IGNORE
        if isinstance(target, str) and target in taxonomy.ids:
            return taxonomy.ids[target]
        if isinstance(target, int) and 0 <= target < taxonomy.num_classes:
            return target
        classes = ", ".join(f"{index} {name}" for name, index in taxonomy.ids.items())
        raise UserError(
            f"class_map: raw id {raw} maps to {target!r}, which is no class; there are {classes} and ignore"
        )

    def __call__(self, raw: NDArray[np.uint8], name: str) -> NDArray[np.uint8]:
        """Translate a label map.

        Args:
            raw: (H, W) uint8 raw ids.
            name: the file, for the error message.

        Returns:
            (H, W) uint8 class ids and ``IGNORE``; ``raw`` itself where no id changes.

        Raises:
            ValueError: the map holds raw ids that the mapping does not know; names the file, the ids and
                counts.
        """
        if self._unchanged:
            if raw.max(initial=0) < self._unchanged:
                return raw
            others = raw >= self._unchanged
            if (raw[others] == IGNORE).all():
                return raw
        label = cv2.LUT(np.ascontiguousarray(raw), self._table).astype(np.uint8, copy=False)
        unknown = label == self._UNKNOWN
        if unknown.any():
            ids, counts = np.unique(raw[unknown], return_counts=True)
            found = ", ".join(f"{i} ({n} pixels)" for i, n in zip(ids.tolist(), counts.tolist(), strict=True))
            known = np.flatnonzero(self._table != self._UNKNOWN).tolist()
            raise UserError(
                f"{name}: the label map holds ids outside the class map: {found}. Known ids are {known}; "
                "add the missing ones to data.class_map (255 to ignore them) or correct the file."
            )
        return label
