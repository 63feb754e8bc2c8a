"""All quality metrics of the benchmark in one torchmetrics module: IoU, boundary IoU and boundary F1.

Areas are summed over the set before dividing (mIoU and BIoU); BF1 is scored per image and averaged.
"MaSS13K: A Matting-level Semantic Segmentation Benchmark", CVPR 2025, section 5. Compared with the
released evaluation, BIoU and IoU are equal; BF1 is not part of the release and its tolerance is
unpublished, so it is an argument and the scores over a range of tolerances are always returned too.

    H W map height and width   K classes   T tolerances
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torchmetrics import Metric

from src.metrics.boundary import boundary_radius
from src.metrics.boundary_f1 import boundary_f1
from src.metrics.overlap import Overlap, count_overlap
from src.metrics.region import Areas, mean_of_present, region_areas
from src.metrics.tolerance import CURVE, Tolerance, parse_tolerance
from src.structures import IGNORE


class ImageScores(NamedTuple):
    """Measurements of one image.

    Attributes:
        overlap: counts behind IoU and BIoU.
        f1_curve: (T, K) boundary F1 per tolerance and class, nan for classes in neither map; None when
            BF1 is switched off. The first tolerance is the chosen one.
    """

    overlap: Overlap
    f1_curve: Tensor | None

    @property
    def iou(self) -> Tensor:
        """(K,) IoU, nan for classes in neither map."""
        return region_areas(self.overlap.confusion).iou

    @property
    def biou(self) -> Tensor:
        """(K,) boundary IoU, nan for classes in neither map."""
        return self.overlap.boundary.iou

    @property
    def f1(self) -> Tensor | None:
        """(K,) boundary F1 at the chosen tolerance."""
        return None if self.f1_curve is None else self.f1_curve[0]


def score_image(
    prediction: Tensor,
    label: Tensor,
    num_classes: int,
    *,
    tolerances: Sequence[Tolerance] = (),
    boundary_ratio: float = 0.001,
    ignore_boundaries: bool = True,
    name: str = "",
) -> ImageScores:
    """Measure one image.

    Args:
        prediction: (H, W) integer class ids 0..K-1.
        label: (H, W) integers, 0..K-1 or 255.
        num_classes: K, at most 254.
        tolerances: of boundary F1; none leaves it out.
        boundary_ratio: width of BIoU's boundaries as a share of the image's diagonal.
        ignore_boundaries: BIoU's convention for ignored regions, see `overlap.count_overlap`.
        name: the image's name, for error messages.

    Raises:
        ValueError: the maps differ in size or hold values that are no classes.
    """
    where = f"{name}: " if name else ""
    if prediction.ndim != 2 or prediction.shape != label.shape:
        raise ValueError(
            f"{where}prediction {tuple(prediction.shape)} and label {tuple(label.shape)} must be (H, W) "
            "maps of one size; bring the prediction's scores to the label's size first"
        )
    try:
        label = _as_uint8(label.to(prediction.device), "label")
        prediction = _as_uint8(prediction, "prediction")
        radius = boundary_radius(label.shape[0], label.shape[1], boundary_ratio)
        overlap = count_overlap(prediction, label, num_classes, radius, ignore_boundaries=ignore_boundaries)
    except ValueError as error:
        raise ValueError(f"{where}{error}") from error
    curve = boundary_f1(prediction, label, num_classes, tolerances) if tolerances else None
    return ImageScores(overlap, curve)


def _as_uint8(labels: Tensor, role: str) -> Tensor:
    if labels.dtype == torch.uint8:
        return labels
    if labels.is_floating_point() or labels.is_complex():
        raise ValueError(f"the {role} must hold integer class ids, but is {labels.dtype}")
    if labels.numel() and not 0 <= int(labels.min()) <= int(labels.max()) <= IGNORE:
        raise ValueError(
            f"the {role} has values from {labels.min()} to {labels.max()}, outside of 0..{IGNORE}"
        )
    return labels.byte()


class SegmentationMetrics(Metric):
    """IoU, boundary IoU and boundary F1 over a set of images and over processes.

    Args:
        num_classes: K, at most 254.
        tolerance: BF1's distance, in pixels, or as a share of the diagonal such as ``"0.75%"``.
        boundary_f1: whether to compute BF1, which takes most of the time.
        boundary_ratio: width of BIoU's boundaries as a share of the image's diagonal.
        ignore_boundaries: BIoU's convention for ignored regions, see `overlap.count_overlap`; the
            default is the released one.
        kwargs: arguments of torchmetrics, for example ``sync_on_compute``.

    Attributes:
        latest: the measurements of the image that `update` saw last, None before the first.
        tolerances: the chosen tolerance and those of the curve; empty without BF1.
    """

    is_differentiable = False
    higher_is_better = True
    full_state_update = False

    confusion: Tensor
    boundary_intersection: Tensor
    boundary_prediction: Tensor
    boundary_label: Tensor
    f1_sum: Tensor
    f1_count: Tensor
    f1_image_sum: Tensor
    f1_image_count: Tensor
    images: Tensor

    def __init__(
        self,
        num_classes: int,
        tolerance: float | str = math.sqrt(2),
        boundary_f1: bool = True,
        boundary_ratio: float = 0.001,
        ignore_boundaries: bool = True,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.latest: ImageScores | None = None
        self.num_classes = num_classes
        self.boundary_ratio = boundary_ratio
        self.ignore_boundaries = ignore_boundaries
        chosen = parse_tolerance(tolerance)
        self.tolerances = (chosen, *CURVE) if boundary_f1 else ()

        def add_sum(name: str, *shape: int, dtype: torch.dtype = torch.int64) -> None:
            self.add_state(name, torch.zeros(shape, dtype=dtype), dist_reduce_fx="sum", persistent=True)

        add_sum("images")
        add_sum("confusion", num_classes, num_classes)
        add_sum("boundary_intersection", num_classes)
        add_sum("boundary_prediction", num_classes)
        add_sum("boundary_label", num_classes)
        add_sum("f1_sum", len(self.tolerances), num_classes, dtype=torch.float32)
        add_sum("f1_count", num_classes)
        add_sum("f1_image_sum", len(self.tolerances), dtype=torch.float32)
        add_sum("f1_image_count")

    def update(self, prediction: Tensor, label: Tensor, name: str = "") -> None:
        """Add one image.

        Args:
            prediction: (H, W) integer class ids 0..K-1.
            label: (H, W) integers, 0..K-1 or 255.
            name: the image's name, for error messages.
        """
        scores = score_image(
            prediction,
            label,
            self.num_classes,
            tolerances=self.tolerances,
            boundary_ratio=self.boundary_ratio,
            ignore_boundaries=self.ignore_boundaries,
            name=name,
        )
        self.latest = scores
        self.images += 1
        self.confusion += scores.overlap.confusion
        self.boundary_intersection += scores.overlap.boundary.intersection
        self.boundary_prediction += scores.overlap.boundary.prediction
        self.boundary_label += scores.overlap.boundary.label
        if scores.f1_curve is not None:
            present = ~scores.f1_curve[0].isnan()
            self.f1_sum += scores.f1_curve.nan_to_num()
            self.f1_count += present
            if present.any():
                self.f1_image_sum += mean_of_present(scores.f1_curve)
                self.f1_image_count += 1

    def compute(self) -> dict[str, Tensor]:
        """Scores over everything added, on all processes.

        Returns:
            ``IoU``, ``BIoU`` and ``BF1`` (K,) per class, nan for classes that never occurred;
            ``mIoU``, ``mBIoU`` and ``mBF1`` scalars, the mean over the classes that occurred, for BF1
            over the classes of each image and then over images; ``BF1_curve`` (6,) and
            ``BF1_curve_per_class`` (6, K) at the distances of `tolerance.CURVE`; ``confusion`` (K, K)
            int64, rows are labels; ``images`` their number. Scores are 0..1. Without BF1, its entries
            are missing.
        """
        iou = region_areas(self.confusion).iou
        boundary = Areas(self.boundary_intersection, self.boundary_prediction, self.boundary_label)
        result = {
            "IoU": iou,
            "mIoU": mean_of_present(iou),
            "BIoU": boundary.iou,
            "mBIoU": mean_of_present(boundary.iou),
            "confusion": self.confusion.clone(),
            "images": self.images.clone(),
        }
        if self.tolerances:
            per_class = self.f1_sum / self.f1_count
            mean = self.f1_image_sum / self.f1_image_count
            result |= {
                "BF1": per_class[0],
                "mBF1": mean[0],
                "BF1_curve": mean[1:],
                "BF1_curve_per_class": per_class[1:],
            }
        return result
