"""Watching known and new classes apart while a model learns new ones."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer
from rich.console import Console
from rich.table import Table

from src.files import write_atomically
from src.metrics.categories import (
    METRICS,
    CategoryMetrics,
    CategoryScores,
    comparison_rows,
    forgetting,
)
from src.structures import LabelledImage

log = logging.getLogger(__name__)


class CategoryReport(Callback):
    """Logs means of known and new classes, and reports at the end what was learned and what was forgotten.

    "Before" is the validation before the first step (``recipe.validate_first``), whose answers are those of the
    checkpoint that the network started from; checkpoints carry it, so that a resumed run knows it too. Without that
    validation only "after" is reported.

    Args:
        folder: of the run; ``categories.json`` goes there.
        classes: class name -> RGB. new_classes, others: see ``CategoryMetrics``.
        metrics: those of the run; boundary F1 is left out.
    """

    def __init__(
        self,
        folder: str,
        classes: dict[str, list[int]],
        new_classes: list[str],
        others: str,
        metrics: Mapping[str, Any] | None = None,
    ) -> None:
        self.folder = Path(folder)
        self.metrics = CategoryMetrics(tuple(classes), tuple(new_classes), others, **(metrics or {}))
        self.before: CategoryScores | None = None
        self.after: CategoryScores | None = None

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.metrics.to(pl_module.device).reset()

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: LabelledImage,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        self.metrics.update(outputs.to(torch.uint8), batch.label, batch.name)

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.after = self.metrics.compute()
        if trainer.global_step == 0:
            self.before = self.after
        for group in ("known", "new"):
            for metric in METRICS:
                value = self.after.mean(group, metric)
                if value == value:  # a set without labels of new classes has no score of them
                    pl_module.log(f"val_{group}/m{metric}", 100 * value, rank_zero_only=True)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not trainer.is_global_zero or self.after is None:
            return
        if self.after is self.before:
            log.warning(
                "nothing was validated after training, so what was learned and forgotten is not known"
            )
            return
        path = self.folder / "categories.json"
        if self.before is None:
            _write(path, {"after": self.after._asdict()})
            log.info(
                "known and new classes: %s. Nothing was scored before training (recipe.validate_first=false); "
                "scripts/compare_categories.py tells what was forgotten.",
                path,
            )
            return
        Console(soft_wrap=True, highlight=False, markup=False).print(
            comparison_table(self.before, self.after)
        )
        write_comparison(path, self.before, self.after)

    def state_dict(self) -> dict[str, Any]:
        return {} if self.before is None else {"before": self.before._asdict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        if "before" in state_dict:
            self.before = CategoryScores(**state_dict["before"])


def comparison_table(before: CategoryScores, after: CategoryScores) -> Table:
    """Known and new classes before and after, percent; the title says what was forgotten."""
    lost = forgetting(before, after)
    title = ", ".join(f"m{metric} {100 * value:.2f}" for metric, value in lost.items())
    heads = [f"{metric} {when}" for metric in METRICS for when in ("before", "after", "change")]
    table = Table(
        "class", title=f"known and new classes; forgotten of the known: {title}", title_justify="left"
    )
    for head in heads:
        table.add_column(head, justify="right")
    for name, values in comparison_rows(before, after):
        table.add_row(
            name,
            *("-" if value != value else f"{100 * value:.2f}" for value in values),
            style="bold" if name.startswith("mean of ") else None,
        )
    return table


def write_comparison(path: Path, before: CategoryScores, after: CategoryScores) -> None:
    """``{"before": {"known": ..., "new": ...}, "after": ..., "forgetting": ...}``, scores 0..1, nan as null."""
    content = {
        "before": before._asdict(),
        "after": after._asdict(),
        "forgetting": dict(forgetting(before, after)),
    }
    _write(path, content)


def _write(path: Path, content: dict[str, Any]) -> None:
    text = json.dumps(_plain(content), indent=2) + "\n"
    write_atomically(path, text.encode())


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return None if value != value else round(value, 6)
