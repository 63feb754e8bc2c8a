r"""Label photos with any segmentation model, as pseudo labels of new classes.

    python scripts/make_pseudo_labels.py --model other.onnx --class car=13 --photos images/train \
        --output <data.root>/pseudo_labels/train
    python scripts/make_pseudo_labels.py --model best.ckpt --class car --photos images/train \
        --output <data.root>/pseudo_labels/train

The model is a checkpoint of this project (.ckpt), an ONNX file (.onnx) or a TorchScript archive (.pt, .torchscript,
only with --trust-torchscript: an archive is a program). ``--class NAME=NUMBER`` says which class of the model becomes
which new class; for checkpoints of this project the name alone will do, or ``NAME=THEIR_NAME``. Writes soft maps
``<output>/<NAME>/<stem>.png`` with scores 0..255, or with ``--hard 0.5`` maps of 0 and 255. Photos that are labelled
already are skipped; broken ones are listed at the end.
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track

from src.checkpoints.files import read
from src.checkpoints.network import load_network
from src.errors import UserError, explained
from src.files import check_writable, write_atomically
from src.inference import Predictor
from src.inference.external_models import ACTIVATIONS, Preprocessing, load_onnx, load_torchscript
from src.inference.results.outputs import class_shares
from src.photos import PHOTO_SUFFIXES, PhotoError, read_photo

Scorer = Callable[[NDArray[np.uint8]], NDArray[np.float32]]  # (H, W, 3) photo -> (M, H, W) scores in 0..1
_TORCHSCRIPT = (".pt", ".pth", ".torchscript", ".jit")


def checkpoint_scorer(path: Path, names: Sequence[str]) -> Scorer:
    """Shares of classes, given by name, in the scores of a checkpoint of this project, see ``class_shares``."""
    checkpoint = read(path)
    classes = list(checkpoint.classes)
    if unknown := [name for name in names if name not in classes]:
        raise UserError(f"{path} has no class {', '.join(unknown)}; it knows {', '.join(classes)}")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    predictor = Predictor(load_network(checkpoint).to(device), enlarge_to=checkpoint.enlarge_to)
    chosen = [classes.index(name) for name in names]

    def score(photo: NDArray[np.uint8]) -> NDArray[np.float32]:
        shares = np.empty((len(chosen), *photo.shape[:2]), np.float32)
        for band in predictor.bands(predictor.open(photo)):
            share = class_shares(band.scores, chosen)
            shares[:, band.top : band.top + share.shape[1]] = share.cpu().numpy()
        return shares

    return score


def scorer(options: argparse.Namespace, wanted: dict[str, str]) -> Scorer:
    """The model that the options name, for the values of ``wanted``."""
    path: Path = options.model
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    if path.suffix == ".ckpt":
        return checkpoint_scorer(path, list(wanted.values()))
    if unnumbered := [name for name, number in wanted.items() if not number.isdecimal()]:
        raise UserError(f"give the class's number in {path.name}: --class {unnumbered[0]}=<number>")
    numbers = [int(number) for number in wanted.values()]
    size = None if options.size is None else (options.size[0], options.size[1])
    preprocessing = Preprocessing(
        tuple(options.mean), tuple(options.std), size, activation=options.activation
    )
    if path.suffix == ".onnx":
        model = load_onnx(path, preprocessing)
    elif path.suffix in _TORCHSCRIPT:
        model = load_torchscript(path, preprocessing, trusted=options.trust_torchscript)
    else:
        raise UserError(
            f"{path}: unknown kind of model; known are .ckpt, .onnx and {', '.join(_TORCHSCRIPT)}"
        )
    return lambda photo: model(photo, numbers)


def make(
    score: Scorer, photos: Sequence[Path], output: Path, names: Sequence[str], hard: float | None
) -> tuple[int, dict[Path, str]]:
    """Write the maps that are not there; returns how many photos got one, and those that failed, with the reason."""
    labelled, failures = 0, {}
    for path in track(photos, "labelling", transient=True):
        files = [output / name / f"{path.stem}.png" for name in names]
        if all(file.exists() for file in files):
            continue
        try:
            found = score(read_photo(path))
        except (PhotoError, OSError) as error:
            failures[path] = str(error)
            continue
        labelled += 1
        for file, scores in zip(files, found, strict=True):
            if file.exists():  # perhaps corrected by hand since
                continue
            values = np.rint(255 * (scores if hard is None else scores > hard)).astype(np.uint8)
            write_atomically(file, cv2.imencode(".png", values)[1].tobytes())
    return labelled, failures


def main(arguments: Sequence[str] | None = None) -> int:
    """Label a folder; returns the exit code, 1 when a photo failed."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", type=Path, required=True, help=".ckpt, .onnx or TorchScript")
    parser.add_argument(
        "--class",
        dest="classes",
        action="append",
        required=True,
        metavar="NAME[=CLASS]",
        help="new class, and its number or name in the model, for example car=13; may be repeated",
    )
    parser.add_argument("--photos", type=Path, required=True, help="folder of photos")
    parser.add_argument("--output", type=Path, required=True, help="folder of the pseudo labels")
    parser.add_argument("--hard", type=float, help="threshold 0..1; by default scores are kept")
    parser.add_argument(
        "--activation", choices=ACTIVATIONS, default="softmax", help="of a foreign model's output"
    )
    parser.add_argument("--size", type=int, nargs=2, metavar=("H", "W"), help="input size of a foreign model")
    parser.add_argument("--mean", type=float, nargs=3, default=Preprocessing().mean, help="of RGB in 0..1")
    parser.add_argument("--std", type=float, nargs=3, default=Preprocessing().std, help="of RGB in 0..1")
    parser.add_argument("--trust-torchscript", action="store_true", help="run the program in the archive")
    options = parser.parse_args(arguments)
    with explained():
        wanted = {
            name: chosen or name for name, _, chosen in (text.partition("=") for text in options.classes)
        }
        if len(wanted) < len(options.classes):
            raise UserError(f"--class {' '.join(options.classes)}: give each class once")
        if not options.photos.is_dir():
            raise UserError(f"{options.photos}: no such folder")
        photos = sorted(
            path
            for path in options.photos.iterdir()
            if path.suffix.lower() in PHOTO_SUFFIXES and not path.name.startswith(".")
        )
        twice = [stem for stem, count in Counter(path.stem for path in photos).items() if count > 1]
        if twice:
            raise UserError(
                f"{options.photos}: {len(twice)} stems occur twice ({twice[0]}); pseudo labels are named by stem"
            )
        if not photos:
            raise UserError(
                f"{options.photos}: no photo in this folder ({', '.join(sorted(PHOTO_SUFFIXES))})"
            )
        if options.hard is not None and not 0 <= options.hard < 1:
            raise UserError(f"--hard {options.hard}: give a threshold from 0 to below 1")
        score = scorer(options, wanted)
        check_writable(options.output, "--output")
        labelled, failures = make(score, photos, options.output, list(wanted), options.hard)
    console = Console(soft_wrap=True, highlight=False, markup=False)
    for reason in failures.values():
        console.print(f"failed: {reason}")
    there = len(photos) - labelled - len(failures)
    console.print(f"{labelled} photos labelled, {there} were, {len(failures)} failed: {options.output}")
    return 1 if failures else 0


if __name__ == "__main__":
    raise SystemExit(main())
