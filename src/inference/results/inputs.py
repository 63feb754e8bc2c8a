"""The photos of a folder, and what their results are called."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from src.errors import UserError
from src.photos import PHOTO_SUFFIXES

_OTHER_FORMATS = tuple(
    f".{suffix}"
    for suffix in (
        *("avif", "bmp", "gif", "heic", "heif", "jp2", "jxl", "psd", "tif", "tiff", "webp"),
        *("arw", "cr2", "cr3", "dng", "nef", "orf", "raf", "rw2"),  # of cameras
    )
)


def find_photos(source: Path) -> list[Path]:
    """A photo itself, or all photos of a folder and its sub-folders, hidden ones left out, in order of their path.

    Raises:
        UserError: there is none.
    """
    if source.is_file():
        if source.suffix.lower() not in PHOTO_SUFFIXES:
            raise UserError(f"input={source} is not a photo; known are {', '.join(sorted(PHOTO_SUFFIXES))}")
        return [source]
    if not source.is_dir():
        raise UserError(f"input={source}: no such file or folder")
    photos = [path for path in _walk(source)[0] if path.suffix.lower() in PHOTO_SUFFIXES]
    if not photos:
        raise UserError(f"input={source} holds no photo ({', '.join(sorted(PHOTO_SUFFIXES))})")
    return photos


def _walk(source: Path) -> tuple[list[Path], list[str]]:
    """The files below a folder in order of their path, without hidden ones, and the folders that cannot be read.

    Links to folders are followed. Links that lead nowhere are among the files: reading them tells why not.
    """
    found: list[Path] = []
    closed: list[str] = []
    for name, folders, files in os.walk(
        source, onerror=lambda error: closed.append(error.filename), followlinks=True
    ):
        folder = Path(name)
        above = {parent.resolve() for parent in (folder, *folder.parents)}
        folders[:] = (  # a link may lead back
            inner
            for inner in folders
            if not inner.startswith(".") and (folder / inner).resolve() not in above
        )
        paths = (folder / file for file in files if not file.startswith("."))
        found += [path for path in paths if path.is_file() or path.is_symlink()]
    return sorted(found), closed


def others(source: Path) -> str:
    """What a folder holds that is not read: pictures of other formats, closed folders; empty for nothing."""
    files, closed = _walk(source)
    suffixes = Counter(path.suffix.lower() for path in files)
    found = [f"{suffixes[suffix]} {suffix}" for suffix in _OTHER_FORMATS if suffixes[suffix]]
    lines = [f"left out: {', '.join(found)} (convert them to JPEG or PNG first)"] if found else []
    return "\n".join(lines + [f"left out: {folder}, which cannot be read" for folder in closed])


def names(source: Path, photos: Sequence[Path]) -> list[str]:
    """Names of the photos' outputs, without suffix: sub-folders and stem.

    Photos whose names would be the same, in upper or lower case, keep their suffix ("a.jpg", "a.png").
    """
    base = source.parent if source.is_file() else source
    paths = [photo.relative_to(base) for photo in photos]
    whole: set[Path] = set()
    while True:
        found = [(path if path in whole else path.with_suffix("")).as_posix() for path in paths]
        count = Counter(name.lower() for name in found)
        clashing = {path for path, name in zip(paths, found, strict=True) if count[name.lower()] > 1}
        if clashing <= whole:
            return found
        whole |= clashing
