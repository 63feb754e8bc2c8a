"""An early look at training: predictions of the same few crops, every some steps."""

from __future__ import annotations

from itertools import islice
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import WandbLogger
from numpy.typing import NDArray
from torch import Tensor, nn

from src.data.datasets import EvaluationDataset
from src.inference import predict_labels
from src.pictures import IGNORED, WRONG, Picture, boundary_rich_window, error_map, overlay, write_image
from src.sheet import compose_sheet
from src.structures import LabelledImage


class EarlyLook(Callback):
    """Pictures of fixed crops while training: photo, label, prediction and errors, one row for each crop.

    The crops are the most boundary-rich windows of validation photos that are spread over the set, because neighbours
    often show one scene; of the first ones where the data arrives as a stream. Pictures of different steps and runs
    show the same places. The weights are those being trained, not their moving average.

    Args:
        folder: where the pictures go, ``step_000100.png``.
        colours: class name -> RGB.
        every: optimiser steps between pictures.
        crops: how many.
        size: edge of a crop, pixels.
    """

    def __init__(self, folder: str, colours: dict[str, list[int]], every: int, crops: int, size: int) -> None:
        self.folder = Path(folder)
        self.names = tuple(colours)
        self.colours = np.array(list(colours.values()), dtype=np.uint8)
        self.every = every
        self.crops = crops
        self.size = size
        self._fixed: list[tuple[Tensor, NDArray[np.uint8]]] = []
        self._last_step = 0

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        step = trainer.global_step
        # With gradient accumulation several batches end at one step.
        if (
            not trainer.is_global_zero
            or not self.every
            or not self.crops
            or step % self.every
            or step == self._last_step
        ):
            return
        self._last_step = step
        if not self._fixed:
            self._fixed = self._cut_crops(trainer)
        picture = self._drawn(pl_module)
        write_image(self.folder / f"step_{step:06d}.png", picture)
        for logger in trainer.loggers:
            if isinstance(logger, WandbLogger):
                logger.log_image("early look", [picture], step=None, caption=[f"step {step}"])

    def _cut_crops(self, trainer: Trainer) -> list[tuple[Tensor, NDArray[np.uint8]]]:
        """(3, S, S) photos and (S, S) label maps."""
        loader = trainer.datamodule.val_dataloader()  # type: ignore[attr-defined]
        photos: list[LabelledImage]
        if isinstance(loader.dataset, EvaluationDataset):
            count = len(loader.dataset)
            chosen = sorted({int(index) for index in np.linspace(0, count - 1, self.crops).round()})
            photos = [loader.dataset[index] for index in chosen]
        else:
            photos = list(islice(loader, self.crops))
        height = min(self.size, *(photo.image.shape[1] for photo in photos))
        width = min(self.size, *(photo.image.shape[2] for photo in photos))
        crops = []
        for photo in photos:
            # An evaluation photo may be smaller than its label map.
            size = (photo.image.shape[2], photo.image.shape[1])
            label = np.asarray(
                cv2.resize(photo.label.numpy(), size, interpolation=cv2.INTER_NEAREST), np.uint8
            )
            window = boundary_rich_window(label, (height, width))
            crop = photo.image[:, window.top : window.top + height, window.left : window.left + width]
            crops.append((crop.contiguous(), window.cut(label).copy()))
        return crops

    def _drawn(self, module: LightningModule) -> Picture:
        network = module.network
        assert isinstance(network, nn.Module)
        training = network.training
        network.eval()
        rows = []
        for image, label in self._fixed:
            size = (label.shape[0], label.shape[1])
            predicted = predict_labels(network, image.to(module.device), size).to(torch.uint8).cpu().numpy()
            photo = image.permute(1, 2, 0).numpy()
            pictures = (photo, overlay(photo, label, self.colours), overlay(photo, predicted, self.colours))
            rows.append([*pictures, error_map(photo, predicted, label)])
        network.train(training)
        legend: list[tuple[str, tuple[int, ...]]] = [
            (name, tuple(colour)) for name, colour in zip(self.names, self.colours.tolist(), strict=True)
        ]
        legend += [("wrong", WRONG), ("ignored", IGNORED)]
        return compose_sheet(rows, ("Photo", "Label", "Prediction", "Errors"), legend)
