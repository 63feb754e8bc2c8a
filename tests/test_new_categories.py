"""Teaching a trained network a new class, as users do it: train, make pseudo labels, train again, compare."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from omegaconf import DictConfig
from PIL import Image

from scripts.compare_categories import main as compare
from scripts.degrade_labels import degrade
from scripts.degrade_labels import main as degrade_labels
from scripts.make_pseudo_labels import main as make_pseudo_labels
from scripts.validate_dataset import validate
from src.checkpoints.files import read, write
from src.checkpoints.network import build_network, load
from src.config import compose_config, data_config, to_plain
from src.data.pseudo_labels import PseudoLabels
from src.errors import UserError
from src.inference import Predictor
from src.inference.external_models import ExternalModel, Preprocessing, load_onnx, load_torchscript
from src.photos import read_label
from src.train import train

TINY = [
    "model/size=nano",
    "model.backbone.weights=none",
    "model.size.num_layers=3",
    "recipe.crop_size=64",
    "recipe.num_points=128",
    "recipe.samples_per_epoch=8",
    "recipe.steps=3",
    "recipe.val_every=3",
    "recipe.save_every=3",
    "num_workers=0",
    "trainer.accelerator=cpu",
    "trainer.devices=1",
    "callbacks.progress=null",
    "callbacks.panels=null",
    "callbacks.early_look=null",
    "+trainer.enable_progress_bar=false",
    "logger.wandb=null",
]


@pytest.fixture(scope="session")
def lake(scenes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The synthetic scenes with pseudo labels of the ground, which is the new class: id 4 in the files."""
    root = tmp_path_factory.mktemp("lake")
    for folder in ("images_pad", "annotations"):
        (root / folder).symlink_to(scenes / folder)
    labels = root / "annotations" / "train"
    degrade_labels(["--labels", str(labels), "--id", "4", "--output", str(root / "pseudo_labels/train")])
    return root


def base_config(root: Path, folder: Path, *overrides: str) -> DictConfig:
    """A taxonomy without ground: its pixels are background."""
    return compose_config(
        "train",
        [
            *TINY,
            "data=mass13k",
            "data.max_long_edge=null",
            f"data.root={root}",
            f"run_dir={folder}",
            "~data.classes.ground",
            "+data.class_map={0: 0, 1: 1, 2: 2, 3: 3, 4: background, 5: sky, 6: water}",
            "recipe.validate_first=false",
            *overrides,
        ],
    )


def taught_config(root: Path, folder: Path, base: Path, *overrides: str) -> DictConfig:
    return compose_config(
        "train",
        [
            *TINY,
            "experiment=new_category",
            "data.max_long_edge=null",
            f"data.root={root}",
            f"run_dir={folder}",
            f"init_from={base}",
            "~known_classes.ground",
            "data.new_classes=[ground]",
            "+data.class_map={0: 0, 1: 1, 2: 2, 3: 3, 4: background, 5: sky, 6: water}",
            "data.evaluation_class_map={4: ground}",
            *overrides,
        ],
    )


@pytest.fixture(scope="session")
def base(lake: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base")
    train(base_config(lake, folder))
    return folder / "checkpoints" / "last.ckpt"


def test_one_command_teaches_a_new_class_and_reports_what_was_forgotten(
    lake: Path,
    base: Path,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    capsys: pytest.CaptureFixture[str],
) -> None:
    with caplog.at_level(logging.INFO):
        train(taught_config(lake, tmp_path / "run", base))
    assert "class_head.weight, row 6 (ground) is new: starts from background" in caplog.text
    assert "class_head.bias, row 6 (ground) is new: starts from background" in caplog.text
    assert caplog.text.count("is new") == 2
    assert "4 photos, 4 with precise labels, 4 with pseudo labels of ground" in caplog.text
    assert "forgotten of the known" in capsys.readouterr().out

    report = json.loads((tmp_path / "run" / "categories.json").read_text())
    assert list(report["before"]["known"]["IoU"]) == [
        "background",
        "person",
        "building",
        "tree",
        "sky",
        "water",
    ]
    assert report["before"]["new"]["IoU"] == {"ground": 0.0}
    checkpoint = read(tmp_path / "run" / "checkpoints" / "last.ckpt")
    assert list(checkpoint.classes)[-1] == "ground"
    assert checkpoint.state["transformer_decoder.class_head.weight"].shape[0] == 8
    columns = (tmp_path / "run" / "metrics.csv").read_text().splitlines()[0]
    assert "val_known/mIoU" in columns
    assert "val_new/mBIoU" in columns

    # what the run calls "before" is the checkpoint that it started from
    output = tmp_path / "compared.json"
    with pytest.raises(SystemExit):
        compare(["--before", str(base), "--after", str(checkpoint.path), "--output", str(tmp_path)])
    compare(["--before", str(base), "--after", str(checkpoint.path), "--output", str(output)])
    compared = json.loads(output.read_text())
    for metric, scores in report["before"]["known"].items():
        assert compared["before"]["known"][metric] == pytest.approx(scores, abs=0.02)
    assert compared["after"] == report["after"]


@pytest.mark.slow
@pytest.mark.parametrize("variant", ["naive", "uniform", "oracle"])
def test_every_variant_trains(lake: Path, base: Path, tmp_path: Path, variant: str) -> None:
    overrides = [f"experiment=new_category_{variant}", "recipe.validate_first=false", "recipe.steps=1"]
    train(
        taught_config(lake, tmp_path / "run", base, *overrides, "recipe.val_every=1", "recipe.save_every=1")
    )
    assert (tmp_path / "run" / "checkpoints" / "last.ckpt").is_file()
    report = json.loads((tmp_path / "run" / "categories.json").read_text())
    assert list(report) == ["after"]  # nothing was scored before the first step


def test_a_resumed_run_knows_what_was_before(lake: Path, base: Path, tmp_path: Path) -> None:
    train(taught_config(lake, tmp_path / "run", base, "recipe.save_every=2"))
    whole = json.loads((tmp_path / "run" / "categories.json").read_text())
    resumed = ["recipe.steps=4", "recipe.val_every=4", f"resume={tmp_path / 'run/checkpoints/last.ckpt'}"]
    train(taught_config(lake, tmp_path / "resumed", base, *resumed))
    report = json.loads((tmp_path / "resumed" / "categories.json").read_text())
    assert report["before"] == whole["before"]


def test_a_checkpoint_that_cannot_grow_is_refused(lake: Path, base: Path, tmp_path: Path) -> None:
    fewer = ["~known_classes.sky", "data.class_map={0: 0, 5: ignore}"]
    with pytest.raises(UserError, match=r"knows sky, which data\.classes"):
        train(taught_config(lake, tmp_path / "run", base, *fewer))


def test_the_validator_knows_pseudo_labels(lake: Path, tmp_path: Path) -> None:
    root = tmp_path / "lake"
    shutil.copytree(lake, root)
    data = data_config(
        [
            "data=new_categories",
            f"data.root={root}",
            "~known_classes.ground",
            "data.new_classes=[ground]",
            "+data.class_map={0: 0, 1: 1, 2: 2, 3: 3, 4: background, 5: sky, 6: water}",
            "data.evaluation_class_map={4: ground}",
        ]
    )
    maps = sorted((root / "pseudo_labels/train").rglob("*.png"))
    (root / "annotations/train" / maps[0].name).unlink()  # a photo with pseudo labels alone
    assert validate(data, workers=1)[0] == []
    Image.open(maps[0]).crop((0, 0, 90, 90)).save(maps[0])
    (fault,) = validate(data, workers=1)[0]
    assert (fault.kind, fault.file) == ("unreadable", maps[0])


def test_index_maps_and_soft_maps_lie_side_by_side(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "car").mkdir()
    for path in (tmp_path / "a.png", tmp_path / "car/a.png"):
        Image.fromarray(np.zeros((4, 4), np.uint8)).save(path)
    assert PseudoLabels(tmp_path, ["car"]).files("a") == [tmp_path / "a.png", tmp_path / "car/a.png"]
    assert "not used" not in caplog.text


class TestDegrading:
    def shapes(self) -> np.ndarray:
        mask = np.zeros((80, 400), bool)
        for column in range(10, 380, 40):
            mask[20:60, column : column + 28] = True
        return mask

    def test_some_regions_are_missed_and_outlines_move(self) -> None:
        mask = self.shapes()
        degraded = degrade(mask, np.random.default_rng(0), missed=0.3, tolerance=4, noise=3)
        found = [bool(degraded[40, column + 14]) for column in range(10, 380, 40)]
        assert 0 < sum(found) < len(found)
        assert 0.3 < (mask & degraded).sum() / (mask | degraded).sum() < 0.95
        assert not degraded[:10].any()

    def test_without_noise_simple_shapes_stay(self) -> None:
        mask = self.shapes()
        assert np.array_equal(degrade(mask, np.random.default_rng(0), missed=0, tolerance=1, noise=0), mask)
        wide = degrade(mask, np.random.default_rng(0), missed=0, tolerance=1, noise=0, bias=2)
        narrow = degrade(mask, np.random.default_rng(0), missed=0, tolerance=1, noise=0, bias=-2)
        assert narrow.sum() < mask.sum() < wide.sum()
        assert not (narrow & ~mask).any()
        assert not (mask & ~wide).any()

    @pytest.mark.parametrize("wrong", [("--id", "300"), ("--noise", "-1"), ("--seed", "-1")])
    def test_numbers_that_cannot_be_are_told(
        self, lake: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], wrong: tuple[str, str]
    ) -> None:
        with pytest.raises(SystemExit):
            degrade_labels(
                ["--labels", str(lake / "annotations/train"), "--output", str(tmp_path), "--id=4", *wrong]
            )
        assert f"error: {' '.join(wrong)}: " in capsys.readouterr().err
        assert not list(tmp_path.glob("*.png"))

    def test_a_folder(self, lake: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        arguments = ["--labels", str(lake / "annotations/train"), "--id", "4"]
        for name, seed in (("a", "0"), ("b", "0"), ("c", "1")):
            degrade_labels([*arguments, "--output", str(tmp_path / name), "--seed", seed])
        assert "IoU with the true masks" in capsys.readouterr().out
        files = sorted(path.name for path in (tmp_path / "a").iterdir())
        assert files == sorted(path.name for path in (lake / "annotations/train").iterdir())
        a, b, c = (np.stack([read_label(tmp_path / x / name)[:96, :96] for name in files]) for x in "abc")
        assert set(np.unique(a)) == {0, 1}
        assert np.array_equal(a, b)
        assert not np.array_equal(a, c)

    def test_true_labels_are_not_overwritten(self, tmp_path: Path) -> None:
        with pytest.raises(SystemExit):
            degrade_labels(["--labels", str(tmp_path), "--id", "1", "--output", str(tmp_path)])


class Thirds(torch.nn.Module):
    """Class 0 on the left third of a photo, 1 in the middle, 2 on the right, as logits at a quarter of its size."""

    def forward(self, image: torch.Tensor) -> dict[str, torch.Tensor]:
        width = image.shape[3] // 4
        logits = torch.full((1, 3, image.shape[2] // 4, width), -9.0)
        for number in range(3):
            logits[0, number, :, number * width // 3 : (number + 1) * width // 3] = 9.0
        return {"out": logits}


class TestPseudoLabels:
    @pytest.fixture
    def photos(self, tmp_path: Path) -> Path:
        rng = np.random.default_rng(0)
        (tmp_path / "photos").mkdir()
        for name in ("a", "b"):
            Image.fromarray(rng.integers(0, 256, (60, 90, 3), np.uint8)).save(
                tmp_path / "photos" / f"{name}.png"
            )
        return tmp_path / "photos"

    @pytest.fixture
    def archive(self, tmp_path: Path) -> Path:
        torch.jit.script(Thirds()).save(str(tmp_path / "model.pt"))
        return tmp_path / "model.pt"

    def test_from_a_checkpoint_of_this_project(self, photos: Path, base: Path, tmp_path: Path) -> None:
        output = tmp_path / "out"
        arguments = ["--model", str(base), "--photos", str(photos), "--output", str(output)]
        assert make_pseudo_labels([*arguments, "--class", "lake=water", "--class", "sky"]) == 0
        scores = PseudoLabels(output, ["lake", "sky"]).scores("a", (60, 90)).astype(int)
        assert ((scores[..., 0] + scores[..., 1]) <= 256).all()
        assert scores.max() > 0

    def test_one_class_alone_has_its_score(self, photos: Path, tmp_path: Path) -> None:
        """There are no others to share with, and a share of 1 everywhere would say nothing."""
        changes = [
            f"~data.classes.{name}"
            for name in ("background", *["building", "tree", "ground", "sky", "water"])
        ]
        config = to_plain(compose_config("train", [*TINY, "data=mass13k", "run_dir=.", *changes]))
        torch.manual_seed(0)
        write(tmp_path / "one.ckpt", config, build_network(config).state_dict())
        output = tmp_path / "out"
        arguments = ["--model", str(tmp_path / "one.ckpt"), "--photos", str(photos), "--output", str(output)]
        assert make_pseudo_labels([*arguments, "--class", "person"]) == 0
        expected = load(tmp_path / "one.ckpt")
        scores = Predictor(expected)(photos / "a.png").scores
        assert scores is not None
        found = read_label(output / "person/a.png").astype(int)
        assert abs(found - 255 * scores[0].clip(max=1)).max() <= 1

    def test_maps_that_exist_stay(self, photos: Path, base: Path, tmp_path: Path) -> None:
        output = tmp_path / "out"
        arguments = ["--model", str(base), "--photos", str(photos), "--output", str(output), "--class", "sky"]
        make_pseudo_labels(arguments)
        corrected = output / "sky/a.png"
        corrected.write_bytes(b"by hand")
        make_pseudo_labels([*arguments, "--class", "water"])
        assert corrected.read_bytes() == b"by hand"
        assert (output / "water/a.png").is_file()

    def test_from_torchscript(self, photos: Path, archive: Path, tmp_path: Path) -> None:
        output = tmp_path / "out"
        arguments = [
            "--model",
            str(archive),
            "--photos",
            str(photos),
            "--output",
            str(output),
            "--class",
            "car=1",
        ]
        assert make_pseudo_labels([*arguments, "--trust-torchscript"]) == 0
        soft = read_label(output / "car" / "a.png")
        assert soft.shape == (60, 90)
        assert (soft[:, 40:50] > 250).all()
        assert (soft[:, :20] < 5).all()
        assert (soft[:, 70:] < 5).all()
        (output / "car" / "b.png").unlink()
        assert make_pseudo_labels([*arguments, "--trust-torchscript", "--hard", "0.5"]) == 0
        assert set(np.unique(read_label(output / "car" / "b.png"))) == {0, 255}
        assert np.array_equal(read_label(output / "car" / "a.png"), soft)  # not made again

    def test_a_class_is_given_once(
        self, photos: Path, archive: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        arguments = ["--model", str(archive), "--photos", str(photos), "--output", str(tmp_path / "out")]
        with pytest.raises(SystemExit):
            make_pseudo_labels([*arguments, "--class", "car=1", "--class", "car=2", "--trust-torchscript"])
        assert "give each class once" in capsys.readouterr().err

    def test_torchscript_is_a_program_and_needs_trust(
        self,
        photos: Path,
        archive: Path,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        monkeypatch.setattr(torch.jit, "load", lambda *_, **__: pytest.fail("loaded"))
        with pytest.raises(SystemExit):
            make_pseudo_labels(
                [
                    "--model",
                    str(archive),
                    "--class",
                    "car=1",
                    "--photos",
                    str(photos),
                    "--output",
                    str(tmp_path / "o"),
                ]
            )
        assert "a program, not data" in capsys.readouterr().err
        with pytest.raises(UserError, match="--trust-torchscript"):
            load_torchscript(archive, Preprocessing(), trusted=False)

    def test_a_class_that_the_model_lacks(self, photos: Path, archive: Path, tmp_path: Path) -> None:
        model = load_torchscript(archive, Preprocessing(), trusted=True)
        with pytest.raises(UserError, match="has 3 classes, 0 to 2, not 7"):
            model(np.zeros((64, 64, 3), np.uint8), [7])

    def test_maps_of_ids(self) -> None:
        model = ExternalModel(
            lambda image: [torch.arange(4).view(1, 2, 2)], Preprocessing(size=(2, 2)), Path("ids.onnx")
        )
        scores = model(np.zeros((2, 2, 3), np.uint8), [3, 0])
        assert scores.tolist() == [[[0, 0], [0, 1]], [[1, 0], [0, 0]]]

    def test_one_class_has_no_softmax(self) -> None:
        def model(activation: str) -> ExternalModel:
            settings = Preprocessing(size=(2, 2), activation=activation)
            return ExternalModel(
                lambda image: [torch.full((1, 1, 2, 2), -8.0)], settings, Path("binary.onnx")
            )

        with pytest.raises(UserError, match="softmax makes 1 everywhere"):
            model("softmax")(np.zeros((2, 2, 3), np.uint8), [0])
        assert model("sigmoid")(np.zeros((2, 2, 3), np.uint8), [0]).max() < 1e-3

    def test_onnx_without_onnxruntime(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
        with pytest.raises(UserError, match="pip install onnxruntime"):
            load_onnx(tmp_path / "a.onnx", Preprocessing())

    def test_faults_are_named(
        self, photos: Path, base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        def complaint(*arguments: str) -> str:
            with pytest.raises(SystemExit):
                make_pseudo_labels(["--photos", str(photos), "--output", str(tmp_path / "o"), *arguments])
            return capsys.readouterr().err

        assert "no such file" in complaint("--model", str(tmp_path / "none.ckpt"), "--class", "car")
        assert "has no class car" in complaint("--model", str(base), "--class", "car")
        (tmp_path / "model.h5").touch()
        assert "from 0 to below 1" in complaint("--model", str(base), "--class", "sky", "--hard", "50")
        assert "unknown kind of model" in complaint("--model", str(tmp_path / "model.h5"), "--class", "car=1")
        assert "--class car=<number>" in complaint("--model", str(tmp_path / "model.h5"), "--class", "car")

    def test_a_broken_photo_does_not_stop_the_others(
        self, photos: Path, archive: Path, tmp_path: Path
    ) -> None:
        (photos / "a.png").write_bytes(b"nothing")
        output = tmp_path / "out"
        arguments = [
            "--model",
            str(archive),
            "--photos",
            str(photos),
            "--output",
            str(output),
            "--class",
            "car=1",
        ]
        assert make_pseudo_labels([*arguments, "--trust-torchscript"]) == 1
        assert [path.name for path in (output / "car").iterdir()] == ["b.png"]
