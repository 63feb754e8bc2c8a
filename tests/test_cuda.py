"""What a CUDA device must give: the CPU's numbers, and training in mixed precision. Skipped where there is none."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from omegaconf import DictConfig
from torch import Tensor

from src.checkpoints.network import build_network
from src.config import compose_config, to_plain
from src.evaluate import evaluate
from src.inference import Predictor
from src.inference.tiled import Tiling
from src.metrics.suite import SegmentationMetrics
from src.models.deformable import deform_conv2d
from src.models.layers import full_float32
from src.models.recomputation import checkpoint_network
from src.train import train

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")

SMALL = ["model/size=nano", "model.backbone.weights=none", "data=mass13k", "run_dir=."]
QUIET = ["callbacks.panels=null", "callbacks.early_look=null"]


@pytest.fixture(autouse=True)
def no_tf32() -> Iterator[None]:
    """What is compared is computed in float32 proper."""
    with full_float32():
        yield


@pytest.fixture
def photo() -> np.ndarray:
    coarse = torch.rand(1, 3, 9, 12, generator=torch.Generator().manual_seed(0)) * 255
    smooth = torch.nn.functional.interpolate(coarse, (331, 458), mode="bicubic").clamp(0, 255)[0]
    return smooth.byte().permute(1, 2, 0).numpy().copy()


def make(*overrides: str) -> torch.nn.Module:
    torch.manual_seed(0)
    return build_network(to_plain(compose_config("train", [*SMALL, *overrides]))).eval()


@pytest.mark.parametrize("backend", ["gather", "torchvision"])
def test_deformable_convolution_and_its_gradients(backend: str) -> None:
    torch.manual_seed(0)
    shapes = [(2, 6, 19, 23), (2, 18, 19, 23), (5, 6, 3, 3), (2, 9, 19, 23)]
    inputs = [torch.randn(shape) * (3 if shape[1] == 18 else 1) for shape in shapes]

    def run(device: str, chosen: str) -> list[Tensor]:
        leaves = [x.to(device).requires_grad_() for x in inputs]
        found = deform_conv2d(*leaves, padding=1, backend=chosen)  # type: ignore[arg-type]
        weights = torch.linspace(-1, 1, found.numel()).view(found.shape).to(device)
        (found * weights).sum().backward()
        return [found.detach().cpu(), *(leaf.grad.cpu() for leaf in leaves)]

    for found, expected in zip(run("cuda", backend), run("cpu", "gather"), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    "options",
    [
        ["experiment=massformer"],
        ["experiment=ablation_baseline"],
        ["experiment=mask2former"],
        ["experiment=mpformer"],
    ],
)
def test_a_network_gives_what_it_gives_on_a_cpu(options: list[str], photo: np.ndarray) -> None:
    network = make(*options).double()
    images = network.normalise(torch.from_numpy(photo.transpose(2, 0, 1).copy()))[None].double()
    with torch.inference_mode():
        expected = network(images)
        found = network.cuda()(images.cuda())
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        if other is not None:
            torch.testing.assert_close(one.cpu(), other, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("mode", ["whole", "tiled"])
def test_predictions_are_those_of_a_cpu(mode: str, photo: np.ndarray) -> None:
    network = make("experiment=massformer").double()
    options = {"mode": mode, "tiling": Tiling((192, 256), 64, 32)}
    expected = Predictor(network, **options)(photo)
    found = Predictor(copy.deepcopy(network).cuda(), **options)(photo)
    assert np.abs(found.scores - expected.scores).max() < 1e-4
    assert (found.label == expected.label).mean() > 0.9999
    assert np.abs(found.edges - expected.edges).max() < 1e-4


@pytest.mark.parametrize("tf32", [True, False])
def test_networks_are_simplified_with_and_without_tf32(tf32: bool) -> None:
    """Rounding to 10 bits must not look like a network that cannot be simplified."""
    network = make("experiment=massformer").cuda()
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=tf32):
        predictor = Predictor(network)
    norms = [module for module in predictor._network.modules() if isinstance(module, torch.nn.BatchNorm2d)]
    assert len(norms) < sum(isinstance(module, torch.nn.BatchNorm2d) for module in network.modules()) / 2


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_mixed_precision_predicts_nearly_the_same(dtype: torch.dtype, photo: np.ndarray) -> None:
    network = make("experiment=massformer").cuda()
    expected = Predictor(network)(photo)
    found = Predictor(network, autocast=dtype)(photo)
    assert np.isfinite(found.scores).all()
    assert np.abs(found.scores - expected.scores).mean() < 0.02


@pytest.mark.parametrize("options", [["experiment=massformer"], ["experiment=massformer", "model/size=full"]])
def test_the_estimate_bounds_the_memory_of_a_whole_photo(options: list[str]) -> None:
    network = make(*options).cuda()
    side = 2048
    pixels = np.random.default_rng(0).integers(0, 255, (side, side, 3), dtype=np.uint8)
    predictor = Predictor(network, limit=None, mode="whole")
    estimate = predictor.cost.bytes(side**2)
    predictor(pixels, scores=False)
    torch.cuda.reset_peak_memory_stats()
    predictor(pixels, scores=False)
    assert 0.3 * estimate < torch.cuda.max_memory_allocated() <= estimate


def test_metrics_are_those_of_a_cpu() -> None:
    generator = torch.Generator().manual_seed(0)
    coarse = torch.randint(0, 4, (1, 1, 12, 15), generator=generator).float()
    label = torch.nn.functional.interpolate(coarse, (301, 407))[0, 0].byte()
    found = label.clone()
    label[:9] = 255
    noisy = torch.rand(label.shape, generator=generator) < 0.1
    found[noisy] = torch.randint(0, 4, (int(noisy.sum()),), generator=generator).byte()
    results = []
    for device in ("cpu", "cuda"):
        metrics = SegmentationMetrics(4).to(device)
        metrics.update(found.to(device), label.to(device), "photo")
        results.append({name: value.cpu() for name, value in metrics.compute().items()})
    for name, expected in results[0].items():
        torch.testing.assert_close(results[1][name], expected, equal_nan=True, msg=name)


@pytest.fixture
def configure(scenes: Path, tmp_path: Path) -> Callable[..., DictConfig]:
    def compose(*overrides: str, run: str = "run", steps: int = 4) -> DictConfig:
        schedule = [f"recipe.{name}={steps}" for name in ("steps", "val_every", "save_every")]
        folders = [f"data.root={scenes}", f"run_dir={tmp_path / run}"]
        small = ["recipe.crop_size=64", "recipe.num_points=128", "recipe.samples_per_epoch=8"]
        small += ["recipe.validate_first=false", "num_workers=0", "logger.wandb=null"]
        small += ["callbacks.progress=null", "+trainer.enable_progress_bar=false"]
        devices = ["trainer.accelerator=gpu", "trainer.devices=1", "trainer.log_every_n_steps=1"]
        chosen = [entry for entry in SMALL if not entry.startswith("run_dir")]
        return compose_config("train", [*chosen, *small, *folders, *schedule, *devices, *overrides])

    return compose


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed", "16-mixed"])
@pytest.mark.parametrize("experiment", ["massformer", "mask2former", "mpformer"])
def test_training_and_evaluation(
    configure: Callable[..., DictConfig], tmp_path: Path, precision: str, experiment: str
) -> None:
    config = configure(f"experiment={experiment}", f"trainer.precision={precision}", *QUIET)
    score = train(config)
    assert score is not None
    assert np.isfinite(score)
    assert torch.cuda.max_memory_allocated() > 0
    last = torch.load(tmp_path / "run/checkpoints/last.ckpt", weights_only=True)
    assert last["global_step"] == 4
    assert all(value.isfinite().all() for value in last["state_dict"].values())


@pytest.mark.parametrize(
    "options",
    [
        ["activation_checkpointing=true", "trainer.accumulate_grad_batches=2"],
        ["data.augment_on=device", "num_workers=1"],
        ["model/size=lite", "recipe.pooled_norm=group"],
        pytest.param(["compile=true"], marks=pytest.mark.slow),
    ],
)
def test_training_with_options(configure: Callable[..., DictConfig], options: list[str]) -> None:
    score = train(configure("experiment=massformer", *options, *QUIET))
    assert score is not None
    assert np.isfinite(score)


def test_pictures_a_resumed_run_and_evaluation(
    configure: Callable[..., DictConfig], scenes: Path, tmp_path: Path
) -> None:
    train(configure("experiment=massformer", run="first"))
    last = tmp_path / "first/checkpoints/last.ckpt"
    train(configure("experiment=massformer", f"resume={last}", run="resumed", steps=6))
    scores = []
    for device in ("cpu", "gpu"):
        overrides = [f"checkpoint={last}", f"trainer.accelerator={device}", f"run_dir={tmp_path / device}"]
        evaluate(compose_config("evaluate", overrides))
        scores.append(json.loads((tmp_path / device / "scores.json").read_text())["class"]["mean"]["IoU"])
    assert scores[1] == pytest.approx(scores[0], abs=0.02)


def test_recomputation_changes_no_gradient() -> None:
    network = make("experiment=massformer").cuda()
    other = copy.deepcopy(network)
    checkpoint_network(other)
    images = torch.randn(2, 3, 128, 160, device="cuda")
    grads = []
    for net in (network, other):
        net.train()
        torch.manual_seed(0)
        net.pixel_features(images).mask_features.square().mean().backward()
        grads.append([p.grad for p in net.backbone.parameters() if p.grad is not None])
    for found, expected in zip(grads[1], grads[0], strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-2, atol=1e-4)
