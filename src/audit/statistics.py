"""What a dataset is made of: sizes, class frequencies and the complexity of its masks.

N photos   K classes
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from src.data.classes import ClassMap
from src.metrics.complexity import ComplexityAccumulator, DatasetComplexity
from src.photos import read_label
from src.structures import IGNORE

PUBLISHED_MIPQ = {"MaSS13K": (383, 818), "DIS5K": (116, 452), "EntitySeg": (20, 29)}
"""Mean and standard deviation of IPQ over masks, as Table 1 of the paper compares datasets."""


class LabelStatistics(NamedTuple):
    """One label map.

    Attributes:
        size: height and width.
        pixels: (K,) int64 pixels of each class.
        ignored: pixels that count nowhere.
        shapes: contours of its masks.
    """

    size: tuple[int, int]
    pixels: NDArray[np.int64]
    ignored: int
    shapes: ComplexityAccumulator

    @property
    def complexity(self) -> float:
        """Mean IPQ of the map's masks; nan without any."""
        return self.shapes.compute().mean


class SplitStatistics(NamedTuple):
    """A split, or a whole dataset.

    Attributes:
        photos: how many.
        sizes: photos by "width x height", the most frequent first.
        share: (K,) share of each class of all labelled pixels, 0..1.
        ignored: share of ignored pixels of all pixels.
        present: (K,) photos in which each class occurs.
        complexity: over all masks.
    """

    photos: int
    sizes: dict[str, int]
    share: NDArray[np.float64]
    ignored: float
    present: NDArray[np.int64]
    complexity: DatasetComplexity

    def to_plain(self, class_names: Sequence[str]) -> dict[str, Any]:
        """For JSON; nan is None."""
        means = self.complexity.class_means.tolist()
        return {
            "photos": self.photos,
            "sizes": self.sizes,
            "ignored_share": round(self.ignored, 6),
            "masks": self.complexity.masks,
            "mIPQ": {"mean": _plain(self.complexity.mean), "std": _plain(self.complexity.std)},
            "contours_per_mask": _plain(self.complexity.contours),
            "polygon_points_per_mask": _plain(self.complexity.points),
            "classes": {
                name: {
                    "pixel_share": round(float(self.share[index]), 6),
                    "photos": int(self.present[index]),
                    "mIPQ": _plain(means[index]),
                }
                for index, name in enumerate(class_names)
            },
        }


def measure_label(path: Path, class_map: ClassMap, num_classes: int) -> LabelStatistics:
    """Measure a label map.

    Raises:
        UserError: the file is unreadable or holds ids outside the class map.
    """
    label = class_map(read_label(path), str(path))
    counts = np.bincount(label.ravel(), minlength=256)
    shapes = ComplexityAccumulator(num_classes)
    shapes.update(label)
    return LabelStatistics(
        (label.shape[0], label.shape[1]), counts[:num_classes], int(counts[IGNORE]), shapes
    )


def summarise(labels: Sequence[LabelStatistics], num_classes: int) -> SplitStatistics:
    """Put the measurements of at least one label map together."""
    shapes = ComplexityAccumulator(num_classes)
    for label in labels:
        shapes.merge(label.shapes)
    pixels = np.stack([label.pixels for label in labels])
    ignored = sum(label.ignored for label in labels)
    labelled = int(pixels.sum())
    sizes = Counter(f"{label.size[1]} x {label.size[0]}" for label in labels)
    return SplitStatistics(
        photos=len(labels),
        sizes=dict(sizes.most_common()),
        share=pixels.sum(0) / max(1, labelled),
        ignored=ignored / (labelled + ignored),
        present=(pixels > 0).sum(0),
        complexity=shapes.compute(),
    )


def to_plain(splits: Mapping[str, SplitStatistics], class_names: Sequence[str]) -> dict[str, Any]:
    """For JSON: every split, with the published figures beside."""
    published = {name: {"mean": mean, "std": std} for name, (mean, std) in PUBLISHED_MIPQ.items()}
    plain = {name: split.to_plain(class_names) for name, split in splits.items()}
    return {"splits": plain, "published_mIPQ": published}


def _plain(value: float) -> float | None:
    return None if np.isnan(value) else round(value, 4)
