"""Whether an interrupted run would go on as it is configured now, and what a new one does not replace."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch.utilities import rank_zero_only

from src.checkpoints.files import read_training
from src.engine.checkpointing import last_checkpoint
from src.errors import UserError

log = logging.getLogger(__name__)

# values of the optimiser's groups, which a resumed run takes from the checkpoint
_RESTORED = ("lr", "weight_decay", "backbone_lr_factor", "offset_lr_factor")
# parts of the configuration that steps follow from
_FELT = (
    "seed",
    "data",
    "loss",
    "trainer",
    "recipe.steps",
    "recipe.ema_decay",
    "recipe.optimiser.warmup_steps",
    "recipe.optimiser.clip_norm",
)
# and what they do not follow from in these
_NOT_FELT = (
    "data.augment_on",
    "data.cache_folder",
    "data.cache_gigabytes",
    "data.classes",  # compared by themselves
    "data.enlarge",
    "data.evaluation_class_map",
    "data.evaluation_limit",
    "data.num_workers",
    "data.seed",  # the run's
    "trainer.accelerator",
    "trainer.default_root_dir",
    "trainer.enable_progress_bar",
    "trainer.gradient_clip_val",  # the recipe's
    "trainer.log_every_n_steps",
    "trainer.max_time",
    "trainer.max_steps",  # the recipe's
    "trainer.val_check_interval",
)


def check_resumable(path: str, config: Mapping[str, Any]) -> int:
    """Refuse a checkpoint that would not be continued as configured, before anything is loaded; tell what changed.

    Args:
        path: of a checkpoint that training wrote. config: of the run that is to go on, plain values.

    Returns:
        how many steps the checkpoint has completed.

    Raises:
        UserError: it has weights alone, or another network, other classes or other optimiser settings.
    """
    checkpoint, steps = read_training(path)
    theirs, ours = list(checkpoint.classes), list(config["data"]["classes"])
    if theirs != ours:
        raise UserError(
            f"{path} was trained for the classes {', '.join(theirs)}, the data has {', '.join(ours)}. "
            "Resume with the same data, or start a new run from its weights with init_from, which carries over the "
            "classes of the same name."
        )
    if checkpoint.config["model"]["network"] != config["model"]["network"]:
        raise UserError(
            f"{path} belongs to another network than the one configured. Give the same experiment, model and data "
            "options as the interrupted run (they are in the config.yaml of its folder), or start a new run from its "
            "weights with init_from instead of resume."
        )
    before = checkpoint.config.get("recipe", {}).get("optimiser", {})
    now = config["recipe"]["optimiser"]
    changed = [key for key in _RESTORED if before.get(key, now[key]) != now[key]]
    if changed:
        values = ", ".join(f"recipe.optimiser.{key}={before[key]} (not {now[key]})" for key in changed)
        raise UserError(
            f"{path} goes on with its optimiser's state, which holds {values}. Give these values, or start a new run "
            "from its weights with init_from instead of resume."
        )
    averaged, averages = (_value(found, "recipe.ema_decay") for found in (checkpoint.config, config))
    if "recipe" in checkpoint.config and (averaged is None) != (averages is None):
        raise UserError(
            f"{path} was trained with recipe.ema_decay={averaged} (not {averages}): averaged weights come beside the "
            "trained ones. Give this value, or start a new run from its weights with init_from instead of resume."
        )
    for part in _FELT:
        if (before := _value(checkpoint.config, part)) is None:
            continue
        for key, then, value in _changes(part, before, _value(config, part)):
            log.warning(
                "%s was %s and is %s now: the run resumes, but not as it would have gone on", key, then, value
            )
    return steps


@rank_zero_only
def set_aside_earlier(folder: Path, resume: str | None) -> None:
    """Give what an earlier run has left in the same folder other names, but for checkpoints that are resumed from.

    Lightning would replace checkpoints and metrics, and scores would be taken for this run's until it has its own.
    """
    left = [folder / name for name in ("metrics.csv", "scores.csv", "scores.json")]
    checkpoints = last_checkpoint(folder).parent
    resumes = resume is not None and Path(resume).resolve().parent == checkpoints.resolve()
    for path in left if resumes else [*left, checkpoints]:
        if path.exists():
            earlier = (path.with_stem(f"{path.stem}_{number}") for number in itertools.count(1))
            kept = next(path for path in earlier if not path.exists())
            path.rename(kept)
            log.info("the %s of the run before are in %s", path.stem, kept)


def _changes(key: str, then: Any, now: Any) -> Iterator[tuple[str, Any, Any]]:
    """Where two parts of configurations differ: (key, value then, value now), None for one that is not there."""
    if key in _NOT_FELT:
        return
    if isinstance(then, dict) and isinstance(now, dict):
        for name in then | now:
            yield from _changes(f"{key}.{name}", then.get(name), now.get(name))
    elif then != now:
        yield key, then, now


def _value(config: Any, key: str) -> Any:
    """What stands at a.b.c in nested dictionaries; None where there is nothing."""
    for part in key.split("."):
        config = config.get(part) if isinstance(config, Mapping) else None
    return config
