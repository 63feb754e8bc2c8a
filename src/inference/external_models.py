"""Segmentation models of other programs: ONNX and TorchScript files, as a source of scores for photos.

An ONNX file is data: a graph of known operators. A TorchScript archive is a program, and ``torch.jit.load`` hands it
to an interpreter that has not been made to withstand malice. It is therefore loaded only on explicit request, and
should come from someone whose programs one would run.

    H, W photo size   C classes of the model   h, w size of its output
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from src.errors import UserError

ACTIVATIONS = ("softmax", "sigmoid", "none")


class Preprocessing(NamedTuple):
    """What a model wants to see.

    Attributes:
        mean, std: of RGB in 0..1, subtracted and divided by.
        size: (height, width) that photos are resized to; None for the photo's own, rounded up to ``multiple``.
        multiple: of both sides, pixels.
        activation: that makes scores of the model's outputs: softmax over classes, sigmoid, or none.
    """

    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)
    size: tuple[int, int] | None = None
    multiple: int = 32
    activation: str = "softmax"


class ExternalModel:
    """Scores of a foreign model at the photo's own size.

    The model takes one float32 batch (1, 3, h, w) of normalised RGB and gives (1, C, h', w') logits or scores, or
    (1, h', w') integer class ids. A dictionary, tuple or list counts as its first entry.

    Args:
        run: calls the model. preprocessing: see there. source: the file, for messages.
    """

    def __init__(self, run: Callable[[Tensor], Any], preprocessing: Preprocessing, source: Path) -> None:
        if preprocessing.activation not in ACTIVATIONS:
            raise UserError(
                f"activation {preprocessing.activation!r} is unknown; choose one of {', '.join(ACTIVATIONS)}"
            )
        self._run = run
        self._preprocessing = preprocessing
        self._source = source

    def __call__(self, photo: NDArray[np.uint8], classes: list[int]) -> NDArray[np.float32]:
        """Scores (M, H, W) in 0..1 of M classes of a (H, W, 3) uint8 RGB photo.

        Raises:
            UserError: the output has another form, or lacks a class.
        """
        settings, size = self._preprocessing, (photo.shape[0], photo.shape[1])
        image = torch.from_numpy(photo.transpose(2, 0, 1).copy())[None].float() / 255
        image = (image - torch.tensor(settings.mean)[:, None, None]) / torch.tensor(settings.std)[
            :, None, None
        ]
        inner = settings.size or tuple(-(-edge // settings.multiple) * settings.multiple for edge in size)
        if inner != size:
            image = F.interpolate(image, inner, mode="bilinear", align_corners=False)
        output = _first(self._run(image))
        if output.dim() == 3:
            output = output[:, None]
        if output.dim() != 4 or len(output) != 1:
            raise UserError(
                f"{self._source} gives an output of shape {tuple(output.shape)}; expected (1, C, h, w) scores or "
                "(1, h, w) class ids"
            )
        if not output.is_floating_point():
            scores = torch.cat([(output == number).float() for number in classes], 1)
        else:
            if max(classes) >= output.shape[1]:
                raise UserError(
                    f"{self._source} has {output.shape[1]} classes, 0 to {output.shape[1] - 1}, not {max(classes)}"
                )
            if settings.activation == "softmax" and output.shape[1] == 1:
                raise UserError(
                    f"{self._source} has one class, of which softmax makes 1 everywhere: choose --activation "
                    "sigmoid, or none where its output lies in 0..1 already"
                )
            scores = _activated(output.float(), settings.activation)[:, classes]
        return F.interpolate(scores, size, mode="bilinear", align_corners=False)[0].clamp(0, 1).numpy()


def _first(output: Any) -> Tensor:
    while not isinstance(output, Tensor | np.ndarray):
        output = next(iter(output.values())) if isinstance(output, dict) else output[0]
    return torch.as_tensor(output).cpu()


def _activated(output: Tensor, activation: str) -> Tensor:
    if activation == "none":
        return output
    return output.softmax(1) if activation == "softmax" else output.sigmoid()


def load_onnx(path: Path, preprocessing: Preprocessing) -> ExternalModel:
    """A model in an ONNX file, run by onnxruntime on the CPU.

    An input of fixed size sets the size that photos are resized to.

    Raises:
        UserError: onnxruntime is not installed, or it cannot read the file.
    """
    if importlib.util.find_spec("onnxruntime") is None:
        raise UserError(f"{path} needs onnxruntime, which is not installed: pip install onnxruntime")
    import onnxruntime
    from onnxruntime.capi.onnxruntime_pybind11_state import (
        Fail,
        InvalidArgument,
        InvalidGraph,
        InvalidProtobuf,
        NoSuchFile,
    )

    try:
        session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    except (Fail, InvalidArgument, InvalidGraph, InvalidProtobuf, NoSuchFile) as error:
        raise UserError(f"{path} is not a model that onnxruntime can read: {error}") from error
    entry = session.get_inputs()[0]
    if len(entry.shape) == 4 and all(isinstance(edge, int) for edge in entry.shape[2:]):
        preprocessing = preprocessing._replace(size=(entry.shape[2], entry.shape[3]))
    return ExternalModel(lambda image: session.run(None, {entry.name: image.numpy()}), preprocessing, path)


def load_torchscript(path: Path, preprocessing: Preprocessing, *, trusted: bool) -> ExternalModel:
    """A model in a TorchScript archive.

    Args:
        path: the archive. preprocessing: see there.
        trusted: that its source is trusted like that of a program.

    Raises:
        UserError: it is not trusted, or not a TorchScript archive.
    """
    if not trusted:
        raise UserError(
            f"{path} is a TorchScript archive: a program, not data, and loading it means running it. If you trust "
            "its source as you would trust a program's, say so with --trust-torchscript; otherwise use ONNX."
        )
    try:
        model = torch.jit.load(str(path), map_location="cpu").eval()
    except (RuntimeError, ValueError) as error:
        raise UserError(f"{path} is not a TorchScript archive: {str(error).splitlines()[0]}") from error

    def run(image: Tensor) -> Any:
        with torch.inference_mode():
            return model(image)

    return ExternalModel(run, preprocessing, path)
