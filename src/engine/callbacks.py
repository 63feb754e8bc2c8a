"""Callbacks: averaged weights, throughput, and pictures of predictions while training."""

from __future__ import annotations

import logging
import time
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import EMAWeightAveraging
from lightning.pytorch.loggers import WandbLogger
from lightning.pytorch.plugins.layer_sync import TorchSyncBatchNorm
from lightning.pytorch.utilities import move_data_to_device
from numpy.typing import NDArray
from timm.layers import convert_sync_batchnorm
from torch import Tensor, nn

from src.allocation import return_freed_memory
from src.metrics.complexity import mean_complexity
from src.metrics.suite import ImageScores, SegmentationMetrics
from src.pictures import index_png, panel, write_image
from src.structures import CropBatch, LabelledImage

log = logging.getLogger(__name__)


def weight_averaging(decay: float | None) -> Callback | None:
    """Moving average of weights and buffers for validation and checkpoints; None without a decay."""
    return None if decay is None else EMAWeightAveraging(decay=decay)


class SynchronisedNorms(TorchSyncBatchNorm):
    """BatchNorm over all processes, also where timm's does the activation too, which Lightning would lose."""

    def apply(self, model: nn.Module) -> nn.Module:
        return convert_sync_batchnorm(model)

    def revert(self, model: nn.Module) -> nn.Module:
        """Leave them: outside of training they are ordinary ones, and Lightning would lose activations here too."""
        return model


class Throughput(Callback):
    """Logs crops per second of this process and the share of the time spent waiting for data."""

    def __init__(self, every: int = 10) -> None:
        self.every = every
        self._crops = 0
        self._waited = 0.0
        self._since = self._idle_since = time.perf_counter()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._restart()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._restart()

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: CropBatch, batch_idx: int
    ) -> None:
        # what callbacks do after a batch, such as saving, is no waiting
        idle_since = max(self._idle_since, getattr(pl_module, "batch_ended", 0.0))
        self._waited += time.perf_counter() - idle_since

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: CropBatch, batch_idx: int
    ) -> None:
        self._crops += len(batch.images)
        if (
            not self.every or trainer.fit_loop.epoch_loop.total_batch_idx % self.every != self.every - 1
        ):  # epochs may be shorter
            return
        elapsed = time.perf_counter() - self._since
        pl_module.log("throughput/crops_per_second", self._crops / elapsed)
        pl_module.log("throughput/data_wait_share", self._waited / elapsed)
        self._restart()

    def _restart(self) -> None:
        self._crops, self._waited = 0, 0.0
        self._since = self._idle_since = time.perf_counter()


class LeanSteps(Callback):
    """Gives memory back between the parts of a step: gradients when they are used, and what the C library keeps."""

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Tensor) -> None:
        return_freed_memory()

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: object) -> None:
        if trainer.accumulate_grad_batches == 1:
            for optimiser in trainer.optimizers:
                optimiser.zero_grad()  # Lightning would keep gradients until the next backward pass
        return_freed_memory()


class PerImageScores(Callback):
    """Keeps the measurements of every evaluated image by name, those of other processes too when they end.

    Args:
        predictions: folder for the label maps, ``<name>.png`` with class ids; None writes none.
        colours: (K, 3) RGB, palette of these files.

    Attributes:
        predictions: as given, or None after a file could not be written.
        scores: measurements behind IoU, BIoU and BF1.
        complexity: mean IPQ over the labelled classes.
    """

    def __init__(self, predictions: Path | None, colours: NDArray[np.uint8]) -> None:
        self.predictions = predictions
        self.colours = colours
        self.scores: dict[str, ImageScores] = {}
        self.complexity: dict[str, float] = {}

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        # processes that srun or torchrun starts each name their run by the time
        self.predictions = trainer.strategy.broadcast(self.predictions)

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: LabelledImage,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        metrics = pl_module.scores
        assert isinstance(metrics, SegmentationMetrics)
        assert metrics.latest is not None
        self.scores[batch.name] = metrics.latest
        self.complexity[batch.name] = mean_complexity(batch.label.cpu().numpy(), metrics.num_classes)
        if self.predictions is not None:
            try:
                index_png(
                    self.predictions / f"{batch.name}.png",
                    outputs.to(torch.uint8).cpu().numpy(),
                    self.colours,
                )
            except OSError as error:  # as on a full disk, which must not cost the scores
                log.warning(
                    "%s: label maps are written no more, and there will be no report: %s",
                    self.predictions,
                    error.strerror,
                )
                self.predictions = None

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.world_size == 1:
            return
        ours = {
            name: (move_data_to_device(scores, "cpu"), self.complexity[name])
            for name, scores in self.scores.items()
        }
        gathered: list[dict[str, tuple[ImageScores, float]] | None] = [None] * trainer.world_size
        torch.distributed.all_gather_object(gathered, ours)
        for share in gathered:
            for name, (scores, complexity) in (share or {}).items():
                self.scores[name], self.complexity[name] = scores, complexity

    def on_test_batch_end(self, *arguments: Any, **named: Any) -> None:
        self.on_validation_batch_end(*arguments, **named)

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.on_validation_epoch_end(trainer, pl_module)


class PredictionPanels(Callback):
    """Pictures of the first evaluation images: photo, label, prediction, errors, and a zoom on boundaries.

    Args:
        folder: where PNGs go, one sub-folder per step.
        colours: class name -> RGB.
        images: how many.
    """

    def __init__(self, folder: str, colours: dict[str, list[int]], images: int = 3) -> None:
        self.folder = Path(folder)
        self.names = tuple(colours)
        self.colours = np.array(list(colours.values()), dtype=np.uint8)
        self.images = images
        self._panels: dict[str, np.ndarray] = {}

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: LabelledImage,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        if trainer.is_global_zero and batch_idx < self.images:
            label = batch.label.cpu().numpy()
            image = batch.image.permute(1, 2, 0).cpu().numpy()
            if (
                image.shape[:2] != label.shape
            ):  # photos beyond the evaluation limit are reduced, labels are not
                image = cv2.resize(image, label.shape[::-1]).astype(np.uint8, copy=False)
            self._panels[batch.name] = panel(
                image,
                label,
                outputs.to(torch.uint8).cpu().numpy(),
                self.colours,
                self.names,
            )

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        step = trainer.global_step
        for name, picture in self._panels.items():
            write_image(self.folder / f"step_{step:06d}" / f"{name}.png", picture)
        for logger in trainer.loggers:
            if isinstance(logger, WandbLogger) and self._panels:
                logger.log_image(
                    "predictions", list(self._panels.values()), step=None, caption=list(self._panels)
                )
        self._panels = {}
