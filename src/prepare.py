"""Convert a dataset, once, so that training crops decode only what they show.

``python -m src.prepare data=<choice> output=<folder> [format=store|litdata] [verify=sample|all]``
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import hydra
from omegaconf import DictConfig
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from src.config import CONFIG_DIR, build, run, to_plain
from src.data.datamodule import SPLITS, SegmentationDataModule
from src.data.folder import DatasetError, Pair
from src.data.store.convert import JPEG_QUALITY, LOSSLESS, convert_split, verify_split
from src.data.store.jpegtran import find_jpegtran
from src.data.store.manifest import FILE, Manifest
from src.data.store.shards import INDEX, write_shards
from src.errors import UserError, explained
from src.files import check_writable, given_path
from src.machine import available_cores

FORMATS = ("store", "litdata")
VERIFY = {None: 0.0, "sample": 0.01, "all": 1.0}  # share of the entries


@hydra.main(version_base="1.3", config_path=CONFIG_DIR, config_name="prepare")
def main(config: DictConfig) -> None:
    """Convert as configured; exit code 1 when photos could not be converted or verified."""
    with explained(after_interrupt="the same command continues with the photos that are left"):
        failures = prepare(config)
    if failures:
        raise SystemExit(1)


def prepare(config: DictConfig) -> dict[str, str]:
    """Make or finish the store; returns what failed, with the reason.

    Raises:
        UserError: nothing can be converted as configured, or the disk is full.
    """
    console = Console(soft_wrap=True, highlight=False, markup=False)
    plain = to_plain(config)
    folder = _output(plain)
    data: SegmentationDataModule = build(config.data)
    data.prepare_data()
    splits = _splits(data, plain["splits"], folder)
    check_writable(folder, "output")
    entries = folder if plain["format"] == "store" else folder / ".entries"
    workers = plain["workers"] or available_cores()
    failures: dict[str, str] = {}
    for split in splits:
        _check_format(folder / split, plain["format"])
    for split, pairs in splits.items():
        if plain["format"] == "litdata" and (folder / split / INDEX).exists():
            console.print(f"{split}: packed already; delete {folder / split} to pack it again")
            failures |= {
                f"{split}/{name}": reason for name, reason in _outdated(folder / split, pairs).items()
            }
            shutil.rmtree(entries / split, ignore_errors=True)
            continue
        with _bar(console, f"{split}: converting", len(pairs)) as advance:
            result = convert_split(pairs, entries / split, data.class_map, workers, advance)
        failures |= {f"{split}/{name}": reason for name, reason in result.manifest.failed.items()}
        console.print(
            f"{split}: {result.converted} converted, {len(result.manifest.entries) - result.converted} were there, "
            f"{len(result.manifest.failed)} failed"
        )
        if encoded := sum(record.encoding != LOSSLESS for record in result.manifest.entries.values()):
            console.print(
                f"{split}: {encoded} photos are no JPEGs as cameras write them (PNG, CMYK, ...) and were encoded "
                f"once, quality {JPEG_QUALITY}"
            )
        if share := VERIFY[plain["verify"]]:
            listed = len(result.manifest.entries)
            with _bar(console, f"{split}: verifying", max(1, round(share * listed))) as advance:
                wrong = verify_split(pairs, entries / split, share, workers, advance)
            failures |= {f"{split}/{name}": reason for name, reason in wrong.items()}
            if wrong and plain["format"] == "litdata":
                console.print(f"{split}: not packed, because verified entries are wrong")
                continue
        if plain["format"] == "litdata" and result.manifest.entries:
            with _bar(console, f"{split}: packing", len(result.manifest.entries)) as advance:
                write_shards(entries / split, folder / split, plain["shard_megabytes"], advance)
            shutil.rmtree(entries / split)
    if entries != folder:
        with suppress(OSError):  # entries of splits that are not packed stay
            entries.rmdir()
    for name, reason in failures.items():
        console.print(f"failed: {name}: {reason}")
    console.print(f"{'finished with failures' if failures else 'finished'}: data.store={folder.resolve()}")
    return failures


def _output(plain: dict[str, Any]) -> Path:
    usage = "Usage: python -m src.prepare data=<choice> output=<folder>"
    if plain["output"] is None:
        raise UserError(f"output is not given. {usage}")
    if plain["format"] not in FORMATS:
        raise UserError(f"format={plain['format']}: choose one of {', '.join(FORMATS)}")
    if plain["verify"] not in VERIFY:
        raise UserError(f"verify={plain['verify']}: choose sample or all, or leave it out")
    folder = given_path(plain["output"], "output")
    workers = plain["workers"]
    if workers is not None and (not isinstance(workers, int) or workers < 0):
        raise UserError(f"workers={workers}: give how many threads, or null for one for each core")
    if plain["format"] == "litdata" and find_spec("litdata") is None:
        raise UserError('format=litdata needs LitData: pip install -e ".[streaming]"')
    megabytes = plain["shard_megabytes"]
    if isinstance(megabytes, bool) or not isinstance(megabytes, int) or megabytes < 1:
        raise UserError(f"shard_megabytes={megabytes}: give a whole number, at least 1")
    if isinstance(plain["splits"], str):
        plain["splits"] = [plain["splits"]]
    for place in (folder, *(folder / split for split in SPLITS)):
        if place.exists() and not place.is_dir():
            raise UserError(f"output={folder}: {place} is a file; give another folder")
    find_jpegtran()
    return folder


def _check_format(split: Path, wanted: str) -> None:
    """Refuse to put entries beside shards, of which training would read these, or shards in the place of entries."""
    if wanted == "store" and (split / INDEX).exists():
        raise UserError(f"{split} holds shards (format=litdata); choose another output, or delete it")
    if wanted == "litdata" and split.exists() and not (split / INDEX).exists():
        raise UserError(f"{split} exists and is no split of shards; choose another output, or delete it")


def _splits(
    data: SegmentationDataModule, wanted: Sequence[str] | None, folder: Path
) -> dict[str, Sequence[Pair]]:
    """The pairs of every split; without a wish, of those whose folders exist."""
    splits: dict[str, Sequence[Pair]] = {}
    problem: UserError | None = None
    for split in wanted or SPLITS:
        try:
            splits[split] = data.pairs(split)
        except UserError as error:
            if wanted or not isinstance(error, DatasetError) or data.has_split(split):
                raise
            problem = problem or error
    if not splits and problem is not None:
        raise problem
    for pairs in splits.values():
        for source in {file.parent.resolve() for pair in pairs for file in (pair.image, pair.label)}:
            if folder.resolve().is_relative_to(source) or source.is_relative_to(folder.resolve()):
                raise UserError(
                    f"output={folder} and the source {source} lie one in the other, so photos and entries would mix; "
                    "choose another folder"
                )
    return splits


def _outdated(shards: Path, pairs: Sequence[Pair]) -> dict[str, str]:
    """Photos that packed shards lack, have in another version or have no longer, with the reason."""
    if not (shards / FILE).exists():  # packed by an earlier version
        return {}
    manifest = Manifest.read(shards)
    found = dict(manifest.failed)
    for pair in pairs:
        record = manifest.entries.get(pair.name)
        if pair.name not in found and (record is None or not record.made_of(pair)):
            change = "is new" if record is None else "or its label map has changed"
            found[pair.name] = (
                f"{pair.image} {change} since the split was packed; delete {shards} to pack it again"
            )
    for name in set(manifest.entries) - {pair.name for pair in pairs}:
        found[name] = f"{name} was removed since the split was packed; delete {shards} to pack it again"
    return found


@contextmanager
def _bar(console: Console, title: str, total: int) -> Iterator[Callable[[Any], None]]:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, TimeRemainingColumn(elapsed_when_finished=True), console=console) as progress:
        task = progress.add_task(title, total=total)
        yield lambda _: progress.advance(task)


if __name__ == "__main__":
    run(main)
