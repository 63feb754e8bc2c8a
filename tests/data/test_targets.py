from __future__ import annotations

import json
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from src.data.targets import boundary_map


def reference_label(pair: dict[str, int]) -> NDArray[np.uint8]:
    """The label map that the reference file describes."""
    height, width = pair["h"], pair["w"]
    stride = height // 12
    shape = (7, -(-height // stride), -(-width // stride))
    noise = np.random.RandomState(pair["seed"]).standard_normal(shape).astype(np.float32)
    smooth = torch.nn.functional.interpolate(
        torch.from_numpy(noise)[None], (height, width), mode="bilinear", align_corners=False
    )
    label = smooth[0].argmax(0).numpy().astype(np.uint8)
    if pair.get("absent"):
        label[label == 6] = 0
    if pair.get("ignore"):
        label[height // 3 : height // 2, width // 4 : width // 2] = 255
    return label


@pytest.mark.parametrize("index", [0, 1, 2])
def test_released_boundary_maps(reference: Path, index: int) -> None:
    pair = json.loads((reference / "golden_metrics.json").read_text())["pairs"][index]
    label = reference_label(pair)
    assert zlib.crc32(label.tobytes()) == pair["gt_crc32"]
    boundary = boundary_map(label)
    assert boundary.dtype == np.uint8
    assert int(boundary.sum()) == pair["edge_w2_sum"]
    assert zlib.crc32(boundary.tobytes()) == pair["edge_w2_crc32"]


def pixel_by_pixel(label: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The definition, one pixel at a time."""
    height, width = label.shape
    marked = np.zeros((height + 1, width + 1), np.uint8)
    for y in range(height):
        for x in range(width):
            for dy, dx in ((-1, 0), (0, 1), (1, 1), (1, -1)):
                v, u = y + dy, x + dx
                inside = 0 <= v < height and 0 <= u < width
                if inside and label[y, x] != label[v, u] and 255 not in (label[y, x], label[v, u]):
                    marked[y, x] = 1
    # A 2x2 square with OpenCV's anchor reaches one pixel down and right.
    padded = np.pad(marked[:height, :width], ((1, 0), (1, 0)))
    return np.maximum.reduce([padded[1:, 1:], padded[:-1, 1:], padded[1:, :-1], padded[:-1, :-1]])


@settings(max_examples=100, deadline=None)
@given(
    hnp.arrays(
        np.uint8,
        hnp.array_shapes(min_dims=2, max_dims=2, max_side=9),
        elements=st.sampled_from([0, 1, 2, 255]),
    )
)
def test_follows_the_definition(label: NDArray[np.uint8]) -> None:
    np.testing.assert_array_equal(boundary_map(label), pixel_by_pixel(label))
