"""Time and peak memory of predicting whole photos: the plain form and other libraries against this project.

    python -m scripts.bench_inference compare --sizes 1024x1024 2048x1536    # interleaved, every side its process
    python -m scripts.bench_inference compare --sizes 4096x3072 --rounds 1   # the plain form: minutes, 20 GiB
    python -m scripts.bench_inference compare --device cuda [--precision bf16]   # on a GPU
    python -m scripts.bench_inference growth                                 # 1 to 64 megapixels, table and plot
    python -m scripts.bench_inference split --sizes 4096x3072                # where the time goes, and its limit
    python -m scripts.bench_inference agreement --checkpoint FILE            # windows against whole photos
    python -m scripts.bench_inference equality --sizes 1024x1024 [--checkpoint FILE]   # against the plain form's

From an 8-bit RGB array to the class of every pixel. The plain form is the network with torchvision's deformable
convolution and the released order of operations: all maps whole, all mask logits multiplied out at 1/4 and 1/2 and
resized to the photo. The others have the same encoder, seven classes, random weights and their own post-processing;
they need ``pip install transformers segmentation-models-pytorch``. Sides take turns, so that a busy machine slows
all; ratios are medians over rounds. Peak memory is the largest resident size of the side's own process, on a GPU that
of its tensors.
"""

from __future__ import annotations

import argparse
import importlib.util
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from scripts.bench_agreement import report_agreement
from scripts.bench_network import (
    ROOT,
    Worker,
    answer,
    make_network,
    make_photo,
    peak_gib,
    saved_network,
    table,
)
from scripts.bench_split import report_split
from src.checkpoints import load
from src.inference import Predictor, semantic_scores
from src.models.deformable import deformable_backend

CLASSES = 7
SIDES = ("plain", "ours", "mask2former", "upernet")
NAMES = {
    "plain": "plain form",
    "ours": "this project",
    "mask2former": "Hugging Face Mask2Former",
    "upernet": "SMP UPerNet",
}
PACKAGES = {"mask2former": "transformers", "upernet": "segmentation_models_pytorch"}
GROWTH = (
    "1024x1024",
    "2048x1024",
    "2048x2048",
    "4096x2048",
    "4096x3072",
    "6144x4096",
    "8192x5120",
    "8192x8192",
)
MEMORY_GB = 4.0
PLOT = ROOT / "docs/images/inference_growth.png"
TIES = 2e-4

Predict = Callable[[NDArray[np.uint8]], NDArray[np.uint8]]
PRECISIONS = {"float32": None, "bf16": torch.bfloat16, "fp16": torch.float16}


class Target(NamedTuple):
    """Where networks run, in what precision (a key of ``PRECISIONS``), and this project's budget of memory."""

    device: str
    precision: str
    memory_gb: float | None

    @property
    def autocast(self) -> torch.dtype | None:
        return PRECISIONS[self.precision]

    def inference(self, predict: Predict) -> Predict:
        """The same in inference mode and in this precision."""

        @torch.inference_mode()
        def run(photo: NDArray[np.uint8]) -> NDArray[np.uint8]:
            with torch.autocast(self.device, self.autocast, enabled=self.autocast is not None):
                return predict(photo)

        return run

    def worker(self, side: str, weights: str, threads: int) -> Worker:
        """A process that predicts as one of ``SIDES``."""
        arguments = ["work", "--sides", side, "--weights", weights, "--threads", str(threads)]
        arguments += ["--device", self.device, "--precision", self.precision]
        if self.memory_gb is not None:
            arguments += ["--memory-gb", str(self.memory_gb)]
        return Worker("scripts.bench_inference", arguments, ours=side == "ours")


def ours(target: Target, weights: str) -> Predict:
    """(H, W, 3) photo to (H, W) classes, as ``python -m src.predict`` finds them."""
    network = saved_network(weights).to(target.device)
    predictor = Predictor(network, limit=None, memory_gb=target.memory_gb, autocast=target.autocast)
    return lambda photo: predictor(photo, scores=False).label


def plain(target: Target, weights: str) -> Predict:
    network = saved_network(weights).to(target.device)

    def predict(photo: NDArray[np.uint8]) -> NDArray[np.uint8]:
        image = torch.from_numpy(photo).permute(2, 0, 1).to(target.device)
        with deformable_backend("torchvision"):
            prediction = network(network.normalise(image)[None])
        scores = semantic_scores(prediction, photo.shape[:2])
        del prediction
        return scores.argmax(1)[0].byte().cpu().numpy()

    return target.inference(predict)


def _normalised(photo: NDArray[np.uint8], device: str) -> torch.Tensor:
    image = torch.from_numpy(photo).to(device).permute(2, 0, 1)[None].float()
    return (image - 255 * 0.45) / (255 * 0.225)


def mask2former(target: Target) -> Predict:
    from transformers import (
        Mask2FormerConfig,
        Mask2FormerForUniversalSegmentation,
        Mask2FormerImageProcessor,
        ResNetConfig,
    )

    stages: dict[str, Any] = {"out_features": ["stage1", "stage2", "stage3", "stage4"]}
    classes: dict[str, Any] = {"num_labels": CLASSES}
    encoder = ResNetConfig(**stages)  # a ResNet-50
    network = Mask2FormerForUniversalSegmentation(Mask2FormerConfig(backbone_config=encoder, **classes))
    network.eval().to(target.device)
    processor = Mask2FormerImageProcessor()

    def predict(photo: NDArray[np.uint8]) -> NDArray[np.uint8]:
        outputs = network(pixel_values=_normalised(photo, target.device))
        (label,) = processor.post_process_semantic_segmentation(outputs, [photo.shape[:2]])
        return label.byte().cpu().numpy()

    return target.inference(predict)


def upernet(target: Target) -> Predict:
    import segmentation_models_pytorch as smp

    network = smp.UPerNet("resnet50", encoder_weights=None, classes=CLASSES).eval().to(target.device)

    def predict(photo: NDArray[np.uint8]) -> NDArray[np.uint8]:
        return network(_normalised(photo, target.device)).argmax(1)[0].byte().cpu().numpy()

    return target.inference(predict)


def work(side: str, target: Target, weights: str) -> None:
    """Predict one photo of every size that comes in."""
    makers: dict[str, Callable[[], Predict]] = {
        "plain": lambda: plain(target, weights),
        "ours": lambda: ours(target, weights),
        "mask2former": lambda: mask2former(target),
        "upernet": lambda: upernet(target),
    }
    predict = makers[side]()
    predict(make_photo(256, 256))
    known = set()
    for line in sys.stdin:
        photo = make_photo(*_size(line))
        if target.device != "cpu" and line not in known:
            predict(photo)  # chooses kernels for these shapes
        known.add(line)
        start = time.perf_counter()
        label = predict(photo)
        seconds = time.perf_counter() - start
        assert label.shape == photo.shape[:2]
        answer({"seconds": seconds, "gib": peak_gib(target.device)})


def _size(text: str) -> tuple[int, int]:
    """ "4096x3072" is width x height."""
    width, height = text.split("x")
    return int(height), int(width)


def compare(target: Target, sizes: list[str], sides: list[str], rounds: int, threads: int) -> None:
    """Print time and memory of every side at every size, smallest first."""
    missing = [
        name for side, name in PACKAGES.items() if side in sides and not importlib.util.find_spec(name)
    ]
    if missing:
        raise SystemExit(f"{', '.join(missing)} not found: pip install {' '.join(missing).replace('_', '-')}")
    rows = []
    with ExitStack() as stack:
        weights = stack.enter_context(_saved_weights())
        workers = {side: stack.enter_context(target.worker(side, weights, threads)) for side in sides}
        for size in sizes:
            found: dict[str, list[dict[str, float]]] = {side: [] for side in sides}
            for number in range(1, rounds + 1):
                for side in sides:
                    found[side].append(workers[side].ask(size))
                    seconds = found[side][-1]["seconds"]
                    print(
                        f"{size} round {number}: {NAMES[side]} {seconds:.2f} s", file=sys.stderr, flush=True
                    )
            for side in sides:
                seconds = statistics.median(r["seconds"] for r in found[side])
                ratio = ""
                if "ours" in sides and side != "ours":
                    pairs = zip(found[side], found["ours"], strict=True)
                    ratio = f"{statistics.median(a['seconds'] / b['seconds'] for a, b in pairs):.2f}"
                rows.append([size, NAMES[side], f"{seconds:.2f}", ratio, f"{found[side][-1]['gib']:.2f}"])
                print(*rows[-1], file=sys.stderr, flush=True)
    print(table(["photo", "form", "seconds", "ours is faster", "peak GiB"], rows))


def growth(target: Target, sizes: list[str], rounds: int, threads: int) -> None:
    """Print and plot our time and memory from 1 to 64 megapixels, every size in its own process."""
    rows, megapixels, seconds, gib = [], [], [], []
    for size in sizes:
        with _saved_weights() as weights, target.worker("ours", weights, threads) as worker:
            found = [worker.ask(size) for _ in range(rounds)]
        height, width = _size(size)
        megapixels.append(height * width / 1e6)
        seconds.append(min(r["seconds"] for r in found))
        gib.append(found[0]["gib"])
        each = seconds[-1] / megapixels[-1]
        rows.append([size, f"{megapixels[-1]:.1f}", f"{seconds[-1]:.1f}", f"{each:.2f}", f"{gib[-1]:.2f}"])
        print(*rows[-1], file=sys.stderr, flush=True)
    print(table(["photo", "Mpx", "seconds", "seconds per Mpx", "peak GiB"], rows))
    if sizes == list(GROWTH):  # a part of them is no picture for the docs
        plot(megapixels, seconds, gib)


def plot(megapixels: list[float], seconds: list[float], gib: list[float]) -> None:
    """Draw growth to ``PLOT``."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 2, figsize=(8, 3), layout="constrained")
    for axis, values, unit in zip(axes, (seconds, gib), ("seconds", "peak memory, GiB"), strict=True):
        axis.plot(megapixels, values, marker="o", color="#20639b")
        axis.set(xlabel="megapixels", ylabel=unit, ylim=(0, None))
        axis.grid(alpha=0.3)
    PLOT.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(PLOT, dpi=90)
    print(f"plot: {PLOT}", file=sys.stderr)


def equality(sizes: list[str], checkpoint: str | None) -> None:
    """Print how far scores lie from the plain form's, of a trained network or of random weights."""
    network: Any = make_network() if checkpoint is None else load(checkpoint)
    for size in sizes:
        photo = make_photo(*_size(size))
        image = torch.from_numpy(photo).permute(2, 0, 1)
        with torch.inference_mode(), deformable_backend("torchvision"):
            expected = semantic_scores(network(network.normalise(image)[None]), photo.shape[:2])[0]
        found = torch.from_numpy(Predictor(network, limit=None, mode="whole")(photo).scores)
        best = expected.topk(2, dim=0).values
        differ = (found.argmax(0) != expected.argmax(0)) & (best[0] - best[1] > TIES)
        print(
            f"{size}: scores up to {expected.max():.2f}, largest difference {(found - expected).abs().max():.1e}, "
            f"{int(differ.sum())} other labels"
        )


@contextmanager
def _saved_weights() -> Iterator[str]:
    with tempfile.TemporaryDirectory() as folder:
        path = f"{folder}/weights.pt"
        torch.save(make_network().state_dict(), path)
        yield path


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    tasks = ["compare", "growth", "split", "agreement", "equality"]
    parser.add_argument("task", choices=[*tasks, "work"], metavar=f"{{{','.join(tasks)}}}")
    parser.add_argument("--sizes", nargs="+", help="width x height, smallest first")
    parser.add_argument("--sides", nargs="+", choices=SIDES, default=list(SIDES))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="cpu", help="of compare and growth: cpu or cuda")
    parser.add_argument("--precision", choices=PRECISIONS, default="float32", help="of compare and growth")
    parser.add_argument(
        "--memory-gb", type=float, help="budget of this project in compare and growth, by default 4 on a CPU"
    )
    parser.add_argument("--weights", help=argparse.SUPPRESS)
    parser.add_argument("--checkpoint", help="trained weights for agreement and equality")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    budget = MEMORY_GB if args.memory_gb is None and args.device == "cpu" else args.memory_gb
    target = Target(args.device, args.precision, budget)
    sizes = args.sizes or list(GROWTH if args.task == "growth" else GROWTH[:1])
    if args.task == "compare":
        compare(target, sizes, args.sides, args.rounds, args.threads)
    elif args.task == "growth":
        growth(target, sizes, args.rounds, args.threads)
    elif args.task == "split":
        for size in sizes:
            report_split(make_network(), make_photo(*_size(size)))
    elif args.task == "agreement":
        if args.checkpoint is None:
            parser.error("agreement needs --checkpoint: random weights have nothing to agree on")
        report_agreement(args.checkpoint, [_size(size) for size in args.sizes or ["4096x3072"]])
    elif args.task == "equality":
        equality(sizes, args.checkpoint)
    else:
        work(args.sides[0], target, args.weights)


if __name__ == "__main__":
    main()
