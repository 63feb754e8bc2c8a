"""Supervision by precise and pseudo labels, decoupled per pixel and per class (MaSS13K, new categories).

T target masks of one image, K classes, N new classes, H W size of the label map; see ``src.losses.evidence``
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from src.errors import UserError
from src.losses.criterion import Assignment, ImageTargets, SetCriterion
from src.losses.edge import edge_loss
from src.losses.evidence import Evidence, proximity, weigh
from src.losses.points import SampledPoints, TrustedPoints
from src.structures import IGNORE, Targets

TREATMENTS = ("reversed", "uniform", "precise")


class DecoupledCriterion(SetCriterion):
    """The losses of ``SetCriterion`` with a weight for every pixel of every mask.

    A closed pixel (a named class in the precise labels) weighs 1 + lambda w in every mask. At an open pixel the masks
    of the new classes and of "others" weigh what the pseudo labels are worth, see ``evidence``; a boundary that
    precise labels draw inside of a pseudo mask's interior keeps its 1 + lambda w. Ignored pixels weigh nothing. The
    weights act on the matching, on the mask and dice terms and on the points of these terms; the edge term leaves out
    boundaries that only pseudo labels draw. A query without a target may answer a new class wherever that is not
    refuted, and any class where there are no precise labels.

    Args:
        classes: K names, ascending by id. new_classes: those that precise labels do not have.
        others: what precise labels call objects of the new classes, a class or "ignore".
        points: samples and weighs points.
        pseudo: ``reversed``; ``uniform`` leaves out the reversed weight, so that pseudo labels count by their
            confidence alone; ``precise`` treats them as precise labels.
        pseudo_kernel: window of the reversed weight, pixels. pseudo_strength: its lambda.
        options: arguments of ``SetCriterion``.
    """

    points: TrustedPoints
    new: Tensor

    def __init__(
        self,
        classes: Sequence[str],
        new_classes: Sequence[str],
        others: str,
        points: TrustedPoints,
        pseudo: str = "reversed",
        pseudo_kernel: int = 5,
        pseudo_strength: float = 5.0,
        **options: Any,
    ) -> None:
        names = list(classes)
        super().__init__(num_classes=len(names), points=points, **options)
        if pseudo not in TREATMENTS:
            raise UserError(f"loss.pseudo={pseudo}: choose one of {', '.join(TREATMENTS)}")
        if unknown := [name for name in (*new_classes, others) if name not in (*names, "ignore")]:
            raise UserError(f"loss: {unknown} are not among the classes {names}")
        if pseudo_kernel < 3 or pseudo_kernel % 2 == 0 or pseudo_strength < 0:
            raise UserError(
                "loss: pseudo_kernel must be odd and at least 3, and pseudo_strength at least 0, not "
                f"{pseudo_kernel} and {pseudo_strength}"
            )
        self.others = IGNORE if others == "ignore" else names.index(others)
        self.pseudo = pseudo
        self.pseudo_kernel = pseudo_kernel
        self.pseudo_strength = pseudo_strength
        self.register_buffer(
            "new", torch.tensor([names.index(name) for name in new_classes]), persistent=False
        )

    @torch.no_grad()
    def all_targets(self, targets: Targets) -> list[ImageTargets]:
        found = []
        for b, label in enumerate(targets.labels):
            image = self.image_targets(label)
            if targets.pseudo is None:
                found.append(image._replace(trust=(label != IGNORE).float().expand_as(image.masks)))
            else:
                found.append(self._weighed(image, self._evidence(label, targets.pseudo[b])))
        return found

    def _evidence(self, label: Tensor, pseudo: Tensor) -> Evidence:
        return weigh(
            label,
            pseudo,
            self.new,
            self.others,
            self.pseudo_kernel,
            self.pseudo_strength,
            reverse=self.pseudo == "reversed",
        )

    def _weighed(self, image: ImageTargets, evidence: Evidence) -> ImageTargets:
        assert image.weight_map is not None
        channels = self._channels(image.labels)
        by_pseudo = (channels >= 0)[:, None, None]
        trust = torch.where(by_pseudo, evidence.trust[channels], 1.0)
        importance = image.weight_map
        if self.pseudo == "precise":
            trust = torch.ones_like(trust)
        else:
            # the boundary of a pseudo mask is not important but doubtful, and the border of the image is none
            drawn = proximity(image.masks, self.points.kernel).masked_fill(evidence.near[channels], 0)
            importance = torch.where(by_pseudo & evidence.open, drawn, importance)
        trust = torch.where(evidence.closed, 1.0, trust * evidence.open)
        return image._replace(
            weight_map=importance, trust=trust, candidates=self._candidates(image.labels, evidence)
        )

    def _channels(self, labels: Tensor) -> Tensor:
        """Channel of the evidence for each of (T,) classes: 0 for "others", n for the n-th new class, -1 else."""
        channels = labels.new_full((self.num_classes,), -1)
        channels[self.new] = torch.arange(1, len(self.new) + 1, device=labels.device)
        if self.others != IGNORE:
            channels[self.others] = 0
        return channels[labels]

    def _candidates(self, labels: Tensor, evidence: Evidence) -> Tensor:
        """(T+1, K+1) bool, what the query of each target, and last a query without a target, may answer."""
        doubtful = torch.zeros(self.num_classes + 1, dtype=torch.bool, device=labels.device)
        if self.pseudo != "precise":
            doubtful[self.new] = evidence.doubtful
        own = F.one_hot(labels, self.num_classes + 1).bool()
        own |= (labels == self.others)[
            :, None
        ] & doubtful  # "others" may be a new class that nobody has labelled
        nothing = doubtful.clone()
        nothing[-1] = True
        if not evidence.labelled:
            nothing |= ~torch.isin(torch.arange(self.num_classes + 1, device=labels.device), self.new)
        return torch.cat((own, nothing[None]))

    def class_term(
        self, class_logits: Tensor, images: Sequence[ImageTargets], assignment: Sequence[Assignment]
    ) -> Tensor:
        """Cross-entropy of (B, Q, K+1) logits with the sum of the probabilities of all admissible answers."""
        allowed = F.one_hot(
            class_logits.new_full(class_logits.shape[:2], self.num_classes, dtype=torch.int64)
        )
        allowed = allowed.bool()
        weights = class_logits.new_full(class_logits.shape[:2], float(self.class_weights[-1]))
        for b, (image, (queries, chosen)) in enumerate(zip(images, assignment, strict=True)):
            if image.candidates is None:
                allowed[b, queries] = F.one_hot(image.labels[chosen], self.num_classes + 1).bool()
            else:
                allowed[b] = image.candidates[-1]
                allowed[b, queries] = image.candidates[chosen]
            weights[b, queries] = self.class_weights[image.labels[chosen]]
        likelihood = class_logits.log_softmax(-1).masked_fill(~allowed, -torch.inf).logsumexp(-1)
        return -(weights * likelihood).sum() / weights.sum()

    def sample(
        self, logits: Tensor, images: Sequence[ImageTargets], assignment: Sequence[Assignment]
    ) -> SampledPoints:
        importance, trust = [], []
        for image, (_, chosen) in zip(images, assignment, strict=True):
            assert image.weight_map is not None
            assert image.trust is not None
            importance.append(image.weight_map[chosen])
            trust.append(image.trust[chosen])
        return self.points.trusted(logits, torch.cat(importance), torch.cat(trust))

    def edge_term(self, edge_logits: Tensor, targets: Targets) -> Tensor:
        return edge_loss(edge_logits, targets.boundaries, self.edge_weights(targets))

    @torch.no_grad()
    def edge_weights(self, targets: Targets) -> Tensor:
        """(B, H, W) trust in the boundary map.

        A boundary beside a closed pixel is precise. Elsewhere in the open it is what pseudo labels say.
        """
        weights = (targets.labels != IGNORE).float()
        if targets.pseudo is None or self.pseudo == "precise":
            return weights
        for b, label in enumerate(targets.labels):
            evidence = self._evidence(label, targets.pseudo[b])
            beside = F.max_pool2d(evidence.closed[None].float(), 5, 1, 2)[0] > 0  # boundary maps are dilated
            precise = evidence.closed | ((targets.boundaries[b] > 0) & beside)
            # without precise labels, anything may be where no new class is
            told = evidence.open if evidence.labelled else torch.isin(label, self.new.to(label))
            weights[b] = torch.where(precise, 1.0, evidence.trust.amin(0) * told)
        return weights
