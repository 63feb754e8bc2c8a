"""Label photos with a trained network.

``python -m src.predict checkpoint=<file> input=<photo or folder> output=<folder>``
"""

from __future__ import annotations

import errno
import tempfile
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import hydra
import torch
from omegaconf import DictConfig
from PIL import Image
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from src.checkpoints.store import Checkpoint, load_network, read
from src.config import CONFIG_DIR, to_plain
from src.engine.stored_data import enlarged_size
from src.errors import UserError, explained
from src.inference.outputs import KINDS, OutputPlan, PhotoFiles
from src.inference.predictor import Predictor
from src.inference.tiled import Tiling
from src.photos import PHOTO_SUFFIXES, PhotoError, colour_profile, photo_size

_LESS_MEMORY = {  # by whether photos are divided into windows
    True: "lower inference.memory_gb",
    False: "choose inference=auto (windows, of MaSSFormer's networks only) or a smaller inference.limit",
}
_OTHER_FORMATS = (".avif", ".bmp", ".dng", ".heic", ".heif", ".jxl", ".tif", ".tiff", ".webp")
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT)
_MAKE_ROOM = (
    "Make room (results and, for large photos, the folder that TMPDIR names) and give the same command again."
)
_PRECISIONS = {"float32": None, "bfloat16": torch.bfloat16, "float16": torch.float16}


class Job(NamedTuple):
    """A photo, the name of its files below the output, and the files themselves."""

    photo: Path
    name: str
    files: dict[str, Path]


@hydra.main(version_base="1.3", config_path=CONFIG_DIR, config_name="predict")
def main(config: DictConfig) -> None:
    """Predict as configured; exit code 1 when a photo failed."""
    with explained():
        failures = predict(to_plain(config))
    if failures:
        raise SystemExit(1)


def predict(config: dict[str, Any]) -> dict[Path, str]:
    """Write the files of every photo; returns the photos that failed, with the reason.

    Raises:
        UserError: nothing can be predicted as configured; raised before any work is done.
    """
    console = Console(soft_wrap=True, highlight=False, markup=False)
    source, folder = _folders(config)
    precision = config["precision"]
    if precision not in _PRECISIONS:
        raise UserError(f"precision={precision}: choose one of {', '.join(_PRECISIONS)}")
    device = _device(config["device"])
    photos = find_photos(source)
    if source.is_dir() and (others := _others(source)):
        console.print(others)
    checkpoint = read(Path(config["checkpoint"]).expanduser())
    plan = _plan(config, checkpoint)
    jobs = [
        Job(photo, name, plan.files(folder, name))
        for photo, name in zip(photos, names(source, photos), strict=True)
    ]
    _check_writable(folder)

    todo = jobs if config["overwrite"] else [job for job in map(_unfinished, jobs) if job.files]
    if len(todo) < len(jobs):
        console.print(
            f"{len(jobs) - len(todo)} of {len(jobs)} photos are done already (overwrite=true repeats them)"
        )
    wanted = {job.photo: len(job.files) for job in jobs}
    if kept := sum(wanted[job.photo] - len(job.files) for job in todo):
        console.print(
            f"{kept} of the files asked for are there and stay as they are, made with whatever options "
            "(overwrite=true makes them anew)"
        )
    failures: dict[Path, str] = {}
    if todo:
        inference = config["inference"]
        enlarge_to = enlarged_size(inference["enlarge_to"], checkpoint)
        network = load_network(checkpoint).to(device)
        if "edges" in plan.kinds and not _predicts_edges(network):
            raise UserError(
                f"outputs={list(plan.kinds)}: the network of {checkpoint.path} predicts no edges; leave edges out"
            )
        predictor = _predictor(network, inference, enlarge_to, _PRECISIONS[precision])
        del network
        del checkpoint  # its tensors are copied, and would lie in memory beside the photos
        failures = _predict_all(todo, plan, predictor, console)
    for photo, reason in failures.items():
        console.print(f"failed: {reason if str(photo) in reason else f'{photo}: {reason}'}")
    done = len(todo) - len(failures)
    console.print(
        f"{done} photo{'s' * (done != 1)} predicted, {len(failures)} failed; results: {folder.resolve()}"
    )
    return failures


def _predict_all(
    jobs: Sequence[Job], plan: OutputPlan, predictor: Predictor, console: Console
) -> dict[Path, str]:
    failures: dict[Path, str] = {}
    sizes: dict[Path, tuple[int, int]] = {}
    for job in jobs:
        try:
            sizes[job.photo] = photo_size(job.photo)
        except (PhotoError, OSError) as error:
            failures[job.photo] = str(error)
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TextColumn("{task.percentage:.0f} %"),
    )
    with Progress(*columns, TimeRemainingColumn(elapsed_when_finished=True), console=console) as progress:
        pixels = {photo: height * width for photo, (height, width) in sizes.items()}
        task = progress.add_task("", total=sum(pixels.values()))
        completed = 0
        for job in jobs:
            if job.photo in failures:
                continue
            progress.update(task, description=job.photo.name)

            def on_progress(share: float, before: int = completed, size: int = pixels[job.photo]) -> None:
                progress.update(task, completed=before + share * size)

            try:
                _predict_one(job, plan, predictor, on_progress)
            except (PhotoError, OSError) as error:
                failures[job.photo] = str(error)
                if isinstance(error, OSError) and error.errno in _NO_ROOM:
                    left = len(jobs) - jobs.index(job) - 1
                    failures[job.photo] = (
                        f"{error.strerror}; {left} further photos were not begun. {_MAKE_ROOM}"
                    )
                    break
            except (MemoryError, RuntimeError) as error:
                if not _is_out_of_memory(error):
                    raise
                failures[job.photo] = f"out of memory; {_LESS_MEMORY[predictor.divides]}"
                if torch.cuda.is_available():
                    torch.cuda.empty_cache()
            completed += pixels[job.photo]
            progress.update(task, completed=completed)
    return failures


def _unfinished(job: Job) -> Job:
    """The job with those of its files that are not there: what exists may be someone's own."""
    return job._replace(files={kind: path for kind, path in job.files.items() if not path.exists()})


def _is_out_of_memory(error: BaseException) -> bool:
    # the CPU's allocator raises a plain RuntimeError
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or "can't allocate memory" in str(error)


def _predict_one(
    job: Job, plan: OutputPlan, predictor: Predictor, on_progress: Callable[[float], None]
) -> None:
    photo = predictor.open(job.photo)
    with PhotoFiles(plan, job.files, photo.size, colour_profile(job.photo)) as files:
        for band in predictor.bands(photo):
            below = band.top + band.scores.shape[1]
            files.write(band, photo.rows(band.top, below))
            on_progress(below / photo.size[0])


def find_photos(source: Path) -> list[Path]:
    """A photo itself, or all photos of a folder and its sub-folders, hidden ones left out, in order of their path.

    Raises:
        UserError: there is none.
    """
    if source.is_file():
        if source.suffix.lower() not in PHOTO_SUFFIXES:
            raise UserError(f"input={source} is not a photo; known are {', '.join(sorted(PHOTO_SUFFIXES))}")
        return [source]
    if not source.is_dir():
        raise UserError(f"input={source}: no such file or folder")
    photos = [
        path
        for path in sorted(source.rglob("*"))
        if path.suffix.lower() in PHOTO_SUFFIXES
        and path.is_file()
        and not any(part.startswith(".") for part in path.relative_to(source).parts)
    ]
    if not photos:
        raise UserError(f"input={source} holds no photo ({', '.join(sorted(PHOTO_SUFFIXES))})")
    return photos


def _others(source: Path) -> str:
    """What a folder holds of picture formats that are not read; empty for nothing."""
    suffixes = Counter(path.suffix.lower() for path in source.rglob("*"))
    found = [f"{suffixes[suffix]} {suffix}" for suffix in _OTHER_FORMATS if suffixes[suffix]]
    return f"left out: {', '.join(found)} (convert them to JPEG or PNG first)" if found else ""


def names(source: Path, photos: Sequence[Path]) -> list[str]:
    """Names of the photos' outputs, without suffix: sub-folders and stem.

    Photos whose names would be the same, in upper or lower case, keep their suffix ("a.jpg", "a.png").
    """
    base = source.parent if source.is_file() else source
    paths = [photo.relative_to(base) for photo in photos]
    whole: set[Path] = set()
    while True:
        found = [(path if path in whole else path.with_suffix("")).as_posix() for path in paths]
        count = Counter(name.lower() for name in found)
        clashing = {path for path, name in zip(paths, found, strict=True) if count[name.lower()] > 1}
        if clashing <= whole:
            return found
        whole |= clashing


def _folders(config: dict[str, Any]) -> tuple[Path, Path]:
    for key in ("checkpoint", "input", "output"):
        if config[key] is None:
            raise UserError(
                f"{key} is not given. Usage: "
                "python -m src.predict checkpoint=<file> input=<photo or folder> output=<folder>"
            )
        if not isinstance(config[key], str):  # Hydra reads 2024 and 1e3 as numbers
            raise UserError(
                f"{key}={config[key]} was read as a number; put a path before it ({key}=./...), or quotes in quotes: "
                f"'{key}=\"...\"'"
            )
    source, folder = Path(config["input"]).expanduser(), Path(config["output"]).expanduser()
    if folder.exists() and not folder.is_dir():
        raise UserError(f"output={folder} is a file; give a folder")
    if source.is_dir() and folder.resolve().is_relative_to(source.resolve()):
        raise UserError(
            f"output={folder} lies inside input={source}, so results would be taken for photos; choose another folder"
        )
    return source, folder


def _check_writable(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise UserError(f"output={folder} cannot be written: {error.strerror}") from error


def _predictor(
    network: Any,
    inference: dict[str, Any],
    enlarge_to: tuple[int, int] | None,
    autocast: torch.dtype | None,
) -> Predictor:
    limit, window = inference["limit"], inference["window"]
    Image.MAX_IMAGE_PIXELS = round(inference["max_megapixels"] * 1e6 / 2)  # Pillow refuses twice as many
    try:
        return Predictor(
            network,
            limit=None if limit is None else (int(limit[0]), int(limit[1])),
            enlarge_to=enlarge_to,
            mode=inference["mode"],
            memory_gb=inference["memory_gb"],
            tiling=Tiling((int(window[0]), int(window[1])), inference["overlap"], inference["margin"]),
            autocast=autocast,
            epsilon=inference["epsilon"],
        )
    except ValueError as error:
        raise UserError(str(error)) from error


@torch.inference_mode()
def _predicts_edges(network: Any) -> bool:
    probe = torch.zeros((3, 64, 64), dtype=torch.uint8, device=next(network.parameters()).device)
    return network.pixel_features(network.normalise(probe)[None]).edge_logits is not None


def _plan(config: dict[str, Any], checkpoint: Checkpoint) -> OutputPlan:
    classes = checkpoint.classes
    chosen = tuple(classes) if config["classes"] is None else _listed(config["classes"])
    if unknown := [name for name in chosen if name not in classes]:
        raise UserError(f"classes={unknown}: {checkpoint.path} knows {', '.join(classes)}")
    kinds = _listed(config["outputs"])
    if not kinds or (unknown := [kind for kind in kinds if kind not in KINDS]):
        raise UserError(f"outputs={list(kinds)}: choose from {', '.join(KINDS)}")
    if config["mask_bits"] not in (8, 16):
        raise UserError(f"mask_bits={config['mask_bits']}: choose 8 or 16")
    return OutputPlan(kinds, classes, chosen, config["mask_bits"])


def _listed(given: str | Sequence[str]) -> tuple[str, ...]:
    """Several names, or one without brackets; each counts once."""
    return (given,) if isinstance(given, str) else tuple(dict.fromkeys(given))


def _device(name: str) -> torch.device:
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"device={name} cannot be used: {str(error).splitlines()[0]}") from error


if __name__ == "__main__":
    main()
