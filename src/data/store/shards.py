"""Packing the entries of a split into LitData shards, for object storage.

Many small files are slow to fetch from object storage; a shard holds some dozens of entries. Shards keep whole
entries, so a window of a streamed photo is decoded exactly as from the store.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from src.data.store.disk import full_disk_explained
from src.data.store.entry import FORMAT_VERSION, SUFFIX
from src.data.store.manifest import Manifest
from src.errors import UserError

INDEX = "index.json"  # written by LitData, last


def write_shards(entries: Path, folder: Path, megabytes: int, progress: Callable[[str], Any]) -> None:
    """Pack a finished split; a folder that has an index is left as it is.

    Args:
        entries: folder of the split in a store.
        folder: of the shards; appears when all are written, with the manifest.
        megabytes: about how large a shard is.
        progress: called after each entry.

    Raises:
        UserError: LitData is not installed, the folder holds something else, or the disk is full.
        StoreError: the entries have no manifest.
    """
    try:
        from litdata.streaming.writer import BinaryWriter
    except ImportError as error:
        raise UserError('LitData is not installed: pip install -e ".[streaming]"') from error
    manifest = Manifest.read(entries)
    names = sorted(manifest.entries)
    if not names:
        raise UserError(f"{folder}: there is no entry to pack")
    if folder.exists():
        raise UserError(f"{folder} exists already; delete it to pack the entries again")
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        with full_disk_explained(folder):
            partial.mkdir(parents=True)
            writer = BinaryWriter(str(partial), chunk_bytes=f"{megabytes}MB")
            for number, name in enumerate(names):
                content = (entries / (name + SUFFIX)).read_bytes()
                sample = {"format": FORMAT_VERSION, "number": number, "name": name, "entry": content}
                writer.add_item(number, sample)
                progress(name)
            writer.done()
            writer.merge(1)
            # LitData does not mind it, and a later run sees what is missing or has changed
            manifest.write(partial)
            os.replace(partial, folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
