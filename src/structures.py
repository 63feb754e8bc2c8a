"""The named tuples that travel between packages.

Shape letters used throughout the project:

    B batch   C channels   H W image or map height and width, in pixels
    Q queries K classes    D query width   N points   T target masks of one image

Label maps are ``uint8``: 0..K-1 are class ids, ``IGNORE`` (255) marks pixels that no metric counts;
in the plain loss they belong to no mask, as in the release.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

IGNORE = 255
CERTAIN, EVEN = 254, 127  # pseudo scores, 0..254: the highest, and the one that says nothing


class PixelFeatures(NamedTuple):
    """What a pixel decoder hands to a transformer decoder.

    Attributes:
        mask_features: (B, D, h, w) per-pixel embeddings; stride 2 for MaSSFormer with a branch for details
            (LSE), stride 4 for all others.
        memories: three maps (B, D, ., .) at strides 32, 16 and 8, coarsest first.
        edge_logits: (B, 1, h, w) boundary logits, or None when the decoder predicts no edges.
    """

    mask_features: Tensor
    memories: tuple[Tensor, ...]
    edge_logits: Tensor | None = None


class QueryPrediction(NamedTuple):
    """One prediction of the transformer decoder: a class and a mask for every query.

    The mask is kept factored, because bilinear resizing and point sampling are linear: losses sample
    ``mask_features`` at points first and multiply there, which never builds a (B, Q, h, w) map.

    Attributes:
        class_logits: (B, Q, K+1); the last entry is "no object".
        mask_embeddings: (B, Q, D).
        mask_features: (B, D, h, w) the map that this prediction multiplies with.
    """

    class_logits: Tensor
    mask_embeddings: Tensor
    mask_features: Tensor

    @property
    def mask_logits(self) -> Tensor:
        """(B, Q, h, w) mask logits: embedding times features, summed over D."""
        return torch.einsum("bqd,bdhw->bqhw", self.mask_embeddings, self.mask_features)


class PilotedQueries(NamedTuple):
    """Extra decoder queries built from the ground truth (mask-piloted training).

    Attributes:
        queries: (B, P, D) features; P may differ from step to step.
        attend: (B, P, H, W) bool, the pixels a query may attend to, re-imposed at every decoder layer.
        groups: (P,) int; queries see each other only within a group.
        labels: (B, P) int64 class id each query must answer, K for padding entries that have no target.
        target_masks: (B, P) int64 index of each query's mask among the classes present in its image,
            ascending by class id; -1 for padding.
    """

    queries: Tensor
    attend: Tensor
    groups: Tensor
    labels: Tensor
    target_masks: Tensor


class TrainingPrediction(NamedTuple):
    """Everything the criterion supervises.

    Attributes:
        layers: one prediction of the learned queries from the initial queries and one after each
            decoder layer, in order; the last is the network's answer.
        edge_logits: (B, 1, h, w) or None.
        piloted: the same number of predictions for the piloted queries, empty without piloting.
        pilots: the piloted queries themselves, whose targets are fixed.
    """

    layers: tuple[QueryPrediction, ...]
    edge_logits: Tensor | None = None
    piloted: tuple[QueryPrediction, ...] = ()
    pilots: PilotedQueries | None = None


class MaskPrediction(NamedTuple):
    """The network's answer in evaluation mode.

    Attributes:
        class_logits: (B, Q, K+1).
        mask_logits: (B, Q, h, w), h = ceil(H/2) and w = ceil(W/2) for MaSSFormer.
        edge_logits: (B, 1, h, w) or None.
    """

    class_logits: Tensor
    mask_logits: Tensor
    edge_logits: Tensor | None = None


class Targets(NamedTuple):
    """Ground truth of a batch.

    Attributes:
        labels: (B, H, W) uint8 label maps.
        boundaries: (B, H, W) uint8 boundary maps, 1 on a class boundary and 0 elsewhere.
        pseudo: (B, N, H, W) uint8 scores of N new classes that the labels have from another model, 0 (certainly
            not) to 254 (certainly), 127 where nothing is known; None when all labels are precise.
    """

    labels: Tensor
    boundaries: Tensor
    pseudo: Tensor | None = None


class CropBatch(NamedTuple):
    """A training batch as it leaves the workers: small, not normalised.

    Attributes:
        images: (B, 3, H, W) uint8 RGB.
        targets: label and boundary maps of the same size.
    """

    images: Tensor
    targets: Targets


class LabelledImage(NamedTuple):
    """A whole evaluation image with its label map.

    Attributes:
        image: (3, H, W) uint8 RGB, EXIF orientation applied, reduced to the evaluation limit.
        label: (h, w) uint8 label map at its own resolution, which may exceed the image's.
        name: the file's stem, unique in its split.
    """

    image: Tensor
    label: Tensor
    name: str
