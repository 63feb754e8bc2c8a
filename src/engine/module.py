"""The LightningModule: one training step, one evaluation step, and what a checkpoint carries."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from lightning import LightningModule
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor, nn

from src.engine.optimisation import Optimisation
from src.inference import predict_labels
from src.metrics.suite import SegmentationMetrics
from src.structures import CropBatch, LabelledImage, TrainingPrediction


class SegmentationModule(LightningModule):
    """Trains and evaluates a segmenter.

    Args:
        network: the segmenter.
        criterion: maps a ``TrainingPrediction`` and ``Targets`` to weighted loss terms; None to evaluate only.
        optimisation: optimiser and schedule; None to evaluate only.
        class_names: K names, for the logged metrics.
        metrics: arguments of ``SegmentationMetrics`` besides the number of classes.
        seed: of the random points of the loss and of the backbone's stochastic depth.
        config: the resolved configuration, plain values; every checkpoint carries it.

    Attributes:
        latest_scores: of the latest evaluation; None before the first.
        batch_ended: when the latest batch of training was done, by ``time.perf_counter``.
    """

    def __init__(
        self,
        network: nn.Module,
        criterion: nn.Module | None,
        optimisation: Optimisation | None,
        class_names: Sequence[str],
        metrics: Mapping[str, Any] | None = None,
        seed: int = 0,
        config: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.network = network
        self.criterion = criterion
        self.optimisation = optimisation
        self.class_names = tuple(class_names)
        self.seed = seed
        self.config = dict(config or {})
        self.scores = SegmentationMetrics(len(self.class_names), **(metrics or {}))
        self.batch_ended = 0.0
        self.latest_scores: dict[str, Tensor] | None = None
        self.scores.persistent(False)  # a checkpoint needs no half-finished evaluation

    @property
    def score_names(self) -> list[str]:
        """What a validation logs: means as ``val/mIoU`` and classes as ``val_classes/IoU_person``."""
        metrics = ("IoU", "BIoU", "BF1") if self.scores.tolerances else ("IoU", "BIoU")
        means = [f"val/m{metric}" for metric in metrics]
        return means + [f"val_classes/{metric}_{name}" for metric in metrics for name in self.class_names]

    def on_train_batch_start(self, batch: CropBatch, batch_idx: int) -> None:
        """Make the step's random numbers a function of (seed, batch, rank), so that resuming is exact."""
        loop = self.trainer.fit_loop
        batches = loop.epoch_loop.total_batch_idx
        torch.manual_seed((self.seed * 1_000_003 + batches) * self.trainer.world_size + self.global_rank)

    def on_train_batch_end(self, outputs: Any, batch: CropBatch, batch_idx: int) -> None:
        self.batch_ended = time.perf_counter()  # Lightning calls this after all callbacks

    def training_step(self, batch: CropBatch, batch_idx: int) -> Tensor:
        """Sum of the weighted loss terms of a batch of crops.

        Raises:
            FloatingPointError: a term is not finite, on all processes if it is so on one. With fp16 too, whose
                gradient scaler mends gradients that overflow, not losses.
        """
        images = self.network.normalise(batch.images)  # type: ignore[operator]
        prediction: TrainingPrediction = self.network(images, batch.targets)
        assert self.criterion is not None, "this module was made for evaluation only"
        terms = self.criterion(prediction, batch.targets)
        total = torch.stack(list(terms.values())).sum()
        # one that raised alone would leave the others waiting for its gradients
        if self.trainer.strategy.reduce_boolean_decision(not total.isfinite(), all=False):
            bad = ", ".join(name for name, term in terms.items() if not term.isfinite())
            raise FloatingPointError(
                f"step {self.global_step}: {bad or 'the loss of another process'} not finite. The last checkpoint "
                "is intact: go on from it with resume=<run>/checkpoints/last.ckpt and trainer.precision=32-true or a "
                "lower recipe.optimiser.clip_norm, or start anew, maybe from its weights (init_from), with a lower "
                "recipe.optimiser.lr."
            )
        batch_size = len(batch.images)
        self.log("train/loss", total, prog_bar=True, batch_size=batch_size)
        last = {f"train/{name}": term for name, term in terms.items() if "." not in name}
        early = {f"train_layers/{name}": term for name, term in terms.items() if "." in name}
        self.log_dict(last | early, batch_size=batch_size)
        return total

    def validation_step(self, batch: LabelledImage, batch_idx: int) -> Tensor:
        """Label map of a whole image at its label's size; also fills ``scores``."""
        return self._evaluate(batch)

    def test_step(self, batch: LabelledImage, batch_idx: int) -> Tensor:
        return self._evaluate(batch)

    def on_validation_epoch_start(self) -> None:
        # Scores that a validation before training has reset under inference mode cannot be added to in training.
        self.scores.reset()

    def on_validation_epoch_end(self) -> None:
        self._log_scores("val")

    def on_test_epoch_end(self) -> None:
        self._log_scores("test")

    def _evaluate(self, batch: LabelledImage) -> Tensor:
        labels = predict_labels(self.network, batch.image, (batch.label.shape[-2], batch.label.shape[-1]))
        self.scores.update(labels, batch.label, batch.name)
        return labels

    def _log_scores(self, split: str) -> None:
        """Log means as ``val/mIoU`` and classes as ``val_classes/IoU_person``, in percent as the paper prints."""
        result = self.scores.compute()  # sums over processes
        self.latest_scores = {name: value.detach().cpu() for name, value in result.items()}
        for metric in ("IoU", "BIoU", "BF1"):
            if metric not in result:
                continue
            scale = 1.0 if metric == "BF1" else 100.0
            self.log(
                f"{split}/m{metric}",
                result[f"m{metric}"] * scale,
                prog_bar=metric != "BF1",
                rank_zero_only=True,
            )
            for name, value in zip(self.class_names, result[metric], strict=True):
                if not value.isnan():
                    self.log(f"{split}_classes/{metric}_{name}", value * scale, rank_zero_only=True)
        self.scores.reset()

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        assert self.optimisation is not None, "this module was made for evaluation only"
        optimiser = self.optimisation.optimiser(self.network, fused="mixed" not in self.trainer.precision)
        steps = int(self.trainer.estimated_stepping_batches)
        # With epochs to count, that has made the loader, before the place in it is known where a resumed run goes on.
        self.trainer.fit_loop._combined_loader = None
        schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, self.optimisation.schedule(steps))
        return {"optimizer": optimiser, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["config"] = self.config
