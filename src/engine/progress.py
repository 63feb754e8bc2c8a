"""The bar that shows how far a run is."""

from __future__ import annotations

import math
import sys
import time
from typing import Any

from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks.progress.tqdm_progress import TQDMProgressBar

_TERMINAL_SECONDS = 1.0
_LOG_SECONDS = 30.0
_SCORES = ("val/", "test/")


class RunProgressBar(TQDMProgressBar):
    """Counts the optimiser's steps of the whole run, a resumed one from where it goes on.

    Lightning's own counts the batches of an epoch. This one moves with time rather than with batches, which last from
    milliseconds to many seconds: a move of the training bar reads the loss from the device. Scores are in percent.

    Args:
        seconds: least time between two moves; None: 1 in a terminal, 30 where the output goes to a file.
    """

    def __init__(self, seconds: float | None = None) -> None:
        super().__init__(refresh_rate=1)
        if seconds is None:
            seconds = _TERMINAL_SECONDS if sys.stdout.isatty() else _LOG_SECONDS
        self.seconds = seconds
        self._moved = -math.inf

    def on_train_start(self, trainer: Trainer, *_: Any) -> None:
        self.train_progress_bar = bar = self.init_train_tqdm()
        steps = trainer.estimated_stepping_batches
        bar.total = None if math.isinf(steps) else int(steps)
        bar.initial = bar.n = trainer.global_step  # steps of an earlier run do not count in the speed
        bar.refresh()

    def on_train_epoch_start(self, trainer: Trainer, *_: Any) -> None:
        """The bar does not start again with an epoch."""

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if self._should_update(trainer.global_step, trainer.max_steps):
            self.train_progress_bar.n = trainer.global_step
            self.train_progress_bar.set_postfix(self.get_metrics(trainer, pl_module))

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Nor does it move at its end."""

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._catch_up(trainer)
        super().on_validation_end(trainer, pl_module)

    def on_train_end(self, trainer: Trainer, *_: Any) -> None:
        self._catch_up(trainer)
        super().on_train_end()

    def _catch_up(self, trainer: Trainer) -> None:
        if trainer.state.fn == "fit" and not trainer.sanity_checking:
            self.train_progress_bar.n = trainer.global_step

    def get_metrics(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, Any]:
        metrics = super().get_metrics(trainer, pl_module)
        metrics.pop("v_num", None)  # the logger's version, a random name in W&B
        return {
            name: f"{value:.1f}%" if name.startswith(_SCORES) and isinstance(value, float) else value
            for name, value in metrics.items()
        }

    def _should_update(self, current: int, total: int | float) -> bool:
        now = time.monotonic()
        if not self.is_enabled or (now - self._moved < self.seconds and current != total):
            return False
        self._moved = now
        return True
