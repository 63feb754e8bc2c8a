"""How well windows agree with the whole photo, with trained weights on synthetic scenes.

Run by ``python -m scripts.bench_inference agreement --checkpoint FILE``.
"""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
from numpy.typing import NDArray

from scripts.bench_network import table
from src.checkpoints import load
from src.config import compose_config
from src.data.classes import Taxonomy
from src.data.synthetic.scene import draw_scene
from src.data.targets import boundary_map
from src.inference import Predictor
from src.inference.large_photos import PhotoInMemory
from src.inference.semantic import best_class
from src.inference.tiled import TiledPredictor, Tiling

NEAR = 5  # pixels from a boundary of the whole photo's prediction
OVERVIEW_SHARES = (1, 4, 16)
SCENES = (0, 1)


def report_agreement(checkpoint: str, sizes: Sequence[tuple[int, int]]) -> None:
    """Print agreement in per cent of pixels, and of pixels near boundaries, by the size of the overview."""
    network = load(checkpoint)
    whole = Predictor(network, limit=None, mode="whole", memory_gb=64)
    classes = Taxonomy.from_mapping(dict(compose_config("train", ["data=mass13k", "run_dir=."]).data.classes))
    rows = []
    for height, width in sizes:
        for seed in SCENES:
            photo, _ = draw_scene(seed, height, width, classes.ids)
            expected = whole(photo, scores=False).label
            near = near_boundaries(expected)
            for share in OVERVIEW_SHARES:
                windows = TiledPredictor(whole._network, Tiling(), height * width // share)
                found = np.concatenate(
                    [best_class(band.scores).byte().numpy() for band in windows.bands(PhotoInMemory(photo))]
                )
                same = found == expected
                rows.append(
                    [
                        f"{width}x{height}, scene {seed}",
                        f"1/{share}",
                        f"{100 * same.mean():.2f}",
                        f"{100 * same[near].mean():.2f}",
                    ]
                )
    header = ["photo", "overview's pixels", "same label %", f"within {NEAR} px of a boundary %"]
    print(table(header, rows))


def near_boundaries(label: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """(H, W): pixels within ``NEAR`` pixels of a class boundary."""
    side = 2 * NEAR + 1
    return cv2.dilate(boundary_map(label), np.ones((side, side), np.uint8)).astype(bool)
