"""Data of a model that learns new classes from pseudo labels (docs/new_categories.md).

S crop size, N new classes
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from src.data.classes import ClassMap, Taxonomy
from src.data.datamodule import SegmentationDataModule
from src.data.datasets import Crop, CropMaker, PseudoCrop, RawCropBatch, augmented, planes
from src.data.device_transforms import flip_chosen
from src.data.folder import FolderSource, Pair, match_files
from src.data.pseudo_labels import PseudoLabels, PseudoLabelSource
from src.data.source import PhotoSource
from src.data.store.source import StoreSource
from src.data.targets import boundary_map
from src.errors import UserError
from src.structures import EVEN, IGNORE

SUPERVISION = ("pseudo", "precise")


class PseudoCropMaker(CropMaker):
    """Cuts crops of photos whose label maps carry scores of new classes, and of plain ones too."""

    def _finished(self, image: Tensor, label: NDArray[np.uint8]) -> Crop | PseudoCrop:
        if label.ndim == 2:
            return super()._finished(image, label)
        merged, *_ = separate = planes(label)
        boundary = torch.from_numpy(boundary_map(merged.numpy()))
        return PseudoCrop(image, merged, boundary, _scores(separate[1:]))


def _scores(channels: Tensor) -> Tensor:
    """Pixels of which nothing is known, and those beyond the photo, get the even score."""
    return channels.masked_fill(channels == IGNORE, EVEN)


class NewCategoryData(SegmentationDataModule):
    """Training crops with precise labels, pseudo labels of new classes or both; evaluation as ever.

    Args:
        classes: all classes, the new ones last.
        new_classes: their names.
        others: what precise labels call objects of the new classes: a class, or "ignore".
        pseudo_labels: folder with the pseudo labels of the training photos, see ``src.data.pseudo_labels``; relative
            to the root.
        pseudo_class_map: ids in index maps, see ``PseudoLabels``.
        class_map: of the precise training labels, as for ``SegmentationDataModule``, to the known classes.
        evaluation_class_map: what label files call otherwise where the new classes are labelled; the rest is as in
            ``class_map``.
        supervision: ``pseudo``, or ``precise`` where training labels have the new classes, as evaluation labels have.
        options: other arguments of ``SegmentationDataModule``.
    """

    crop_maker = PseudoCropMaker

    def __init__(
        self,
        classes: Mapping[str, Sequence[int]],
        new_classes: Sequence[str],
        others: str = "background",
        pseudo_labels: str = "pseudo_labels/train",
        pseudo_class_map: Mapping[int, str] | None = None,
        class_map: Mapping[int, int | str] | None = None,
        evaluation_class_map: Mapping[int, int | str] | None = None,
        supervision: str = "pseudo",
        **options: Any,
    ) -> None:
        names, new = list(classes), list(new_classes)
        if not new or names[-len(new) :] != new or len(new) == len(names):
            raise UserError(
                f"data.new_classes {new} must be the last of data.classes {names}, and not all of them; ids in label "
                "maps would change otherwise"
            )
        if others not in (*names[: -len(new)], "ignore"):
            raise UserError(f"data.others={others}: choose one of {', '.join(names[: -len(new)])}, or ignore")
        if supervision not in SUPERVISION:
            raise UserError(f"data.supervision={supervision}: choose {' or '.join(SUPERVISION)}")
        whole_map = _evaluation_map(names, class_map, evaluation_class_map)
        super().__init__(classes=classes, class_map=whole_map, **options)
        known = Taxonomy.from_mapping({name: classes[name] for name in names[: -len(new)]})
        self._training_map = ClassMap(known, class_map)
        self._others = IGNORE if others == "ignore" else known.ids[others]
        self.new_classes = new
        self._pseudo_folder = self._root / Path(pseudo_labels).expanduser()
        self._pseudo_class_map = pseudo_class_map
        self._supervision = supervision

    @staticmethod
    def training_and_whole_map(
        classes: Mapping[str, Sequence[int]],
        new_classes: Sequence[str],
        class_map: Mapping[int, int | str] | None,
        evaluation_class_map: Mapping[int, int | str] | None,
    ) -> tuple[ClassMap, ClassMap]:
        """What ids mean in precise training labels, and where the new classes are labelled too."""
        known = {name: colour for name, colour in classes.items() if name not in new_classes}
        whole_map = _evaluation_map(list(classes), class_map, evaluation_class_map)
        return (
            ClassMap(Taxonomy.from_mapping(known), class_map),
            ClassMap(Taxonomy.from_mapping(classes), whole_map),
        )

    def pairs(self, split: str) -> list[Pair]:
        """As ``SegmentationDataModule.pairs``; training photos may have pseudo labels alone, and are left out."""
        if split == "train" and self._supervision == "pseudo":
            return match_files(self._split_folders(split))[0]
        return super().pairs(split)

    def setup(self, stage: str) -> None:
        if stage == "fit" and self._supervision == "pseudo" and self.is_streamed("train"):
            raise UserError(
                f"data.store={self._store} holds shards, which have no place for pseudo labels; use a store of files "
                "(format=store) or data.store=null"
            )
        super().setup(stage)

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        if not isinstance(batch, RawCropBatch) or batch.labels.ndim == 3:
            return super().on_after_batch_transfer(batch, dataloader_idx)
        channels = batch.labels.movedim(-1, 1)  # (B, N+1, S, S)
        crops = augmented(batch._replace(labels=channels[:, 0]))
        pseudo = flip_chosen(_scores(channels[:, 1:]), batch.codes)
        return crops._replace(targets=crops.targets._replace(pseudo=pseudo))

    def _source(self, split: str) -> PhotoSource:
        if split != "train" or self._supervision == "precise":
            return super()._source(split)
        pseudo = PseudoLabels(self._pseudo_folder, self.new_classes, self._pseudo_class_map)
        pairs, unlabelled = match_files(self._split_folders(split))
        precise: PhotoSource
        if self._store is None:
            precise = FolderSource(pairs, self._training_map)
        else:
            precise = StoreSource(Path(self._store).expanduser() / split, self._training_map)
            precise.check_source(pairs)
        first = self.num_classes - len(self.new_classes)
        return PseudoLabelSource(precise, unlabelled, pseudo, first, self._others, split)


def _evaluation_map(
    names: Sequence[str],
    class_map: Mapping[int, int | str] | None,
    evaluation_class_map: Mapping[int, int | str] | None,
) -> Mapping[int, int | str] | None:
    if evaluation_class_map is None:
        return class_map
    own_ids: Mapping[int, int | str] = dict(enumerate(names))  # without a class map ids are classes
    return {**(own_ids if class_map is None else class_map), **evaluation_class_map}
