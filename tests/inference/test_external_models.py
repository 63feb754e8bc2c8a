"""What foreign models are shown, and how their answers become scores."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from src.errors import UserError
from src.inference.external_models import ExternalModel, Preprocessing

PHOTO = np.random.default_rng(0).integers(0, 255, (40, 70, 3), dtype=np.uint8)
LOGITS = torch.tensor([-1.0, 0.25, 2.0])[None, :, None, None].expand(1, 3, 4, 7)


def answering(output: Any, **settings: Any) -> ExternalModel:
    return ExternalModel(lambda _: output, Preprocessing(**settings), Path("model.onnx"))


@pytest.mark.parametrize(
    ("settings", "size"),
    [
        ({}, (64, 96)),
        ({"multiple": 10}, (40, 70)),
        ({"size": (24, 30)}, (24, 30)),
        ({"mean": (0.5, 0.4, 0.3), "std": (0.1, 0.2, 0.5), "multiple": 1}, (40, 70)),
    ],
)
def test_photos_are_normalised_and_resized(settings: dict[str, Any], size: tuple[int, int]) -> None:
    seen: list[Tensor] = []

    def run(image: Tensor) -> Tensor:
        seen.append(image)
        return LOGITS

    preprocessing = Preprocessing(**settings)
    scores = ExternalModel(run, preprocessing, Path("model.onnx"))(PHOTO, [0])
    assert scores.shape == (1, 40, 70)
    normalised = (PHOTO / 255 - np.array(preprocessing.mean)) / np.array(preprocessing.std)
    expected = torch.from_numpy(normalised).permute(2, 0, 1)[None]
    expected = F.interpolate(expected, size, mode="bilinear", align_corners=False)
    torch.testing.assert_close(seen[0], expected.float(), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("activation", "expected"),
    [
        ("softmax", LOGITS[0, :, 0, 0].softmax(0)),
        ("sigmoid", LOGITS[0, :, 0, 0].sigmoid()),
        ("none", torch.tensor([0.0, 0.25, 1.0])),  # within 0..1 in any case
    ],
)
def test_activations_make_scores(activation: str, expected: Tensor) -> None:
    scores = answering(LOGITS, activation=activation)(PHOTO, [2, 0, 1])
    torch.testing.assert_close(torch.from_numpy(scores[:, 20, 30]), expected[[2, 0, 1]])


def test_scores_are_brought_to_the_photo() -> None:
    output = torch.rand(1, 2, 5, 9)
    expected = F.interpolate(output, (40, 70), mode="bilinear", align_corners=False)[0, 1:]
    torch.testing.assert_close(torch.from_numpy(answering(output, activation="none")(PHOTO, [1])), expected)


@pytest.mark.parametrize("output", [{"out": LOGITS, "aux": None}, [LOGITS.numpy()], ({"out": LOGITS},)])
def test_the_first_of_several_outputs_counts(output: Any) -> None:
    np.testing.assert_array_equal(answering(output)(PHOTO, [1]), answering(LOGITS)(PHOTO, [1]))


def test_what_gives_no_scores_is_refused() -> None:
    with pytest.raises(UserError, match=r"model\.onnx gives an output of shape \(3, 4\)"):
        answering(torch.zeros(3, 4))(PHOTO, [0])
    with pytest.raises(UserError, match=r"one class.*sigmoid"):
        answering(LOGITS[:, :1])(PHOTO, [0])
    assert answering(LOGITS[:, :1], activation="sigmoid")(PHOTO, [0]).shape == (1, 40, 70)
    with pytest.raises(UserError, match="'tanh' is unknown; choose one of softmax, sigmoid, none"):
        answering(LOGITS, activation="tanh")
