"""Evaluate a checkpoint, or label maps that another program has predicted.

``python -m src.evaluate checkpoint=<file> [data=...] [split=val|test]``
``python -m src.evaluate predictions=<folder> data=... [split=val|test]``
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import hydra
from lightning import Trainer
from omegaconf import DictConfig
from rich.console import Console
from torch import Tensor

from src.checkpoints.files import Checkpoint, read
from src.checkpoints.network import load_network
from src.config import CONFIG_DIR, build, rank, refuse_unknown, run, to_plain
from src.data.datamodule import SegmentationDataModule
from src.data.folder import DatasetError
from src.data.store.entry import StoreError
from src.engine.callbacks import PerImageScores
from src.engine.logging import quiet_lightning
from src.engine.module import SegmentationModule
from src.engine.stored_data import build_data
from src.errors import UserError, explained
from src.metrics.suite import SegmentationMetrics
from src.metrics.table import class_table, render, without_curve
from src.report.benchmark import deviations, is_mass13k, published_scores
from src.report.comparison import check_comparable
from src.report.console import comparison_tables, interval_line, published_table
from src.report.predictions import Measured, find_predictions, score_predictions
from src.report.record import Evaluation, read_record
from src.report.results import Bootstrap, compared, find_out, metric_settings, write_page, write_tables

log = logging.getLogger(__name__)


class Evaluated(NamedTuple):
    """What a network or a folder of predictions leaves.

    Attributes:
        subject: what was evaluated, for people.
        scores: of the set, see ``SegmentationMetrics.compute``.
        images: measurements by image.
        predictions: folder with the label maps as ``<name>.png``; None when they were not kept.
        metrics: with the settings in use.
        writes: whether this process writes the results; the others of a distributed evaluation do not.
    """

    subject: Path
    scores: dict[str, Tensor]
    images: Measured
    predictions: Path | None
    metrics: SegmentationMetrics
    writes: bool = True


@hydra.main(version_base="1.3", config_path=CONFIG_DIR, config_name="evaluate")
def main(config: DictConfig) -> float:
    """Print and write the scores; returns the boundary IoU in percent."""
    with explained():
        return evaluate(config)


def evaluate(config: DictConfig) -> float:
    """Evaluate as configured; tables, areas and report lie in ``config.run_dir``."""
    quiet_lightning()
    plain = to_plain(config)
    if config.split not in ("val", "test"):
        raise UserError(f"split={config.split}: choose val or test")
    if (config.checkpoint is None) == (config.predictions is None):
        raise UserError(
            "give either checkpoint=<file> or predictions=<folder of index PNGs>. Usage: "
            "python -m src.evaluate checkpoint=<file> [data=<choice> data.root=<folder>]"
        )
    if config.predictions is not None and rank() > 0:
        return math.nan  # the first process scores all files
    bootstrap = _bootstrap(plain)
    _check_report(plain["report"])
    other = read_record(Path(config.compare).expanduser()) if config.compare else None
    checkpoint = read(Path(config.checkpoint).expanduser()) if config.checkpoint else None
    data_config, changes = _data_config(plain.get("data"), checkpoint)
    if checkpoint is not None:
        _check_classes(checkpoint, data_config)
    data: SegmentationDataModule
    if changes is not None and checkpoint is not None:
        data = build_data(checkpoint.config, **(changes | {"num_workers": config.num_workers}))
    else:
        data = build({**data_config, "num_workers": config.num_workers})
    data.prepare_data()
    try:
        data.setup("validate" if config.split == "val" else "test")
    except (DatasetError, StoreError) as error:
        if changes is None or {"root", "store"} & set(changes):
            raise
        raise UserError(f"{error} {_moved(data_config)}") from error
    if plain["report"] is not None or config.predictions is not None:
        data.source(config.split)  # what cannot be opened is told before any work
    if other is not None:  # told now, not after hours of work
        settings = metric_settings(SegmentationMetrics(data.num_classes, **plain["metrics"]))
        names = other.images.names if data.is_streamed(config.split) else data.source(config.split).names
        check_comparable(names, data.taxonomy.names, settings, other)
    if checkpoint is not None:
        evaluated = _evaluate_checkpoint(checkpoint, data, config, plain)
    else:
        evaluated = _evaluate_predictions(Path(config.predictions).expanduser(), data, config.split, plain)
    if evaluated.writes:
        _write_results(evaluated, data, data_config, checkpoint, bootstrap, other, plain)
    return 100 * float(evaluated.scores["mBIoU"])


def _evaluate_checkpoint(
    checkpoint: Checkpoint, data: SegmentationDataModule, config: DictConfig, plain: dict[str, Any]
) -> Evaluated:
    module = SegmentationModule(
        load_network(checkpoint), None, None, data.taxonomy.names, metrics=plain["metrics"]
    )
    folder = Path(config.run_dir) / "predictions" if config.report is not None else None
    per_image = PerImageScores(folder, data.taxonomy.colours)
    trainer: Trainer = build(config.trainer, callbacks=[per_image])
    run = trainer.validate if config.split == "val" else trainer.test
    run(module, data, verbose=False)
    assert module.latest_scores is not None
    images = Measured(per_image.scores, per_image.complexity)
    written = per_image.predictions
    return Evaluated(
        checkpoint.path, module.latest_scores, images, written, module.scores, trainer.is_global_zero
    )


def _evaluate_predictions(
    folder: Path, data: SegmentationDataModule, split: str, plain: dict[str, Any]
) -> Evaluated:
    source = data.source(split)
    paths = find_predictions(folder, source.names)
    metrics = SegmentationMetrics(data.num_classes, **plain["metrics"])
    images = score_predictions(paths, source, metrics)
    return Evaluated(folder, metrics.compute(), images, folder, metrics)


def _write_results(
    evaluated: Evaluated,
    data: SegmentationDataModule,
    data_config: dict[str, Any],
    checkpoint: Checkpoint | None,
    bootstrap: Bootstrap,
    other: Evaluation | None,
    plain: dict[str, Any],
) -> None:
    folder, split, names = Path(plain["run_dir"]), plain["split"], data.taxonomy.names
    facts = {
        "checkpoint" if checkpoint else "predictions": str(evaluated.subject),
        "data": str(data_config["root"]),
        "split": split,
    }
    if checkpoint is not None:
        limit, enlarge = data_config.get("evaluation_limit"), data_config.get("enlarge")
        size = "x".join(map(str, limit)) if limit else ""
        facts["evaluated at"] = f"fitted to {size}" if enlarge else f"their own size, at most {size}"
    findings = find_out(
        facts, data.taxonomy, evaluated.metrics, evaluated.scores, evaluated.images, bootstrap
    )
    console = Console(soft_wrap=True, highlight=False, markup=False)
    table = class_table(evaluated.scores, names)
    # first of all: what comes next may fail, as on a full disk
    console.print(render(without_curve(table), f"{evaluated.subject} on {data_config['root']} ({split})"))
    console.print(interval_line(findings))
    write_tables(folder, findings)
    if other is not None:  # may find that the labels differ, which must not cost the scores
        findings = compared(findings, other)
        write_tables(folder, findings)
    published = None
    if is_mass13k(data_config):
        published = published_scores(
            findings.intervals,
            split,
            len(findings.images.names),
            *_method(checkpoint),
            deviations=deviations(data_config, plain["metrics"], by_network=checkpoint is not None),
        )

    if published is not None:
        console.print(published_table(published))
        console.print(published.note)
    if findings.comparison is not None:
        console.print(*comparison_tables(findings.comparison, names), sep="\n")
    console.print(f"tables: {folder / 'scores.csv'}, images.csv and scores.json beside it")
    if plain["report"] is not None and evaluated.predictions is not None:
        page = folder / "report.html"
        write_page(page, findings, data.source(split), evaluated.predictions, published, **plain["report"])
        console.print(f"report: {page}")


def _bootstrap(plain: dict[str, Any]) -> Bootstrap:
    """What intervals are drawn with, checked: they come after hours of work."""
    samples, level, seed = plain["bootstrap"]["samples"], plain["bootstrap"]["level"], plain["seed"]
    if not isinstance(samples, int) or samples < 1:
        raise UserError(f"bootstrap.samples={samples}: give a whole number of resamples, at least 1")
    if not isinstance(level, int | float) or not 0 < level < 1:
        raise UserError(f"bootstrap.level={level}: give a share between 0 and 1, such as 0.95")
    if not isinstance(seed, int) or seed < 0:
        raise UserError(f"seed={seed}: give a whole number, at least 0")
    return Bootstrap(samples, level, seed)


def _check_report(counts: Any) -> None:
    """Refuse what the page could not be made with, which comes after hours of work."""
    if counts is None:
        return
    if not isinstance(counts, dict):
        raise UserError(
            f"report={counts}: give null for none; report.worst, best and details say what is in it"
        )
    refuse_unknown(counts, "evaluate.yaml", "report.", part="report")
    for key, count in counts.items():
        if type(count) is not int or count < 0:
            raise UserError(f"report.{key}={count}: give a whole number, at least 0")


def _data_config(
    given: dict[str, Any] | None, checkpoint: Checkpoint | None
) -> tuple[dict[str, Any], dict[str, Any] | None]:
    """The data's configuration, and what it changes of the checkpoint's, or None where it is not the checkpoint's.

    Raises:
        UserError: neither says which data.
    """
    chosen = given is not None and "_target_" in given
    if chosen and given is not None:
        if checkpoint is not None:
            _tell_other_sizes(given, checkpoint.config["data"])
        return given, None
    if checkpoint is None:
        raise UserError("predictions=<folder> needs the labels to score them by: give data=<choice> too")
    stored = (
        checkpoint.config["data"] if checkpoint.classes else {}
    )  # which are refused where data is no mapping
    return stored | (given or {}), given or {}


def _tell_other_sizes(data_config: Mapping[str, Any], before: Mapping[str, Any]) -> None:
    """Tell where photos are scored at another size than the network was validated at."""
    keys = ("evaluation_limit", "enlarge")
    if before.get("enlarge") and any(before.get(key) != data_config.get(key) for key in keys):
        log.warning(
            "the network was validated on photos enlarged to %s; data.evaluation_limit and data.enlarge=true do so "
            "here too",
            before.get("evaluation_limit"),
        )


def _moved(trained_with: Mapping[str, Any]) -> str:
    """What to do where the data that a checkpoint names is not there any more."""
    moved = "If the data that the checkpoint was trained with has moved"
    if trained_with.get("store") is None:
        return f"{moved}: +data.root=<folder> says where to."
    return (
        f"{moved}: +data.store=<folder> says where its store is, and +data.root=<folder> +data.store=null evaluates "
        "on the photos themselves."
    )


def _method(checkpoint: Checkpoint | None) -> tuple[str, str]:
    """Experiment and backbone of a checkpoint, empty for predictions of other programs."""
    if checkpoint is None:
        return "", ""
    return str(checkpoint.config.get("name", "")), str(checkpoint.config["model"]["backbone"]["name"])


def _check_classes(checkpoint: Checkpoint, data_config: dict[str, Any]) -> None:
    theirs, ours = list(checkpoint.classes), list(data_config["classes"])
    if theirs != ours:
        raise UserError(
            f"{checkpoint.path} predicts {len(theirs)} classes ({', '.join(theirs)}), but the data has {len(ours)} "
            f"({', '.join(ours)}). Choose data with the same classes, or a class map that leads to them."
        )


if __name__ == "__main__":
    run(main, together=True)
