"""What a run leaves to go on from, and how it ends: by steps, epochs, time or a signal."""

from __future__ import annotations

import itertools
import logging
import math
import signal
import threading
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any

from lightning import Callback, LightningModule, Trainer
from lightning.fabric.plugins.environments import LightningEnvironment
from lightning.pytorch.callbacks import ModelCheckpoint, Timer
from lightning.pytorch.plugins.io import TorchCheckpointIO
from lightning.pytorch.utilities.exceptions import SIGTERMException
from torch import nn

from src.checkpoints.files import read_file, write_file
from src.engine.slurm import requeue
from src.errors import INTERRUPTED
from src.structures import CropBatch

log = logging.getLogger(__name__)


def last_checkpoint(run_folder: Path) -> Path:
    """Where a run keeps the checkpoint to go on from."""
    return run_folder / "checkpoints" / "last.ckpt"


class WholeCheckpoints(TorchCheckpointIO):
    """Checkpoints that replace those before them only when they are whole.

    Lightning writes to the system's folder for temporary files first, and copies from there over the checkpoint where
    that is another disk.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        write_file(path, checkpoint)


class RunTimer(Timer):
    """Ends training after some time of this process; Lightning's counts what came before a resume too."""

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Begin anew."""


class BestCheckpoint(ModelCheckpoint):
    """Keeps the checkpoint of the best validation.

    In the folder of an earlier part of the run, that part's best counts too: what training goes on from may have been
    written before it.
    """

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_train_start(trainer, pl_module)
        state = None
        if trainer.ckpt_path and trainer.is_global_zero:
            found = Path(str(self.dirpath)) / f"{self.filename}{self.FILE_EXTENSION}"
            content = read_file(found) if found.is_file() else {}
            if content.get("global_step", math.inf) <= trainer.global_step:
                state = content["callbacks"].get(self.state_key)
        if state := trainer.strategy.broadcast(state):
            self.load_state_dict(state)


def keep_if_best(checkpoint: Path, run_folder: Path, score: float) -> None:
    """Copy a checkpoint, whose validation came after its run, to the run's best one if it is that.

    Args:
        checkpoint: of the last step. score: what ``BestCheckpoint`` goes by, of that checkpoint.
    """
    best = run_folder / "checkpoints" / "best.ckpt"
    if best.is_file():
        states = read_file(best).get("callbacks", {})
        known = [state["best_model_score"] for state in states.values() if "best_model_score" in state]
        if any(before is not None and float(before) >= score for before in known):
            return
    write_file(best, read_file(checkpoint))


class LastCheckpoint(ModelCheckpoint):
    """Keeps one checkpoint to resume from: of every ``every_n_train_steps``-th step, and of the last one.

    The last one is also the one before SIGTERM ends the run, as clusters send it, or Ctrl-C: where there are several
    processes, they ask each other after every step, and all end with the one in which the first has heard of it. A
    step that accumulates is finished first, and of several processes a validation that has begun, before which all
    was saved. A second Ctrl-C ends the run at once. SLURM's signal before its time limit (``--signal=SIGUSR1@90``) is
    heeded like SIGTERM, and then the job is queued again.
    """

    _told_to_stop = False
    _interrupted = False
    _requeues = False

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        super().setup(trainer, pl_module, stage)
        # Lightning's own ends a run between the end of a step and what is saved there, and broadcasts to other
        # processes from within the handler, amid whatever they exchange just then; so does its answer to SLURM, which
        # saves from within the handler too, to where only a run in the same folder would look
        connector: Any = trainer._signal_connector
        connector._sigterm_notifier_fn = partial(self._hear, trainer)
        connector._slurm_sigusr_handler_fn = partial(self._hear, trainer)
        connector._sigterm_handler_fn = _say_nothing  # on SLURM it says that the signal is passed over

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._told_to_stop &= trainer.world_size > 1  # which a validation before training does not end

    def _hear(self, trainer: Trainer, number: int, _: FrameType | None) -> None:
        """Note that the run is to stop, and tell the processes that this one has started."""
        if number == signal.SIGINT:  # which a terminal sends to all processes
            signal.signal(signal.SIGINT, signal.default_int_handler)
            self._interrupted = True
            if trainer.is_global_zero:
                after = "" if trainer.validating else " after this step"
                log.warning("stopping%s; Ctrl-C again ends at once", after)
        elif number != signal.SIGTERM:
            self._requeues = True
        elif not self._told_to_stop and trainer.strategy.launcher is not None:
            trainer.strategy.launcher.kill(number)
        self._told_to_stop = True
        if trainer.world_size == 1 and trainer.validating:
            trainer._signal_connector.received_sigterm = True  # ends the validation

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_train_start(trainer, pl_module)
        if signal.getsignal(signal.SIGINT) is signal.default_int_handler and (
            threading.current_thread() is threading.main_thread()
        ):
            # Lightning puts back what was there when training ends
            signal.signal(signal.SIGINT, partial(self._hear, trainer))
        # after a resume Lightning would save this step again after its next batch, inside a step that accumulates
        self._last_global_step_saved = trainer.global_step

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: CropBatch, batch_idx: int
    ) -> None:
        every = self._every_n_train_steps
        if every and trainer.global_step % every == 0:
            _check_finite(trainer, pl_module)
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
        between_steps = not trainer.fit_loop._should_accumulate()
        if not between_steps:  # as after trainer.max_time, which asks again after the next batch
            trainer.should_stop = False
        if between_steps and trainer.world_size > 1:
            self._told_to_stop = trainer.strategy.reduce_boolean_decision(self._told_to_stop, all=False)
            if self._told_to_stop:
                self._requeues = trainer.strategy.reduce_boolean_decision(self._requeues, all=False)
        if self._told_to_stop:
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
            if self._told_to_stop and (trainer.world_size == 1 or trainer.received_sigterm):
                raise SIGTERMException  # on all processes, which would leave the validation at different photos

    def _save_now(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not self._should_skip_saving_checkpoint(trainer):  # as when this step is saved already
            _check_finite(trainer, pl_module)
            self._save_checkpoint(trainer, self.format_checkpoint_name({}))

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Say how the run can go on."""
        super().on_exception(trainer, pl_module, exception)
        if isinstance(exception, SIGTERMException):
            if self._interrupted:
                exception.code = INTERRUPTED
            if trainer.local_rank > 0 and isinstance(_environment(trainer), LightningEnvironment):
                exception.code = 0  # Lightning kills the process that started this one if it fails
        # lost weights come again in an exact resume; that error gives advice of its own
        if trainer.is_global_zero and not isinstance(exception, FloatingPointError):
            if trainer.state.fn == "fit":
                self._advise(trainer, pl_module)
            if isinstance(exception, SIGTERMException):
                self._requeue_if_told()

    def on_validation_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        """Requeue at once: several processes finish a validation, which may take longer than they are given."""
        if trainer.state.fn == "fit" and trainer.is_global_zero:
            self._requeue_if_told()

    def _requeue_if_told(self) -> None:
        if self._requeues:
            self._requeues = False
            requeue()

    def _advise(self, trainer: Trainer, pl_module: LightningModule) -> None:
        path = self._last_checkpoint_saved or trainer.ckpt_path
        config: Any = getattr(pl_module, "config", {})
        again = "given again" if config.get("resume") == "auto" else f"given again with resume={path}"
        if not path:
            log.warning(
                "stopped after step %d; no checkpoint had been written yet (recipe.save_every is %d steps)",
                trainer.global_step,
                self._every_n_train_steps,
            )
        elif self._last_global_step_saved == trainer.global_step and is_last_step(trainer):
            log.warning(
                "all %d steps are done, but not scored: the command, %s, scores them",
                trainer.global_step,
                again,
            )
        else:
            log.warning(
                "stopped after step %d; the command, %s, resumes at step %d",
                trainer.global_step,
                again,
                self._last_global_step_saved,
            )


def _say_nothing(*_: Any) -> None: ...


def _environment(trainer: Trainer) -> object:
    """What has started the processes of a run; None where there is one alone."""
    return getattr(trainer.strategy, "cluster_environment", None)


def is_last_step(trainer: Trainer) -> bool:
    """Whether training ends with the step that is done, by ``max_steps`` or by ``max_epochs``."""
    epochs = trainer.current_epoch + 1 == trainer.max_epochs
    return trainer.global_step == trainer.max_steps or (epochs and trainer.is_last_batch)


def _check_finite(trainer: Trainer, module: nn.Module) -> None:
    """Raise, on all processes, instead of putting weights that are lost in the place of a good checkpoint.

    The first process's count: its weights are everyone's, and so are its statistics of norms before the next step.
    """
    held = (
        itertools.chain(module.named_parameters(), module.named_buffers()) if trainer.is_global_zero else ()
    )
    lost = [name for name, tensor in held if not tensor.isfinite().all()]
    if lost := trainer.strategy.broadcast(lost):
        raise FloatingPointError(
            f"step {trainer.global_step}: {len(lost)} weights or statistics are not finite, first {lost[0]}. The "
            "last checkpoint is intact: go on from it with resume and trainer.precision=32-true or a lower "
            "recipe.optimiser.clip_norm, "
            "or start anew with a lower recipe.optimiser.lr."
        )


class LastValidation(Callback):
    """Validates after the last step too, whatever the interval, so that a run ends with scores of what it made."""

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: CropBatch, batch_idx: int
    ) -> None:
        if is_last_step(trainer):
            trainer.should_stop = True  # Lightning validates before it stops
