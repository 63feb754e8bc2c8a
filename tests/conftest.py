"""Fixtures shared by all tests: where real photos and reference values lie."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

import src  # noqa: F401  before torch: it says how torch's threads wait for each other

# Weights & Biases never goes online and albumentations never asks for its newest version in tests.
os.environ.setdefault("WANDB_MODE", "offline")
os.environ.setdefault("WANDB_SILENT", "true")
os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")
# Processes of pytest-xdist share the cores, and so do the programs that they start.
if workers := int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "0")):
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // workers)))


def _folder(variable: str) -> Path:
    value = os.environ.get(variable)
    if not value:
        pytest.skip(f"set {variable} to the folder to run this test")
    path = Path(value)
    if not path.is_dir():
        raise FileNotFoundError(f"{variable} names {path}, which is not a folder")
    return path


@pytest.fixture(scope="session")
def camvid() -> Path:
    """Folder with CamVid photos and labels in the MaSS13K layout (environment variable MASSFORMER_CAMVID)."""
    return _folder("MASSFORMER_CAMVID")


@pytest.fixture(scope="session")
def reference() -> Path:
    """Folder with tensor names and values of the released network (environment variable MASSFORMER_REFERENCE)."""
    return _folder("MASSFORMER_REFERENCE")


@pytest.fixture(scope="session")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with a handful of small synthetic scenes in the MaSS13K layout."""
    from src.config import compose_config
    from src.data.classes import Taxonomy
    from src.data.synthetic import write_synthetic_dataset

    root = tmp_path_factory.mktemp("scenes")
    classes = Taxonomy.from_mapping(dict(compose_config("train", ["data=mass13k"]).data.classes))
    splits = {"train": 4, "val": 3, "test": 2}
    write_synthetic_dataset(root, splits, 96, 128, classes.ids, workers=1)
    return root
