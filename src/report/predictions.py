"""Scoring label maps that any program has written, against the labels of a dataset."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from rich.progress import track

from src.data.source import PhotoSource, Window
from src.errors import UserError
from src.metrics.complexity import mean_complexity
from src.metrics.suite import ImageScores, SegmentationMetrics
from src.photos import read_label

_SHOWN = 5


class Measured(NamedTuple):
    """Measurements by image name: of the prediction, and the mean IPQ of the labelled classes."""

    scores: dict[str, ImageScores]
    complexity: dict[str, float]


def find_predictions(folder: Path, names: Sequence[str]) -> list[Path]:
    """The file ``<name>.png`` of every photo; other files in the folder do not matter.

    Raises:
        UserError: no such folder, or photos without a prediction.
    """
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; predictions are index PNGs named like their photos")
    composed = {unicodedata.normalize("NFC", path.name): path for path in folder.glob("*.png")}
    paths = [composed.get(f"{name}.png", folder / f"{name}.png") for name in names]
    missing = [path.name for path in paths if not path.is_file()]
    if missing:
        more = f" and {len(missing) - _SHOWN} more" if len(missing) > _SHOWN else ""
        raise UserError(
            f"{folder}: {len(missing)} of {len(paths)} photos have no prediction: "
            f"{', '.join(missing[:_SHOWN])}{more}. Every photo of the split needs one, an 8-bit PNG of class ids "
            "with the photo's stem."
        )
    return paths


def score_predictions(paths: Sequence[Path], source: PhotoSource, metrics: SegmentationMetrics) -> Measured:
    """Score one label map for each photo.

    Args:
        paths: predictions in the order of the source's photos: 8-bit PNGs of class ids at the label map's size.
        source: labelled photos.
        metrics: sums up the set.

    Raises:
        UserError: a file is unreadable, of another size, or holds ids that are no classes; names the file.
    """
    measured = Measured({}, {})
    for index, path in track(list(enumerate(paths)), "scoring", transient=True):
        label = read_whole_label(source, index)
        prediction = read_label(path)
        if prediction.shape != label.shape:
            raise UserError(
                f"{path}: the prediction is {prediction.shape[1]}x{prediction.shape[0]} pixels, but its label "
                f"map is {label.shape[1]}x{label.shape[0]}; bring the prediction's scores to that size before "
                "choosing classes"
            )
        try:
            metrics.update(torch.from_numpy(prediction), torch.from_numpy(label))
        except ValueError as error:
            raise UserError(
                f"{path}: {error}. Predictions hold the class ids of the configuration (0 for the first), no 255, "
                "whatever ids the label files use."
            ) from error
        assert metrics.latest is not None
        name = source.names[index]
        measured.scores[name] = metrics.latest
        measured.complexity[name] = mean_complexity(label, metrics.num_classes)
    return measured


def read_whole_label(source: PhotoSource, index: int) -> NDArray[np.uint8]:
    """(H, W) class ids of a photo."""
    photo = source.open(index)
    return photo.label(Window(0, 0, *photo.size))
