"""Recognising label files that hold colours where ids belong.

N colours   K classes
"""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from src.data.classes import ClassMap, Taxonomy
from src.errors import UserError
from src.structures import IGNORE

_COLOURED_MODES = ("RGB", "RGBA", "LA")


def coloured_picture(path: Path, taxonomy: Taxonomy) -> str | None:
    """What to say about a PNG with colour channels; None for any other file, also for damaged ones."""
    try:
        with _open_png(path) as picture:
            if picture.mode not in _COLOURED_MODES:
                return None
            pixels = np.asarray(picture.convert("RGB"))
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
        return None  # reading it as a label map will say what is wrong
    packed = np.unique(pixels.astype(np.uint32) @ np.array([1 << 16, 1 << 8, 1], np.uint32)).tolist()
    known = {
        (red << 16) + (green << 8) + blue: f"{name} {index}"
        for index, (name, (red, green, blue)) in enumerate(
            zip(taxonomy.names, taxonomy.colours.tolist(), strict=True)
        )
    }
    found = [known[colour] for colour in packed if colour in known]
    matched = f", {len(found)} of them the colours of {', '.join(found)}" if found else ""
    return (
        f"{len(packed)} colours instead of ids in one channel{matched}; replace each colour by its class id"
    )


def foreign_palette(path: Path, ids: NDArray[np.intp], taxonomy: Taxonomy, class_map: ClassMap) -> str | None:
    """What to say about a palette that shows ids in the colours of other classes, as a picture converted to a palette
    does; None where a used colour is no class's, because such palettes may mean anything.

    Args:
        path: a readable PNG.
        ids: that occur in it.
        taxonomy: the classes. class_map: what raw ids mean.
    """
    with _open_png(path) as picture:
        palette = picture.getpalette() if picture.mode == "P" else None
    if palette is None:
        return None
    colours = np.array(palette, np.uint8).reshape(-1, 3)
    known: dict[tuple[int, ...], list[int]] = {}  # classes may share a colour
    for index, colour in enumerate(taxonomy.colours.tolist()):
        known.setdefault(tuple(colour), []).append(index)
    wrong = []
    for raw in ids[(ids < len(colours)) & (ids != IGNORE)].tolist():
        shown = known.get(tuple(colours[raw].tolist()))
        if shown is None:
            return None
        if meaning(class_map, raw) not in (*shown, IGNORE):
            wrong.append(f"id {raw} in the colour of {taxonomy.names[shown[0]]} ({shown[0]})")
    return f"the palette shows {', '.join(wrong)}; save class ids instead of colours" if wrong else None


def grey_picture(ids: NDArray[np.intp], taxonomy: Taxonomy) -> str | None:
    """What to say about a map of the grey levels of class colours; None where other values occur, or none of them.

    Args:
        ids: that occur in it.
        taxonomy: the classes.
    """
    luma = np.asarray(Image.fromarray(taxonomy.colours[None]).convert("L"))[0]
    greys = dict(zip(luma.tolist(), taxonomy.names, strict=True))
    if not set(ids.tolist()) <= greys.keys() | {0, IGNORE}:
        return None
    names = [f"{raw} is the grey of {greys[raw]}" for raw in ids.tolist() if raw and raw in greys]
    if not names:
        return None
    return f"grey levels of class colours instead of ids: {', '.join(names)}; save ids"


def _open_png(path: Path) -> Image.Image:
    with warnings.catch_warnings():
        # Pillow warns above 89 megapixels, which is a label map here and not an attack.
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        return Image.open(path, formats=["PNG"])


def meaning(class_map: ClassMap, raw: int) -> int | None:
    """Class id, or 255, of a raw id; None for an id that the class map does not know."""
    try:
        return int(class_map(np.array([[raw]], np.uint8), "")[0, 0])
    except UserError:
        return None
