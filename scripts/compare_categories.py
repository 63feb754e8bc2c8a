"""Score known and new classes before and after a model has learned new classes, and what it has forgotten.

    python scripts/compare_categories.py --before base.ckpt --after grown.ckpt [data=<choice> data.root=<folder>]

Without data=... the photos are those that the second checkpoint was trained with; their labels must have the new
classes (data.evaluation_class_map). Known classes are scored with every new class counted as "others".
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import track
from torch import nn

from src.checkpoints.files import Checkpoint, read
from src.checkpoints.network import load_network
from src.config import build, data_config
from src.data.new_categories import NewCategoryData
from src.engine.categories import comparison_table, write_comparison
from src.engine.stored_data import build_data
from src.errors import UserError, explained
from src.files import check_writable
from src.inference import predict_labels
from src.metrics.categories import CategoryMetrics, CategoryScores


def checked_network(checkpoint: Checkpoint, data: NewCategoryData) -> nn.Module:
    """The network of a checkpoint whose classes are among those of the data."""
    if unknown := [name for name in checkpoint.classes if name not in data.taxonomy.names]:
        raise UserError(f"{checkpoint.path} predicts {', '.join(unknown)}, which the data does not have")
    return load_network(checkpoint)


def score(
    checkpoint: Checkpoint, network: nn.Module, data: NewCategoryData, split: str, others: str
) -> CategoryScores:
    """Scores of a checkpoint's network."""
    names = data.taxonomy.names
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    network = network.to(device)
    ids = torch.tensor([names.index(name) for name in checkpoint.classes], dtype=torch.uint8, device=device)
    metrics = CategoryMetrics(names, data.new_classes, others).to(device)
    loader: Any = data.val_dataloader() if split == "val" else data.test_dataloader()
    with torch.inference_mode():
        for item in track(loader, checkpoint.path.name, transient=True):
            size = (item.label.shape[0], item.label.shape[1])
            labels = predict_labels(network, item.image.to(device), size)
            metrics.update(ids[labels.long()], item.label.to(device), item.name)
    return metrics.compute()


def main(arguments: Sequence[str] | None = None) -> None:
    """Print a table; write it as JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("overrides", nargs="*", help="data=<choice> data.root=<folder> ... as for src.train")
    parser.add_argument("--before", type=Path, required=True, help="checkpoint without the new classes")
    parser.add_argument("--after", type=Path, required=True, help="checkpoint with the new classes")
    parser.add_argument("--split", choices=("val", "test"), default="val")
    parser.add_argument("--output", type=Path, help="JSON file with all scores")
    options = parser.parse_args(arguments)
    with explained():
        if options.output is not None:
            if options.output.is_dir():
                raise UserError(f"--output {options.output} is a folder: name a file")
            check_writable(options.output.parent, "--output's folder")
        before, after = read(options.before), read(options.after)
        chosen = data_config(options.overrides) if options.overrides else None
        config = after.config["data"] if chosen is None else chosen
        if "new_classes" not in config:
            raise UserError("the data has no new_classes; give data=<choice> with new classes")
        data: Any = build_data(after.config) if chosen is None else build(chosen)
        data.setup("validate" if options.split == "val" else "test")
        # both are checked before the first is scored
        networks = [(checkpoint, checked_network(checkpoint, data)) for checkpoint in (before, after)]
        found = [score(*pair, data, options.split, config["others"]) for pair in networks]
        Console(soft_wrap=True, highlight=False, markup=False).print(comparison_table(*found))
        if options.output is not None:
            write_comparison(options.output, *found)


if __name__ == "__main__":
    main()
