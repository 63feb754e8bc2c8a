"""The validator against faults planted in a copy of a real dataset: each is found, named and counted."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from scripts.validate_dataset import main, validate
from src.audit.faults import Fault, check_label
from src.audit.layout import draw_missing_scenes
from src.audit.leakage import same_photos, thumbnail
from src.config import data_config
from src.data.classes import ClassMap, Taxonomy

REPOSITORY = Path(__file__).resolve().parents[2]


def found(dataset) -> list[Fault]:
    return validate(data_config(dataset.overrides), workers=1)[0]


def only(dataset, kind: str) -> Fault:
    """The one fault of the dataset, which must be of this kind."""
    (fault,) = found(dataset)
    assert fault.kind == kind
    return fault


def taxonomy_of(dataset) -> Taxonomy:
    return Taxonomy.from_mapping(data_config(dataset.overrides)["classes"])


def read(path: Path) -> np.ndarray:
    return np.array(Image.open(path))


def test_sound_data_has_no_faults(dataset, capsys, fingerprint) -> None:
    before = fingerprint(dataset.root)
    assert main([*dataset.overrides, "--workers", "1"]) == 0
    printed = capsys.readouterr().out
    assert "train 4, val 3" in printed
    assert "no faults" in printed
    assert fingerprint(dataset.root) == before


@pytest.mark.parametrize("damage", ["empty", "truncated", "another format"])
@pytest.mark.parametrize("role", ["image", "label"])
def test_an_unreadable_file_is_found(dataset, damage: str, role: str) -> None:
    path = getattr(dataset, role)("train", 1)
    content = path.read_bytes()
    replaced = {"empty": b"", "truncated": content[: len(content) // 2], "another format": b"GIF89a" * 50}
    path.write_bytes(replaced[damage])
    fault = only(dataset, "unreadable")
    assert (fault.split, fault.file) == ("train", path)
    assert str(path) not in fault.detail  # the file has a column of its own


def test_a_label_map_of_another_size_is_found(dataset) -> None:
    path = dataset.label("val", 0)
    label = read(path)
    Image.fromarray(label[:-3, :-8]).save(path)
    height, width = label.shape
    fault = only(dataset, "size mismatch")
    assert fault.file == path
    assert f"{width - 8}x{height - 3}" in fault.detail
    assert f"{width}x{height}" in fault.detail


def test_a_label_map_of_a_photo_on_its_side_is_found(dataset) -> None:
    path = dataset.label("val", 0)
    Image.fromarray(np.ascontiguousarray(np.rot90(read(path)))).save(path)
    assert "lying on its side" in only(dataset, "size mismatch").detail


def test_ids_outside_the_map_are_counted_and_located(dataset) -> None:
    path = dataset.label("train", 2)
    label = read(path)
    label[10:14, 20:25] = 200
    label[3, 7] = 77
    Image.fromarray(label).save(path)
    fault = only(dataset, "unknown ids")
    assert fault.file == path
    assert "200 (20 pixels, rows 10-13, columns 20-24)" in fault.detail
    assert "77 (1 pixels, rows 3-3, columns 7-7)" in fault.detail
    assert "class_map" in fault.detail


def test_a_class_map_that_names_the_ids_leaves_no_fault(dataset) -> None:
    path = dataset.label("train", 2)
    label = read(path)
    label[10:14, 20:25] = 200
    Image.fromarray(label).save(path)
    known = data_config(dataset.overrides).get("class_map") or {index: index for index in range(7)}
    data = {**data_config(dataset.overrides), "class_map": {**known, 200: "ignore"}}
    assert validate(data, workers=1)[0] == []


def test_a_mask_of_0_and_255_is_not_taken_for_ids(dataset) -> None:
    path = dataset.label("train", 0)
    mask = np.zeros(read(path).shape, np.uint8)
    mask[: mask.shape[0] // 4] = 255
    Image.fromarray(mask).save(path)
    fault = only(dataset, "binary mask")
    assert fault.file == path
    assert "25.0 %" in fault.detail
    Image.fromarray(np.full_like(mask, 255)).save(path)
    assert "ignores the whole photo" in only(dataset, "binary mask").detail


def test_maps_of_one_class_have_nothing_but_0_and_255(tmp_path: Path) -> None:
    mask = np.zeros((20, 30), np.uint8)
    mask[:5] = 255
    Image.fromarray(mask).save(tmp_path / "mask.png")
    sky = Taxonomy.from_mapping({"sky": [0, 0, 255]})
    assert check_label(tmp_path / "mask.png", (20, 30), sky, ClassMap(sky)) == []


def test_255_may_be_the_id_of_a_class(dataset) -> None:
    path = dataset.label("train", 0)
    mask = np.zeros(read(path).shape, np.uint8)
    mask[: mask.shape[0] // 4] = 255
    Image.fromarray(mask).save(path)
    known = data_config(dataset.overrides).get("class_map") or {index: index for index in range(7)}
    data = {**data_config(dataset.overrides), "class_map": {**known, 255: "person"}}
    assert validate(data, workers=1)[0] == []


def test_a_0_that_the_map_forgot_is_no_grey(dataset) -> None:
    path = dataset.label("train", 0)
    Image.fromarray(np.zeros_like(read(path))).save(path)
    data = {**data_config(dataset.overrides), "class_map": dict.fromkeys(range(1, 7), "person")}
    mine = [fault for fault in validate(data, workers=1)[0] if fault.file == path]
    assert [fault.kind for fault in mine] == ["unknown ids"]
    assert "0 (" in mine[0].detail


def test_what_stands_alone_is_found(dataset) -> None:
    dataset.label("train", 0).unlink()
    alone = dataset.image("val", 1)
    alone.unlink()
    faults = found(dataset)
    assert [(fault.kind, fault.split) for fault in faults] == [
        ("missing pair", "train"),
        ("missing pair", "val"),
    ]
    assert faults[0].file == dataset.image("train", 0)
    assert f"no label map {dataset.names['train'][0]}.png" in faults[0].detail
    assert faults[1].file == dataset.label("val", 1)
    assert f"no photo {alone.stem}" in faults[1].detail


def test_label_maps_saved_as_jpeg_are_named(dataset) -> None:
    path = dataset.label("train", 0)
    Image.fromarray(read(path)).save(path.with_suffix(".jpg"))
    path.unlink()
    assert f"{path.stem}.jpg is no PNG" in only(dataset, "missing pair").detail


def test_two_photos_of_one_stem_are_found(dataset) -> None:
    path = dataset.image("train", 0)
    twin = path.with_suffix(".jpeg")
    Image.open(path).convert("RGB").save(twin)
    fault = only(dataset, "missing pair")
    assert fault.file.stem == path.stem
    assert "keep one" in fault.detail


@pytest.mark.parametrize("copy", ["bytes", "encoding", "size"])
def test_a_photo_in_two_splits_is_found(dataset, copy: str) -> None:
    original = dataset.image("train", 3)
    leaked = dataset.root / "images" / "val" / "renamed.jpg"
    label = dataset.root / "annotations" / "val" / "renamed.png"
    photo, ids = Image.open(original).convert("RGB"), Image.open(dataset.label("train", 3))
    if copy == "bytes":
        leaked = leaked.with_suffix(original.suffix)
        shutil.copyfile(original, leaked)
    elif copy == "encoding":
        photo.save(leaked, quality=60)
    else:
        size = (photo.width * 3 // 2, photo.height * 3 // 2)
        photo.resize(size, Image.Resampling.LANCZOS).save(leaked, quality=90)
        ids = ids.resize(size, Image.Resampling.NEAREST)
    ids.save(label)
    fault = only(dataset, "leakage")
    assert (fault.split, fault.file) == ("val", leaked)
    assert str(original) in fault.detail
    assert ("byte by byte" in fault.detail) == (copy == "bytes")


def test_pictures_of_class_colours_are_not_taken_for_ids(dataset) -> None:
    path = dataset.label("train", 0)
    taxonomy = taxonomy_of(dataset)
    height, width = read(path).shape
    ids = (np.arange(width) * 7 // width).astype(np.uint8)[None].repeat(height, 0)
    coloured = Image.fromarray(taxonomy.colours[ids])

    coloured.save(path)
    detail = only(dataset, "colour-coded").detail
    assert "7 colours" in detail
    assert "person 1" in detail

    coloured.convert("L").save(path)
    assert "76 is the grey of person" in only(dataset, "colour-coded").detail

    # four classes, as a quantiser numbers them: by frequency, not by id
    four = Image.fromarray(taxonomy.colours[np.array([6, 3, 1, 5], np.uint8)[ids % 4]])
    four.quantize(4).save(path)
    assert set(read(path).ravel()) == {0, 1, 2, 3}
    detail = only(dataset, "colour-coded").detail
    assert "palette" in detail
    assert "water (6)" in detail


def test_palettes_that_fit_the_ids_are_welcome(dataset) -> None:
    path = dataset.label("train", 0)
    label = read(path)
    data = data_config(dataset.overrides)
    colours, names = data["classes"], list(data["classes"])
    targets = data.get("class_map") or dict(enumerate(names))
    palette = np.zeros((256, 3), np.uint8)
    for raw, name in targets.items():
        palette[raw] = colours.get(name, (255, 255, 255))
    for table in (palette, np.random.default_rng(0).integers(1, 254, (256, 3)).astype(np.uint8)):
        picture = Image.fromarray(label)
        picture.putpalette(table.tobytes())
        picture.save(path)
        assert found(dataset) == []


def test_all_faults_at_once_make_a_table_and_an_exit_code(
    dataset, capsys, fingerprint, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset.image("train", 0).write_bytes(b"no photo")
    dataset.label("train", 1).unlink()
    for index in range(3):
        label = read(dataset.label("val", index))
        label[0, 0] = 99
        Image.fromarray(label).save(dataset.label("val", index))
    before = fingerprint(dataset.root)
    monkeypatch.setenv("COLUMNS", "200")
    assert main([*dataset.overrides, "--workers", "2", "--show", "2"]) == 1
    printed = capsys.readouterr().out
    assert "unreadable: 1" in printed
    assert "missing pair: 1" in printed
    assert "unknown ids: 3" in printed
    assert "and 1 more; --show 3 lists all" in printed
    assert f" annotations/val/{dataset.names['val'][1]}.png " in printed
    assert dataset.names["val"][2] not in printed
    assert fingerprint(dataset.root) == before


def test_a_narrow_terminal_still_shows_whole_paths(dataset, capsys, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset.label("train", 1).unlink()
    monkeypatch.setenv("COLUMNS", "60")
    assert main([*dataset.overrides, "--workers", "1"]) == 1
    table = [
        line.split("│")[3].strip() for line in capsys.readouterr().out.splitlines() if line.startswith("│")
    ]
    assert "".join(table) == f"images/train/{dataset.image('train', 1).name}"


def test_a_split_without_labels_is_reported_photo_by_photo(dataset) -> None:
    shutil.rmtree(dataset.root / "annotations" / "val")
    assert [fault.kind for fault in found(dataset)] == ["missing pair"] * 3


def test_an_empty_split_is_a_fault(dataset) -> None:
    for kind in ("images", "annotations"):
        shutil.rmtree(dataset.root / kind / "val")
        (dataset.root / kind / "val").mkdir()
    assert "no photo and no label map" in only(dataset, "missing pair").detail


def test_an_empty_folder_does_not_hide_the_one_with_photos(dataset) -> None:
    (dataset.root / "images").rename(dataset.root / "images_pad")
    (dataset.root / "images" / "train").mkdir(parents=True)
    assert found(dataset) == []


def test_links_to_nowhere_and_folders_named_like_files_are_found(dataset) -> None:
    for role in (dataset.image("train", 0), dataset.label("train", 1)):
        role.unlink()
        role.symlink_to(dataset.root / "nowhere")
    dataset.label("train", 2).unlink()
    dataset.label("train", 2).mkdir()
    faults = found(dataset)
    assert [fault.kind for fault in faults] == ["unreadable"] * 3
    assert {fault.file for fault in faults} == {
        dataset.image("train", 0),
        dataset.label("train", 1),
        dataset.label("train", 2),
    }


@pytest.mark.filterwarnings("error::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize(("share", "kinds"), [(1.5, []), (2.5, ["unreadable", "unreadable"])])
def test_very_large_files_do_not_end_the_search(dataset, share: float, kinds: list[str], monkeypatch) -> None:
    """Pillow warns above its limit and refuses files above twice the limit; neither is the end of the program."""
    height, width, _ = read(dataset.image("train", 1)).shape
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", width * height)
    dataset.image("train", 0).unlink()
    for file, mode in (
        (dataset.root / "images" / "train" / f"{dataset.names['train'][0]}.png", "RGB"),
        (dataset.label("train", 0), "L"),
    ):
        Image.new(mode, (width, int(share * height))).save(file)
    assert [fault.kind for fault in found(dataset)] == kinds


def test_configured_folders_are_looked_at(dataset) -> None:
    data = data_config(dataset.overrides)
    folders = {"val": {"images": "images/val", "labels": "annotations/val"}}
    assert validate({**data, "folders": folders}, workers=1) == ([], {"val": 3})


def test_nothing_to_look_at_is_another_exit_code(tmp_path: Path, capsys) -> None:
    assert main(["data=mass13k", f"data.root={tmp_path / 'nowhere'}"]) == 2
    assert "Expected layout" in capsys.readouterr().err
    assert main(["data=no_such_choice"]) == 2
    assert "camvid" in capsys.readouterr().err  # the choices there are
    assert main(["seed=1"]) == 2
    assert "data=<choice>" in capsys.readouterr().err


def test_foggy_photos_are_told_apart() -> None:
    generator = np.random.default_rng(0)
    fog = np.stack([200 + generator.normal(0, 1.5, (32, 32, 1)).repeat(3, 2) for _ in range(2)]).astype(
        np.uint8
    )
    first, second = (thumbnail(photo)[None] for photo in fog)
    assert np.sqrt(((first - second) ** 2).mean()) < 3
    assert same_photos(first, second) == []
    assert same_photos(first, first) == [(0, 0)]


def test_blocks_of_photos_give_the_same_pairs() -> None:
    generator = np.random.default_rng(0)
    first = generator.uniform(0, 255, (9, 1024)).astype(np.float32)
    second = np.concatenate([generator.uniform(0, 255, (3, 1024)), first[[7, 2]] + 0.5]).astype(np.float32)
    assert same_photos(first, second) == same_photos(first, second, block=2) == [(2, 4), (7, 3)]


@pytest.mark.slow
@pytest.mark.parametrize("program", [["scripts/validate_dataset.py"], ["-m", "scripts.validate_dataset"]])
def test_both_ways_of_starting(scenes: Path, program: list[str]) -> None:
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    ended = subprocess.run(
        [sys.executable, *program, "data=mass13k", f"data.root={scenes}"],
        cwd=REPOSITORY,
        env=environment,
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    assert "no faults" in ended.stdout


def test_scenes_are_drawn_where_they_are_missing(tmp_path: Path, fingerprint: Callable) -> None:
    splits = ["data.synthetic.splits.val=2", "~data.synthetic.splits.train", "~data.synthetic.splits.test"]
    overrides = ["data=synthetic", f"data.root={tmp_path / 'drawn'}", *splits]
    sizes = ["data.synthetic.height=96", "data.synthetic.width=128"]
    assert main([*overrides, *sizes, "--workers", "1"]) == 0
    drawn = fingerprint(tmp_path / "drawn")
    assert len([name for name in drawn if name.endswith(".png")]) == 2
    # other settings would draw other scenes; a validator leaves those that are there
    assert main([*overrides, "data.synthetic.height=64", "data.synthetic.width=128", "--workers", "1"]) == 0
    assert fingerprint(tmp_path / "drawn") == drawn


def test_configured_splits_that_are_not_there_are_faults(scenes: Path, tmp_path: Path) -> None:
    folders = {
        split: {"images": str(scenes / "images_pad" / split), "labels": str(scenes / "annotations" / split)}
        for split in ("train", "val")
    }
    data = {**data_config(["data=own"]), "folders": folders}
    assert validate(data, workers=1)[0] == []
    folders["val"] = {"images": str(tmp_path / "vla"), "labels": str(tmp_path / "labels/vla")}
    (fault,) = validate(data, workers=1)[0]
    assert (fault.kind, fault.split, fault.file) == ("missing pair", "val", tmp_path / "vla")


def test_new_classes_are_known_where_they_are_labelled(scenes: Path, tmp_path: Path) -> None:
    root = tmp_path / "data"
    shutil.copytree(scenes, root)
    for split in ("train", "val"):
        path = sorted((root / "annotations" / split).iterdir())[0]
        label = read(path).copy()
        label[:4, :4] = 8
        Image.fromarray(label).save(path)
    data = data_config(
        [
            "data=new_categories",
            f"data.root={root}",
            "data.new_classes=[car]",
            "+data.evaluation_class_map={8: car}",
        ]
    )
    faults = validate(data, workers=1)[0]
    assert [(fault.kind, fault.split) for fault in faults] == [("unknown ids", "train")]


def test_scenes_that_were_not_asked_for_are_told(scenes: Path, caplog: pytest.LogCaptureFixture) -> None:
    data = data_config(["data=synthetic", f"data.root={scenes}"])
    draw_missing_scenes(data)
    assert f"{scenes} holds other scenes" in caplog.text
    caplog.clear()
    held = json.loads((scenes / "synthetic.json").read_text())
    data["synthetic"] = {key: held[key] for key in ("splits", "height", "width", "seed")}
    draw_missing_scenes(data)
    assert not caplog.text
