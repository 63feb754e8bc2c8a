"""Training as its users meet it: what a run leaves, what it starts from, and faults of input."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import DictConfig, open_dict

from src.checkpoints.files import write
from src.checkpoints.network import build_network
from src.config import compose_config, to_plain
from src.engine.module import SegmentationModule
from src.errors import UserError
from src.evaluate import evaluate
from src.train import train


def test_starting_from_a_checkpoint_fetches_no_weights(
    configure: Callable[..., DictConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = "model.backbone.weights=package"
    train(configure(package, steps=1))
    last = tmp_path / "run" / "checkpoints" / "last.ckpt"

    def fetch(*_: object) -> None:
        raise AssertionError("weights were fetched")

    monkeypatch.setattr("src.models.backbone.load_packaged_weights", fetch)
    with pytest.raises(Exception, match="weights were fetched"):
        train(configure(package, run="fresh", steps=1))
    for start in (f"init_from={last}", f"resume={last}"):
        train(configure(package, start, run=start.partition("=")[0], steps=2))


def test_a_run_leaves_checkpoints_scores_curves_and_pictures(
    configure: Callable[..., DictConfig], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train(configure(pictures=True))
    folder = tmp_path / "run"

    printed = capsys.readouterr().out
    for path in ("checkpoints/best.ckpt", "scores.csv", "metrics.csv"):
        assert (folder / path).is_file()
        assert path in printed
    assert (folder / "checkpoints" / "last.ckpt").is_file()
    assert len(list((folder / "panels").glob("step_000004/*.png"))) == 3
    scores = json.loads((folder / "scores.json").read_text())
    assert scores["images"] == 3
    assert set(scores["class"]) >= {"person", "sky", "mean"}
    with (folder / "metrics.csv").open() as file:
        columns = csv.DictReader(file).fieldnames or []
    for expected in (
        "train/loss_mask",
        "train/loss_edge",
        "train_layers/d0.loss_dice",
        "val/mBIoU",
        "val_classes/IoU_sky",
    ):
        assert expected in columns
    assert any("throughput" in column for column in columns)

    # the checkpoint evaluates to what training reported
    result = evaluate(
        compose_config(
            "evaluate",
            [
                f"checkpoint={folder / 'checkpoints' / 'last.ckpt'}",
                f"run_dir={tmp_path / 'evaluation'}",
                "num_workers=0",
                "trainer.accelerator=cpu",
                "trainer.devices=1",
                "+trainer.enable_progress_bar=false",
            ],
        )
    )
    again = json.loads((tmp_path / "evaluation" / "scores.json").read_text())
    assert again["class"] == scores["class"]
    assert result == pytest.approx(100 * scores["class"]["mean"]["BIoU"], abs=1e-3)


@pytest.mark.parametrize("val_every", [2, 100])
def test_the_last_step_is_validated_whatever_the_interval(
    configure: Callable[..., DictConfig],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    val_every: int,
) -> None:
    train(configure(f"recipe.val_every={val_every}", steps=3))
    with (tmp_path / "run" / "metrics.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["val/mBIoU"]]
    assert [int(row["step"]) for row in rows] == ([1, 2] if val_every == 2 else [2])  # counted from 0
    scores = json.loads((tmp_path / "run" / "scores.json").read_text())
    assert scores["class"]["mean"]["BIoU"] == pytest.approx(float(rows[-1]["val/mBIoU"]) / 100, abs=1e-4)
    assert "best.ckpt" in capsys.readouterr().out


def test_a_run_without_validation_claims_no_scores(
    configure: Callable[..., DictConfig], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train(configure("callbacks.last_validation=null", "recipe.val_every=100", "recipe.validate_first=true"))
    printed = capsys.readouterr().out
    assert "no scores" in printed
    assert "now:" not in printed
    assert "best.ckpt" not in printed
    assert "last.ckpt" in printed
    assert not (tmp_path / "run" / "scores.json").exists()


def test_missing_data_is_told_before_anything_is_made(
    configure: Callable[..., DictConfig], tmp_path: Path
) -> None:
    with pytest.raises(UserError, match="xiechenxi99"):
        train(configure(f"data.root={tmp_path / 'absent'}"))
    assert not (tmp_path / "run").exists()


def test_training_in_mixed_precision_stays_finite(
    configure: Callable[..., DictConfig], tmp_path: Path
) -> None:
    train(configure("trainer.precision=bf16-mixed", "activation_checkpointing=true", steps=3, pictures=True))
    assert (tmp_path / "run" / "checkpoints" / "last.ckpt").is_file()


def test_one_crop_per_device_with_batch_norm_is_explained(
    configure: Callable[..., DictConfig], tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=r"pooled_norm=frozen"):
        train(configure("recipe.batch_size=1", "recipe.pooled_norm=batch"))
    assert not (tmp_path / "run").exists()  # told before anything is made


def test_validation_counts_steps_not_batches(configure: Callable[..., DictConfig], tmp_path: Path) -> None:
    train(configure("trainer.accumulate_grad_batches=2", "recipe.val_every=2", steps=4))
    with (tmp_path / "run" / "metrics.csv").open() as file:
        assert [int(row["step"]) for row in csv.DictReader(file) if row["val/mBIoU"]] == [1, 3]


def test_weights_of_other_classes(
    configure: Callable[..., DictConfig], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = to_plain(configure())
    state, classes = build_network(config).state_dict(), config["data"]["classes"]
    config["data"]["classes"] = dict(reversed(classes.items()))
    write(tmp_path / "reversed.ckpt", config, state)
    train(configure(f"init_from={tmp_path / 'reversed.ckpt'}", "recipe.optimiser.lr=0.0", steps=1))
    after = torch.load(tmp_path / "run/checkpoints/last.ckpt", weights_only=True)["state_dict"]
    head = "transformer_decoder.class_head.weight"
    assert torch.equal(after[f"network.{head}"][:7], state[head][:7].flip(0))
    assert "random" not in caplog.text
    renamed = ["person", "background", *list(classes)[2:6], "lake"]  # by name, not by place
    config["data"]["classes"] = {name: [1, 2, 3] for name in renamed}
    write(tmp_path / "other.ckpt", config, state)
    train(configure(f"init_from={tmp_path / 'other.ckpt'}", "recipe.optimiser.lr=0.0", steps=1))
    after = torch.load(tmp_path / "run/checkpoints/last.ckpt", weights_only=True)["state_dict"]
    assert torch.equal(after[f"network.{head}"][:2], state[head][:2].flip(0))
    assert "start from random values: water" in caplog.text
    fewer = ["~data.classes.sky", "+data.classes.car=[1,2,3]", "+data.classes.bus=[1,2,4]"]
    train(configure(f"init_from={tmp_path / 'reversed.ckpt'}", *fewer, steps=1))
    assert "start from random values: car, bus" in caplog.text
    assert "left out: sky" in caplog.text
    config["data"]["classes"] = {("lake" if name == "water" else name): rgb for name, rgb in classes.items()}
    write(tmp_path / "lake.ckpt", config, state)
    train(configure(f"init_from={tmp_path / 'lake.ckpt'}", steps=1))
    assert "class water starts as what was lake there" in caplog.text


def test_an_epoch_of_no_step_is_told_before_anything_is_scored(
    configure: Callable[..., DictConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(SegmentationModule, "validation_step", lambda *_: pytest.fail("validated"))
    with pytest.raises(UserError, match="do not fill one step"):
        train(configure("recipe.validate_first=true", "recipe.batch_size=9"))


def test_crops_of_a_step_other_than_the_recipes_are_told(
    configure: Callable[..., DictConfig], caplog: pytest.LogCaptureFixture
) -> None:
    train(configure("recipe.crops_per_step=16", steps=1))
    assert "a step has 2 crops (2 x 1 devices x 1 accumulated)" in caplog.text


def test_weights_of_half_precision_are_refused(configure: Callable[..., DictConfig]) -> None:
    with pytest.raises(UserError, match="choose one of 32-true"):
        train(configure("trainer.precision=bf16-true", steps=1))


@pytest.mark.parametrize(
    "wrong",
    [
        "recipe.steps=0",
        "recipe.crop_size=many",
        "recipe.crop_size=32",
        "recipe.batch_size=0",
        "recipe.val_every=2.5",
    ],
)
def test_words_for_numbers_are_told(configure: Callable[..., DictConfig], wrong: str) -> None:
    least = 64 if "crop_size" in wrong else 1
    with pytest.raises(UserError, match=f"{wrong}: give a whole number, at least {least}"):
        train(configure(wrong, steps=1))


def test_another_run_in_the_same_folder_replaces_no_checkpoint(
    configure: Callable[..., DictConfig], tmp_path: Path
) -> None:
    train(configure(steps=1))
    before = {path.name: path.read_bytes() for path in (tmp_path / "run/checkpoints").iterdir()}
    assert before.keys() == {"best.ckpt", "last.ckpt"}
    with pytest.raises(UserError, match="choose one of 32-true"):
        train(configure("trainer.precision=bf16-true", steps=1))
    assert not (tmp_path / "run/checkpoints_1").exists()  # what is refused leaves everything where it was
    train(configure("seed=1", steps=1))
    for name, content in before.items():
        assert (tmp_path / "run/checkpoints_1" / name).read_bytes() == content
        assert (tmp_path / "run/checkpoints" / name).read_bytes() != content


def test_a_key_that_nothing_reads_is_refused(configure: Callable[..., DictConfig]) -> None:
    """As Hydra advises whoever mistypes a key: "use +recipe.stepz"."""
    with pytest.raises(UserError, match=r"nothing reads recipe\.stepz"):
        train(configure("+recipe.stepz=4"))


def test_a_score_that_validations_do_not_have_is_refused(configure: Callable[..., DictConfig]) -> None:
    for wrong in ("val/BIoU", "val_classes/IoU_skky", "val/mBF1", "null"):  # BF1 is not measured here
        with pytest.raises(
            UserError, match=r"callbacks\.best\.monitor=.*: choose one of val/mIoU, val/mBIoU,"
        ):
            train(configure(f"callbacks.best.monitor={wrong}"))
    assert train(configure("callbacks.best.monitor=val_classes/IoU_sky", steps=1)) is not None


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_trainer_options_that_cannot_be_met_are_told(configure: Callable[..., DictConfig]) -> None:
    with pytest.raises(UserError, match="these trainer options cannot be met: No supported gpu"):
        train(configure("trainer.accelerator=gpu"))


def test_the_best_checkpoint_is_described(
    configure: Callable[..., DictConfig], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The table is of the last step, whatever the best one was."""
    log = SegmentationModule.log

    def worse_and_worse(self: SegmentationModule, name: str, value: Any, **options: Any) -> None:
        log(self, name, 50.0 - self.global_step if name == "val/mBIoU" else value, **options)

    monkeypatch.setattr(SegmentationModule, "log", worse_and_worse)
    train(configure("recipe.val_every=1", steps=2))
    said = capsys.readouterr().out
    assert "best.ckpt (step 1, val/mBIoU 49.00)" in said
    assert "the table is of step 2: " in said


def test_training_without_end_is_refused(configure: Callable[..., DictConfig]) -> None:
    with pytest.raises(UserError, match=r"recipe\.steps=-1 trains without end"):
        train(configure("recipe.steps=-1"))


def test_a_run_without_loggers(configure: Callable[..., DictConfig], tmp_path: Path) -> None:
    train(configure("logger.csv=null", "callbacks.learning_rate.logging_interval=step", steps=1))
    assert (tmp_path / "run/checkpoints/last.ckpt").is_file()


def test_options_that_do_not_fit_together_are_told() -> None:
    with pytest.raises(UserError, match=r"do not fit together.*new_classes"):
        to_plain(compose_config("train", ["experiment=new_category", "data=own", "run_dir=."]))


def test_weights_of_another_network_are_refused(configure: Callable[..., DictConfig], one_step: Path) -> None:
    with pytest.raises(UserError, match=r"last\.ckpt does not fit"):
        train(configure(f"init_from={one_step}", "model.size.width=32"))


def test_evaluating_with_other_classes_is_refused(tmp_path: Path, one_step: Path) -> None:
    config = compose_config("evaluate", [f"checkpoint={one_step}", "data=mass13k", f"run_dir={tmp_path}"])
    config.data.classes = {"sky": [0, 0, 255], "rest": [0, 0, 0]}
    with pytest.raises(UserError, match="predicts 7 classes"):
        evaluate(config)


def test_unfinite_losses_are_named(
    configure: Callable[..., DictConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("src.losses.criterion.edge_loss", lambda logits, _: logits.mean() * float("nan"))
    with pytest.raises(FloatingPointError, match=r"step 0: loss_edge not finite"):
        train(configure())


@pytest.mark.parametrize("off", ["callbacks.progress=null", "+trainer.enable_progress_bar=false"])
def test_the_bar_is_turned_off_in_either_way(
    configure: Callable[..., DictConfig], capsys: pytest.CaptureFixture[str], off: str
) -> None:
    config = configure(steps=1)
    with open_dict(config):
        del config.trainer["enable_progress_bar"]
        config.callbacks.progress = {"_target_": "src.engine.progress.RunProgressBar", "seconds": None}
        if off.startswith("callbacks"):
            config.callbacks.progress = None
        else:
            config.trainer.enable_progress_bar = False
    train(config)
    assert "/1 [" not in capsys.readouterr().out
