"""Atomic writes."""

import os
import stat

import pytest

from src.files import TEMPORARY, remove_leftovers, write_atomically


def test_replaces_the_file_and_leaves_nothing_else(tmp_path):
    path = tmp_path / "deep" / "file.bin"
    for content in (b"old and long", b"new"):
        write_atomically(path, content)
        assert path.read_bytes() == content
    assert os.listdir(path.parent) == ["file.bin"]


def test_permissions_follow_the_umask(tmp_path):
    previous = os.umask(0o027)
    try:
        write_atomically(tmp_path / "file", b"")
    finally:
        os.umask(previous)
    assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == 0o640


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "file"
    write_atomically(path, b"old")

    def fail(source, target):
        raise OSError("disk full")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="disk full"):
        write_atomically(path, b"new")
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["file"]


def test_leftovers_that_vanish_are_no_fault(tmp_path, monkeypatch):
    """A run beside this one gives its unfinished files their names."""
    for name in ("a", "b"):
        (tmp_path / f"{TEMPORARY}{name}").write_bytes(b"")
    stat_of = type(tmp_path).stat

    def stat_late(path, **options):
        if path.name.endswith("a"):
            path.unlink(missing_ok=True)
        return stat_of(path, **options)

    monkeypatch.setattr(type(tmp_path), "stat", stat_late)
    remove_leftovers(tmp_path, float("inf"))
    assert os.listdir(tmp_path) == []
