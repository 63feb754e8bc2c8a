"""A sheet of pictures in rows and columns, with headings, a legend of colours and a title."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

PAPER = (250, 250, 248)
INK = (32, 33, 36)
PALE_INK = (110, 113, 118)


def compose_sheet(
    rows: Sequence[Sequence[NDArray[np.uint8]]],
    headings: Sequence[str],
    legend: Sequence[tuple[str, tuple[int, ...]]],
    *,
    title: str = "",
    note: str = "",
) -> NDArray[np.uint8]:
    """Lay out pictures on a light page.

    Args:
        rows: rows of (h, w, 3) uint8 RGB pictures, all of one size and of as many as there are headings.
        headings: text above each column.
        legend: name and RGB colour of each swatch below the pictures; wraps to as many lines as it needs.
        title: a line on top; left out when empty.
        note: a pale line between the pictures and the legend; left out when empty.

    Returns:
        (h', w', 3) uint8 RGB.
    """
    height, width = rows[0][0].shape[:2]
    unit = max(8, width // 40)  # spacing; text is a bit larger
    margin, gap, text = 2 * unit, unit, round(1.5 * unit)
    fonts = {
        name: ImageFont.load_default(size) for name, size in (("text", text), ("title", round(1.3 * text)))
    }
    line = round(1.8 * text)

    columns = [margin + index * (width + gap) for index in range(len(headings))]
    page_width = columns[-1] + width + margin
    first_heading = margin + (round(1.5 * line) if title else 0)
    first_row = first_heading + line
    tops = [first_row + index * (height + gap) for index in range(len(rows))]
    below = tops[-1] + height + gap
    first_swatch = below + (line if note else 0)
    swatches, legend_height = _place_legend(legend, fonts["text"], page_width - 2 * margin, line)

    page = Image.new("RGB", (page_width, first_swatch + legend_height + margin), PAPER)
    draw = ImageDraw.Draw(page)
    if title:
        draw.text((margin, margin), title, INK, fonts["title"])
    for left, heading in zip(columns, headings, strict=True):
        draw.text((left, first_heading), heading, INK, fonts["text"])
    for top, pictures in zip(tops, rows, strict=True):
        for left, picture in zip(columns, pictures, strict=True):
            page.paste(Image.fromarray(picture), (left, top))
    if note:
        draw.text((margin, below), note, PALE_INK, fonts["text"])
    for (name, colour), (left, top) in zip(legend, swatches, strict=True):
        box = (margin + left, first_swatch + top, margin + left + text, first_swatch + top + text)
        draw.rounded_rectangle(box, radius=text // 5, fill=colour, outline=PALE_INK)
        draw.text((box[2] + text // 2, box[1] + text // 2), name, INK, fonts["text"], anchor="lm")
    return np.asarray(page)


def _place_legend(
    legend: Sequence[tuple[str, tuple[int, ...]]],
    font: ImageFont.ImageFont | ImageFont.FreeTypeFont,
    width: int,
    line: int,
) -> tuple[list[tuple[int, int]], int]:
    """Offsets (x, y) of the swatches, wrapped to the width, and the height of all lines."""
    offsets, left, top = [], 0, 0
    for name, _ in legend:
        entry = round(1.2 * line + font.getlength(name))
        if left and left + entry > width:
            left, top = 0, top + line
        offsets.append((left, top))
        left += entry + line // 2
    return offsets, top + line
