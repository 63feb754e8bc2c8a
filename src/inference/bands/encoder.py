"""The encoder without its largest maps.

The maps at strides 2 and 4 take most of an encoder's memory: with a ResNet-50, a residual block at stride 4 of a
12-megapixel photo holds three maps of 0.8 GiB. So the first stages give their maps a few rows at a time (see
``src.inference.bands.shallow_stages``). Of the map at stride 4 only its projection is kept, which has fewer channels.

B batch (1 here), C channels, d decoder width, H W image size
"""

from __future__ import annotations

from typing import Any, Self

from torch import Tensor, nn

from src.inference.bands.rows import GrowingMap
from src.inference.bands.shallow_stages import ShallowStages, banded_stages, deep_stages, shallow_stages
from src.models.backbone import STRIDES


class BandedEncoder:
    """Runs a segmenter's encoder and the projection of its finest map.

    Args:
        shallow: gives the maps at strides 4 and 8 of an image in rows.
        deep: gives all four maps from the one at stride 8, of which the first two do not count.
        project: (1, C1, h, w) -> (1, d, h, w), pixel by pixel.

    Attributes:
        band_bytes: about the memory of the maps that live at a time on a CPU, until the map at stride 8 is whole.
    """

    def __init__(self, shallow: ShallowStages, deep: nn.Module, project: nn.Module) -> None:
        self._shallow, self._deep, self._project = shallow, deep, project
        self.band_bytes = shallow.band_bytes

    @classmethod
    def of(cls, network: Any) -> Self | None:
        """The encoder of a segmenter with a dual-branch decoder, or None where it cannot be divided."""
        stages = shallow_stages(network.backbone)
        deep = deep_stages(network.backbone, stages)
        if deep is None:
            return None
        shallow = banded_stages(network.backbone, stages)
        return None if shallow is None else cls(shallow, deep, network.pixel_decoder.laterals[0])

    def __call__(self, network: Any, image: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Encode.

        Args:
            network: the segmenter. image: (3, H, W) uint8.

        Returns:
            the projected map at stride 4, and four maps of which the first is not to be used.
        """
        height = image.shape[1]
        finest, second = (GrowingMap(-(-height // stride)) for stride in STRIDES[:2])
        for first_rows, second_rows in self._shallow.maps(network, image):
            if first_rows is not None:
                finest.append(self._project(first_rows))
            if second_rows is not None:
                second.append(second_rows)
        return finest.whole(), self._deep(second.whole())
