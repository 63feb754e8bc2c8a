"""What training would stumble over, told before it begins. Configurations are plain values."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from src.errors import UserError
from src.models.layers import ONE_IMAGE_PER_DEVICE, PooledBatchNorm
from src.models.segmenter import SMALLEST_SIDE

log = logging.getLogger(__name__)

_LEAST = {"save_every": 0, "crop_size": SMALLEST_SIDE}  # 0: no checkpoint in between
_PRECISIONS = ("32-true", "32", "bf16-mixed", "16-mixed")  # weights stay in float32


def check_counts(recipe: Mapping[str, Any]) -> None:
    """Refuse words where whole numbers are meant, before they fail somewhere in the work."""
    for key in ("steps", "batch_size", "crop_size", "val_every", "save_every", "num_points"):
        value, least = recipe[key], _LEAST.get(key, 1)
        endless = key == "steps" and value == -1  # up to trainer.max_epochs
        if not endless and (type(value) is not int or value < least):
            raise UserError(f"recipe.{key}={value}: give a whole number, at least {least}")


def check_precision(precision: str) -> None:
    """Refuse what would round the weights."""
    if precision not in _PRECISIONS:
        raise UserError(f"trainer.precision={precision}: choose one of {', '.join(_PRECISIONS)}")


def check_pooled_norms(network: nn.Module, config: Mapping[str, Any]) -> None:
    """Refuse what the first step would, before the untrained network is scored."""
    pooled = any(isinstance(module, PooledBatchNorm) for module in network.modules())
    if pooled and config["recipe"]["batch_size"] == 1 and not config["trainer"]["sync_batchnorm"]:
        raise UserError(ONE_IMAGE_PER_DEVICE)


def monitored(config: Mapping[str, Any], score_names: Sequence[str]) -> str | None:
    """The score that chooses the best checkpoint; None where none is kept.

    Args:
        score_names: what validations log.

    Raises:
        UserError: it is none of them.
    """
    best = config["callbacks"].get("best")
    if best is None:
        return None
    names = list(score_names)
    if "new_classes" in config["data"]:
        names += [f"val_{group}/m{metric}" for group in ("known", "new") for metric in ("IoU", "BIoU")]
    if best["monitor"] not in names:
        raise UserError(f"callbacks.best.monitor={best['monitor']}: choose one of {', '.join(names)}")
    return str(best["monitor"])


def tell_crops(config: Mapping[str, Any], devices: int) -> None:
    """Say how many crops a step has over all devices, where that is not the recipe's number."""
    recipe, accumulated = config["recipe"], config["trainer"]["accumulate_grad_batches"]
    crops, meant = recipe["batch_size"] * devices * accumulated, recipe["crops_per_step"]
    if meant is not None and crops != meant:
        log.warning(
            "a step has %d crops (%d x %d devices x %d accumulated), recipe=%s means %d: change recipe.batch_size, "
            "trainer.devices or trainer.accumulate_grad_batches",
            crops,
            recipe["batch_size"],
            devices,
            accumulated,
            recipe["name"],
            meant,
        )
