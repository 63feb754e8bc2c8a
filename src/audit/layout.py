"""Where a dataset's files should lie, before anything has checked that they do."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from src.data.folder import IMAGE_FOLDERS, LABEL_FOLDER, SplitFolders, benchmark_folders
from src.data.synthetic import write_synthetic_dataset
from src.errors import UserError
from src.photos import PHOTO_SUFFIXES

SPLITS = ("train", "val", "test")


def draw_missing_scenes(data: Mapping[str, Any]) -> None:
    """Draw the dataset if it is one of synthetic scenes whose folder is not there; existing files stay as they are.

    Args:
        data: configuration of a dataset, plain values.
    """
    root = Path(data["root"]).expanduser()
    if data.get("synthetic") and not root.exists():
        ids = {name: index for index, name in enumerate(data["classes"])}
        write_synthetic_dataset(root, class_ids=ids, **data["synthetic"])


def existing_splits(data: Mapping[str, Any]) -> dict[str, SplitFolders]:
    """The folders of every split of which at least one is there.

    Args:
        data: configuration of a dataset, plain values.

    Raises:
        UserError: the root is missing, or no split was found in it; shows the expected layout.
    """
    root = Path(data["root"]).expanduser()
    if data.get("folders"):
        configured = {
            split: SplitFolders(root / folders["images"], root / folders["labels"])
            for split, folders in data["folders"].items()
        }
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
