"""Time training crops and whole photos from files and from a store against the released pipeline, in one run.

    python -m scripts.bench_data                                4096x3072 scenes, drawn and converted on first use
    python -m scripts.bench_data --images DIR --labels DIR      photos and label maps of the same stems

The released pipeline is written again from its description with OpenCV: decode the photo and its label map,
resize both whole, flip, look for a window in which no class has 75 %, distort the colours, make the boundary map,
normalise and pack. All ways take turns on the same photos, and processor time is compared, because other programs
only lengthen the wall's. Every way runs on one core.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset
from yaml import safe_load

from src.data.classes import ClassMap, Taxonomy
from src.data.crops import RandomCrop
from src.data.datasets import CropMaker, EvaluationDataset, quiet_worker
from src.data.folder import FolderSource, SplitFolders, find_pairs
from src.data.source import PhotoSource
from src.data.store.convert import convert_split
from src.data.store.source import StoreSource
from src.data.synthetic import write_synthetic_dataset

CLASSES = safe_load((Path(__file__).parents[1] / "conf/data/classes/mass13k.yaml").read_text())
SCALES = [round(0.5 + 0.1 * step, 1) for step in range(16)]


class Released:
    """The released pipeline.

    Args:
        source: where the files are.
        class_map: of raw ids.
        size: of crops in pixels.
        short_edge: at scale 1, pixels; None for each photo's own.
    """

    def __init__(self, pairs: list, class_map: ClassMap, size: int, short_edge: int | None) -> None:
        self.pairs, self.class_map, self.size, self.short_edge = pairs, class_map, size, short_edge
        self.stages: dict[str, float] = {}

    def decode(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        pair = self.pairs[index]
        image = np.asarray(cv2.imread(str(pair.image), cv2.IMREAD_COLOR))
        label = np.asarray(cv2.imread(str(pair.label), cv2.IMREAD_UNCHANGED), dtype=np.uint8)
        return image, self.class_map(label, pair.name)

    def crop(self, index: int, rng: np.random.Generator) -> tuple[torch.Tensor, ...]:
        clock = time.process_time()

        def stage(name: str) -> None:
            nonlocal clock
            now = time.process_time()
            self.stages[name] = self.stages.get(name, 0.0) + now - clock
            clock = now

        image, label = self.decode(index)
        stage("decode")
        short, long = min(image.shape[:2]), max(image.shape[:2])
        factor = min((self.short_edge or short) * rng.choice(SCALES) / short, 8192 / long)
        width, height = (int(edge * factor + 0.5) for edge in image.shape[1::-1])
        image = cv2.resize(image, (width, height), interpolation=cv2.INTER_LINEAR)
        label = cv2.resize(label, (width, height), interpolation=cv2.INTER_NEAREST)
        stage("resize")
        for _ in range(11):
            top = int(rng.integers(max(height - self.size, 0) + 1))
            left = int(rng.integers(max(width - self.size, 0) + 1))
            cut = label[top : top + self.size, left : left + self.size]
            ids, counts = np.unique(cut, return_counts=True)
            counts = counts[ids != 255]
            if len(counts) > 1 and counts.max() / counts.sum() < 0.75:
                break
        image = image[top : top + self.size, left : left + self.size]
        stage("search")
        if rng.random() < 0.5:
            image, cut = cv2.flip(image, 1), cv2.flip(cut, 1)
        image = distorted(image, rng)
        stage("augment")
        boundary: np.ndarray = np.zeros(cut.shape, np.uint8)
        boundary[1:] |= cut[1:] != cut[:-1]
        boundary[:, :-1] |= cut[:, :-1] != cut[:, 1:]
        boundary[:-1, :-1] |= cut[:-1, :-1] != cut[1:, 1:]
        boundary[:-1, 1:] |= cut[:-1, 1:] != cut[1:, :-1]
        boundary = np.asarray(cv2.dilate(boundary, np.ones((2, 2), np.uint8)))
        stage("boundary")
        # As released, the data preprocessor normalises on the device; workers pack 8-bit colours and int64 labels.
        planes = np.ascontiguousarray(cv2.cvtColor(image, cv2.COLOR_BGR2RGB).transpose(2, 0, 1))
        packed = torch.from_numpy(planes), torch.from_numpy(cut.astype(np.int64)), torch.from_numpy(boundary)
        stage("pack")
        return packed


def distorted(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Photometric distortion step by step in float, as in the published recipe."""

    def convert(pixels: np.ndarray, alpha: float = 1.0, beta: float = 0.0) -> np.ndarray:
        return np.clip(pixels.astype(np.float32) * alpha + beta, 0, 255).astype(np.uint8)

    brightness, contrast, saturation, hue, last = rng.integers(2, size=5)
    if brightness:
        image = convert(image, beta=rng.uniform(-32, 32))
    if contrast and not last:
        image = convert(image, alpha=rng.uniform(0.5, 1.5))
    if saturation:
        hsv = cv2.cvtColor(image, cv2.COLOR_BGR2HSV)
        hsv[..., 1] = convert(hsv[..., 1], alpha=rng.uniform(0.5, 1.5))
        image = cv2.cvtColor(hsv, cv2.COLOR_HSV2BGR)
    if hue:
        hsv = cv2.cvtColor(image, cv2.COLOR_BGR2HSV)
        hsv[..., 0] = (hsv[..., 0].astype(int) + rng.integers(-18, 18)) % 180
        image = cv2.cvtColor(hsv, cv2.COLOR_HSV2BGR)
    return convert(image, alpha=rng.uniform(0.5, 1.5)) if contrast and last else image


class Items(Dataset):
    """What a function makes of (photo, random generator), for a loader."""

    def __init__(self, make: Callable, photos: int, length: int) -> None:
        self.make, self.photos, self.length = make, photos, length

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> tuple:
        return tuple(self.make(index % self.photos, np.random.default_rng(index)))


def from_source(source: PhotoSource, make: CropMaker) -> Callable:
    return lambda index, rng: make(source.open(index), rng)


def loader_rate(make: Callable, photos: int, crops: int, workers: int) -> float:
    """Crops per second of wall time, start-up left out."""
    loader = DataLoader(
        Items(make, photos, crops + 2 * workers),
        batch_size=1,
        num_workers=workers,
        worker_init_fn=quiet_worker,
    )
    batches = iter(loader)
    for _ in range(2 * workers):
        next(batches)
    start = time.perf_counter()
    for _ in batches:
        pass
    return crops / (time.perf_counter() - start)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--images", type=Path, help="folder of photos (default: drawn scenes)")
    parser.add_argument("--labels", type=Path, help="folder of label maps")
    parser.add_argument(
        "--cache", type=Path, default=Path("data/bench"), help="where scenes and stores are kept"
    )
    parser.add_argument(
        "--classes", type=int, default=7, help="raw ids in the label maps: 0 to this, and 255"
    )
    parser.add_argument("--crop", type=int, default=1024, help="edge of crops, pixels")
    parser.add_argument(
        "--short-edge", type=int, default=3072, help="at scale 1, pixels; 0: each photo's own"
    )
    parser.add_argument("--rounds", type=int, default=24, help="crops of every way")
    parser.add_argument("--workers", type=int, default=2, help="of the loader; 0: no loader")
    options = parser.parse_args()
    cv2.setNumThreads(0)
    torch.set_num_threads(1)

    taxonomy = Taxonomy.from_mapping(CLASSES)
    class_map = ClassMap(taxonomy, {raw: min(raw, 6) for raw in range(options.classes)})
    if options.images is None:
        root = options.cache / "scenes"
        write_synthetic_dataset(root, {"train": 6}, height=3072, width=4096, class_ids=taxonomy.ids)
        folders = SplitFolders(root / "images_pad/train", root / "annotations/train")
    else:
        folders = SplitFolders(options.images, options.labels)
    pairs = find_pairs(folders)[:24]
    with tempfile.TemporaryDirectory(prefix="bench_store_") as store:
        result = convert_split(pairs, Path(store), class_map, 2, lambda _: None)
        report_size(pairs, Path(store))
        compare(pairs, StoreSource(Path(store), class_map), class_map, options)
        assert not result.manifest.failed


def report_size(pairs: list, store: Path) -> None:
    before = sum(file.stat().st_size for pair in pairs for file in (pair.image, pair.label))
    after = sum(file.stat().st_size for file in store.glob("*.jpg"))
    print(f"{len(pairs)} photos; store {after / 1e6:.1f} MB, {after / before:.3f} x the source")


def compare(pairs: list, store: StoreSource, class_map: ClassMap, options: argparse.Namespace) -> None:
    short_edge = options.short_edge or None
    released = Released(pairs, class_map, options.crop, short_edge)
    folder = FolderSource(pairs, class_map)
    crop = RandomCrop(options.crop, SCALES, short_edge, 8192)
    here, there = CropMaker(crop), CropMaker(crop, augment_here=False)
    ways: dict[str, Callable] = {
        "released": released.crop,
        "folder": from_source(folder, here),
        "store": from_source(store, here),
        "store, device augmentation": from_source(store, there),
    }
    spent = dict.fromkeys(ways, 0.0)
    for number in range(-2, options.rounds):  # the first two warm up
        for name, make in ways.items():
            start = time.process_time()
            make(number % len(pairs), np.random.default_rng(number + 2))
            spent[name] += (time.process_time() - start) * (number >= 0)
    print(f"\n{'crops, one core':30}{'ms':>8}{'ratio':>8}")
    for name, seconds in spent.items():
        print(f"{name:30}{1000 * seconds / options.rounds:8.1f}{spent['released'] / seconds:8.1f}")
    total = sum(released.stages.values())
    print("released: " + ", ".join(f"{name} {part / total:.0%}" for name, part in released.stages.items()))

    whole = {
        "released": released.decode,
        "folder": EvaluationDataset(folder, (4096, 3072), False).__getitem__,
        "store": EvaluationDataset(store, (4096, 3072), False).__getitem__,
    }
    spent = dict.fromkeys(whole, 0.0)
    for index in range(min(len(pairs), 6)):
        for name, load in whole.items():
            start = time.process_time()
            load(index)
            spent[name] += time.process_time() - start
    print(f"\n{'whole photos, one core':30}{'ms':>8}{'ratio':>8}")
    for name, seconds in spent.items():
        print(f"{name:30}{1000 * seconds / min(len(pairs), 6):8.1f}{spent['released'] / seconds:8.1f}")

    if options.workers:
        print(f"\n{f'loader, {options.workers} workers':30}{'crops/s':>8}{'ratio':>8}")
        rates = {}
        for name, make in ways.items():
            rates[name] = loader_rate(make, len(pairs), options.rounds, options.workers)
            print(f"{name:30}{rates[name]:8.1f}{rates[name] / rates['released']:8.1f}")


if __name__ == "__main__":
    main()
