"""Areas of classes in label maps, and intersection over union.

Everything an IoU needs is a table of counts: how many pixels have label l and prediction p. One pass
over both maps fills it, whatever the number of classes.

    H W map height and width   K classes
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Areas(NamedTuple):
    """Pixel counts per class, as int64; they may be summed over images.

    Attributes:
        intersection: (K,) pixels where prediction and label both are the class.
        prediction: (K,) pixels predicted as the class.
        label: (K,) pixels labelled as the class.
    """

    intersection: Tensor
    prediction: Tensor
    label: Tensor

    @property
    def union(self) -> Tensor:
        """(K,) pixels where prediction or label is the class."""
        return self.prediction + self.label - self.intersection

    @property
    def iou(self) -> Tensor:
        """(K,) float32 intersection over union, 0..1; nan for a class that is in neither map."""
        exact = self.intersection.cpu().double() / self.union.cpu().double()  # Apple's GPUs have no float64
        return exact.float().to(self.union.device)


def region_areas(confusion: Tensor) -> Areas:
    """Areas from a confusion matrix.

    Args:
        confusion: (K, K) counts; rows are labels and columns predictions.
    """
    return Areas(confusion.diagonal().clone(), confusion.sum(0), confusion.sum(1))


def mean_of_present(values: Tensor) -> Tensor:
    """Mean over the last axis that skips nan (absent classes); nan when every class is absent."""
    return torch.nanmean(values, dim=-1)
