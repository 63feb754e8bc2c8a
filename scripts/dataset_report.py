"""Describe a dataset: sizes, class frequencies, mask complexity (mIPQ), contours and polygon points.

    python scripts/dataset_report.py data=mass13k data.root=<folder> [--output <folder>]

Writes dataset.html, one file that opens anywhere, and dataset.json.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from src.audit.layout import class_maps, draw_missing_scenes, existing_splits
from src.audit.parallel import map_files
from src.audit.statistics import (
    PUBLISHED_MIPQ,
    LabelStatistics,
    SplitStatistics,
    measure_label,
    summarise,
    to_plain,
)
from src.config import data_config
from src.data.classes import ClassMap, Taxonomy
from src.data.folder import Pair, find_pairs
from src.errors import UserError, explained
from src.files import check_writable, given_path, write_atomically
from src.machine import available_cores
from src.report.examples import Example, photo_and_label
from src.report.page import render_page


def describe(
    data: Mapping[str, Any], output: Path, workers: int, examples: int
) -> dict[str, SplitStatistics]:
    """Measure every split, write dataset.json and dataset.html, and return the statistics.

    Args:
        data: configuration of the dataset, plain values.
        output: folder of the two files.
        workers: processes.
        examples: photos to show, those with the most complex masks.
    """
    root = given_path(data["root"], "data.root").resolve()
    if output.resolve().is_relative_to(root):
        raise UserError(
            f"{output} lies in the dataset {root}, which stays as it is; give --output another folder"
        )
    taxonomy = Taxonomy.from_mapping(data["classes"])
    maps = class_maps(data)
    pairs = {split: find_pairs(folders) for split, folders in existing_splits(data).items()}
    check_writable(output, "--output")
    everything = [pair for found in pairs.values() for pair in found]
    of_pair = [maps[split] for split, found in pairs.items() for _ in found]
    labels = map_files(
        partial(_measure, num_classes=taxonomy.num_classes),
        list(zip(everything, of_pair, strict=True)),
        workers,
        "measuring label maps",
    )
    splits, start = {}, 0
    for split, found in pairs.items():
        splits[split] = summarise(labels[start : start + len(found)], taxonomy.num_classes)
        start += len(found)
    if len(splits) > 1:
        splits["all"] = summarise(labels, taxonomy.num_classes)

    content = {"root": str(root), **to_plain(splits, taxonomy.names)}
    write_atomically(output / "dataset.json", (json.dumps(content, indent=2) + "\n").encode())
    page = render_page(
        "dataset.html",
        root=root,
        classes=dict(zip(taxonomy.names, taxonomy.colours.tolist(), strict=True)),
        splits=splits,
        whole=list(splits.values())[-1],
        published=PUBLISHED_MIPQ,
        examples=_most_complex(everything, labels, taxonomy, of_pair, examples),
    )
    # names of files may hold bytes that are no UTF-8
    write_atomically(output / "dataset.html", page.encode(errors="backslashreplace"))
    return splits


def _measure(task: tuple[Pair, ClassMap], num_classes: int) -> LabelStatistics:
    pair, class_map = task
    return measure_label(pair.label, class_map=class_map, num_classes=num_classes)


def _most_complex(
    pairs: Sequence[Pair],
    labels: Sequence[LabelStatistics],
    taxonomy: Taxonomy,
    class_maps: Sequence[ClassMap],
    count: int,
) -> list[Example]:
    """Those of the photos that can be read; others are named and left out."""
    complexity = np.array([label.complexity for label in labels])
    order = [index for index in np.argsort(-complexity, kind="stable") if not np.isnan(complexity[index])]
    shown = []
    for index in order[:count]:
        facts = f"mean complexity of its masks {complexity[index]:.1f}"
        try:
            shown.append(photo_and_label(pairs[index], class_maps[index], taxonomy.colours, facts))
        except UserError as error:
            print(f"not shown: {error}", file=sys.stderr)
    return shown


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the statistics and write the report."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("overrides", nargs="+", help="data=<choice> data.root=<folder> ... as for src.train")
    parser.add_argument("--output", type=Path, default=Path("outputs/dataset_report"), help="folder")
    parser.add_argument("--workers", type=int, default=available_cores(), help="processes")
    parser.add_argument("--examples", type=int, default=6, help="photos to show")
    options = parser.parse_args(arguments)
    with explained():
        data = data_config(options.overrides)
        draw_missing_scenes(data)
        splits = describe(data, options.output, options.workers, options.examples)
    console = Console(soft_wrap=True, highlight=False, markup=False)
    table = Table("split", title=str(data["root"]), title_justify="left")
    for column in ("photos", "masks", "mIPQ", "std", "contours per mask", "polygon points per mask"):
        table.add_column(column, justify="right")
    for name, split in splits.items():
        shapes = split.complexity
        figures = (shapes.mean, shapes.std, shapes.contours, shapes.points)
        table.add_row(name, str(split.photos), str(shapes.masks), *(f"{figure:.1f}" for figure in figures))
    console.print(table)
    console.print(f"report: {options.output / 'dataset.html'} and dataset.json")


if __name__ == "__main__":
    main()
