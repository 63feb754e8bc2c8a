"""The list of a split's entries, written when all of them are there."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple
from unicodedata import normalize

from src.data.folder import Pair
from src.data.store.entry import FORMAT_VERSION, StoreError, check_version
from src.errors import UserError
from src.files import write_atomically

FILE = "manifest.json"
_FORMAT = "massformer-store"


class Fingerprint(NamedTuple):
    """What identifies a source file.

    Attributes:
        file: name.
        length: bytes.
        mtime_ns: modification time.
        sha256: of the content.
    """

    file: str
    length: int
    mtime_ns: int
    sha256: str

    @classmethod
    def of(cls, path: Path, content: bytes) -> Fingerprint:
        status = path.stat()
        return cls(path.name, len(content), status.st_mtime_ns, hashlib.sha256(content).hexdigest())

    def is_dated(self, path: Path) -> bool:
        """Whether a file has the date it had."""
        return path.stat().st_mtime_ns == self.mtime_ns

    def matches(self, path: Path) -> bool:
        """Whether a file still is what it was; reads it only where its date alone has changed."""
        if normalize("NFC", path.name) != normalize("NFC", self.file) or path.stat().st_size != self.length:
            return False
        if self.is_dated(path):
            return True
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest() == self.sha256


class Record(NamedTuple):
    """One entry of the list.

    Attributes:
        bytes: length of the entry's file.
        payload_sha256: of the entry up to its directory.
        size: (H, W) of the upright photo.
        encoding: "lossless" or how the photo was encoded.
        image, label: the files it was made of.
    """

    bytes: int
    payload_sha256: str
    size: tuple[int, int]
    encoding: str
    image: Fingerprint
    label: Fingerprint

    def made_of(self, pair: Pair) -> bool:
        """Whether these are the files the entry was made of, unchanged."""
        return self.image.matches(pair.image) and self.label.matches(pair.label)

    def is_dated(self, pair: Pair) -> bool:
        """Whether these files have the dates they had, so that comparing them takes no reading."""
        return self.image.is_dated(pair.image) and self.label.is_dated(pair.label)


class Manifest(NamedTuple):
    """The entries of a split.

    Attributes:
        entries: by name, which is the photo's stem.
        failed: photos that could not be converted, with the reason.
    """

    entries: Mapping[str, Record]
    failed: Mapping[str, str]

    def write(self, folder: Path) -> None:
        document = {
            "format": _FORMAT,
            "version": FORMAT_VERSION,
            "entries": {
                name: record._asdict() | {"image": record.image._asdict(), "label": record.label._asdict()}
                for name, record in sorted(self.entries.items())
            },
            "failed": dict(sorted(self.failed.items())),
        }
        write_atomically(folder / FILE, json.dumps(document, indent=1).encode())

    @classmethod
    def read(cls, folder: Path) -> Manifest:
        """Read the list of a split's folder.

        Raises:
            StoreError: there is none, it is damaged or of another format.
        """
        path = folder / FILE
        try:
            document: dict[str, Any] = json.loads(path.read_bytes())
            if document["format"] != _FORMAT:
                raise ValueError(f"format {document['format']!r}")
            check_version(int(document["version"]), f"{path}: the store has")
            entries = {str(name): _record(value) for name, value in document["entries"].items()}
            return cls(entries, {str(name): str(reason) for name, reason in document["failed"].items()})
        except FileNotFoundError as error:
            raise StoreError(
                f"{path}: there is no such file, so this is no store or its preparation did not finish. "
                "Make or finish it: python -m src.prepare data=<choice> output=<folder of the store>"
            ) from error
        except UserError:
            raise
        except (ValueError, KeyError, TypeError) as error:
            raise StoreError(f"{path}: damaged ({error!r}). Delete it and run src.prepare again.") from error


def _record(value: Mapping[str, Any]) -> Record:
    image, label = Fingerprint(**value["image"]), Fingerprint(**value["label"])
    height, width = value["size"]
    sha256, encoding = str(value["payload_sha256"]), str(value["encoding"])
    return Record(int(value["bytes"]), sha256, (int(height), int(width)), encoding, image, label)
