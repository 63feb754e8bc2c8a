"""What an evaluation leaves for later: the areas of every image, as arrays and as JSON.

Scores of a set are made of sums over its images, so whoever has the areas can score any part of the set, resample it,
or hold it against another evaluation of the same images.

    N images   K classes
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from src.errors import UserError
from src.files import write_atomically
from src.metrics.region import region_areas
from src.metrics.suite import ImageScores

_AREAS = ("intersection", "union", "boundary_intersection", "boundary_union")


class ImageRecords(NamedTuple):
    """Measurements of every image, in the order of their names.

    Attributes:
        names: N names.
        intersection, union: (N, K) int64 pixels behind IoU.
        boundary_intersection, boundary_union: (N, K) int64 pixels behind boundary IoU.
        f1: (N, K) float64 boundary F1, nan for classes in neither map; None when it was not measured.
        complexity: (N,) float64 mean IPQ of the image's labelled classes; nan where all is ignored.
    """

    names: tuple[str, ...]
    intersection: NDArray[np.int64]
    union: NDArray[np.int64]
    boundary_intersection: NDArray[np.int64]
    boundary_union: NDArray[np.int64]
    f1: NDArray[np.float64] | None
    complexity: NDArray[np.float64]

    @property
    def iou(self) -> NDArray[np.float64]:
        """(N,) mean IoU of each image over its classes; nan without any."""
        return mean_ratio(self.intersection, self.union)

    @property
    def biou(self) -> NDArray[np.float64]:
        """(N,) mean boundary IoU of each image over its classes; nan without any."""
        return mean_ratio(self.boundary_intersection, self.boundary_union)

    def summary(self, index: int) -> list[tuple[str, float]]:
        """Names and mean scores of one image: BIoU, IoU and, where measured, BF1."""
        scores = [("BIoU", float(self.biou[index])), ("IoU", float(self.iou[index]))]
        if self.f1 is not None:
            present = self.f1[index][~np.isnan(self.f1[index])]
            scores.append(("BF1", float(present.mean()) if len(present) else math.nan))
        return scores

    def take(self, names: Sequence[str]) -> ImageRecords:
        """The records of some of the images, in the order given."""
        position = {name: index for index, name in enumerate(self.names)}
        rows = np.array([position[name] for name in names], dtype=np.intp)
        arrays = (None if array is None else array[rows] for array in self[1:])
        return ImageRecords(tuple(names), *arrays)  # type: ignore[arg-type]


class Evaluation(NamedTuple):
    """An evaluation as its JSON file holds it.

    Attributes:
        path: of the file.
        classes: K class names.
        settings: of the metrics.
        images: measurements by image.
    """

    path: Path
    classes: tuple[str, ...]
    settings: dict[str, Any]
    images: ImageRecords


def mean_ratio(numerator: NDArray[np.int64], denominator: NDArray[np.int64]) -> NDArray[np.float64]:
    """Mean over the last axis of the ratios whose denominator is not 0; nan without any."""
    present = denominator > 0
    ratios = np.divide(numerator, denominator, out=np.zeros(numerator.shape), where=present)
    counts = present.sum(-1)
    return np.divide(ratios.sum(-1), counts, out=np.full(counts.shape, np.nan), where=counts > 0)


def image_records(scores: Mapping[str, ImageScores], complexity: Mapping[str, float]) -> ImageRecords:
    """Collect the measurements of images by name.

    Args:
        scores: of every image; all with BF1 or all without.
        complexity: mean IPQ of every image.
    """
    names = tuple(sorted(scores))
    ordered = [scores[name] for name in names]
    regions = [region_areas(one.overlap.confusion) for one in ordered]
    boundaries = [one.overlap.boundary for one in ordered]
    intersection, union, boundary_intersection, boundary_union = (
        np.stack([getattr(area, part).cpu().numpy() for area in group])
        for group in (regions, boundaries)
        for part in ("intersection", "union")
    )
    curves = [one.f1 for one in ordered if one.f1 is not None]
    f1 = np.stack([curve.cpu().double().numpy() for curve in curves]) if curves else None
    ipq = np.array([complexity[name] for name in names])
    return ImageRecords(names, intersection, union, boundary_intersection, boundary_union, f1, ipq)


def write_record(path: Path, facts: Mapping[str, Any], images: ImageRecords) -> None:
    """Write an evaluation as JSON, one line for each image; nan is null.

    Args:
        path: the file.
        facts: the first entries, plain values.
        images: the last entry, ``per_image``.
    """
    head = json.dumps(dict(facts), indent=2).removesuffix("\n}")
    lines = []
    for index, name in enumerate(images.names):
        entry: dict[str, Any] = {area: getattr(images, area)[index].tolist() for area in _AREAS}
        if images.f1 is not None:
            entry["BF1"] = [_number(value) for value in images.f1[index].tolist()]
        entry["mask_complexity"] = _number(float(images.complexity[index]))
        lines.append(f"    {json.dumps(name)}: {json.dumps(entry)}")
    body = ",\n".join(lines)
    write_atomically(path, f'{head},\n  "per_image": {{\n{body}\n  }}\n}}\n'.encode())


def read_record(path: Path) -> Evaluation:
    """Read what `write_record` wrote.

    Raises:
        UserError: no such file, no JSON, or not the scores of an evaluation with its images.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such file; give the scores.json of another evaluation")
    try:
        content = json.loads(path.read_text())
        entries = content["per_image"]
        shape = len(entries), len(content["classes"])
        intersection, union, boundary_intersection, boundary_union = (
            np.array([entry[area] for entry in entries.values()], dtype=np.int64).reshape(shape)
            for area in _AREAS
        )
        curves = [entry["BF1"] for entry in entries.values() if "BF1" in entry]
        f1 = np.array(curves, dtype=np.float64) if curves else None  # null becomes nan
        complexity = np.array([entry["mask_complexity"] for entry in entries.values()], dtype=np.float64)
        images = ImageRecords(
            tuple(entries), intersection, union, boundary_intersection, boundary_union, f1, complexity
        )
        return Evaluation(path, tuple(content["classes"]), dict(content["settings"]), images)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{path}: not the scores.json of an evaluation with the areas of its images ({error!r}). "
            "Evaluate again with python -m src.evaluate; tables of training runs hold no areas."
        ) from error


def _number(value: float) -> float | None:
    return None if math.isnan(value) else round(value, 6)
