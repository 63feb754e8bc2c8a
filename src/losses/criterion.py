"""The composite loss: classes, masks, dice and edges (MaSS13K, section 4.3; Mask2Former).

B batch, Q queries, K classes, D query width, T target masks of one image, N points
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from src.losses.edge import edge_loss
from src.losses.mask import dice_loss, mask_loss, matched_logits
from src.losses.matcher import HungarianMatcher
from src.losses.points import SampledPoints, UncertaintyPoints, sample_points
from src.structures import IGNORE, PilotedQueries, QueryPrediction, Targets, TrainingPrediction


class ImageTargets(NamedTuple):
    """What one image asks for.

    Attributes:
        labels: (T,) int64 ids of the classes present, ascending.
        masks: (T, H, W) float 0/1.
        weight_map: (T, H, W) importance of every pixel for the point sampler, or None.
        trust: (T, H, W) how far every pixel of every mask can be believed, 0..1; None for 1 (precise labels).
        candidates: (T+1, K+1) bool, the answers that the query of every target may give, and in the last row a query
            without one; None for the target's class and "no object".
    """

    labels: Tensor
    masks: Tensor
    weight_map: Tensor | None
    trust: Tensor | None = None
    candidates: Tensor | None = None


Assignment = tuple[Tensor, Tensor]  # query indices and target indices of one image


class SetCriterion(nn.Module):
    """Matches every prediction with the targets and adds up the weighted loss terms.

    Class, mask and dice terms act on all predictions (deep supervision) with a matching of their own; the edge
    term acts once, when the network predicts edges. Ignored pixels lie outside of every mask and on no boundary, as
    in the release: they count as such in all terms but the classes'.

    Args:
        num_classes: K.
        matcher: assigns queries to targets.
        points: chooses and weighs the points of the mask losses.
        class_weight, mask_weight, dice_weight, edge_weight: weights of the terms.
        no_object_weight: weight of "no object" in the class term.
    """

    class_weights: Tensor

    def __init__(
        self,
        num_classes: int,
        matcher: HungarianMatcher,
        points: UncertaintyPoints,
        class_weight: float = 2.0,
        mask_weight: float = 5.0,
        dice_weight: float = 5.0,
        edge_weight: float = 10.0,
        no_object_weight: float = 0.1,
    ) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.matcher = matcher
        self.points = points
        self.class_weight = class_weight
        self.mask_weight = mask_weight
        self.dice_weight = dice_weight
        self.edge_weight = edge_weight
        weights = torch.ones(num_classes + 1)
        weights[-1] = no_object_weight
        self.register_buffer("class_weights", weights, persistent=False)

    def forward(self, prediction: TrainingPrediction, targets: Targets) -> dict[str, Tensor]:
        """Loss terms, already weighted; their sum is the training loss.

        Returns:
            ``loss_class``, ``loss_mask`` and ``loss_dice`` of the last prediction, the same with the prefix
            ``d{i}.`` for the earlier ones and ``pilot.`` for piloted queries, and ``loss_edge``.
        """
        with torch.autocast(targets.labels.device.type, enabled=False):
            images = self.all_targets(targets)
            num_masks = _mean_over_processes(
                sum(len(image.labels) for image in images), targets.labels.device
            )
            layers = _float32(prediction.layers)
            terms: dict[str, Tensor] = {}
            for name, layer, assignment in zip(
                _names(len(layers)), layers, self.match(layers, images), strict=True
            ):
                terms |= self._layer_terms(name, layer, images, assignment, num_masks)
            if prediction.pilots is not None:
                terms |= self._piloted_terms(prediction, images)
            if prediction.edge_logits is not None:
                terms["loss_edge"] = self.edge_weight * self.edge_term(prediction.edge_logits, targets)
            return terms

    def all_targets(self, targets: Targets) -> Sequence[ImageTargets]:
        """What every image of a batch asks for."""
        return [self.image_targets(label) for label in targets.labels]

    def edge_term(self, edge_logits: Tensor, targets: Targets) -> Tensor:
        """The edge loss before its weight; edge_logits (B, 1, h, w)."""
        return edge_loss(edge_logits, targets.boundaries)

    @torch.no_grad()
    def image_targets(self, label: Tensor) -> ImageTargets:
        """One mask per class present in a (H, W) label map; ignored pixels belong to no mask."""
        present = label.unique()
        present = present[present != IGNORE]
        masks = (label[None] == present[:, None, None]).float()
        return ImageTargets(present.long(), masks, self.points.weight_map(masks))

    @torch.no_grad()
    def match(
        self, layers: Sequence[QueryPrediction], images: Sequence[ImageTargets]
    ) -> list[list[Assignment]]:
        """Assign queries to targets for every prediction and image.

        The predictions of one image share their random points, so that the mask features are sampled once for
        all predictions that multiply with the same map.
        """
        matched: list[list[Assignment]] = [[] for _ in layers]
        for b, image in enumerate(images):
            if len(image.labels) == 0:  # everything is ignored
                empty = torch.empty(0, dtype=torch.int64, device=image.labels.device)
                for assignments in matched:
                    assignments.append((empty, empty))
                continue
            coordinates = torch.rand(1, self.matcher.num_points, 2, device=image.masks.device)
            masks = sample_points(image.masks[None], coordinates)[0]  # (T, N)
            trust = None if image.trust is None else sample_points(image.trust[None], coordinates)[0]
            sampled: dict[int, Tensor] = {}
            for layer, assignments in zip(layers, matched, strict=True):
                key = id(layer.mask_features)
                if key not in sampled:
                    sampled[key] = sample_points(layer.mask_features[b : b + 1], coordinates)[0]  # (D, N)
                logits = layer.mask_embeddings[b] @ sampled[key]
                assignments.append(self.matcher(layer.class_logits[b], logits, image.labels, masks, trust))
        return matched

    def _layer_terms(
        self,
        name: str,
        layer: QueryPrediction,
        images: Sequence[ImageTargets],
        assignment: Sequence[Assignment],
        num_masks: float,
    ) -> dict[str, Tensor]:
        class_term = self.class_term(layer.class_logits, images, assignment)
        return {f"{name}loss_class": self.class_weight * class_term} | self._mask_terms(
            name, layer, images, assignment, num_masks
        )

    def class_term(
        self, class_logits: Tensor, images: Sequence[ImageTargets], assignment: Sequence[Assignment]
    ) -> Tensor:
        """Cross-entropy of (B, Q, K+1) logits; queries without a target must answer "no object"."""
        classes = class_logits.new_full(class_logits.shape[:2], self.num_classes, dtype=torch.int64)
        for b, (queries, chosen) in enumerate(assignment):
            classes[b, queries] = images[b].labels[chosen]
        return F.cross_entropy(class_logits.transpose(1, 2), classes, self.class_weights)

    def sample(
        self, logits: Tensor, images: Sequence[ImageTargets], assignment: Sequence[Assignment]
    ) -> SampledPoints:
        """Points for the (T, h, w) mask logits of all matched queries."""
        weight_maps = [
            image.weight_map[chosen]
            for image, (_, chosen) in zip(images, assignment, strict=True)
            if image.weight_map is not None
        ]
        return self.points(logits, torch.cat(weight_maps) if weight_maps else None)

    def _mask_terms(
        self,
        name: str,
        layer: QueryPrediction,
        images: Sequence[ImageTargets],
        assignment: Sequence[Assignment],
        num_masks: float,
    ) -> dict[str, Tensor]:
        logits = matched_logits(layer, [queries for queries, _ in assignment])
        if len(logits) == 0:  # keeps every parameter in the graph, as distributed training needs
            zero = logits.sum() + layer.mask_embeddings.sum() * 0 + layer.mask_features.sum() * 0
            return {f"{name}loss_mask": zero, f"{name}loss_dice": zero}
        coordinates, weights, trust = self.sample(logits.detach(), images, assignment)
        point_masks = _target_values(images, assignment, coordinates)
        point_logits = sample_points(logits[:, None], coordinates)[:, 0]
        return {
            f"{name}loss_mask": self.mask_weight * mask_loss(point_logits, point_masks, weights, num_masks),
            f"{name}loss_dice": self.dice_weight * dice_loss(point_logits, point_masks, num_masks, trust),
        }

    def _piloted_terms(
        self, prediction: TrainingPrediction, images: Sequence[ImageTargets]
    ) -> dict[str, Tensor]:
        """The same terms for piloted queries, whose targets are known: no matching, no "no object"."""
        pilots = prediction.pilots
        assert pilots is not None
        assignment = [_fixed_assignment(pilots, b) for b in range(len(images))]
        count = sum(len(queries) for queries, _ in assignment)
        num_masks = _mean_over_processes(count, pilots.labels.device)
        labels = pilots.labels.masked_fill(pilots.target_masks < 0, -100)  # cross_entropy's ignore_index
        terms: dict[str, Tensor] = {}
        for name, layer in zip(_names(len(prediction.piloted)), _float32(prediction.piloted), strict=True):
            name = f"pilot.{name}"
            total = F.cross_entropy(layer.class_logits.transpose(1, 2), labels, reduction="sum")
            terms[f"{name}loss_class"] = self.class_weight * total / max(count, 1)
            terms |= self._mask_terms(name, layer, images, assignment, num_masks)
        return terms


@torch.no_grad()
def _target_values(
    images: Sequence[ImageTargets], assignment: Sequence[Assignment], coordinates: Tensor
) -> Tensor:
    """Values (T, N) of all assigned targets at their points (T, N, 2).

    Within an image every assigned target is assigned equally often: once by matching, once for each group by
    piloting. A shared target is read once for all its points instead of being copied for every query.
    """
    values = torch.empty_like(coordinates[..., 0])
    start = 0
    for image, (_, chosen) in zip(images, assignment, strict=True):
        stop = start + len(chosen)
        shared = max(1, len(chosen) // max(1, len(image.labels)))
        order = chosen.argsort(stable=True)
        points = coordinates[start:stop][order].unflatten(0, (-1, shared)).flatten(1, 2)  # (., shared N, 2)
        sampled = sample_points(image.masks[chosen[order][::shared], None], points)[:, 0]
        values[start:stop][order] = sampled.unflatten(1, (shared, -1)).flatten(0, 1)
        start = stop
    return values


def _fixed_assignment(pilots: PilotedQueries, b: int) -> Assignment:
    queries = (pilots.target_masks[b] >= 0).nonzero()[:, 0]
    return queries, pilots.target_masks[b, queries]


def _names(count: int) -> list[str]:
    return [f"d{i}." for i in range(count - 1)] + [""]


def _float32(layers: Sequence[QueryPrediction]) -> list[QueryPrediction]:
    """The predictions in float32; layers that share a map of mask features go on sharing it."""
    maps = {id(layer.mask_features): layer.mask_features.float() for layer in layers}
    return [
        QueryPrediction(
            layer.class_logits.float(), layer.mask_embeddings.float(), maps[id(layer.mask_features)]
        )
        for layer in layers
    ]


def _mean_over_processes(count: int, device: torch.device) -> float:
    """Mean of a count over all processes, at least 1."""
    if dist.is_available() and dist.is_initialized():
        total = torch.tensor(float(count), device=device)
        dist.all_reduce(total)
        return max(total.item() / dist.get_world_size(), 1.0)
    return max(float(count), 1.0)
