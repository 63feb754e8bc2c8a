"""The conversion as a program."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from src.config import compose_config
from src.data.store.manifest import Manifest
from src.errors import UserError
from src.prepare import prepare


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Three training photos and one for validation, in the benchmark's layout."""
    root = tmp_path / "data"
    rng = np.random.default_rng(0)
    for split, count in (("train", 3), ("val", 1)):
        (root / "images" / split).mkdir(parents=True)
        (root / "annotations" / split).mkdir(parents=True)
        for index in range(count):
            photo = cv2.GaussianBlur(rng.integers(0, 256, (120, 170, 3), dtype=np.uint8), (0, 0), 2)
            Image.fromarray(photo).save(root / "images" / split / f"p{index}.jpg")
            label = (photo[..., 0] > 127).astype(np.uint8)
            Image.fromarray(label).save(root / "annotations" / split / f"p{index}.png")
    return root


def run(root: Path, output: Path | None, *more: str) -> dict[str, str]:
    overrides = [f"data.root={root}", "data=mass13k", *more]
    return prepare(compose_config("prepare", overrides + ([f"output={output}"] if output else [])))


def test_existing_splits_are_converted_and_verified(root: Path, tmp_path: Path) -> None:
    before = {path: path.read_bytes() for path in root.rglob("*") if path.is_file()}
    assert run(root, tmp_path / "store", "verify=all") == {}
    assert len(Manifest.read(tmp_path / "store/train").entries) == 3
    assert len(Manifest.read(tmp_path / "store/val").entries) == 1
    assert not (tmp_path / "store/test").exists()
    assert before == {path: path.read_bytes() for path in root.rglob("*") if path.is_file()}


def test_damaged_entries_are_found_and_made_again(root: Path, tmp_path: Path) -> None:
    run(root, tmp_path / "store")
    entry = tmp_path / "store/train/p1.jpg"
    content = bytearray(entry.read_bytes())
    content[len(content) // 2] ^= 4
    entry.write_bytes(content)
    failures = run(root, tmp_path / "store", "verify=all")
    assert list(failures) == ["train/p1"]
    assert "Delete the file" in failures["train/p1"]
    entry.unlink()
    assert run(root, tmp_path / "store", "verify=all") == {}


def test_failures_are_returned(root: Path, tmp_path: Path) -> None:
    (root / "images/train/p2.jpg").write_bytes((root / "images/train/p2.jpg").read_bytes()[:700])
    assert list(run(root, tmp_path / "store")) == ["train/p2"]


@pytest.mark.parametrize("overrides", [["format=zip"], ["verify=half"], ["splits=[holiday]"]])
def test_impossible_wishes(root: Path, tmp_path: Path, overrides: list[str]) -> None:
    with pytest.raises(UserError):
        run(root, tmp_path / "store", *overrides)


def test_output_is_needed_and_must_lie_elsewhere(root: Path) -> None:
    with pytest.raises(UserError, match="output is not given"):
        run(root, None)
    with pytest.raises(UserError, match="one in the other"):
        run(root, root)


def test_shards(root: Path, tmp_path: Path) -> None:
    pytest.importorskip("litdata")
    assert run(root, tmp_path / "shards", "format=litdata") == {}
    assert (tmp_path / "shards/train/index.json").exists()
    assert not (tmp_path / "shards/.entries").exists()
    assert run(root, tmp_path / "shards", "format=litdata") == {}  # packed already
