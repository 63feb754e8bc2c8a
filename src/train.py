"""Train a network: ``python -m src.train [experiment=...] [data=...] [recipe=...] [key=value ...]``.

Composes the configuration, instantiates its parts and hands them to Lightning.
"""

from __future__ import annotations

import logging
import os
import sys
import traceback
from pathlib import Path
from typing import Any

import hydra
import lightning
import torch
import wandb
from hydra.core.hydra_config import HydraConfig
from hydra.errors import InstantiationException
from hydra.types import RunMode
from lightning import Callback, Trainer
from lightning.pytorch.callbacks import LearningRateMonitor
from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities import rank_zero_only
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from omegaconf import DictConfig, OmegaConf
from torch import nn

from src.checkpoints.growth import start_from
from src.config import CONFIG_DIR, build, refuse_unknown, run, sweep_jobs, to_plain
from src.data.datamodule import SegmentationDataModule
from src.engine.callbacks import LeanSteps, SynchronisedNorms
from src.engine.checkpointing import RunTimer, WholeCheckpoints, keep_if_best, last_checkpoint
from src.engine.checks import check_counts, check_pooled_norms, check_precision, monitored, tell_crops
from src.engine.logging import quiet_lightning
from src.engine.module import SegmentationModule
from src.engine.optimisation import Optimisation
from src.engine.report import means_line, print_results
from src.engine.resuming import check_resumable, set_aside_earlier
from src.engine.sweep import SweepRun, mean_scores, print_sweep
from src.errors import UserError, explained, message_of
from src.models.recomputation import checkpoint_network
from src.models.segmenter import count_parameters

log = logging.getLogger(__name__)

_failed: list[int] = []  # runs of a sweep, by number

_AUTO = "auto"  # as resume: from the run's own folder


@hydra.main(version_base="1.3", config_path=CONFIG_DIR, config_name="train")
def main(config: DictConfig) -> float | None:
    """Train as configured; returns the validation BIoU in percent, which sweepers may maximise."""
    sweeps = HydraConfig.get().mode == RunMode.MULTIRUN
    with explained(go_on=sweeps, after_interrupt="no step was under way; what has been written stays"):
        announce(config)
        try:
            return train(config)
        except UserError as error:
            if not sweeps or not _in_this_process():
                raise
            number = HydraConfig.get().job.num
            print(f"error: run {number}: {message_of(error)}", file=sys.stderr)
            _failed.append(number)  # Hydra would end with its traceback
            return None
        except Exception:
            if sweeps and torch.distributed.is_initialized() and torch.distributed.get_world_size() > 1:
                traceback.print_exc()
                os._exit(1)  # or it would go on with the next run, while the others wait for it in this one
            raise
        finally:
            if sweeps:
                _show_sweep(Path(HydraConfig.get().sweep.dir))


def _in_this_process() -> bool:
    """Whether Hydra's own sweeper and launcher are at work, and not a plugin that has to hear of failures."""
    chosen = HydraConfig.get().runtime.choices
    return chosen["hydra/launcher"] == "basic" and chosen["hydra/sweeper"] == "basic"


def train(config: DictConfig) -> float | None:
    """Train and validate; results lie in ``config.run_dir``."""
    quiet_lightning()
    plain = to_plain(config)
    refuse_unknown(plain["recipe"], "recipe/*.yaml", "recipe.")
    check_counts(plain["recipe"])
    if plain["trainer"]["max_steps"] == -1 and plain["trainer"].get("max_epochs") in (-1, None):
        raise UserError("recipe.steps=-1 trains without end: give trainer.max_epochs, or a number of steps")
    folder, resume = Path(config.run_dir), _resumed(config)
    if resume:
        steps = check_resumable(resume, plain)
        table, asked = folder / "scores.json", plain["trainer"]["max_steps"]
        if steps > asked > 0:
            raise UserError(f"{resume} has done {steps} steps, more than recipe.steps={asked}")
        if config.resume == _AUTO and steps == asked and table.is_file():
            log.info("all %d steps are done, and %s has the scores", steps, table)
            return 100 * mean_scores(table)[1]
        log.info("resuming after step %d, from %s", steps, resume)
    lightning.seed_everything(config.seed, workers=True, verbose=False)
    torch.set_float32_matmul_precision("high")

    data: SegmentationDataModule = build(config.data)
    data.prepare_data()
    data.setup("fit")  # faults of the data are told before a network is built and a run recorded
    module = SegmentationModule(
        network=_network(config, fresh=resume is None),
        criterion=build(config.loss),
        optimisation=Optimisation(**plain["recipe"]["optimiser"]),
        class_names=list(config.data.classes),
        metrics=plain["metrics"],
        seed=config.seed,
        config=plain,
    )
    check_pooled_norms(module.network, plain)
    monitor = monitored(plain, module.score_names)
    trainer = _trainer(config, plain)
    data.check_epoch(trainer.world_size, trainer.accumulate_grad_batches)
    tell_crops(plain, trainer.world_size)
    set_aside_earlier(folder, resume)  # now that nothing is left to refuse
    try:
        if trainer.is_global_zero:
            folder.mkdir(parents=True, exist_ok=True)
            OmegaConf.save(OmegaConf.create(plain), folder / "config.yaml")
        untrained = None
        if config.recipe.validate_first and not resume:
            trainer.validate(module, data, verbose=False)
            untrained = module.latest_scores
            if untrained is not None:
                log.info("before training: %s", means_line(untrained))
        trainer.fit(module, data, ckpt_path=resume, weights_only=True)
        early = trainer.global_step < trainer.max_steps and trainer.max_epochs == -1
        if resume and not early and module.latest_scores is None:  # the run was ended in its last validation
            trainer.validate(module, data, verbose=False)
            if (
                trainer.is_global_zero
                and monitor
                and (value := trainer.callback_metrics.get(monitor)) is not None
            ):
                keep_if_best(Path(resume), folder, float(value))
        wandb.finish()  # says what it has to say before the results
        if trainer.is_global_zero and early:
            again = "" if config.resume == _AUTO else f" with resume={last_checkpoint(folder)}"
            log.warning(
                "ended after step %d of %d; the command, given again%s, resumes there",
                trainer.global_step,
                trainer.max_steps,
                again,
            )
        if trainer.is_global_zero:
            scores = None if module.latest_scores is untrained else module.latest_scores
            print_results(folder, module.class_names, trainer.global_step, scores, untrained)
        score = trainer.callback_metrics.get("val/mBIoU")
        return None if score is None else float(score)
    finally:
        wandb.finish()  # or the next job of a sweep would join this run


@rank_zero_only
def _show_sweep(folder: Path) -> None:
    """The table of the runs so far; what goes wrong with it must not spoil a run that has succeeded."""
    try:
        print_sweep(folder, [SweepRun(*job) for job in sweep_jobs(folder)])
    except Exception as error:
        log.warning("no table of the sweep: %s", error)


def announce(config: DictConfig) -> None:
    """Say first which data and recipe are used, and how to choose others."""
    choices = HydraConfig.get().runtime.choices
    log.info(
        "%s: model/size=%s (%s), data=%s (%s%s), recipe=%s (%s steps of %s crops per device, %s px)",
        config.name,
        choices.get("model/size"),
        config.model.backbone.name,
        choices["data"],
        config.data.get("root"),
        f" from the store {config.data.store}" if config.data.get("store") else "",
        choices["recipe"],
        config.recipe.steps,
        config.recipe.batch_size,
        config.recipe.crop_size,
    )
    if choices["data"] == "synthetic":
        log.info(
            "These are the embedded synthetic scenes. For the benchmark: "
            "data=mass13k data.root=<folder> recipe=paper; for your own photos: data=own data.root=<folder>."
        )


def _resumed(config: DictConfig) -> str | None:
    """The checkpoint to go on from, if there is one."""
    if config.resume != _AUTO:
        return str(Path(config.resume).expanduser()) if config.resume else None
    last = last_checkpoint(Path(config.run_dir))
    if last.is_file():
        return str(last)
    log.info("resume=auto: there is no %s yet, so training begins", last)
    return None


def _network(config: DictConfig, *, fresh: bool) -> nn.Module:
    described = to_plain(config.model)["network"]
    if config.init_from or not fresh:
        described["backbone"]["weights"] = (
            "none"  # a checkpoint brings them; nothing is fetched to be replaced
        )
    network: nn.Module = build(described)
    if config.init_from and fresh:
        others = config.data.others if "new_classes" in config.data else None
        start_from(network, config.init_from, list(config.data.classes), others)
    if config.activation_checkpointing:
        checkpoint_network(network)
    if config.channels_last:
        network.to(memory_format=torch.channels_last)
    if config.compile:
        network.compile()
    log.info("%.2f M parameters", count_parameters(network) / 1e6)
    return network


def _trainer(config: DictConfig, plain: dict[str, Any]) -> Trainer:
    check_precision(str(config.trainer.precision))
    loggers: list[Logger] = []
    for name, node in config.logger.items():
        if node is not None:
            logger = build(node)
            loggers.append(logger(config=plain) if name == "wandb" else logger)
    # without ours, and without being told, Lightning would show a bar of its own
    bar = config.trainer.get("enable_progress_bar", config.callbacks.get("progress") is not None)
    chosen = [node for name, node in config.callbacks.items() if node and (bar or name != "progress")]
    callbacks: list[Callback] = [build(node) for node in chosen]
    if not loggers:  # or it would refuse to work
        callbacks = [callback for callback in callbacks if not isinstance(callback, LearningRateMonitor)]
    if config.activation_checkpointing:
        callbacks.append(LeanSteps())
    if limit := plain["trainer"].get("max_time"):
        callbacks.append(RunTimer(limit))
    kept = [callback for callback in callbacks if callback is not None]
    try:
        return build(
            config.trainer,
            logger=loggers,
            callbacks=kept,
            plugins=[WholeCheckpoints(), *([SynchronisedNorms()] if config.trainer.sync_batchnorm else [])],
            enable_progress_bar=bar,
            max_time=None,  # see above
        )
    except InstantiationException as error:
        if isinstance(error.__cause__, MisconfigurationException | ValueError):
            raise UserError(f"these trainer options cannot be met: {error.__cause__}") from error
        raise


if __name__ == "__main__":
    run(main, together=True)
    if _failed:
        print(f"error: these runs of the sweep failed: {', '.join(map(str, _failed))}", file=sys.stderr)
        raise SystemExit(1)
