"""Evaluate a checkpoint: ``python -m src.evaluate checkpoint=<file> [data=...] [split=val|test]``."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import hydra
from lightning import Trainer
from omegaconf import DictConfig
from rich.console import Console

from src.checkpoints.store import Checkpoint, load_network, read
from src.config import CONFIG_DIR, build, to_plain
from src.engine.callbacks import PerImageScores
from src.engine.logging import quiet_lightning
from src.engine.module import SegmentationModule
from src.errors import UserError, explained
from src.metrics.table import class_table, image_table, render, write_csv, write_json

log = logging.getLogger(__name__)


@hydra.main(version_base="1.3", config_path=CONFIG_DIR, config_name="evaluate")
def main(config: DictConfig) -> float:
    """Print and write the scores of a checkpoint; returns the boundary IoU in percent."""
    with explained():
        return evaluate(config)


def evaluate(config: DictConfig) -> float:
    """Evaluate as configured; tables lie in ``config.run_dir``."""
    quiet_lightning()
    plain = to_plain(config)
    if config.split not in ("val", "test"):
        raise UserError(f"split={config.split}: choose val or test")
    checkpoint = read(config.checkpoint)
    data_config = plain.get("data") or checkpoint.config["data"]
    _check_classes(checkpoint, data_config)
    data = build({**data_config, "num_workers": config.num_workers})
    module = SegmentationModule(
        load_network(checkpoint), None, None, list(data_config["classes"]), metrics=plain["metrics"]
    )
    per_image = PerImageScores()
    trainer: Trainer = build(config.trainer, callbacks=[per_image])
    run = trainer.validate if config.split == "val" else trainer.test
    run(module, data, verbose=False)

    scores = module.latest_scores
    assert scores is not None
    folder, names = Path(config.run_dir), module.class_names
    table = class_table(scores, names)
    if trainer.is_global_zero:
        console = Console(soft_wrap=True, highlight=False)
        console.print(render(table, f"{checkpoint.path} on {data_config['root']} ({config.split})"))
        write_csv(folder / "scores.csv", table)
        facts: dict[str, Any] = {
            "checkpoint": str(checkpoint.path),
            "data": str(data_config["root"]),
            "split": config.split,
            "images": int(scores["images"]),
        }
        write_json(folder / "scores.json", table, **facts)
        write_csv(folder / "images.csv", image_table(per_image.scores, names))
        console.print(f"tables: {folder / 'scores.csv'}, scores.json and images.csv beside it")
    return 100 * float(scores["mBIoU"])


def _check_classes(checkpoint: Checkpoint, data_config: dict[str, Any]) -> None:
    theirs, ours = list(checkpoint.classes), list(data_config["classes"])
    if theirs != ours:
        raise UserError(
            f"{checkpoint.path} predicts {len(theirs)} classes ({', '.join(theirs)}), but the data has {len(ours)} "
            f"({', '.join(ours)}). Choose data with the same classes, or a class map that leads to them."
        )


if __name__ == "__main__":
    main()
