"""Mask complexity: how long the contours of a mask are for its area (mIPQ of the MaSS13K paper).

The isoperimetric quotient of a mask is IPQ = L² / (4πA), with L the total length of all its contours, holes
included, and A its area in pixels. It is 1 for a disc and grows with every twig, gap and strand; scaling a shape
leaves it alone. A dataset's mIPQ is the mean over all class masks of all images.

L is what OpenCV measures, so that figures compare with those published for DIS5K and MaSS13K: contours run
through the centres of the mask's border pixels in steps of 1 and √2. Hence a large disc has 1.11 instead of 1
(a circle in such steps is longer than the circle), a large square 4/π = 1.27 as it should, a line one pixel wide
counts its length there and back, and a single pixel has length 0.

    H, W  height and width of a label map      K  number of classes
"""

from __future__ import annotations

from typing import NamedTuple, Self

import cv2
import numpy as np
from numpy.typing import NDArray

from src.structures import IGNORE


class MaskShape(NamedTuple):
    """The measurements of one mask.

    Attributes:
        area: pixels.
        length: of all contours, holes included, in pixels.
        contours: number of contours: connected parts (8-connected) plus holes.
        points: corners of the contours as polygons; straight and diagonal runs have none in between.
    """

    area: int
    length: float
    contours: int
    points: int

    @property
    def quotient(self) -> float:
        """IPQ = L² / (4πA); nan for an empty mask."""
        return self.length**2 / (4 * np.pi * self.area) if self.area else float("nan")


def measure_mask(mask: NDArray[np.bool_] | NDArray[np.uint8]) -> MaskShape:
    """Area and contours of a mask.

    Args:
        mask: (H, W) bool or uint8, inside where it is not zero; the image's border closes contours.
    """
    inside = np.ascontiguousarray(mask != 0).view(np.uint8)
    contours, _ = cv2.findContours(inside, cv2.RETR_LIST, cv2.CHAIN_APPROX_SIMPLE)
    return MaskShape(
        area=int(np.count_nonzero(inside)),
        length=float(sum(cv2.arcLength(contour, True) for contour in contours)),
        contours=len(contours),
        points=sum(len(contour) for contour in contours),
    )


def isoperimetric_quotient(mask: NDArray[np.bool_] | NDArray[np.uint8]) -> float:
    """IPQ of one (H, W) mask, see `MaskShape.quotient`."""
    return measure_mask(mask).quotient


def mask_complexity(label: NDArray[np.uint8], num_classes: int) -> NDArray[np.float64]:
    """IPQ of every class of a label map.

    Args:
        label: (H, W) uint8; `IGNORE` belongs to no class, contours run along it.
        num_classes: K.

    Returns:
        (K,) float64, nan for classes that the map does not have.
    """
    quotients = np.full(num_classes, np.nan)
    for index in np.flatnonzero(np.bincount(label.ravel(), minlength=256)[:num_classes]):
        quotients[index] = isoperimetric_quotient(label == index)
    return quotients


def mean_complexity(label: NDArray[np.uint8], num_classes: int) -> float:
    """Mean IPQ over the classes of one (H, W) label map; nan where every pixel is ignored."""
    quotients = mask_complexity(label, num_classes)
    present = ~np.isnan(quotients)
    return float(quotients[present].mean()) if present.any() else float("nan")


class DatasetComplexity(NamedTuple):
    """Complexity of a dataset over its masks, one per image and class present.

    Attributes:
        masks: how many masks were measured.
        mean: mIPQ; nan without masks.
        std: standard deviation of IPQ over the masks (of the population, not a sample).
        class_means: (K,) mean IPQ of each class, nan for classes never seen.
        contours: mean number of contours per mask.
        points: mean number of polygon corners per mask.
    """

    masks: int
    mean: float
    std: float
    class_means: NDArray[np.float64]
    contours: float
    points: float


class ComplexityAccumulator:
    """Collects the mask shapes of many label maps.

    Args:
        num_classes: K.
    """

    def __init__(self, num_classes: int) -> None:
        self._shapes: list[list[MaskShape]] = [[] for _ in range(num_classes)]

    def update(self, label: NDArray[np.uint8]) -> None:
        """Add an image's (H, W) uint8 label map; `IGNORE` belongs to no class.

        Raises:
            ValueError: the map holds an id that is neither a class nor `IGNORE`.
        """
        present = np.flatnonzero(np.bincount(label.ravel(), minlength=256))
        unknown = [index for index in present.tolist() if index >= len(self._shapes) and index != IGNORE]
        if unknown:
            raise ValueError(f"The label map has ids {unknown}, but there are {len(self._shapes)} classes.")
        for index in present[present != IGNORE]:
            self._shapes[index].append(measure_mask(label == index))

    def merge(self, other: Self) -> None:
        """Add what another accumulator of the same classes has collected, say in another process."""
        for own, more in zip(self._shapes, other._shapes, strict=True):
            own.extend(more)

    def compute(self) -> DatasetComplexity:
        """Statistics over everything collected so far."""
        shapes = [shape for of_class in self._shapes for shape in of_class]
        if not shapes:
            nothing = np.full(len(self._shapes), np.nan)
            return DatasetComplexity(0, float("nan"), float("nan"), nothing, float("nan"), float("nan"))
        quotients = np.array([shape.quotient for shape in shapes])
        return DatasetComplexity(
            masks=len(shapes),
            mean=float(quotients.mean()),
            std=float(quotients.std()),
            class_means=np.array(
                [np.mean([s.quotient for s in group]) if group else np.nan for group in self._shapes]
            ),
            contours=float(np.mean([shape.contours for shape in shapes])),
            points=float(np.mean([shape.points for shape in shapes])),
        )
