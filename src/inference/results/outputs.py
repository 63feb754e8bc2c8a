"""Files made from a prediction, row by row: label maps, overlays, soft masks, cut-outs and edge maps.

K classes, n rows of a band, W width
"""

from __future__ import annotations

import re
import unicodedata
import warnings
import zlib
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from src.inference.results.png import PngWriter
from src.inference.semantic import best_class
from src.inference.whole import Band
from src.photos import DAMAGED
from src.pictures import overlay
from src.structures import IGNORE

KINDS = ("labels", "overlays", "masks", "cutouts", "edges")
_LONGEST_NAME = 60  # characters
_LONGEST_FOLDER = 100  # bytes
# keywords of the text in a result that tells what it was made of
_PHOTO, _NETWORK = "Source photo", "Network"
_CUTOUT_SHARPNESS = 3
_SMALLEST_SUM = 1e-6  # below this no class has a share of the pixel


class Origin(NamedTuple):
    """What a result was made of, a few words each that tell it from others; empty where that is not known.

    Attributes:
        photo: the photo's file. network: the weights.
    """

    photo: str = ""
    network: str = ""


_UNKNOWN = Origin()


class OutputPlan(NamedTuple):
    """What is written for every photo.

    Attributes:
        kinds: of ``KINDS``. labels: index PNG with the classes' palette. overlays: the photo tinted with class
            colours. masks: for every chosen class, its share of the scores, gray. cutouts: the photo with the
            chosen classes' share as alpha, sharpened. edges: probability of a class boundary, gray.
        classes: name to RGB colour, in the order of the ids.
        chosen: names of the classes of masks and cut-outs.
        mask_bits: 8 or 16 bits per pixel of masks.
    """

    kinds: tuple[str, ...]
    classes: Mapping[str, Sequence[int]]
    chosen: tuple[str, ...]
    mask_bits: int = 8

    def files(self, folder: Path, name: str) -> dict[str, Path]:
        """The files of one photo: place below the folder to path. ``name`` may hold sub-folders."""
        places: list[str] = []
        for kind in self.kinds:
            places += {"masks": self.mask_places, "cutouts": [self.cutout_place]}.get(kind, [kind])
        return {place: folder / place / f"{name}.png" for place in places}

    @property
    def mask_places(self) -> list[str]:
        """Folders of the chosen classes' masks, ``masks/1_person``: safe whatever a checkpoint calls its classes."""
        return [f"masks/{folder}" for folder in self._class_folders]

    @property
    def cutout_place(self) -> str:
        """Folder of the cut-outs of the chosen classes, ``cutouts/1_person+5_sky``: others lie beside it."""
        folder = "+".join(self._class_folders)
        if len(folder.encode()) > _LONGEST_FOLDER:
            folder = f"{len(self.chosen)}_classes_{zlib.crc32(folder.encode()):08x}"
        return f"cutouts/{folder}"

    @property
    def _class_folders(self) -> list[str]:
        return [f"{number}_{_safe(name)}" for number, name in zip(self.chosen_ids, self.chosen, strict=True)]

    @property
    def chosen_ids(self) -> list[int]:
        """Of the chosen classes."""
        names = list(self.classes)
        return [names.index(name) for name in self.chosen]


class PhotoFiles:
    """The files of one photo while they are written; they appear together when the block ends well.

    Args:
        plan: what to write. files: from ``plan.files``. size: height and width of the photo, pixels.
        profile: ICC profile of the photo's colours, which overlays and cut-outs keep; None where it has none.
        origin: of the results, which they carry.
    """

    def __init__(
        self,
        plan: OutputPlan,
        files: Mapping[str, Path],
        size: tuple[int, int],
        profile: bytes | None = None,
        origin: Origin = _UNKNOWN,
    ) -> None:
        self._plan, self._files, self._size, self._profile = plan, files, size, profile
        self._text = {_PHOTO: origin.photo, _NETWORK: origin.network}
        self._colours = np.array([list(colour) for colour in plan.classes.values()], np.uint8)
        self._chosen = plan.chosen_ids
        self._writers: dict[str, PngWriter] = {}
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        with self._stack:
            for place, path in self._files.items():
                self._writers[place] = self._stack.enter_context(self._writer(place, path))
            self._stack = self._stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.__exit__(kind, error, trace)

    def _writer(self, place: str, path: Path) -> PngWriter:
        height, width = self._size
        if place == "labels":
            palette = np.zeros((256, 3), np.uint8)
            palette[: len(self._colours)] = self._colours
            palette[IGNORE] = 255
            colours = palette.tolist()
            return PngWriter(path, width, height, "palette", palette=colours, level=6, text=self._text)
        if place == "overlays":
            return PngWriter(path, width, height, "rgb", profile=self._profile, text=self._text)
        if place == self._plan.cutout_place:
            return PngWriter(path, width, height, "rgba", profile=self._profile, text=self._text)
        bits = self._plan.mask_bits if place != "edges" else 8
        return PngWriter(path, width, height, bits=bits, text=self._text)

    def write(self, band: Band, photo: NDArray[np.uint8]) -> None:
        """Append a band to every file.

        Args:
            band: the next rows of the prediction. photo: (n, W, 3) the same rows of the photo.
        """
        label = best_class(band.scores).byte().cpu().numpy()
        masks = self._plan.mask_places
        shares = (
            class_shares(band.scores, self._chosen)
            if any(place in masks for place in self._writers)
            else None
        )
        for place, writer in self._writers.items():
            if place == "labels":
                writer.write(label)
            elif place == "overlays":
                writer.write(overlay(photo, label, self._colours))
            elif place == self._plan.cutout_place:
                opacity = class_shares(band.scores, self._chosen, _CUTOUT_SHARPNESS).sum(0)
                writer.write(np.dstack((photo, _quantise(opacity, 8))))
            elif place == "edges":
                writer.write(
                    _quantise(torch.zeros_like(band.scores[0]) if band.edges is None else band.edges, 8)
                )
            elif shares is not None:
                writer.write(_quantise(shares[masks.index(place)], self._plan.mask_bits))


def class_shares(scores: Tensor, chosen: Sequence[int], sharpness: int = 1) -> Tensor:
    """(K, n, W) scores -> (chosen, n, W) shares of the sum over all classes, in 0..1.

    Every class has some score everywhere, so even where a class is sure its share is about 0.7 (the network of
    ``make demo``, its scenes' sky). Of third powers it is 0.98, and classes that are level still have equal shares,
    so that outlines stay where they are.
    One class alone has no others to share with: its score, cut at 1, is its share.

    Args:
        scores: at least 0. chosen: ids of the classes whose shares are wanted. sharpness: power of the scores.
    """
    if len(scores) == 1:
        return scores[chosen].float().clamp(max=1)
    powers = scores.float() ** sharpness
    return powers[chosen] / powers.sum(0).clamp_(min=_SMALLEST_SUM**sharpness)


def _safe(name: str) -> str:
    """Letters, marks and digits of any alphabet, of what a checkpoint calls a class; no dots and no slashes."""
    kept = (
        character if character == "-" or unicodedata.category(character)[0] in "LMN" else "_"
        for character in unicodedata.normalize("NFC", name)
    )
    return re.sub("_+", "_", "".join(kept))[:_LONGEST_NAME]


def read_origin(path: Path) -> tuple[Origin, tuple[int, int]] | None:
    """What a file says that it was made of, and its height and width in pixels; None where it is no PNG."""
    try:
        with warnings.catch_warnings():  # of large ones; only the header is read
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            picture = Image.open(path, formats=("PNG",))
        with picture:
            photo, network = (str(picture.info.get(keyword, "")) for keyword in (_PHOTO, _NETWORK))
            return Origin(photo, network), (picture.height, picture.width)
    except (*DAMAGED, Image.DecompressionBombError):
        return None


def _quantise(values: Tensor, bits: int) -> NDArray[Any]:
    """0..1 -> whole numbers of 8 or 16 bits."""
    scaled = values.clamp(0, 1).mul(2**bits - 1).round()
    return scaled.to(torch.int32).cpu().numpy().astype(np.uint8 if bits == 8 else np.uint16)
