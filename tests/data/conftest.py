"""Small datasets on disk."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from src.data.classes import Taxonomy

Writer = Callable[..., Path]


@pytest.fixture
def taxonomy() -> Taxonomy:
    """Three classes."""
    return Taxonomy.from_mapping({"background": [0, 0, 0], "person": [255, 0, 0], "sky": [0, 0, 255]})


@pytest.fixture
def write_dataset(tmp_path: Path) -> Writer:
    """Writes random photos and label maps in the benchmark's layout and returns the root."""

    def write(
        splits: dict[str, int] | None = None, images: str = "images", size: tuple[int, int] = (40, 56)
    ) -> Path:
        rng = np.random.default_rng(0)
        root = tmp_path / "dataset"
        for split, count in (splits or {"train": 5, "val": 3}).items():
            for folder in (images, "annotations"):
                (root / folder / split).mkdir(parents=True, exist_ok=True)
            for index in range(count):
                shape = (size[0] + 2 * index, size[1])
                photo = rng.integers(0, 256, (*shape, 3), dtype=np.uint8)
                label = rng.integers(0, 3, shape, dtype=np.uint8)
                Image.fromarray(photo).save(root / images / split / f"photo_{index}.png")
                Image.fromarray(label).save(root / "annotations" / split / f"photo_{index}.png")
        return root

    return write
