"""Making a store: every photo is converted, compared with its source pixel by pixel, and written whole.

Photos are converted in threads: decoding, encoding, hashing and compressing all run outside of the
interpreter's lock, and jpegtran is a process of its own.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np
import simplejpeg
from numpy.typing import NDArray

from src.data.classes import ClassMap
from src.data.folder import FilePhoto, Pair
from src.data.source import Window
from src.data.store.disk import full_disk_explained, is_full_disk
from src.data.store.entry import SUFFIX, Entry, StoreError, pack_entry
from src.data.store.jpegtran import add_restart_markers, find_jpegtran, with_orientation
from src.data.store.manifest import FILE, Fingerprint, Manifest, Record
from src.data.store.restart_jpeg import JpegError
from src.errors import UserError
from src.files import remove_leftovers, write_atomically
from src.photos import PhotoError, photo_orientation, read_label, read_photo, tidied

JPEG_QUALITY = (
    95  # of photos that are no baseline or progressive JPEGs, such as PNGs; chroma at full resolution
)
LOSSLESS = "lossless"

Progress = Callable[[Pair], None]


class Conversion(NamedTuple):
    """What became of a split.

    Attributes:
        manifest: the list that was written.
        converted: how many entries were made now; the others were there.
    """

    manifest: Manifest
    converted: int


def convert_split(
    pairs: Sequence[Pair], folder: Path, class_map: ClassMap, workers: int, progress: Progress
) -> Conversion:
    """Make or finish the entries of a split, then its manifest.

    Entries that are there and whole, made of the same files, are kept. Files of the source are only read.

    Args:
        pairs: the photos and label maps.
        folder: of the split in the store.
        class_map: label maps with other ids than it knows are refused.
        workers: number of threads.
        progress: called after each photo, in any order.

    Raises:
        UserError: jpegtran is missing, or the disk is full; whole entries stay.
    """
    jpegtran = find_jpegtran()
    known = Manifest.read(folder).entries if (folder / FILE).exists() else {}
    if known and pairs and not known.keys() & {pair.name for pair in pairs}:
        raise UserError(
            f"{folder} is the store of other photos ({next(iter(known))}, ...); choose another output, or delete it"
        )

    def convert(pair: Pair) -> tuple[Record, bool]:
        path = folder / (pair.name + SUFFIX)
        try:
            record = _existing(pair, path, known.get(pair.name))
            if record is not None:
                return record, False
            content, record = _convert(pair, class_map, jpegtran)
        except OSError as error:
            reason = error.strerror or str(error)
            raise PhotoError(f"{error.filename or pair.image}: it cannot be read ({reason})") from error
        try:
            write_atomically(path, content)
        except OSError as error:
            if is_full_disk(error):
                raise  # for all photos
            raise PhotoError(f"{path}: it cannot be written ({error.strerror})") from error
        return record, True

    records: dict[str, Record] = {}
    failed: dict[str, str] = {}
    converted = 0
    started = time.time()
    with full_disk_explained(folder), _pool(workers) as pool:
        folder.mkdir(parents=True, exist_ok=True)
        futures = {pool.submit(convert, pair): pair for pair in pairs}
        for future in as_completed(futures):
            pair = futures[future]
            try:
                records[pair.name], is_new = future.result()
                converted += is_new
            except (UserError, JpegError) as error:
                failed[pair.name] = str(error)
            progress(pair)
        manifest = Manifest(records, failed)
        manifest.write(folder)
    remove_leftovers(folder, started)
    return Conversion(manifest, converted)


def verify_split(
    pairs: Sequence[Pair], folder: Path, share: float, workers: int, progress: Progress
) -> dict[str, str]:
    """Decode entries and compare every pixel with the source.

    Args:
        pairs: the photos and label maps.
        folder: of the split in the store.
        share: of the entries to check, 0 to 1; a random sample of at least one.
        workers: number of threads.
        progress: called after each photo.

    Returns:
        The entries that differ or are damaged, with the reason.
    """
    entries = Manifest.read(folder).entries
    listed = [pair for pair in pairs if pair.name in entries]
    sample = random.sample(listed, min(len(listed), max(1, round(share * len(listed)))))
    failed: dict[str, str] = {}
    with _pool(workers) as pool:
        futures = {
            pool.submit(_verify, pair, folder / (pair.name + SUFFIX), entries[pair.name]): pair
            for pair in sample
        }
        for future in as_completed(futures):
            pair = futures[future]
            try:
                future.result()
            except (UserError, OSError) as error:
                failed[pair.name] = str(error)
            progress(pair)
    return failed


def _existing(pair: Pair, path: Path, listed: Record | None) -> Record | None:
    """The record of an entry that needs no conversion, with the present dates of its source."""
    if not path.exists():
        return None
    if listed is not None and path.stat().st_size == listed.bytes and listed.made_of(pair):
        return listed._replace(image=_dated(listed.image, pair.image), label=_dated(listed.label, pair.label))
    try:  # an interrupted run wrote no list, so the entry has to speak for itself
        content = path.read_bytes()
        entry = Entry(_reader(content), len(content), str(path))
        entry.check_payload()
        source = {kind: Fingerprint(**entry.info.source[kind]) for kind in ("image", "label")}
    except (StoreError, KeyError, TypeError):
        return None  # made again
    record = _record(content, entry, source["image"], source["label"])
    return record if record.made_of(pair) else None


def _convert(pair: Pair, class_map: ClassMap, jpegtran: str) -> tuple[bytes, Record]:
    """Make one entry and compare it with its source; see ``convert_split`` for errors."""
    photo = FilePhoto(pair, class_map)
    whole = Window(0, 0, *photo.size)
    pixels, label = photo.image(whole), photo.raw_label(whole)
    class_map(label, str(pair.label))  # refuses ids it does not know
    image_bytes, label_bytes = pair.image.read_bytes(), pair.label.read_bytes()
    image = Fingerprint.of(pair.image, image_bytes)
    source = {"image": image._asdict(), "label": Fingerprint.of(pair.label, label_bytes)._asdict()}
    jpeg, orientation, encoding = _restart_jpeg(pair.image, image_bytes, pixels, jpegtran)
    content = pack_entry(jpeg, orientation, label, encoding, source)
    entry = Entry(_reader(content), len(content), str(pair.image))
    expected = pixels if encoding == LOSSLESS else simplejpeg.decode_jpeg(jpeg, colorspace="RGB")
    if not np.array_equal(entry.image(whole), expected) or not np.array_equal(entry.label(whole), label):
        raise PhotoError(
            f"{pair.image}: the rewritten photo decodes to other pixels. Save the photo again as an ordinary JPEG "
            "or as a PNG."
        )
    return content, _record(content, entry, image, Fingerprint(**source["label"]))


def _restart_jpeg(
    path: Path, content: bytes, pixels: NDArray[np.uint8], jpegtran: str
) -> tuple[bytes, int, str]:
    """A JPEG with restart markers, the orientation of its pixels and how it was made."""
    if content.startswith(b"\xff\xd8"):
        orientation = photo_orientation(path)
        for source in dict.fromkeys((content, tidied(content))):
            try:
                jpeg = add_restart_markers(source, jpegtran)
                return with_orientation(jpeg, orientation), orientation, LOSSLESS
            except JpegError:
                pass  # such as CMYK: encoded like any other photo, as its pixels could be read
    try:
        encoded = simplejpeg.encode_jpeg(
            pixels, quality=JPEG_QUALITY, colorspace="RGB", colorsubsampling="444"
        )
    except ValueError as error:  # a JPEG has at most 65500 pixels on a side
        raise PhotoError(f"{path}: it cannot be stored as a JPEG ({error}). Cut it into parts.") from error
    return add_restart_markers(encoded, jpegtran), 1, f"jpeg {JPEG_QUALITY} 4:4:4"


def _verify(pair: Pair, path: Path, record: Record) -> None:
    content = path.read_bytes()
    entry = Entry(_reader(content), len(content), str(path))
    entry.check_payload()
    if entry.info.payload_sha256 != record.payload_sha256:
        raise StoreError(f"{path}: it is not the entry of the list. Delete it and run src.prepare again.")
    if not record.made_of(pair):
        raise StoreError(f"{path}: {pair.image} or its label map has changed. Run src.prepare again.")
    whole = Window(0, 0, *entry.info.size)
    same = np.array_equal(entry.label(whole), read_label(pair.label))
    image = entry.image(whole)
    if record.encoding == LOSSLESS:
        same = same and np.array_equal(image, read_photo(pair.image))
    if not same:
        raise StoreError(f"{path}: its pixels differ from {pair.image}. Delete it and run src.prepare again.")


def _record(content: bytes, entry: Entry, image: Fingerprint, label: Fingerprint) -> Record:
    info = entry.info
    return Record(len(content), info.payload_sha256, info.size, info.encoding, image, label)


def _dated(fingerprint: Fingerprint, path: Path) -> Fingerprint:
    return fingerprint._replace(mtime_ns=path.stat().st_mtime_ns)


def _reader(content: bytes) -> Callable[[int, int], bytes]:
    return lambda offset, length: content[offset : offset + length]


@contextmanager
def _pool(workers: int) -> Iterator[ThreadPoolExecutor]:
    """Threads that start no further photo when the block is left by an error or an interruption."""
    pool = ThreadPoolExecutor(max(1, workers))
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)
