"""The conversion as a program."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from src.config import build, compose_config
from src.data.store.convert import LOSSLESS
from src.data.store.entry import StoreError
from src.data.store.manifest import Manifest
from src.errors import UserError
from src.prepare import prepare

pytestmark = pytest.mark.skipif(
    shutil.which("jpegtran") is None, reason="needs jpegtran (libjpeg-turbo-progs)"
)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Three training photos and one for validation, in the benchmark's layout."""
    root = tmp_path / "data"
    rng = np.random.default_rng(0)
    for split, count in (("train", 3), ("val", 1)):
        (root / "images" / split).mkdir(parents=True)
        (root / "annotations" / split).mkdir(parents=True)
        for index in range(count):
            photo = cv2.GaussianBlur(rng.integers(0, 256, (120, 170, 3), dtype=np.uint8), (0, 0), 2)
            Image.fromarray(photo).save(root / "images" / split / f"p{index}.jpg")
            label = (photo[..., 0] > 127).astype(np.uint8)
            Image.fromarray(label).save(root / "annotations" / split / f"p{index}.png")
    return root


def run(root: Path, output: Path | None, *more: str) -> dict[str, str]:
    overrides = [f"data.root={root}", "data=mass13k", *more]
    return prepare(compose_config("prepare", overrides + ([f"output={output}"] if output else [])))


def test_existing_splits_are_converted_and_verified(root: Path, tmp_path: Path) -> None:
    before = {path: path.read_bytes() for path in root.rglob("*") if path.is_file()}
    assert run(root, tmp_path / "store", "verify=all") == {}
    assert len(Manifest.read(tmp_path / "store/train").entries) == 3
    assert len(Manifest.read(tmp_path / "store/val").entries) == 1
    assert not (tmp_path / "store/test").exists()
    assert before == {path: path.read_bytes() for path in root.rglob("*") if path.is_file()}


def test_damaged_entries_are_found_and_made_again(root: Path, tmp_path: Path) -> None:
    run(root, tmp_path / "store")
    entry = tmp_path / "store/train/p1.jpg"
    content = bytearray(entry.read_bytes())
    content[len(content) // 2] ^= 4
    entry.write_bytes(content)
    failures = run(root, tmp_path / "store", "verify=all")
    assert list(failures) == ["train/p1"]
    assert "Delete the file" in failures["train/p1"]
    entry.unlink()
    assert run(root, tmp_path / "store", "verify=all") == {}


def test_failures_are_returned(root: Path, tmp_path: Path) -> None:
    (root / "images/train/p2.jpg").write_bytes((root / "images/train/p2.jpg").read_bytes()[:700])
    assert list(run(root, tmp_path / "store")) == ["train/p2"]


@pytest.mark.parametrize(
    "overrides",
    [["format=zip"], ["verify=half"], ["splits=[holiday]"], ["workers=auto"], ["shard_megabytes=big"]],
)
def test_impossible_wishes(root: Path, tmp_path: Path, overrides: list[str]) -> None:
    with pytest.raises(UserError):
        run(root, tmp_path / "store", *overrides)


def test_one_split_needs_no_brackets(root: Path, tmp_path: Path) -> None:
    assert run(root, tmp_path / "store", "splits=val") == {}
    assert [path.name for path in (tmp_path / "store").iterdir()] == ["val"]


def test_the_store_of_other_photos_is_left_alone(root: Path, tmp_path: Path) -> None:
    run(root, tmp_path / "store")
    for path in root.rglob("p?.*"):
        path.rename(path.with_stem(f"other_{path.stem}"))
    with pytest.raises(UserError, match="store of other photos"):
        run(root, tmp_path / "store")
    assert "p0" in Manifest.read(tmp_path / "store/train").entries


def test_output_is_needed_and_must_lie_elsewhere(root: Path) -> None:
    with pytest.raises(UserError, match="output is not given"):
        run(root, None)
    with pytest.raises(UserError, match="one in the other"):
        run(root, root)


def test_shards(root: Path, tmp_path: Path) -> None:
    pytest.importorskip("litdata")
    assert run(root, tmp_path / "shards", "format=litdata") == {}
    assert (tmp_path / "shards/train/index.json").exists()
    assert not (tmp_path / "shards/.entries").exists()
    assert run(root, tmp_path / "shards", "format=litdata") == {}  # packed already


def test_shards_keep_account_of_what_they_lack(root: Path, tmp_path: Path) -> None:
    pytest.importorskip("litdata")
    broken = root / "images/train/p2.jpg"
    broken.write_bytes(broken.read_bytes()[:700])
    first = run(root, tmp_path / "shards", "format=litdata")
    assert list(first) == ["train/p2"]
    assert run(root, tmp_path / "shards", "format=litdata") == first
    shutil.copy(root / "images/train/p1.jpg", root / "images/train/p0.jpg")
    for folder, suffix in (("images", "jpg"), ("annotations", "png")):
        shutil.copy(root / folder / f"train/p1.{suffix}", root / folder / f"train/q.{suffix}")
    later = run(root, tmp_path / "shards", "format=litdata")
    assert sorted(later) == ["train/p0", "train/p2", "train/q"]
    assert "changed since the split was packed" in later["train/p0"]
    assert "is new" in later["train/q"]


def test_a_split_without_one_good_photo_is_not_packed(root: Path, tmp_path: Path) -> None:
    pytest.importorskip("litdata")
    for path in (root / "images/train").iterdir():
        path.write_bytes(path.read_bytes()[:700])
    assert len(run(root, tmp_path / "shards", "format=litdata")) == 3
    assert not (tmp_path / "shards/train").exists()
    assert (tmp_path / "shards/val/index.json").exists()


def test_own_folders_may_lack_a_split_and_a_store_its_source(root: Path, tmp_path: Path) -> None:
    folders = [
        f"data.folders.{split}.{kind}={place}/{split}"
        for split in ("train", "val", "test")
        for kind, place in (("images", "images"), ("labels", "annotations"))
    ]
    own = [f"data.root={root}", "data=own", *folders]
    assert prepare(compose_config("prepare", [*own, f"output={tmp_path / 'store'}"])) == {}
    shutil.rmtree(root)
    recipe = ["recipe.crop_size=64", f"data.store={tmp_path / 'store'}"]
    data = build(compose_config("train", [*own, *recipe, "run_dir=."]).data)
    data.setup("fit")
    assert len(data.source("train")) == 3


@pytest.mark.parametrize("gone", ["images", "annotations"])
def test_a_store_may_lack_one_half_of_its_source(root: Path, tmp_path: Path, gone: str) -> None:
    run(root, tmp_path / "store")
    shutil.rmtree(root / gone)
    overrides = ["data=mass13k", f"data.root={root}", f"data.store={tmp_path / 'store'}", "run_dir=."]
    data = build(compose_config("train", overrides).data)
    data.setup("fit")
    assert len(data.source("train")) == 3


def test_a_rewriting_that_is_killed_makes_no_entry(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As by the kernel when memory runs out; the photo could be encoded, with losses, but is not to be."""
    killed = tmp_path / "bin/jpegtran"
    killed.parent.mkdir()
    killed.write_text("#!/bin/sh\nkill -9 $$\n")
    killed.chmod(0o755)
    with monkeypatch.context() as patch:
        patch.setenv("PATH", f"{killed.parent}:{os.environ['PATH']}")
        failures = run(root, tmp_path / "store", "splits=[val]")
    assert "jpegtran was killed" in failures["val/p0"]
    assert run(root, tmp_path / "store", "splits=[val]", "verify=all") == {}
    (record,) = Manifest.read(tmp_path / "store/val").entries.values()
    assert record.encoding == LOSSLESS


def test_photos_with_losses_are_told(root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    photo = root / "images/train/p1.jpg"
    Image.open(photo).save(photo.with_suffix(".png"))
    photo.unlink()
    odd = root / "images/train/p2.jpg"  # which decoders complain about, and jpegtran too
    content = bytearray(odd.read_bytes())
    scan = content.index(b"\xff\xda")
    content[scan + int.from_bytes(content[scan + 2 : scan + 4], "big")] = 0
    odd.write_bytes(content)
    assert run(root, tmp_path / "store", "verify=all") == {}
    assert "train: 1 photos are no JPEGs as cameras write them" in capsys.readouterr().out
    entries = Manifest.read(tmp_path / "store/train").entries
    assert [entries[name].encoding == LOSSLESS for name in ("p0", "p1", "p2")] == [True, False, True]


def test_zeros_before_the_end_belong_to_the_picture(root: Path, tmp_path: Path) -> None:
    sizes = [(8 * i, 8 * j) for i in range(1, 6) for j in range(1, 6)]
    endings = set()
    for index, (height, width) in enumerate(sizes):
        flat = np.full((height, width, 3), 40 + index, np.uint8)
        flat[:4, :4] = np.random.default_rng(index).integers(0, 255, (4, 4, 3))
        path = root / f"images/train/flat{index}.jpg"
        Image.fromarray(flat).save(path, optimize=True)
        endings.add(path.read_bytes()[-3])
        Image.fromarray(np.zeros((height, width), np.uint8)).save(root / f"annotations/train/flat{index}.png")
    assert 0 in endings
    assert run(root, tmp_path / "store", "verify=all") == {}
    assert {r.encoding for r in Manifest.read(tmp_path / "store/train").entries.values()} == {LOSSLESS}


def test_formats_do_not_mix(root: Path, tmp_path: Path) -> None:
    pytest.importorskip("litdata")
    run(root, tmp_path / "store")
    with pytest.raises(UserError, match="no split of shards"):
        run(root, tmp_path / "store", "format=litdata")
    assert not (tmp_path / "store/.entries").exists()
    run(root, tmp_path / "shards", "format=litdata")
    with pytest.raises(UserError, match="holds shards"):
        run(root, tmp_path / "shards")


def program(root: Path, output: Path, path: str | None = None) -> subprocess.Popen[str]:
    command = [
        sys.executable,
        "-m",
        "src.prepare",
        "data=mass13k",
        f"data.root={root}",
        f"output={output}",
        "workers=1",
    ]
    return subprocess.Popen(
        command,
        cwd=Path(__file__).parents[1],
        env=os.environ | {"PATH": path or os.environ["PATH"]},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


@pytest.mark.slow
def test_a_killed_run_leaves_whole_entries_and_continues(root: Path, tmp_path: Path) -> None:
    """Killed while its third photo is being rewritten; a broken photo makes the exit code 1, and no more."""
    run(root, tmp_path / "whole")
    slow = tmp_path / "bin/jpegtran"
    slow.parent.mkdir()
    slow.write_text(
        f"#!/bin/sh\n[ -e {tmp_path}/2 ] && sleep 600\n[ -e {tmp_path}/1 ] && touch {tmp_path}/2\n"
        f'touch {tmp_path}/1\nexec {shutil.which("jpegtran")} "$@"\n'
    )
    slow.chmod(0o755)
    process = program(root, tmp_path / "store", f"{slow.parent}:{os.environ['PATH']}")
    deadline = time.monotonic() + 300
    while len(list(tmp_path.glob("store/train/*.jpg"))) < 2 and time.monotonic() < deadline:
        time.sleep(0.1)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    made = {path.name: path.read_bytes() for path in (tmp_path / "store/train").glob("*.jpg")}
    assert made == {name: (tmp_path / "whole/train" / name).read_bytes() for name in ("p0.jpg", "p1.jpg")}

    broken = root / "images/val/p0.jpg"
    broken.write_bytes(broken.read_bytes()[:900])
    process = program(root, tmp_path / "store")
    printed, _ = process.communicate()
    assert process.returncode == 1
    assert "train: 1 converted, 2 were there, 0 failed" in printed
    assert f"failed: val/p0: {broken}: the file is truncated or damaged" in printed
    whole = {path.name: path.read_bytes() for path in (tmp_path / "whole/train").iterdir()}
    assert {path.name: path.read_bytes() for path in (tmp_path / "store/train").iterdir()} == whole
    assert [path.name for path in (tmp_path / "store/val").iterdir()] == ["manifest.json"]


def test_a_full_disk_while_packing(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    writer = pytest.importorskip("litdata.streaming.writer")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(writer.BinaryWriter, "write_chunk", full)
        with pytest.raises(UserError, match=r"disk is full.*continues"):
            run(root, tmp_path / "shards", "format=litdata", "splits=[train]")
    assert not [path for path in (tmp_path / "shards").iterdir() if path.name != ".entries"]
    assert run(root, tmp_path / "shards", "format=litdata", "splits=[train]") == {}
    assert (tmp_path / "shards/train/index.json").exists()


def test_training_photos_that_changed_are_found_in_setup(root: Path, tmp_path: Path) -> None:
    run(root, tmp_path / "store")
    changed = np.zeros((120, 170), np.uint8)
    changed[:60] = 1
    Image.fromarray(changed).save(root / "annotations/train/p1.png")
    overrides = ["data=mass13k", f"data.root={root}", f"data.store={tmp_path / 'store'}", "run_dir=."]
    data = build(compose_config("train", overrides).data)
    data.setup("validate")  # validation photos are as they were
    with pytest.raises(StoreError, match=r"changed since.*p1.*src\.prepare"):
        data.setup("fit")
