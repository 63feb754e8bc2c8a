"""Training as its users meet it: runs, sweeps, resuming, several processes, and faults of input."""

from __future__ import annotations

import copy
import csv
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import DictConfig, open_dict

from src.checkpoints.store import build_network, write
from src.config import build, compose_config, to_plain
from src.data.targets import boundary_map
from src.engine.callbacks import SynchronisedNorms
from src.engine.checkpointing import WholeCheckpoints
from src.engine.module import SegmentationModule
from src.engine.optimisation import Optimisation
from src.errors import UserError, explained
from src.evaluate import evaluate
from src.models.recomputation import checkpoint_network
from src.structures import Targets
from src.train import train

REPOSITORY = Path(__file__).resolve().parent.parent

TINY = [
    "model/size=nano",
    "model.backbone.weights=none",
    "data=mass13k",
    "recipe.crop_size=64",
    "recipe.num_points=128",
    "recipe.samples_per_epoch=8",
    "recipe.validate_first=false",
    "num_workers=0",
    "trainer.accelerator=cpu",
    "trainer.devices=1",
    "trainer.log_every_n_steps=1",
    "callbacks.progress=null",
    "+trainer.enable_progress_bar=false",
    "logger.wandb=null",
]


QUIET = ["callbacks.panels=null", "callbacks.early_look=null", "metrics.boundary_f1=false"]


def composed(scenes: Path, folder: Path, *overrides: str, steps: int, pictures: bool = False) -> DictConfig:
    return compose_config(
        "train",
        [
            *TINY,
            *([] if pictures else QUIET),
            f"data.root={scenes}",
            f"run_dir={folder}",
            f"recipe.steps={steps}",
            f"recipe.val_every={steps}",
            f"recipe.save_every={steps}",
            *overrides,
        ],
    )


@pytest.fixture
def configure(scenes: Path, tmp_path: Path) -> Callable[..., DictConfig]:
    """Composes a tiny training run over the synthetic scenes; ``run`` names its folder."""

    def compose(*overrides: str, run: str = "run", steps: int = 4, pictures: bool = False) -> DictConfig:
        return composed(scenes, tmp_path / run, *overrides, steps=steps, pictures=pictures)

    return compose


@pytest.fixture(scope="module")
def one_step(scenes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The last checkpoint of a run of one step."""
    folder = tmp_path_factory.mktemp("one_step")
    train(composed(scenes, folder, steps=1))
    return folder / "checkpoints" / "last.ckpt"


def run_module(
    module: str, *arguments: str, folder: Path, **environment: str
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", module, *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1", **environment},
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
    )


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


@pytest.mark.parametrize("averaged", ["recipe.ema_decay=null", "recipe.ema_decay=0.5"])
def test_the_last_checkpoint_is_the_last_steps(
    configure: Callable[..., DictConfig], tmp_path: Path, averaged: str
) -> None:
    train(configure(averaged, "recipe.save_every=2", run="uneven", steps=3))
    train(configure(averaged, run="even", steps=3))
    uneven, even = (
        torch.load(tmp_path / run / "checkpoints" / "last.ckpt", weights_only=True)
        for run in ("uneven", "even")
    )
    assert uneven["global_step"] == even["global_step"] == 3
    for part in ("state_dict", "current_model_state"):
        assert (part in uneven) == (part in even)
        for name, tensor in even.get(part, {}).items():
            assert torch.equal(uneven[part][name], tensor), name


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


def test_giving_up_is_no_success() -> None:
    """Lightning ends a program that got SIGTERM with an exit that has no code."""
    with pytest.raises(SystemExit) as stopped, explained():
        raise SystemExit
    assert stopped.value.code == 143
    with pytest.raises(SystemExit) as stopped, explained():
        raise SystemExit(3)
    assert stopped.value.code == 3


@pytest.mark.parametrize(
    "extra", [[], ["recipe.ema_decay=null", "trainer.accumulate_grad_batches=2", "num_workers=1"]]
)
def test_a_killed_and_resumed_run_equals_an_uninterrupted_one(
    configure: Callable[..., DictConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, extra: list[str]
) -> None:
    extra = [*extra, "recipe.save_every=3", "recipe.val_every=5"]  # neither falls on the end of an epoch
    train(configure(*extra, run="whole", steps=6, pictures=True))

    def power_cut(self: SegmentationModule, *_: object) -> None:
        if self.global_step == 5:
            raise RuntimeError("power cut")

    with monkeypatch.context() as patch:
        patch.setattr(SegmentationModule, "on_train_batch_end", power_cut)
        with pytest.raises(RuntimeError, match="power cut"):
            train(configure(*extra, run="killed", steps=6, pictures=True))
    last = tmp_path / "killed" / "checkpoints" / "last.ckpt"
    assert torch.load(last, weights_only=True)["global_step"] == 3
    train(configure(*extra, f"resume={last}", run="resumed", steps=6, pictures=True))

    expected = torch.load(tmp_path / "whole" / "checkpoints" / "last.ckpt", weights_only=True)
    actual = torch.load(tmp_path / "resumed" / "checkpoints" / "last.ckpt", weights_only=True)
    assert expected["global_step"] == actual["global_step"] == 6
    for part in ("state_dict", "current_model_state"):
        for name, tensor in expected.get(part, {}).items():
            assert torch.equal(tensor, actual[part][name]), f"{part}: {name}"
    moments = expected["optimizer_states"][0]["state"]
    for index, state in moments.items():
        assert torch.equal(state["exp_avg"], actual["optimizer_states"][0]["state"][index]["exp_avg"])


@pytest.mark.parametrize("accumulated", [1, 2])
def test_a_run_told_to_stop_loses_nothing(
    configure: Callable[..., DictConfig],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    accumulated: int,
) -> None:
    options = ["recipe.save_every=100", f"trainer.accumulate_grad_batches={accumulated}"]
    train(configure(*options, run="whole", steps=4))

    def signal_comes(self: SegmentationModule, *_: object) -> None:
        if self.global_step == 1:  # with accumulation, in the first batch of the step
            os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(SegmentationModule, "on_before_backward", signal_comes)
        with pytest.raises(SystemExit), explained():
            train(configure(*options, run="stopped", steps=4))
    last = tmp_path / "stopped" / "checkpoints" / "last.ckpt"
    assert f"with resume={last} added to its overrides the run goes on from step 2" in caplog.text
    train(configure(*options, f"resume={last}", run="resumed", steps=4))
    states = [
        torch.load(tmp_path / run / "checkpoints" / "last.ckpt", weights_only=True)["current_model_state"]
        for run in ("whole", "resumed")
    ]
    for name, tensor in states[0].items():
        assert torch.equal(tensor, states[1][name]), name


@pytest.mark.skipif(sys.platform != "linux", reason="macOS does not tell who sent a signal")
@pytest.mark.parametrize(
    ("devices", "to_all"), [(1, True), pytest.param(2, True, marks=pytest.mark.slow), (2, False)]
)
def test_a_signal_to_all_processes_of_a_run_loses_nothing(
    scenes: Path, tmp_path: Path, devices: int, to_all: bool
) -> None:
    """To one of two devices too, which tells the other."""
    arguments = [option for option in TINY if not option.startswith(("num_workers", "trainer.devices"))]
    arguments += [
        f"trainer.devices={devices}",
        f"data.root={scenes}",
        f"run_dir={tmp_path / 'run'}",
        f"hydra.run.dir={tmp_path / 'run'}",
    ]
    arguments += ["recipe.save_every=100000", "recipe.val_every=100000", "recipe.steps=100000"]
    with subprocess.Popen(
        [sys.executable, "-m", "src.train", *arguments, "num_workers=1"],
        cwd=REPOSITORY,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    ) as run:
        curve, end = tmp_path / "run" / "metrics.csv", time.monotonic() + 300
        while not (curve.exists() and curve.read_text().count("\n") > 6):
            assert run.poll() is None, run.communicate()[0]
            assert time.monotonic() < end, "no step in five minutes"
            time.sleep(0.2)
        (os.killpg if to_all else os.kill)(run.pid, signal.SIGTERM)  # to all: timeout and some clusters
        said, _ = run.communicate(timeout=120)
    assert run.returncode == 143, said
    last = tmp_path / "run" / "checkpoints" / "last.ckpt"
    step = torch.load(last, weights_only=True)["global_step"]
    assert f"with resume={last} added to its overrides the run goes on from step {step}" in said
    assert f"stopped behind step {step};" in said


def test_a_run_that_fails_says_how_it_can_go_on(
    configure: Callable[..., DictConfig],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def power_cut(self: SegmentationModule, *_: object) -> None:
        if self.global_step == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(SegmentationModule, "on_train_batch_start", power_cut)
    with pytest.raises(SystemExit):
        train(configure("recipe.save_every=3", steps=4))
    assert "stopped behind step 2; no checkpoint had been written yet (recipe.save_every is 3" in caplog.text
    with pytest.raises(SystemExit):
        train(configure("recipe.save_every=1", steps=4))
    last = tmp_path / "run" / "checkpoints" / "last.ckpt"
    assert f"with resume={last} added to its overrides the run goes on from step 2" in caplog.text


@pytest.mark.slow
def test_overfitting_one_crop_drives_the_loss_below_a_tenth(configure: Callable[..., DictConfig]) -> None:
    config = configure(
        "model.backbone.weights=package", "recipe.num_points=512", "recipe.optimiser.lr=2.0e-3"
    )
    torch.manual_seed(0)
    label = torch.zeros(96, 96, dtype=torch.uint8)  # sky above ground, and a house
    label[:40], label[40:] = 5, 4
    label[20:64, 24:56] = 2
    colours = torch.tensor(list(config.data.classes.values()), dtype=torch.float32)
    image = colours[label.long()] * 0.6 + 40 + 20 * torch.rand(96, 96, 3)
    images = image.clamp(0, 255).byte().permute(2, 0, 1)[None].repeat(2, 1, 1, 1)
    boundary = torch.from_numpy(boundary_map(label.numpy()))
    targets = Targets(label[None].repeat(2, 1, 1), boundary[None].repeat(2, 1, 1))

    network, criterion = build(config.model.network).train(), build(config.loss)
    optimisation = Optimisation(**config.recipe.optimiser)
    optimiser = optimisation.optimiser(network)
    losses = []
    for _ in range(160):
        loss = torch.stack(list(criterion(network(network.normalise(images)), targets).values())).sum()
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimiser.step()
        losses.append(float(loss.detach()))
    assert min(losses[-10:]) < losses[0] / 10, losses[::10]


@pytest.mark.slow
def test_a_sweep_makes_one_run_for_every_rung(scenes: Path, tmp_path: Path) -> None:
    rungs = ["ablation_baseline", "ablation_egf"]
    overrides = [o for o in TINY if not o.startswith("logger.wandb")]
    done = run_module(
        "src.train",
        "-m",
        f"experiment={','.join(rungs)}",
        *overrides,
        f"data.root={scenes}",
        "recipe.steps=1",
        "recipe.val_every=1",
        f"hydra.sweep.dir={tmp_path / 'sweep'}",
        folder=tmp_path,
        WANDB_MODE="offline",
    )
    assert done.returncode == 0, done.stderr[-3000:]
    for number, rung in enumerate(rungs):
        folder = tmp_path / "sweep" / f"{number}_{rung}"
        assert (folder / "checkpoints" / "last.ckpt").is_file() or (
            folder / "checkpoints" / "best.ckpt"
        ).is_file()
        assert (folder / "scores.csv").is_file()
        assert len(list(folder.glob("wandb/offline-run-*/*.wandb"))) == 1
    with (tmp_path / "sweep" / "sweep.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["run"] for row in rows] == [f"{i}: experiment={rung}" for i, rung in enumerate(rungs)]
    scores = json.loads((tmp_path / "sweep" / "1_ablation_egf" / "scores.json").read_text())
    assert float(rows[1]["mBIoU"]) == pytest.approx(scores["class"]["mean"]["BIoU"], abs=1e-6)
    assert "1: experiment=ablation_egf" in done.stdout


@pytest.mark.slow
def test_two_processes_give_the_scores_of_one(
    configure: Callable[..., DictConfig], scenes: Path, tmp_path: Path
) -> None:
    train(configure(pictures=True))
    checkpoint = tmp_path / "run" / "checkpoints" / "last.ckpt"
    common = [f"checkpoint={checkpoint}", "num_workers=0", "trainer.accelerator=cpu"]
    by_torchrun = ["torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "src.evaluate"]
    starts = {  # Lightning starts the second process itself, and in the same run folder; torchrun does not
        "two": ["src.evaluate", *common, "trainer.devices=2"],
        "torchrun": [*by_torchrun, *common, "trainer.devices=2"],
    }
    expected = json.loads((tmp_path / "run" / "scores.json").read_text())
    for name, start in starts.items():
        (tmp_path / name).mkdir()
        done = run_module(*start, folder=tmp_path / name)
        assert done.returncode == 0, done.stderr[-3000:]
        (written,) = (tmp_path / name).glob("outputs/evaluate/*/scores.json")
        assert (written.parent / "report.html").is_file()
        assert len(list((written.parent / "predictions").iterdir())) == 3
        scores = json.loads(written.read_text())
        assert scores["images"] == 3
        for label, row in expected["class"].items():
            assert row == pytest.approx(scores["class"][label], nan_ok=True)


@pytest.mark.slow
def test_two_processes_train_together(scenes: Path, tmp_path: Path) -> None:
    done = run_module(
        "src.train",
        *[o for o in TINY if not o.startswith("trainer.devices")],
        "trainer.devices=2",
        f"data.root={scenes}",
        "recipe.steps=2",
        "recipe.val_every=2",
        f"hydra.run.dir={tmp_path / 'ddp'}",
        folder=tmp_path,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert json.loads((tmp_path / "ddp" / "scores.json").read_text())["images"] == 3


def test_training_in_mixed_precision_stays_finite(
    configure: Callable[..., DictConfig], tmp_path: Path
) -> None:
    train(configure("trainer.precision=bf16-mixed", "activation_checkpointing=true", steps=3, pictures=True))
    assert (tmp_path / "run" / "checkpoints" / "last.ckpt").is_file()


def gradients_of(network: torch.nn.Module, *outputs: str) -> dict[str, torch.Tensor]:
    """Gradients of the mean squares of the last prediction's outputs and of its edges."""
    prediction = network(torch.randn(2, 3, 64, 64))
    values = [prediction.edge_logits, *(getattr(prediction.layers[-1], name) for name in outputs)]
    torch.stack([value.square().mean() for value in values]).sum().backward()
    return {name: p.grad for name, p in network.named_parameters() if p.grad is not None}


def test_recomputed_activations_change_neither_gradients_nor_statistics(
    configure: Callable[..., DictConfig],
) -> None:
    config = configure()
    results, kept = [], []
    for recompute in (False, True):
        torch.manual_seed(0)
        network = build(config.model.network).train()
        if recompute:
            checkpoint_network(network)
        own = {tensor.untyped_storage()._cdata for tensor in network.parameters()}
        saved: dict[int, torch.UntypedStorage] = {}

        def keep(x: torch.Tensor, saved: dict[int, torch.UntypedStorage] = saved) -> torch.Tensor:
            saved[x.untyped_storage()._cdata] = x.untyped_storage()
            return x

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
            results.append((gradients_of(network, "mask_logits"), dict(network.named_buffers())))
        kept.append(sum(storage.nbytes() for key, storage in saved.items() if key not in own))
    assert kept[1] < 0.6 * kept[0]
    for plain, recomputed in zip(*results, strict=True):
        assert plain.keys() == recomputed.keys()
        for name, tensor in plain.items():
            torch.testing.assert_close(tensor, recomputed[name], msg=name)


@pytest.mark.slow
def test_recomputation_in_a_compiled_network(configure: Callable[..., DictConfig]) -> None:
    config = configure("model/size=lite", "recipe.pooled_norm=frozen")
    gradients = []
    for compiled in (False, True):
        torch.manual_seed(0)
        network = build(config.model.network).train()
        if compiled:
            checkpoint_network(network)
            network.compile(backend="aot_eager")
        gradients.append(gradients_of(network, "mask_logits", "class_logits"))
    plain, recomputed = gradients
    assert plain.keys() == recomputed.keys()
    largest = max(gradient.norm() for gradient in plain.values())
    # compiling rounds otherwise, and some gradients are nothing but rounding
    for name, gradient in plain.items():
        assert (recomputed[name] - gradient).norm() < 1e-2 * gradient.norm() + 1e-4 * largest, name


@pytest.mark.parametrize(("norm", "size"), [("frozen", "lite"), ("batch", "lite"), ("batch", "nano")])
def test_synchronised_norms_keep_their_kind(
    configure: Callable[..., DictConfig], norm: str, size: str
) -> None:
    """Lightning replaces norms behind everything else; the stem is recomputed with those in their places.

    Those of the nano model's encoder hold the activations too.
    """
    config = configure(
        f"model/size={size}", f"recipe.pooled_norm={norm}", "recipe.freeze_norm_statistics=true"
    )
    network = build(config.model.network)
    checkpoint_network(network)
    plain = copy.deepcopy(network).train()
    network = SynchronisedNorms().apply(network).train()
    trains = {
        name: module.training
        for name, module in network.named_modules()
        if isinstance(module, torch.nn.SyncBatchNorm)
    }
    assert trains
    assert not any(training for name, training in trains.items() if name.startswith("backbone."))
    assert any(name.startswith("pixel_decoder.global_context") for name in trains) == (norm == "batch")
    image = torch.randn(1, 3, 64, 96)
    for ours, theirs in zip(network.backbone(image), plain.backbone(image), strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.slow
def test_a_compiled_network_agrees(configure: Callable[..., DictConfig]) -> None:
    torch.manual_seed(0)
    network = build(configure().model.network).eval()
    images = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        expected = network(images)
        network.compile(backend="aot_eager")
        actual = network(images)
    torch.testing.assert_close(actual.mask_logits, expected.mask_logits, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(actual.class_logits, expected.class_logits, atol=1e-4, rtol=1e-4)


def test_one_crop_per_device_with_batch_norm_is_explained(configure: Callable[..., DictConfig]) -> None:
    with pytest.raises(UserError, match=r"pooled_norm=frozen"):
        train(configure("recipe.batch_size=1", "recipe.pooled_norm=batch"))


def test_resuming_another_network_is_refused(configure: Callable[..., DictConfig], one_step: Path) -> None:
    with pytest.raises(UserError, match="another network"):
        train(configure(f"resume={one_step}", "experiment=ablation_cst"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("recipe.optimiser.lr=1e-5", r"recipe\.optimiser\.lr=0\.001 \(not 1e-05\)"),
        ("~data.classes.water", "trained for the"),
    ],
)
def test_resuming_with_what_would_have_no_effect_is_refused(
    configure: Callable[..., DictConfig], one_step: Path, change: str, message: str
) -> None:
    changes = [change, "model.num_classes=7"] if change.startswith("~") else [change]
    with pytest.raises(UserError, match=message):
        train(configure(f"resume={one_step}", *changes))


def test_resuming_in_the_same_folder_keeps_the_metrics(
    configure: Callable[..., DictConfig], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    train(configure(steps=2))
    metrics = tmp_path / "run" / "metrics.csv"
    before = metrics.read_bytes()
    last = tmp_path / "run" / "checkpoints" / "last.ckpt"
    train(configure(f"resume={last}", "recipe.batch_size=4", steps=4))
    assert (tmp_path / "run" / "metrics_1.csv").read_bytes() == before
    with metrics.open() as file:
        assert {int(row["step"]) for row in csv.DictReader(file)} == {2, 3}
    assert "data.batch_size was 2 and is 4 now" in caplog.text


def test_validation_counts_steps_not_batches(configure: Callable[..., DictConfig], tmp_path: Path) -> None:
    train(configure("trainer.accumulate_grad_batches=2", "recipe.val_every=2", steps=4))
    with (tmp_path / "run" / "metrics.csv").open() as file:
        assert [int(row["step"]) for row in csv.DictReader(file) if row["val/mBIoU"]] == [1, 3]


def test_checkpoints_lie_between_steps_also_after_a_resume(
    configure: Callable[..., DictConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved: list[int] = []
    save = WholeCheckpoints.save_checkpoint

    def record(
        self: WholeCheckpoints, checkpoint: dict[str, Any], path: Any, storage_options: Any = None
    ) -> None:
        progress = checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"]
        saved.append(progress["current"]["processed"])
        save(self, checkpoint, path, storage_options)

    monkeypatch.setattr(WholeCheckpoints, "save_checkpoint", record)
    accumulated = ["trainer.accumulate_grad_batches=2", "recipe.save_every=1"]
    train(configure(*accumulated, steps=1))
    last = tmp_path / "run" / "checkpoints" / "last.ckpt"
    train(configure(*accumulated, f"resume={last}", "recipe.val_every=2", run="resumed", steps=2))
    assert saved
    assert all(batches % 2 == 0 for batches in saved)


def test_a_checkpoint_that_cannot_be_written_leaves_the_one_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "last.ckpt"
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "nowhere"))  # beside its place, or not at all
    WholeCheckpoints().save_checkpoint({"step": 1}, path)
    with pytest.raises(Exception, match="pickle"):
        WholeCheckpoints().save_checkpoint(
            {"step": 2, "weight": torch.zeros(1000), "broken": lambda: 0}, path
        )
    assert torch.load(path, weights_only=True) == {"step": 1}
    assert os.listdir(tmp_path) == ["last.ckpt"]


def test_changes_that_a_resumed_run_feels_are_told(
    configure: Callable[..., DictConfig],
    one_step: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def power_cut(*_: object) -> None:
        raise RuntimeError("power cut")

    resume = f"resume={one_step}"
    with pytest.raises(UserError, match=r"recipe\.ema_decay=0\.98 \(not None\)"):
        train(configure(resume, "recipe.ema_decay=null", steps=2))
    changed = [
        "loss.points.kernel=7",
        "+data.max_class_share=0.9",
        "data.enlarge=true",
        "+trainer.deterministic=false",
    ]
    monkeypatch.setattr(SegmentationModule, "training_step", power_cut)  # changes are told before
    for changes in (["recipe.optimiser.warmup_steps=1", "trainer.precision=bf16-mixed"], changed):
        with pytest.raises(RuntimeError, match="power cut"):
            train(configure(resume, *changes, steps=2))
    assert "data.enlarge" not in caplog.text  # of scores alone
    for key, then, now in (
        ("loss.points.kernel", "5", "7"),
        ("data.max_class_share", "None", "0.9"),
        ("recipe.steps", "1", "2"),
        ("recipe.optimiser.warmup_steps", "15", "1"),
        ("trainer.precision", "32-true", "bf16-mixed"),
    ):
        assert f"{key} was {then} and is {now} now" in caplog.text


@pytest.mark.slow
def test_one_bad_run_does_not_end_a_sweep(scenes: Path, tmp_path: Path) -> None:
    done = run_module(
        "src.train",
        "-m",
        *TINY,
        f"data.root={tmp_path / 'nowhere'},{scenes}",
        "recipe.steps=1",
        "recipe.val_every=1",
        f"hydra.sweep.dir={tmp_path / 'sweep'}",
        folder=tmp_path,
    )
    assert done.returncode == 1
    assert "nowhere" in done.stderr
    assert (tmp_path / "sweep" / "1_massformer" / "scores.csv").is_file()
    failed, done_run = (tmp_path / "sweep" / "sweep.csv").read_text().splitlines()[1:]
    assert failed == f"0: data.root={tmp_path / 'nowhere'},,,"
    assert done_run.startswith(f"1: data.root={scenes},0.")


def test_lost_weights_do_not_replace_a_checkpoint(
    configure: Callable[..., DictConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    step = SegmentationModule.optimizer_step

    def lose(self: SegmentationModule, *args: Any, **options: Any) -> None:
        step(self, *args, **options)
        if self.global_step == 3:
            next(self.parameters()).data.fill_(float("nan"))

    monkeypatch.setattr(SegmentationModule, "optimizer_step", lose)
    with pytest.raises(FloatingPointError, match=r"not finite"):
        train(configure("recipe.save_every=1", steps=6))
    state = torch.load(tmp_path / "run" / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    assert all(tensor.isfinite().all() for tensor in state.values())


def test_lost_statistics_count_as_lost_weights(
    configure: Callable[..., DictConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As fp16 leaves them: its scaler skips the step of an overflow, but norms have seen it."""

    step = SegmentationModule.optimizer_step

    def overflow(self: SegmentationModule, *args: Any, **options: Any) -> None:
        step(self, *args, **options)
        norm = next(m for m in self.modules() if isinstance(m, torch.nn.BatchNorm2d))
        norm.running_var.fill_(float("inf"))

    monkeypatch.setattr(SegmentationModule, "optimizer_step", overflow)
    with pytest.raises(FloatingPointError, match="statistics are not finite"):
        train(configure("recipe.save_every=1", steps=2))


def test_only_training_can_be_resumed(configure: Callable[..., DictConfig], tmp_path: Path) -> None:
    config = to_plain(configure())
    write(tmp_path / "weights.ckpt", config, build_network(config).state_dict())
    with pytest.raises(UserError, match=r"weights alone.*init_from"):
        train(configure(f"resume={tmp_path / 'weights.ckpt'}"))


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
    "wrong", ["recipe.steps=0", "recipe.crop_size=many", "recipe.batch_size=0", "recipe.val_every=2.5"]
)
def test_words_for_numbers_are_told(configure: Callable[..., DictConfig], wrong: str) -> None:
    with pytest.raises(UserError, match=f"{wrong}: give a whole number, at least 1"):
        train(configure(wrong, steps=1))


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


@pytest.mark.slow
def test_faults_of_the_command_end_with_one_message(tmp_path: Path) -> None:
    absent = run_module("src.train", "data=mass13k", "model/size=nano", "logger.wandb=null", folder=tmp_path)
    assert absent.returncode == 1
    assert "Traceback" not in absent.stderr
    assert "github.com/xiechenxi99/MaSS13K" in absent.stderr
    unknown = run_module("src.train", "recipe.step=3", folder=tmp_path)
    assert unknown.returncode == 1
    assert "recipe.step" in unknown.stderr


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
