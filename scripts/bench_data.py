"""Time training crops and whole photos from files, a store and shards against the released pipeline, in one run.

    python -m scripts.bench_data                  4096x3072 scenes, drawn on first use
    python -m scripts.bench_data --camvid DIR     and then CamVid, 480x360

The released pipeline is written again from its description: decode the photo (OpenCV) and its label map (Pillow, for
OpenCV cannot give the ids of a palette), resize both whole, look for a window in which no class has 75 %, flip,
distort the colours step by step, make the boundary map and pack. All ways take turns on the same photos at the same
scales. One core: processor time, because other programs only lengthen the wall's, each way in a process of its own.
Loader: crops of wall time. Needs Linux, jpegtran and the packages of `pip install -e ".[streaming]"`.
"""

from __future__ import annotations

import argparse
import gc
import multiprocessing
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any
from unittest import mock

import cv2
import numpy as np
import torch
from PIL import Image
from torch.nn.functional import pad
from torch.utils.data import DataLoader, Dataset, default_collate
from yaml import safe_load

from src.data import crops, datasets
from src.data.classes import ClassMap, Taxonomy
from src.data.crops import RandomCrop
from src.data.datasets import CropMaker, EvaluationDataset, collate_crops, quiet_worker
from src.data.folder import FilePhoto, FolderSource, Pair, SplitFolders, find_pairs
from src.data.source import LabelledPhoto, PhotoSource
from src.data.store.convert import convert_split
from src.data.store.entry import SUFFIX
from src.data.store.jpegtran import find_jpegtran
from src.data.store.manifest import Manifest
from src.data.store.shards import write_shards
from src.data.store.source import StorePhoto, StoreSource
from src.data.streaming import EntryLoader, EntryStream
from src.data.synthetic import write_synthetic_dataset
from src.data.transforms import CropAugmentation
from src.errors import explained

CONF = Path(__file__).parents[1] / "conf/data"
SCALES = [round(0.5 + 0.1 * step, 1) for step in range(16)]
BATCH = 4
COPIES = 8  # of each entry in the shards, so that an epoch is no matter of a moment

# (photo's index, random generator) -> item
Make = Callable[[int, np.random.Generator], Any]


class Stopwatch:
    """Processor time by stage, in seconds; a stage inside another counts for itself alone."""

    def __init__(self) -> None:
        self.spent: dict[str, float] = {}
        self._stage, self._since = "other", time.process_time()

    def switch(self, stage: str) -> str:
        """Begin a stage; returns the one that was going on."""
        now, before = time.process_time(), self._stage
        self.spent[before] = self.spent.get(before, 0.0) + now - self._since
        self._stage, self._since = stage, now
        return before

    def around(self, stage: str, function: Callable) -> Callable:
        def timed(*args: Any, **kwargs: Any) -> Any:
            before = self.switch(stage)
            try:
                return function(*args, **kwargs)
            finally:
                self.switch(before)

        return timed


class Released:
    """The released pipeline.

    Args:
        pairs: photos and label maps.
        class_map: of raw ids.
        size: of crops in pixels.
        short_edge: at scale 1, pixels; None for each photo's own.
    """

    def __init__(self, pairs: list[Pair], class_map: ClassMap, size: int, short_edge: int | None) -> None:
        self.pairs, self.class_map, self.size, self.short_edge = pairs, class_map, size, short_edge
        self.watch = Stopwatch()

    def decode(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        pair = self.pairs[index]
        self.watch.switch("photo")
        image = np.asarray(cv2.imread(str(pair.image), cv2.IMREAD_COLOR))
        self.watch.switch("label")
        return image, self.class_map(np.array(Image.open(pair.label)), pair.name)

    def whole(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        """A photo for validation. Already of the evaluation's size, it is not resized."""
        image, label = self.decode(index)
        return planes_of(image), torch.from_numpy(label.astype(np.int64))

    def crop(self, index: int, rng: np.random.Generator) -> tuple[torch.Tensor, ...]:
        self.watch.switch("other")
        image, label = self.decode(index)
        self.watch.switch("resize")
        short, long = min(image.shape[:2]), max(image.shape[:2])
        factor = min((self.short_edge or short) * SCALES[rng.integers(len(SCALES))] / short, 8192 / long)
        width, height = (int(edge * factor + 0.5) for edge in image.shape[1::-1])
        image = cv2.resize(image, (width, height), interpolation=cv2.INTER_LINEAR)
        label = cv2.resize(label, (width, height), interpolation=cv2.INTER_NEAREST)
        self.watch.switch("window")
        for _ in range(11):
            top = int(rng.integers(max(height - self.size, 0) + 1))
            left = int(rng.integers(max(width - self.size, 0) + 1))
            cut = label[top : top + self.size, left : left + self.size]
            ids, counts = np.unique(cut, return_counts=True)
            counts = counts[ids != 255]
            if len(counts) > 1 and counts.max() / counts.sum() < 0.75:
                break
        image = image[top : top + self.size, left : left + self.size]
        self.watch.switch("augment")
        if rng.random() < 0.5:
            image, cut = cv2.flip(image, 1), cv2.flip(cut, 1)
        image = distorted(image, rng)
        self.watch.switch("boundary")
        boundary: np.ndarray = np.zeros(cut.shape, np.uint8)
        boundary[1:] |= cut[1:] != cut[:-1]
        boundary[:, :-1] |= cut[:, :-1] != cut[:, 1:]
        boundary[:-1, :-1] |= cut[:-1, :-1] != cut[1:, 1:]
        boundary[:-1, 1:] |= cut[:-1, 1:] != cut[1:, :-1]
        boundary = np.asarray(cv2.dilate(boundary, np.ones((2, 2), np.uint8)))
        self.watch.switch("pack")
        # As released, colours stay 8 bits in workers and are normalised on the device; labels become int64.
        packed = planes_of(image), torch.from_numpy(cut.astype(np.int64)), torch.from_numpy(boundary)
        self.watch.switch("other")
        return packed


def planes_of(image: np.ndarray) -> torch.Tensor:
    """(H, W, 3) to (3, H, W); the release leaves the order of the colours to the device."""
    return torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)))


def filled(crops_made: list[tuple[torch.Tensor, ...]]) -> list[torch.Tensor]:
    """A batch; where a photo is smaller than a crop, the right and the bottom are filled up."""
    height, width = (max(crop[0].shape[edge] for crop in crops_made) for edge in (-2, -1))
    batch = []
    for parts in zip(*crops_made, strict=True):
        same = [
            part
            if part.shape[-2:] == (height, width)
            else pad(part, (0, width - part.shape[-1], 0, height - part.shape[-2]))
            for part in parts
        ]
        batch.append(default_collate(same))
    return batch


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


class FromSource:
    """Crops of the photos of a source."""

    def __init__(self, source: PhotoSource, make: CropMaker) -> None:
        self.source, self.make = source, make

    def __call__(self, index: int, rng: np.random.Generator) -> Any:
        return self.make(self.source.open(index), rng)


class FromShards:
    """Crops in the order of the shards; the photo's index is not used."""

    def __init__(self, place: Path, class_map: ClassMap, make: CropMaker) -> None:
        self.make = make
        self.stream = EntryStream(str(place), class_map, self._item, True, 0)
        self.samples: Iterator[Any] = iter(())
        self.rng: np.random.Generator | None = None  # None: one that depends on the sample, for loaders

    def _item(self, photo: LabelledPhoto, epoch: int, number: int) -> Any:
        return self.make(photo, self.rng or np.random.default_rng([epoch, number]))

    def __call__(self, index: int, rng: np.random.Generator) -> Any:
        self.rng = rng
        try:
            return next(self.samples)
        except StopIteration:
            self.samples = iter(self.stream)
            return next(self.samples)


class Items(Dataset):
    """Endless crops for a loader."""

    def __init__(self, make: Make, photos: int) -> None:
        self.make, self.photos = make, photos

    def __len__(self) -> int:
        return 10**6

    def __getitem__(self, index: int) -> Any:
        return self.make(index % self.photos, np.random.default_rng(index))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cache", type=Path, default=Path("data/bench"), help="where scenes are kept")
    parser.add_argument("--camvid", type=Path, help="folder of CamVid, which is timed too")
    parser.add_argument("--photos", type=int, default=6, help="scenes to draw")
    parser.add_argument("--rounds", type=int, default=64, help="crops to make in every way")
    parser.add_argument("--workers", type=int, default=2, help="of the loader; 0: no loader")
    parser.add_argument("--seconds", type=float, default=4, help="of every way in the loader, twice")
    options = parser.parse_args()
    options.rounds += -options.rounds % 8
    with explained():
        run(options)


def run(options: argparse.Namespace) -> None:
    """Print every table."""
    find_jpegtran()  # what is missing is told before scenes are drawn
    small: list[Pair] = []
    if options.camvid is not None:
        folders = SplitFolders(options.camvid / "images/train", options.camvid / "annotations/train")
        small = find_pairs(folders)[:24]
    cv2.setNumThreads(0)
    torch.set_num_threads(1)
    taxonomy = Taxonomy.from_mapping(safe_load((CONF / "classes/mass13k.yaml").read_text()))

    root = options.cache / "scenes"
    splits = {"train": options.photos}
    write_synthetic_dataset(root, splits, height=3072, width=4096, class_ids=taxonomy.ids)
    pairs = find_pairs(SplitFolders(root / "images_pad/train", root / "annotations/train"))
    print(f"# {len(pairs)} scenes of 4096x3072, crops of 1024x1024, short edge 3072 x 0.5 to 2.0")
    compare(pairs, ClassMap(taxonomy), 1024, 3072, options)
    if small:
        print(f"\n# {len(small)} photos of CamVid, 480x360, crops of 256x256, short edge 360 x 0.5 to 2.0")
        class_map = ClassMap(taxonomy, safe_load((CONF / "camvid.yaml").read_text())["class_map"])
        compare(small, class_map, 256, None, options)


def compare(
    pairs: list[Pair], class_map: ClassMap, size: int, short_edge: int | None, options: argparse.Namespace
) -> None:
    """Print every table for one set of photos."""
    with tempfile.TemporaryDirectory(prefix="bench_") as temporary:
        store = Path(temporary) / "store"
        result = convert_split(pairs, store, class_map, 2, lambda _: None)
        assert not result.manifest.failed
        before = sum(file.stat().st_size for pair in pairs for file in (pair.image, pair.label))
        after = sum(file.stat().st_size for file in store.glob(f"*{SUFFIX}"))
        print(f"store {after / 1e6:.1f} MB, {after / before:.3f} x the source")
        shards = pack(store, Path(temporary))

        released = Released(pairs, class_map, size, short_edge)
        folder, whole = FolderSource(pairs, class_map), StoreSource(store, class_map)
        crop = RandomCrop(size, SCALES, short_edge, 8192)
        here, there = CropMaker(crop), CropMaker(crop, augment_here=False)
        ways: dict[str, Make] = {
            "released": released.crop,
            "folder": FromSource(folder, here),
            "store": FromSource(whole, here),
            "store, augmented on the device": FromSource(whole, there),
            "LitData": FromShards(shards, class_map, here),
            "LitData, augmented on the device": FromShards(shards, class_map, there),
        }
        # In processes of their own, before LitData has started threads in this one.
        memory = {name: peak_memory(name, make, len(pairs)) for name, make in ways.items()}
        one_core(ways, len(pairs), options.rounds, memory)
        stages(ways, released.watch, len(pairs), options.rounds // 2)
        whole_photos(
            {
                "released": released.whole,
                "folder": EvaluationDataset(folder, (4096, 3072), False).__getitem__,
                "store": EvaluationDataset(whole, (4096, 3072), False).__getitem__,
            },
            min(len(pairs), 6),
        )
        if options.workers:
            loader(ways, len(pairs), options.workers, options.seconds)


def pack(store: Path, folder: Path) -> Path:
    """Shards with ``COPIES`` of every entry."""
    many, entries = folder / "many", Manifest.read(store).entries
    many.mkdir()
    for name in entries:
        for copy in range(COPIES):
            (many / f"{name}_{copy}{SUFFIX}").symlink_to(store / (name + SUFFIX))
    Manifest({f"{name}_{copy}": entries[name] for name in entries for copy in range(COPIES)}, {}).write(many)
    write_shards(many, folder / "shards", 64, lambda _: None)
    return folder / "shards"


def one_core(ways: dict[str, Make], photos: int, rounds: int, memory: dict[str, float]) -> None:
    works = {
        name: lambda number, make=make: make(number % photos, np.random.default_rng(number))
        for name, make in ways.items()
    }
    spent = in_turns(works, [range(first, first + 8) for first in range(0, rounds, 8)])
    print(f"\n{'crops, one core':34}{'ms':>8}{'crops/s':>9}{'ratio':>7}{'MB of memory':>14}")
    for name, seconds in spent.items():
        rate, ratio = rounds / seconds, spent["released"] / seconds
        print(f"{name:34}{1000 / rate:8.1f}{rate:9.1f}{ratio:7.1f}{memory[name]:14.0f}")


def in_turns(works: Mapping[str, Callable[[int], Any]], turns: list[range]) -> dict[str, float]:
    """Processor seconds of every way, as in use: in a process and a heap of its own, in turns.

    A result is held until the next one is there, as whoever trains or validates with it holds it.
    """
    context = multiprocessing.get_context("fork")
    spent = dict.fromkeys(works, 0.0)
    with ExitStack() as stack:
        pipes = {}
        for name, work in works.items():
            pipes[name], far = context.Pipe()
            process = context.Process(target=_answer, args=(name, work, far), daemon=True)
            process.start()
            stack.callback(process.terminate)
        # Once before it counts, to load code and fill the disk's cache.
        for turn, counts in [(turns[0], False), *((turn, True) for turn in turns)]:
            for name, pipe in pipes.items():
                pipe.send(turn)
                spent[name] += pipe.recv() * counts
    return spent


def _answer(name: str, work: Callable[[int], Any], pipe: Connection) -> None:
    if name != "released":  # which has no part in how our workers keep memory
        quiet_worker(0)
    while True:
        turn = pipe.recv()
        start = time.process_time()
        for number in turn:
            held = work(number)  # noqa: F841
        pipe.send(time.process_time() - start)


def stages(ways: dict[str, Make], released: Stopwatch, photos: int, rounds: int) -> None:
    print("\nstages of a crop, ms")
    for name, make in ways.items():
        watch = released if name == "released" else Stopwatch()
        places = [
            (crops.RandomCrop, "_look", "window"),
            (crops, "cut_image", "resize"),
            (crops, "cut_label", "resize"),
            (CropAugmentation, "__call__", "augment"),
            (CropAugmentation, "draw", "augment"),
            (datasets, "boundary_map", "boundary"),
            *((kind, "image", "photo") for kind in (FilePhoto, StorePhoto)),
            *((kind, "label", "label") for kind in (FilePhoto, StorePhoto)),
        ]
        with ExitStack() as stack:
            for owner, function, stage in places:
                timed = watch.around(stage, getattr(owner, function))
                stack.enter_context(mock.patch.object(owner, function, timed))
            watch.switch("other")
            watch.spent.clear()
            for number in range(rounds):
                make(number % photos, np.random.default_rng(number + 2))
            watch.switch("other")
        parts = sorted(watch.spent.items(), key=lambda part: -part[1])
        print(f"  {name}: " + ", ".join(f"{stage} {1000 * part / rounds:.1f}" for stage, part in parts))


def whole_photos(loads: dict[str, Callable[[int], Any]], photos: int, rounds: int = 3) -> None:
    works = {name: lambda number, load=load: load(number % photos) for name, load in loads.items()}
    spent = in_turns(works, [range(photos)] * rounds)
    print(f"\n{'whole photos, one core':34}{'ms':>8}{'ratio':>16}")
    for name, seconds in spent.items():
        print(f"{name:34}{1000 * seconds / rounds / photos:8.1f}{spent['released'] / seconds:16.1f}")


def peak_memory(name: str, make: Make, photos: int, crops_made: int = 16) -> float:
    """Most memory that making crops takes in a process, beyond what it had when it started; megabytes."""

    def work(answer: Any) -> None:
        if name != "released":
            quiet_worker(0)
        Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
        before = _peak_kilobytes()
        for number in range(crops_made):
            make(number % photos, np.random.default_rng(number))
        answer.send((_peak_kilobytes() - before) / 1000)

    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=work, args=(sender,))
    process.start()
    megabytes: float = receiver.recv()
    process.join()
    return megabytes


def _peak_kilobytes() -> int:
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0])


def loader(ways: dict[str, Make], photos: int, workers: int, seconds: float) -> None:
    made, spent = dict.fromkeys(ways, 0), dict.fromkeys(ways, 0.0)
    for _ in range(2):
        for name, make in ways.items():
            common: dict[str, Any] = {
                "batch_size": BATCH,
                "num_workers": workers,
                "worker_init_fn": None if name == "released" else quiet_worker,
                "persistent_workers": True,
            }
            batches: Any
            if isinstance(make, FromShards):
                make.rng = None
                batches = EntryLoader(make.stream, collate_fn=collate_crops, **common)
            else:
                collate = filled if name == "released" else collate_crops
                batches = DataLoader(Items(make, photos), collate_fn=collate, **common)
            count, seen = -2 * workers, 0.0
            while seen < seconds:
                for _ in batches:
                    count += 1
                    if count == 0:
                        start = time.perf_counter()
                    if count > 0 and (seen := time.perf_counter() - start) >= seconds:
                        break
            made[name] += count * BATCH
            spent[name] += seen
            del batches
            gc.collect()  # ends its workers before others are forked
    rates = {name: made[name] / spent[name] for name in ways}
    print(f"\n{f'loader, {workers} workers, batches of {BATCH}':42}{'crops/s':>9}{'ratio':>7}")
    for name, rate in rates.items():
        print(f"{name:42}{rate:9.1f}{rate / rates['released']:7.1f}")


if __name__ == "__main__":
    main()
