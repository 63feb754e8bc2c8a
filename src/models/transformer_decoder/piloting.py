"""Mask-piloted training (MP-Former, CVPR 2023): extra queries that are told what to look at.

Zhang et al., "MP-Former: Mask-Piloted Transformer for Image Segmentation". A piloted query starts from the embedding
of a true class and attends, in every layer, to the true mask of that class, both with some noise; it must answer
the class and the mask without noise. Learned queries never see piloted ones, so inference does without them.

B batch, K classes, T classes of the image that has the most, G groups, P = G T piloted queries, D query width
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from src.structures import IGNORE, PilotedQueries, Targets

_STRIDE = 4  # of the stored masks; the finest memory has stride 8


class MaskPiloting(nn.Module):
    """Makes piloted queries from the ground truth of a batch.

    Every group holds one query for each class of an image, with noise of its own; images with fewer classes than
    the batch's richest one are filled up with queries that have no target.

    Deviations from the authors' code: the noise of a mask is drawn once for a step and not anew for every layer,
    and queries without a target carry no loss, where theirs must answer "no object".

    Args:
        num_classes: K.
        width: D.
        num_queries: how many piloted queries an image gets at most, apart from one group that it always gets.
        label_noise: probability that a query starts from a random class.
        point_noise: a pixel of an attention mask is flipped with this probability times the mask's share of the
            image.
    """

    def __init__(
        self,
        num_classes: int,
        width: int,
        num_queries: int = 100,
        label_noise: float = 0.2,
        point_noise: float = 0.2,
    ) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.num_queries = num_queries
        self.label_noise = label_noise
        self.point_noise = point_noise
        self.class_embedding = nn.Embedding(num_classes, width)

    def forward(self, targets: Targets) -> PilotedQueries:
        """Queries, attention masks at stride 4, groups and targets. At least one query, if only a filler.

        The class embedding always takes part, with a gradient of zero when no image has a class, as distributed
        training needs.
        """
        images = [_classes_and_masks(label) for label in targets.labels]
        labels = pad_sequence([classes for classes, _ in images], True, self.num_classes)  # (B, T)
        clean = pad_sequence([masks for _, masks in images], True)  # (B, T, h, w)
        if labels.shape[1] == 0:  # everything is ignored
            labels = F.pad(labels, (0, 1), value=self.num_classes)
            clean = F.pad(clean, (0, 0, 0, 0, 0, 1))
        per_group = labels.shape[1]
        groups = max(1, self.num_queries // per_group)

        index = torch.arange(per_group, device=labels.device)
        target_masks = torch.where(labels < self.num_classes, index, -1).repeat(1, groups)
        labels, clean = labels.repeat(1, groups), clean.repeat(1, groups, 1, 1)  # (B, P), (B, P, h, w)
        real = labels < self.num_classes
        flip = self.point_noise * clean.float().mean((-2, -1), keepdim=True)
        started = torch.where(
            torch.rand(labels.shape, device=labels.device) < self.label_noise,
            torch.randint_like(labels, self.num_classes),
            labels.where(real, 0),
        )
        return PilotedQueries(
            queries=self.class_embedding(started) * real[..., None],
            attend=clean ^ (torch.rand(clean.shape, device=labels.device) < flip),
            groups=torch.arange(groups, device=labels.device).repeat_interleave(per_group),
            labels=labels,
            target_masks=target_masks,
        )


def _classes_and_masks(label: Tensor) -> tuple[Tensor, Tensor]:
    """Classes (t,) of a (H, W) label map, ascending, and the stride-4 cells (t, h, w) that each one touches."""
    present = label.unique()
    present = present[present != IGNORE]
    masks = (label == present[:, None, None, None]).float()  # (t, 1, H, W)
    return present.long(), F.max_pool2d(masks, _STRIDE, ceil_mode=True)[:, 0].bool()
