"""A small dataset to plant faults in: CamVid where a folder is given, and embedded scenes."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest


class Copy(NamedTuple):
    """A dataset that a test may damage.

    Attributes:
        root: its folder.
        overrides: that choose it on the command line.
        names: stems of the photos of each split.
    """

    root: Path
    overrides: list[str]
    names: dict[str, list[str]]

    def image(self, split: str, index: int) -> Path:
        (found,) = (self.root / "images" / split).glob(f"{self.names[split][index]}.*")
        return found

    def label(self, split: str, index: int) -> Path:
        return self.root / "annotations" / split / f"{self.names[split][index]}.png"


@pytest.fixture(params=["scenes", "camvid"])
def dataset(request: pytest.FixtureRequest, tmp_path: Path) -> Copy:
    """A few photos of two splits, without a fault."""
    source: Path = request.getfixturevalue(request.param)
    root = tmp_path / "data"
    names = {}
    for split, count in (("train", 4), ("val", 3)):
        folder = next(path for path in (source / "images_pad", source / "images") if path.is_dir())
        images = sorted((folder / split).iterdir())
        names[split] = [file.stem for file in images[:count]]
        for file in images[:count]:
            label = source / "annotations" / split / f"{file.stem}.png"
            for original, kind in ((file, "images"), (label, "annotations")):
                (root / kind / split).mkdir(parents=True, exist_ok=True)
                shutil.copyfile(original, root / kind / split / original.name)
    choice = "mass13k" if request.param == "scenes" else "camvid"
    return Copy(root, [f"data={choice}", f"data.root={root}"], names)


@pytest.fixture
def fingerprint() -> Callable[[Path], dict[str, tuple[str, int]]]:
    """Digest and time of every file below a folder: equal before and after where nothing was written."""

    def take(folder: Path) -> dict[str, tuple[str, int]]:
        return {
            str(file.relative_to(folder)): (
                hashlib.sha256(file.read_bytes()).hexdigest(),
                file.stat().st_mtime_ns,
            )
            for file in sorted(folder.rglob("*"))
            if file.is_file()
        }

    return take
