"""A released checkpoint with synthetic weights, as the reference values were made with."""

from __future__ import annotations

import ast
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from src.checkpoints.names import translate
from src.checkpoints.network import build_network
from src.checkpoints.released_massformer import RELEASED_MASSFORMER
from src.config import compose_config, to_plain


def synthetic_tensor(name: str, shape: tuple[int, ...]) -> Tensor:
    """Reproducible values of a sensible size for a tensor of the released network."""
    seed = zlib.crc32(name.encode()) & 0x7FFFFFFF
    noise = np.random.RandomState(seed).standard_normal(shape)
    if name.endswith("num_batches_tracked"):
        return torch.zeros(shape, dtype=torch.int64)
    if name.endswith("running_mean"):
        values = 0.1 * noise
    elif name.endswith("running_var"):
        values = 1 + 0.1 * np.abs(noise)
    elif any(part in name for part in ("query_feat", "query_embed", "level_embed")):
        values = noise
    elif len(shape) >= 2:
        values = noise * np.sqrt(1 / np.prod(shape[1:]))
    else:
        values = 1 + 0.1 * noise if name.endswith("weight") else 0.1 * noise
    return torch.from_numpy(np.asarray(values, np.float32))


@pytest.fixture(scope="session")
def released_shapes(reference: Path) -> dict[str, tuple[int, ...]]:
    """Name and shape of every tensor of the released R50 checkpoint."""
    lines = (reference / "released_r50_keys.tsv").read_text().splitlines()
    return {name: ast.literal_eval(shape) for name, shape in (line.split("\t") for line in lines)}


@pytest.fixture(scope="session")
def released_state(released_shapes: dict[str, tuple[int, ...]]) -> dict[str, Tensor]:
    """The released tensors with synthetic values; do not change it."""
    return {name: synthetic_tensor(name, shape) for name, shape in released_shapes.items()}


@pytest.fixture(scope="session")
def golden(reference: Path) -> dict[str, Tensor]:
    """What the released network answers."""
    with np.load(reference / "golden_256.npz") as arrays:
        return {name: torch.from_numpy(arrays[name]) for name in arrays.files}


@pytest.fixture(scope="session")
def golden_images(golden: dict[str, Tensor]) -> Tensor:
    """The reference image, normalised, (1, 3, 256, 256)."""
    low = golden["input_lowres"]
    return torch.nn.functional.interpolate(low, (256, 256), mode="bilinear", align_corners=False)


@pytest.fixture(scope="session")
def massformer_config() -> dict[str, Any]:
    return to_plain(compose_config("train", ["experiment=massformer", "recipe=paper", "run_dir=."]))


@pytest.fixture(scope="session")
def released_network(released_state: dict[str, Tensor], massformer_config: dict[str, Any]) -> torch.nn.Module:
    """The network with the synthetic weights, in evaluation mode."""
    network = build_network(massformer_config)
    network.load_state_dict(translate(released_state, RELEASED_MASSFORMER))
    return network.eval()
