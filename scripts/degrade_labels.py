"""Make bad pseudo labels out of true masks, to try the learning of new classes where a second model is not at hand.

    python scripts/degrade_labels.py --labels annotations/train --id 8 --output <data.root>/pseudo_labels/train

Every connected region of the given id is treated on its own, as an annotator in a hurry or a coarse model would:

1. with probability ``--missed`` it is left out;
2. its outline becomes a coarse polygon (Douglas-Peucker, a tolerance of ``--tolerance`` pixels; holes are filled);
3. the polygon is dilated or eroded by a disc whose radius is drawn uniformly from 0 to ``--noise`` pixels, and moved
   by ``--bias`` pixels: a model whose outlines are all too wide (above 0) or too narrow (below) teaches differently
   from one whose errors cancel out.

What is drawn depends on ``--seed`` and the file's name alone. Output: index PNGs with 0 and ``--value``.
"""

from __future__ import annotations

import argparse
import os
import zlib
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track

from src.errors import UserError, explained
from src.files import check_writable
from src.photos import LABEL_SUFFIXES, read_label
from src.pictures import index_png


def degrade(
    mask: NDArray[np.bool_],
    rng: np.random.Generator,
    missed: float = 0.1,
    tolerance: float = 4.0,
    noise: int = 3,
    bias: int = 0,
) -> NDArray[np.bool_]:
    """A bad copy of a mask.

    Args:
        mask: (H, W). rng: of every random choice. missed: probability of losing a region.
        tolerance: of the polygon, pixels. noise: largest radius of dilation and erosion, pixels.
        bias: added to every radius, pixels; below 0 for erosion.
    """
    count, regions, boxes, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8), connectivity=8)
    degraded = np.zeros(mask.shape, np.uint8)
    for number, (left, top, width, height, _) in enumerate(boxes[1:count].tolist(), start=1):
        keep, radius = rng.random() >= missed, int(rng.integers(-noise, noise + 1)) + bias
        if not keep:
            continue
        reach = abs(radius)
        rows = slice(max(0, top - reach), top + height + reach)
        columns = slice(max(0, left - reach), left + width + reach)
        region = (regions[rows, columns] == number).astype(np.uint8)
        outlines, _ = cv2.findContours(region, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
        polygon = cv2.approxPolyDP(outlines[0], tolerance, closed=True)
        region[:] = 0
        cv2.fillPoly(region, [polygon], (1,))
        disc = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * reach + 1, 2 * reach + 1))
        change = cv2.dilate if radius > 0 else cv2.erode
        degraded[rows, columns] |= change(region, disc).astype(np.uint8)
    return degraded.astype(bool)


def main(arguments: Sequence[str] | None = None) -> None:
    """Degrade a folder of label maps and print how good the result is."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--labels", type=Path, required=True, help="folder of index PNGs")
    parser.add_argument("--id", type=int, required=True, help="id of the class in them, 0 to 254")
    parser.add_argument("--output", type=Path, required=True, help="folder; existing files are replaced")
    parser.add_argument("--value", type=int, default=1, help="id of the class in the output")
    parser.add_argument("--missed", type=float, default=0.1, help="share of regions left out")
    parser.add_argument("--tolerance", type=float, default=4.0, help="of the polygons, pixels")
    parser.add_argument("--noise", type=int, default=3, help="largest radius of dilation or erosion, pixels")
    parser.add_argument("--bias", type=int, default=0, help="added to every radius, pixels")
    parser.add_argument("--seed", type=int, default=0, help="another seed gives other errors")
    options = parser.parse_args(arguments)
    with explained():
        if not options.labels.is_dir():
            raise UserError(f"{options.labels}: no such folder")
        if options.output.resolve() == options.labels.resolve():
            raise UserError(f"--output is the folder of the true labels, {options.labels}; choose another")
        if not 1 <= options.value <= 254:
            raise UserError(f"--value {options.value}: an id in label maps is a number from 1 to 254")
        if not 0 <= options.id <= 254:
            raise UserError(f"--id {options.id}: an id in label maps is a number from 0 to 254")
        if not 0 <= options.missed <= 1:
            raise UserError(f"--missed {options.missed}: give a share from 0 to 1")
        for name in ("tolerance", "noise", "seed"):
            if not getattr(options, name) >= 0:
                raise UserError(f"--{name} {getattr(options, name)}: give a number of at least 0")
        files = sorted(
            path
            for path in options.labels.iterdir()
            if path.suffix.lower() in LABEL_SUFFIXES and not path.name.startswith(".")
        )
        if not files:
            raise UserError(f"{options.labels}: no PNG in this folder")
        check_writable(options.output, "--output")
        shared = either = 0
        for path in track(files, "degrading", transient=True):
            mask = read_label(path) == options.id
            rng = np.random.default_rng([options.seed, zlib.crc32(os.fsencode(path.stem))])
            degraded = degrade(mask, rng, options.missed, options.tolerance, options.noise, options.bias)
            shared += int((mask & degraded).sum())
            either += int((mask | degraded).sum())
            colours = np.zeros((options.value + 1, 3), np.uint8)
            colours[options.value] = 255
            index_png(options.output / f"{path.stem}.png", degraded.astype(np.uint8) * options.value, colours)
    quality = f"IoU with the true masks {100 * shared / either:.1f}" if either else "the class does not occur"
    Console(soft_wrap=True, highlight=False, markup=False).print(
        f"{len(files)} files in {options.output}; {quality}"
    )


if __name__ == "__main__":
    main()
