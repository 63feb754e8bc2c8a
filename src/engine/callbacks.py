"""Callbacks: averaged weights, throughput, and pictures of predictions while training."""

from __future__ import annotations

import itertools
import logging
import time
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import EMAWeightAveraging, ModelCheckpoint, Timer
from lightning.pytorch.loggers import WandbLogger
from lightning.pytorch.plugins.io import TorchCheckpointIO
from lightning.pytorch.plugins.layer_sync import TorchSyncBatchNorm
from lightning.pytorch.utilities import move_data_to_device
from numpy.typing import NDArray
from timm.layers import convert_sync_batchnorm
from torch import Tensor, nn

from src.allocation import return_freed_memory
from src.checkpoints.store import write_file
from src.metrics.complexity import mean_complexity
from src.metrics.suite import ImageScores, SegmentationMetrics
from src.pictures import index_png, panel, write_image
from src.structures import CropBatch, LabelledImage

log = logging.getLogger(__name__)


def weight_averaging(decay: float | None) -> Callback | None:
    """Moving average of weights and buffers for validation and checkpoints; None without a decay."""
    return None if decay is None else EMAWeightAveraging(decay=decay)


class WholeCheckpoints(TorchCheckpointIO):
    """Checkpoints that replace those before them only when they are whole.

    Lightning writes to the system's folder for temporary files first, and copies from there over the checkpoint where
    that is another disk.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        write_file(path, checkpoint)


class SynchronisedNorms(TorchSyncBatchNorm):
    """BatchNorm over all processes, also where timm's does the activation too, which Lightning would lose."""

    def apply(self, model: nn.Module) -> nn.Module:
        return convert_sync_batchnorm(model)

    def revert(self, model: nn.Module) -> nn.Module:
        """Leave them: outside of training they are ordinary ones, and Lightning would lose activations here too."""
        return model


class RunTimer(Timer):
    """Ends training after some time of this process; Lightning's counts what came before a resume too."""

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Begin anew."""


class LastCheckpoint(ModelCheckpoint):
    """Keeps one checkpoint to resume from: of every ``every_n_train_steps``-th step, and of the last one.

    The last one is also the one before SIGTERM ends the run, as clusters send it, where there is one process: several
    may hear of it at different steps, and one would wait for the others. A step that accumulates is finished first.
    """

    _told_to_stop = False

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_train_start(trainer, pl_module)
        # after a resume Lightning would save this step again behind its next batch, inside a step that accumulates
        self._last_global_step_saved = trainer.global_step
        self._told_to_stop = False

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: CropBatch, batch_idx: int
    ) -> None:
        every = self._every_n_train_steps
        if every and trainer.global_step % every == 0:
            _check_finite(pl_module, trainer.global_step)
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
        between_steps = not trainer.fit_loop._should_accumulate()
        if not between_steps:  # as after trainer.max_time, which asks again behind the next batch
            trainer.should_stop = False
        if trainer.world_size == 1 and (self._told_to_stop or trainer.received_sigterm):
            self._told_to_stop = True
            trainer._signal_connector.received_sigterm = between_steps  # Lightning would stop inside a step
        # Not when training has ended: averaged weights have then taken the place of the trained ones.
        stops = self._told_to_stop or trainer.should_stop
        if is_last_step(trainer) or (stops and between_steps):
            self._save_now(trainer, pl_module)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save before SIGTERM could end the run inside a validation, when averaged weights are in place."""
        super().on_validation_start(trainer, pl_module)
        if trainer.state.fn == "fit" and not trainer.fit_loop._should_accumulate():
            self._save_now(trainer, pl_module)

    def _save_now(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not self._should_skip_saving_checkpoint(trainer):  # as when this step is saved already
            _check_finite(pl_module, trainer.global_step)
            self._save_checkpoint(trainer, self.format_checkpoint_name({}))

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Say how the run can go on."""
        super().on_exception(trainer, pl_module, exception)
        # lost weights come again in an exact resume; that error gives advice of its own
        if (
            trainer.state.fn != "fit"
            or not trainer.is_global_zero
            or isinstance(exception, FloatingPointError)
        ):
            return
        path = self._last_checkpoint_saved or trainer.ckpt_path
        if not path:
            log.warning(
                "stopped behind step %d; no checkpoint had been written yet (recipe.save_every is %d steps)",
                trainer.global_step,
                self._every_n_train_steps,
            )
        elif self._last_global_step_saved == trainer.max_steps:
            log.warning(
                "training had ended, and %s is complete: python -m src.evaluate checkpoint=... scores it",
                path,
            )
        else:
            log.warning(
                "stopped behind step %d; with resume=%s added to its overrides the run goes on from step %d",
                trainer.global_step,
                path,
                self._last_global_step_saved,
            )


def is_last_step(trainer: Trainer) -> bool:
    """Whether training ends with the step that is done, by ``max_steps`` or by ``max_epochs``."""
    epochs = trainer.current_epoch + 1 == trainer.max_epochs
    return trainer.global_step == trainer.max_steps or (epochs and trainer.is_last_batch)


def _check_finite(module: nn.Module, step: int) -> None:
    """Raise instead of putting weights that are lost in the place of a good checkpoint."""
    held = itertools.chain(module.named_parameters(), module.named_buffers())
    lost = [name for name, tensor in held if not tensor.isfinite().all()]  # statistics of norms count too
    if lost:
        raise FloatingPointError(
            f"step {step}: {len(lost)} weights or statistics are not finite, first {lost[0]}. The last checkpoint is "
            "intact: go on from it with resume and trainer.precision=32-true or a lower recipe.optimiser.clip_norm, "
            "or start anew with a lower recipe.optimiser.lr."
        )


class LastValidation(Callback):
    """Validates after the last step too, whatever the interval, so that a run ends with scores of what it made."""

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: CropBatch, batch_idx: int
    ) -> None:
        if is_last_step(trainer):
            trainer.should_stop = True  # Lightning validates before it stops


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
        self._waited += time.perf_counter() - self._idle_since

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: CropBatch, batch_idx: int
    ) -> None:
        self._crops += len(batch.images)
        self._idle_since = time.perf_counter()
        if (
            not self.every or trainer.fit_loop.epoch_loop.total_batch_idx % self.every != self.every - 1
        ):  # epochs may be shorter
            return
        elapsed = self._idle_since - self._since
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
            index_png(
                self.predictions / f"{batch.name}.png", outputs.to(torch.uint8).cpu().numpy(), self.colours
            )

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
