"""Evaluate a checkpoint: ``python -m src.evaluate checkpoint=<file> [data=...] [split=val|test]``."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import hydra
from hydra.utils import instantiate
from lightning import Callback, LightningModule, Trainer
from omegaconf import DictConfig
from rich.console import Console
from torch import Tensor

from src.checkpoints.store import Checkpoint, load_network, read
from src.config import CONFIG_DIR, to_plain
from src.engine.module import SegmentationModule
from src.errors import UserError, explained
from src.metrics.suite import ImageScores
from src.metrics.table import class_table, image_table, render, write_csv, write_json
from src.structures import LabelledImage

log = logging.getLogger(__name__)


class PerImageScores(Callback):
    """Keeps the scores of every image that this process evaluates, by name."""

    def __init__(self) -> None:
        self.scores: dict[str, ImageScores] = {}

    def on_test_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Tensor,
        batch: LabelledImage,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        latest = pl_module.scores.latest
        if latest is not None:
            self.scores[batch.name] = latest

    on_validation_batch_end = on_test_batch_end


@hydra.main(version_base="1.3", config_path=CONFIG_DIR, config_name="evaluate")
def main(config: DictConfig) -> float:
    """Print and write the scores of a checkpoint; returns the boundary IoU in percent."""
    with explained():
        return evaluate(config)


def evaluate(config: DictConfig) -> float:
    """Evaluate as configured; tables lie in ``config.run_dir``."""
    plain = to_plain(config)
    if config.split not in ("val", "test"):
        raise UserError(f"split={config.split}: choose val or test")
    checkpoint = read(config.checkpoint)
    data_config = plain["data"] or checkpoint.config["data"]
    _check_classes(checkpoint, data_config)
    data = instantiate({**data_config, "num_workers": config.num_workers}, _convert_="all")
    module = SegmentationModule(
        load_network(checkpoint), None, None, list(data_config["classes"]), metrics=plain["metrics"]
    )
    per_image = PerImageScores()
    trainer: Trainer = instantiate(config.trainer, _convert_="all", callbacks=[per_image])
    run = trainer.validate if config.split == "val" else trainer.test
    run(module, data, verbose=False)

    folder, names = Path(config.run_dir), module.class_names
    table = class_table(module.latest_scores, names)
    if trainer.is_global_zero:
        console = Console(soft_wrap=True, highlight=False)
        console.print(render(table, f"{checkpoint.path} on {data_config['root']} ({config.split})"))
        write_csv(folder / "scores.csv", table)
        facts: dict[str, Any] = {
            "checkpoint": str(checkpoint.path),
            "data": str(data_config["root"]),
            "split": config.split,
            "images": int(module.latest_scores["images"]),
        }
        write_json(folder / "scores.json", table, **facts)
        write_csv(folder / "images.csv", image_table(per_image.scores, names))
        console.print(f"tables: {folder / 'scores.csv'}, scores.json and images.csv beside it")
    return 100 * float(module.latest_scores["mBIoU"])


def _check_classes(checkpoint: Checkpoint, data_config: dict[str, Any]) -> None:
    theirs, ours = list(checkpoint.classes), list(data_config["classes"])
    if theirs != ours:
        raise UserError(
            f"{checkpoint.path} predicts {len(theirs)} classes ({', '.join(theirs)}), but the data has {len(ours)} "
            f"({', '.join(ours)}). Choose data with the same classes, or a class map that leads to them."
        )


if __name__ == "__main__":
    main()
