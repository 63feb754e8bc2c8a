"""Where a dataset's files should lie, before anything has checked that they do."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from src.data.classes import ClassMap, Taxonomy
from src.data.folder import IMAGE_FOLDERS, LABEL_FOLDER, SplitFolders, benchmark_folders
from src.data.new_categories import NewCategoryData
from src.data.pseudo_labels import PseudoLabels
from src.data.synthetic import holds_scenes, write_synthetic_dataset
from src.errors import UserError
from src.files import given_path
from src.photos import PHOTO_SUFFIXES

SPLITS = ("train", "val", "test")

log = logging.getLogger(__name__)


def draw_missing_scenes(data: Mapping[str, Any]) -> None:
    """Draw the dataset if it is one of synthetic scenes whose folder is not there; existing files stay as they are.

    Args:
        data: configuration of a dataset, plain values.
    """
    root = given_path(data["root"], "data.root")
    if not data.get("synthetic"):
        return
    ids = {name: index for index, name in enumerate(data["classes"])}
    scenes = {key: value for key, value in data["synthetic"].items() if key != "workers"}
    if not root.exists():
        write_synthetic_dataset(root, class_ids=ids, **data["synthetic"])
    elif not holds_scenes(root, class_ids=ids, **scenes):
        log.warning(
            "%s holds other scenes than data.synthetic asks for, or not all of them; they are looked at as they are. "
            "Give data.root=<new folder> to draw those",
            root,
        )


def class_maps(data: Mapping[str, Any]) -> dict[str, ClassMap]:
    """What ids in the label maps of each split mean, as training and evaluation read them."""
    taxonomy = Taxonomy.from_mapping(data["classes"])
    training = whole = ClassMap(taxonomy, data.get("class_map"))
    if data.get("new_classes"):  # as NewCategoryData: precise training labels do not have them
        new = NewCategoryData.training_and_whole_map(
            data["classes"], data["new_classes"], data.get("class_map"), data.get("evaluation_class_map")
        )
        training, whole = new if data.get("supervision", "pseudo") == "pseudo" else (new[1], new[1])
    return {
        split: training if split == "train" else whole for split in (*SPLITS, *(data.get("folders") or ()))
    }


def pseudo_labels(data: Mapping[str, Any]) -> PseudoLabels | None:
    """Those of the training photos; None where there are none yet. Errors as ``PseudoLabels``."""
    if not data.get("new_classes") or data.get("supervision", "pseudo") != "pseudo":
        return None
    folder = given_path(data["root"], "data.root") / Path(str(data["pseudo_labels"])).expanduser()
    if not folder.is_dir():
        return None
    return PseudoLabels(folder, data["new_classes"], data.get("pseudo_class_map"))


def absent_splits(data: Mapping[str, Any]) -> dict[str, SplitFolders]:
    """Configured splits that training needs and of which neither folder is there."""
    configured = _configured(data)
    return {
        split: folders
        for split, folders in configured.items()
        if split in ("train", "val") and not (folders.images.is_dir() or folders.labels.is_dir())
    }


def _configured(data: Mapping[str, Any]) -> dict[str, SplitFolders]:
    """Splits whose folders the configuration names."""
    root = given_path(data["root"], "data.root")
    return {
        split: SplitFolders(*(root / Path(folders[kind]).expanduser() for kind in ("images", "labels")))
        for split, folders in (data.get("folders") or {}).items()
    }


def existing_splits(data: Mapping[str, Any]) -> dict[str, SplitFolders]:
    """The folders of every split of which at least one is there.

    Args:
        data: configuration of a dataset, plain values.

    Raises:
        UserError: the root is missing, or no split was found in it; shows the expected layout.
    """
    root = given_path(data["root"], "data.root")
    if data.get("folders"):
        configured = _configured(data)
    else:
        configured = {split: _benchmark_split(root, split) for split in SPLITS}
    found = {
        split: folders
        for split, folders in configured.items()
        if folders.images.is_dir() or folders.labels.is_dir()
    }
    if found:
        return found
    if data.get("folders"):
        expected = ", ".join(str(folders.images) for folders in configured.values())
        raise UserError(
            f"{root}: none of the configured folders is there ({expected}); correct data.root or data.folders"
        )
    benchmark_folders(root, "val")  # raises, and shows the layout
    raise AssertionError


def _benchmark_split(root: Path, split: str) -> SplitFolders:
    """As ``benchmark_folders``, but without a demand: the first image folder that has photos, or is there."""
    candidates = [root / name / split for name in IMAGE_FOLDERS]
    there = [folder for folder in candidates if folder.is_dir()]
    filled = [
        folder for folder in there if any(file.suffix.lower() in PHOTO_SUFFIXES for file in folder.iterdir())
    ]
    return SplitFolders([*filled, *there, *candidates][0], root / LABEL_FOLDER / split)
