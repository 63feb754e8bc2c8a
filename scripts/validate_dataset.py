"""Look for faults in a dataset before training on it. Reads only; draws data=synthetic where its folder is absent.

    python scripts/validate_dataset.py data=mass13k data.root=<folder>
    python scripts/validate_dataset.py data=own data.root=<folder> data.folders.train.images=...

Finds unreadable files, sizes that differ, ids outside the class map, 0/255 masks, missing pairs, colour-coded
labels and photos that are in two splits. Exit code: 0 without a fault, 1 with faults, 2 when there is no dataset
to look at.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections import Counter
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from rich.console import Console
from rich.table import Table

from src.audit.faults import Fault, PhotoCheck, Task, check_photo, find_leaks, match_files
from src.audit.layout import absent_splits, class_maps, draw_missing_scenes, existing_splits, pseudo_labels
from src.audit.parallel import map_files
from src.config import data_config
from src.data.classes import ClassMap, Taxonomy
from src.errors import UserError
from src.machine import available_cores


def validate(data: dict[str, object], workers: int) -> tuple[list[Fault], dict[str, int]]:
    """All faults of a dataset and the number of photos of each split.

    Args:
        data: its configuration, plain values.
        workers: processes.
    """
    taxonomy = Taxonomy.from_mapping(data["classes"])  # type: ignore[arg-type]
    maps = class_maps(data)
    tasks, faults, photos = [], [], {}
    for split, folders in absent_splits(data).items():
        detail = f"no such folder, nor {folders.labels}"
        faults.append(Fault("missing pair", split, folders.images, detail))
    for split, folders in existing_splits(data).items():
        found, unmatched = match_files(split, folders, pseudo_labels(data) if split == "train" else None)
        tasks += found
        faults += unmatched
        photos[split] = len(found)
    checks = map_files(
        partial(_check, taxonomy=taxonomy),
        [(task, maps[task.split]) for task in tasks],
        workers,
        "reading photos and labels",
    )
    faults += [fault for check in checks for fault in check.faults]
    return faults + find_leaks(tasks, checks), photos


def _check(task: tuple[Task, ClassMap], taxonomy: Taxonomy) -> PhotoCheck:
    photo, class_map = task
    return check_photo(photo, taxonomy=taxonomy, class_map=class_map)


def main(arguments: Sequence[str] | None = None) -> int:
    """Print a table of faults; returns the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("overrides", nargs="+", help="data=<choice> data.root=<folder> ... as for src.train")
    parser.add_argument("--workers", type=int, default=available_cores(), help="processes")
    parser.add_argument("--show", type=int, default=20, help="faults to list of each kind")
    options = parser.parse_args(arguments)
    console = Console(soft_wrap=True, highlight=False, markup=False)
    try:
        data = data_config(options.overrides)
        draw_missing_scenes(data)
        faults, photos = validate(data, options.workers)
    except (UserError, PermissionError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    summary = ", ".join(f"{split} {count}" for split, count in photos.items())
    console.print(f"{data['root']}: photos looked at: {summary}")
    if not faults:
        console.print("no faults found")
        return 0
    counts = Counter(fault.kind for fault in faults)
    console.print(fault_table(faults, str(data["root"]), options.show))
    console.print(", ".join(f"{kind}: {count}" for kind, count in counts.items()))
    return 1


def fault_table(faults: Sequence[Fault], root: str, show: int) -> Table:
    """One row for each fault, by kind, with paths relative to the root of the dataset.

    Args:
        faults: at least one.
        root: as configured.
        show: rows of each kind.
    """
    table = Table(title=f"{len(faults)} faults", title_justify="left")
    for column in ("kind", "split"):
        table.add_column(column, no_wrap=True)
    for column in ("file", "what is wrong"):
        table.add_column(column, overflow="fold")
    prefix = f"{Path(root).expanduser()}{os.sep}"
    for kind, count in Counter(fault.kind for fault in faults).items():
        for fault in [fault for fault in faults if fault.kind == kind][:show]:
            table.add_row(
                kind, fault.split, str(fault.file).removeprefix(prefix), fault.detail.replace(prefix, "")
            )
        if count > show:
            table.add_row(kind, "", "", f"and {count - show} more; --show {count} lists all")
        table.add_section()
    return table


if __name__ == "__main__":
    sys.exit(main())
