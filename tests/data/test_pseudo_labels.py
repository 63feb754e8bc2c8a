"""Pseudo labels beside precise ones: files, merging, and photos that have either, both or neither."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from src.data.folder import DatasetError
from src.data.new_categories import NewCategoryData
from src.data.pseudo_labels import PseudoLabels, merge
from src.data.targets import boundary_map
from src.errors import UserError
from src.structures import IGNORE

CLASSES = {"background": [0, 0, 0], "person": [255, 0, 0], "sky": [0, 0, 255]}
NEW = {"car": [1, 2, 3], "bus": [4, 5, 6]}
CAR, BUS = 3, 4


def write(path: Path, values: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(values.astype(np.uint8)).save(path)


def data(root: Path, **options: Any) -> NewCategoryData:
    defaults = {
        "root": str(root),
        "classes": CLASSES | NEW,
        "new_classes": list(NEW),
        "crop_size": 32,
        "batch_size": 2,
        "scales": [1.0],
    }
    return NewCategoryData(**(defaults | options))


@pytest.fixture
def root(write_dataset: Callable[..., Path]) -> Path:
    """Five photos: 0 and 1 with both kinds of labels, 2 with precise, 3 with pseudo labels only, 4 with neither."""
    folder = write_dataset()
    for index in (3, 4):
        (folder / "annotations" / "train" / f"photo_{index}.png").unlink()
    rng = np.random.default_rng(1)
    for index in (0, 1, 3):
        shape = (40 + 2 * index, 56)
        write(folder / "pseudo_labels/train" / f"photo_{index}.png", rng.integers(0, 3, shape))
    return folder


class TestFiles:
    def test_an_index_map_speaks_of_all_new_classes(self, tmp_path: Path) -> None:
        write(tmp_path / "a.png", np.array([[0, 1, 2, 255, 9]]))
        scores = PseudoLabels(tmp_path, ["car", "bus"]).scores("a", (1, 5))
        assert scores[0].tolist() == [[0, 0], [254, 0], [0, 254], [IGNORE, IGNORE], [0, 0]]

    def test_ids_of_other_programs(self, tmp_path: Path) -> None:
        write(tmp_path / "a.png", np.array([[0, 13, 7, 255]]))
        labels = PseudoLabels(tmp_path, ["car", "bus"], {13: "car", 255: "ignore", 0: "ignore"})
        scores = labels.scores("a", (1, 4))
        assert scores[0].tolist() == [[IGNORE, IGNORE], [254, 0], [0, 0], [IGNORE, IGNORE]]

    def test_a_soft_map_goes_before_the_index_map(self, tmp_path: Path) -> None:
        write(tmp_path / "a.png", np.array([[2, 2, 2, 2, 2]]))
        write(tmp_path / "car" / "a.png", np.array([[0, 100, 128, 129, 255]]))
        scores = PseudoLabels(tmp_path, ["car", "bus"]).scores("a", (1, 5))
        assert scores[0, :, 0].tolist() == [0, 100, 127, 128, 254]
        assert scores[0, :, 1].tolist() == [254] * 5

    def test_a_class_without_a_file_is_unknown(self, tmp_path: Path) -> None:
        write(tmp_path / "car" / "a.png", np.array([[0, 255]]))
        scores = PseudoLabels(tmp_path, ["car", "bus"]).scores("a", (1, 2))
        assert scores[0].tolist() == [[0, IGNORE], [254, IGNORE]]
        assert (PseudoLabels(tmp_path, ["car", "bus"]).scores("b", (1, 2)) == IGNORE).all()

    def test_sizes_must_agree(self, tmp_path: Path) -> None:
        write(tmp_path / "a.png", np.zeros((3, 4)))
        with pytest.raises(ValueError, match=r"a\.png: the pseudo label is 4x3 pixels, but its photo is 4x2"):
            PseudoLabels(tmp_path, ["car"]).scores("a", (2, 4))

    def test_faults_of_the_folder_and_the_map_are_named(self, tmp_path: Path) -> None:
        with pytest.raises(DatasetError, match=r"nowhere: no such folder.*data\.pseudo_labels"):
            PseudoLabels(tmp_path / "nowhere", ["car"])
        with pytest.raises(DatasetError, match=r"no pseudo label.*car/\*\.png"):
            PseudoLabels(tmp_path, ["car"])
        with pytest.raises(UserError, match=r"7 maps to 'lorry'.*car"):
            PseudoLabels(tmp_path, ["car"], {7: "lorry"})


class TestMerge:
    LABEL = np.array([[0, 0, 0, 1, 2, IGNORE, 0]], np.uint8)
    SCORES = np.array([[[254, 0], [0, 200], [127, 0], [254, 0], [0, 0], [254, 0], [IGNORE, 0]]], np.uint8)

    def test_others_become_new_classes_and_named_classes_stay(self) -> None:
        merged = merge(self.LABEL, self.SCORES, CAR, others=0, labelled=True)
        assert merged.tolist() == [[CAR, BUS, 0, 1, 2, IGNORE, 0]]

    def test_objects_that_precise_labels_ignore(self) -> None:
        merged = merge(self.LABEL, self.SCORES, CAR, others=IGNORE, labelled=True)
        assert merged.tolist() == [[0, 0, 0, 1, 2, CAR, 0]]

    def test_without_precise_labels_pseudo_labels_are_all_there_is(self) -> None:
        nothing = np.full_like(self.LABEL, IGNORE)
        merged = merge(nothing, self.SCORES, CAR, others=0, labelled=False)
        assert merged.tolist() == [[CAR, BUS, IGNORE, CAR, IGNORE, CAR, IGNORE]]

    def test_the_highest_score_wins(self) -> None:
        scores = np.array([[[200, 220], [220, 200]]], np.uint8)
        merged = merge(np.zeros((1, 2), np.uint8), scores, CAR, others=0, labelled=True)
        assert merged.tolist() == [[BUS, CAR]]


class TestData:
    def test_any_subset_of_photos_has_either_or_both(
        self, root: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        module = data(root)
        with caplog.at_level(logging.INFO):
            module.setup("fit")
        assert list(module.source("train").names) == ["photo_0", "photo_1", "photo_2", "photo_3"]
        assert "4 photos, 3 with precise labels, 3 with pseudo labels of car, bus" in caplog.text
        assert "1 photos have no label of any kind: photo_4" in caplog.text

    def test_crops_carry_merged_labels_boundaries_and_scores(self, root: Path) -> None:
        module = data(root, samples_per_epoch=16)
        module.setup("fit")
        seen = set()
        for batch in module.train_dataloader():
            labels, boundaries, pseudo = batch.targets
            assert pseudo.shape == (2, 2, 32, 32)
            for label, boundary, scores in zip(
                labels.numpy(), boundaries.numpy(), pseudo.numpy(), strict=True
            ):
                assert np.array_equal(boundary_map(label), boundary)
                for channel, new in enumerate((CAR, BUS)):
                    assert (scores[channel][label == new] == 254).all()
                named = np.isin(label, (1, 2))
                if (label == IGNORE).any():
                    seen.add("pseudo labels only")
                    assert not named.any()
                elif (scores == 127).all():
                    seen.add("precise labels only")
                    assert (label < CAR).all()
                else:
                    seen.add("both")
                    assert (scores.max(0)[label == 0] == 0).all()
        assert seen == {"pseudo labels only", "precise labels only", "both"}

    def test_flips_keep_labels_and_scores_together_on_the_device_too(self, root: Path) -> None:
        batches = []
        for place in ("worker", "device"):
            module = data(root, samples_per_epoch=16, augment_on=place)
            module.setup("fit")
            batches.append([module.on_after_batch_transfer(b, 0) for b in module.train_dataloader()])
        for ours, theirs in zip(*batches, strict=True):
            assert torch.equal(ours.images, theirs.images)
            for a, b in zip(ours.targets, theirs.targets, strict=True):
                assert torch.equal(a, b)

    def test_padding_is_unknown(self, root: Path) -> None:
        module = data(root, crop_size=80, samples_per_epoch=4)
        module.setup("fit")
        for batch in module.train_dataloader():
            assert (batch.targets.labels[:, 60:] == IGNORE).all()
            assert (batch.targets.pseudo[:, :, 60:] == 127).all()

    def test_precise_supervision_reads_labels_as_evaluation_does(self, root: Path) -> None:
        for index in (3, 4):
            write(root / "annotations/train" / f"photo_{index}.png", np.zeros((40 + 2 * index, 56)))
        options = {"class_map": {0: 0, 1: 1, 2: "background"}, "evaluation_class_map": {2: "car"}}
        module = data(root, supervision="precise", **options)
        module.setup("fit")
        batch = next(iter(module.train_dataloader()))
        assert batch.targets.pseudo is None
        assert CAR in batch.targets.labels
        assert CAR in next(iter(module.val_dataloader())).label
        taught = data(write_missing(root), **options)
        taught.setup("fit")
        assert CAR in next(iter(taught.val_dataloader())).label
        assert 2 not in next(iter(taught.train_dataloader())).targets.labels

    def test_precise_training_labels_must_not_have_new_classes(self, root: Path) -> None:
        write(root / "annotations/train/photo_2.png", np.full((44, 56), CAR))
        module = data(root, samples_per_epoch=16)
        module.setup("fit")
        with pytest.raises(
            ValueError, match=r"photo_2\.png: the label map holds ids outside the class map: 3"
        ):
            list(module.train_dataloader())

    def test_evaluation_needs_no_pseudo_labels(self, root: Path) -> None:
        module = data(root, pseudo_labels="nowhere")
        module.setup("validate")
        assert len(list(module.val_dataloader())) == 3
        with pytest.raises(DatasetError, match="nowhere"):
            module.setup("fit")

    @pytest.mark.parametrize(
        ("options", "complaint"),
        [
            ({"new_classes": ["sky"]}, "must be the last"),
            ({"new_classes": []}, "must be the last"),
            ({"others": "car"}, r"data\.others=car: choose one of background, person, sky"),
            ({"supervision": "both"}, "pseudo or precise"),
        ],
    )
    def test_wrong_settings_are_named(self, root: Path, options: dict[str, Any], complaint: str) -> None:
        with pytest.raises(UserError, match=complaint):
            data(root, **options)

    def test_pseudo_labels_of_other_photos(self, root: Path, tmp_path: Path) -> None:
        write(tmp_path / "elsewhere" / "x.png", np.zeros((4, 4)))
        with pytest.raises(DatasetError, match=r"none of the 3 photos has a pseudo label.*as in x"):
            data(root, pseudo_labels=str(tmp_path / "elsewhere")).setup("fit")


def write_missing(root: Path) -> Path:
    """Give every training photo a pseudo label without a new class."""
    for index in range(5):
        write(root / "pseudo_labels/train" / f"photo_{index}.png", np.zeros((40 + 2 * index, 56)))
    return root


def test_stores_are_made_of_photos_with_precise_labels(root: Path) -> None:
    assert [pair.name for pair in data(root).pairs("train")] == ["photo_0", "photo_1", "photo_2"]
    with pytest.raises(DatasetError, match="no label map"):
        data(root, supervision="precise").pairs("train")


def test_evaluation_ids_need_no_class_map_beside_them(root: Path) -> None:
    mapped = data(root, evaluation_class_map={13: "car"}).class_map
    ids = np.array([[0, 1, 13, 255]], np.uint8)
    assert mapped(ids, "")[0].tolist() == [0, 1, list(CLASSES | NEW).index("car"), IGNORE]
