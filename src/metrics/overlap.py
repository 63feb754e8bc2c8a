"""Region and boundary areas of all classes in one pass over a prediction and its label map.

Each pixel of a map is in a state: its class, and whether it lies on that class's boundary. The joint
histogram of the states of both maps holds the confusion matrix and every area and intersection of the
boundaries. It equals evaluation class by class exactly, at a fraction of its cost whatever the number of
classes (`scripts/bench_metrics.py`).

    H W map height and width   K classes   S number of states
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import cv2
import numpy as np
import torch
from torch import Tensor

from src.metrics.boundary import boundary_map, boundary_rows, row_strips
from src.metrics.region import Areas
from src.structures import IGNORE

_PACKED = 8
"""Below so many classes a state has four bits: class, or 7 where ignored (255 & 7), and boundary."""


class Overlap(NamedTuple):
    """What IoU and BIoU are made of; may be summed over images.

    Attributes:
        confusion: (K, K) int64 counts, rows are labels and columns predictions, ignored pixels excluded.
        boundary: areas of the class boundaries.
    """

    confusion: Tensor
    boundary: Areas


def count_overlap(
    prediction: Tensor, label: Tensor, num_classes: int, radius: int, *, ignore_boundaries: bool = True
) -> Overlap:
    """Count regions and boundaries of one image.

    Ignored pixels never count in the confusion matrix. For boundaries there are two conventions:

    * ``ignore_boundaries=True``, the released evaluation: the prediction's boundaries are those of the
      whole predicted map and count inside ignored regions too (there they can only enlarge the union),
      and an ignored region bounds the labelled classes beside it, as another class would.
    * ``ignore_boundaries=False``: ignored pixels count nowhere and create no boundaries, neither in the
      label nor in the prediction, so what is predicted there changes nothing.

    Args:
        prediction: (H, W) uint8 class ids 0..K-1.
        label: (H, W) uint8, 0..K-1 or 255, on the prediction's device.
        num_classes: K, at most 254.
        radius: width of boundaries in pixels, see `boundary.boundary_radius`.
        ignore_boundaries: the convention.

    Raises:
        ValueError: a map has a value that is neither a class nor, in the label, 255.
    """
    if not 1 <= num_classes < IGNORE:
        raise ValueError(f"the number of classes must be 1..{IGNORE - 1}, but is {num_classes}")
    _check_range(prediction, label, num_classes)
    # State = class, plus this if on the boundary. Up to 127 classes 8 bits hold it, which is faster.
    # Ignored pixels, 255 with or without it, are in no class's state either way.
    on_boundary = 128 if num_classes < 128 else 256
    if prediction.device.type == "cpu":
        if num_classes < _PACKED:
            on_boundary = _PACKED
        joint = _joint_states_cpu(prediction.numpy(), label.numpy(), radius, on_boundary, ignore_boundaries)
    else:
        joint = _joint_states(prediction, label, radius, on_boundary, ignore_boundaries)

    inside = slice(0, num_classes)
    edge = slice(on_boundary, on_boundary + num_classes)
    confusion = joint[inside, inside] + joint[inside, edge] + joint[edge, inside] + joint[edge, edge]
    boundary = Areas(
        intersection=joint[edge, edge].diagonal().clone(),
        prediction=joint[:, edge].sum(0),
        label=joint[edge, :].sum(1),
    )
    return Overlap(confusion, boundary)


def _check_range(prediction: Tensor, label: Tensor, num_classes: int) -> None:
    if not label.numel():
        raise ValueError(f"the maps are empty: {tuple(label.shape)}")
    # NumPy finds the maximum of bytes faster than torch. Adding 1 wraps 255 to 0, which skips ignored pixels.
    if prediction.device.type == "cpu":
        strips = row_strips(*label.shape)
        highest_prediction = int(prediction.numpy().max())
        highest_label = (
            max(int((label.numpy()[first:last] + np.uint8(1)).max()) for first, last in strips) - 1
        )
    else:
        highest_prediction = int(prediction.max())
        highest_label = int((label + 1).max()) - 1
    if highest_prediction >= num_classes:
        raise ValueError(
            f"the prediction contains {highest_prediction}, but classes are 0..{num_classes - 1}"
        )
    if highest_label >= num_classes:
        raise ValueError(
            f"the label map contains {highest_label}, but classes are 0..{num_classes - 1} and {IGNORE} "
            "marks ignored pixels; map other values to these first"
        )


def _joint_states_cpu(
    prediction: np.ndarray, label: np.ndarray, radius: int, on_boundary: int, ignore_boundaries: bool
) -> Tensor:
    """(S, S) int64 counts of (label state, prediction state), by strips of rows in threads."""
    if not ignore_boundaries and (label == IGNORE).any():
        prediction = np.where(label == IGNORE, np.uint8(IGNORE), prediction)
    size = 2 * on_boundary
    strips = row_strips(*label.shape)
    rows = max(last - first for first, last in strips) + 2 * radius

    def count(strips: list[tuple[int, int]]) -> np.ndarray:
        scratch = np.empty((2, 2, rows, label.shape[1]), np.uint8)
        joint = np.zeros((size, size), np.float64)
        for strip in strips:
            maps = []
            for labels, memory in zip((label, prediction), scratch, strict=True):
                boundary = boundary_rows(
                    labels, *strip, radius, ignore_boundaries=ignore_boundaries, scratch=memory
                )
                boundary &= np.uint8(min(on_boundary, 128))
                states = boundary if on_boundary <= 128 else boundary * np.uint16(on_boundary // 128)
                classes = labels[slice(*strip)]
                states |= classes & np.uint8(_PACKED - 1) if on_boundary == _PACKED else classes
                maps.append(states)
            joint += _packed_histogram(*maps) if on_boundary == _PACKED else _histogram(maps, size)
        return joint

    threads = min(torch.get_num_threads(), len(strips))
    with ThreadPoolExecutor(threads) as pool:
        joint = sum(pool.map(count, [strips[start::threads] for start in range(threads)]))
    return torch.from_numpy(np.asarray(joint).astype(np.int64))


def _histogram(states: list[np.ndarray], size: int) -> np.ndarray:
    """(S, S) joint counts of two maps; float32, exact here: a strip has far fewer than 2**24 pixels."""
    return cv2.calcHist(states, [0, 1], None, [size, size], [0, size, 0, size])


def _packed_histogram(label: np.ndarray, prediction: np.ndarray) -> np.ndarray:
    """`_histogram` of states of four bits; overwrites the second map.

    Neighbours mostly share a state, and counting one bin twice in a row waits for the first count to be stored. So
    the free bits of the prediction tell columns apart: 16 pixels in a row are counted in 16 bins, which are summed.
    """
    prediction |= (np.arange(prediction.shape[1]) % 16 * 16).astype(np.uint8)
    counts = cv2.calcHist([label, prediction], [0, 1], None, [16, 256], [0, 16, 0, 256])
    return counts.reshape(16, 16, 16).sum(1)


def _joint_states(
    prediction: Tensor, label: Tensor, radius: int, on_boundary: int, ignore_boundaries: bool
) -> Tensor:
    """`_joint_states_cpu` in tensor operations, for every device."""
    if not ignore_boundaries:
        prediction = prediction.masked_fill(label == IGNORE, IGNORE)
    size = 2 * on_boundary
    label_state, prediction_state = (
        labels.int() | boundary_map(labels, radius, ignore_boundaries=ignore_boundaries).int() * on_boundary
        for labels in (label, prediction)
    )
    joint = torch.bincount((label_state * size + prediction_state).flatten(), minlength=size * size)
    return joint.view(size, size)
