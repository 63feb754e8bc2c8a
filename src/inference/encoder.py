"""The encoder's first stages in bands of rows, so that its largest maps are never whole in memory.

The maps at strides 2 and 4 take most of an encoder's memory: with a ResNet-50, a residual block at stride 4 of a
12-megapixel photo holds three maps of 0.8 GiB. What these stages compute is local, so a band needs only the rows that
its receptive field reaches. Of the map at stride 4 only its projection is kept, which has fewer channels.

B batch (1 here), C channels, d decoder width, H W image size
"""

from __future__ import annotations

import copy
from typing import Any, Self

import torch
from torch import Tensor, nn

from src.inference.memory import ENCODER_BAND_BYTES, bytes_per_pixel
from src.models.backbone import STRIDES, Backbone
from src.models.convolution import separate_steps

_STRIDE = STRIDES[1]  # of the coarsest map made in bands
_BAND_BYTES = ENCODER_BAND_BYTES
_DEVICE_BAND_BYTES = 8 * 2**30
_PROBE_ROWS = 768
_PROBE_COLUMNS = 64
_SMALL = 128  # side of the image with which a division is tried


class BandedEncoder:
    """Runs a segmenter's encoder and the projection of its finest map.

    Args:
        shallow: gives the maps at strides 4 and 8 of an image. deep: gives all four maps from the one at stride 8,
            of which the first two do not count.
        project: (1, C1, h, w) -> (1, d, h, w), pixel by pixel.
    """

    def __init__(self, shallow: nn.Module, deep: nn.Module, project: nn.Module) -> None:
        self._shallow, self._deep, self._project = shallow, deep, project
        self._reach = reach(shallow)
        self._bytes_per_pixel = bytes_per_pixel(shallow)

    @classmethod
    def of(cls, network: Any) -> Self | None:
        """The encoder of a segmenter with a dual-branch decoder, or None where it cannot be divided."""
        shallow = shallow_stages(network.backbone)
        deep = _deep_stages(network.backbone, shallow)
        if deep is None:
            return None
        banded = cls(shallow, deep, network.pixel_decoder.laterals[0])
        return banded if banded._reach is not None else None

    def __call__(self, network: Any, image: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Encode.

        Args:
            network: the segmenter. image: (3, H, W) uint8.

        Returns:
            the projected map at stride 4, and four maps of which the first is not to be used.
        """
        assert self._reach is not None
        height, width = image.shape[1:]
        finest: Tensor | None = None
        second: Tensor | None = None
        for start, stop in self._bands(height, width, image.device):
            above, below = max(0, start - self._reach), min(height, stop + self._reach)
            first_band, second_band = self._shallow(network.normalise(image[:, above:below])[None])
            bands = []
            for band, stride in ((first_band, STRIDES[0]), (second_band, STRIDES[1])):
                skip = (start - above) // stride
                bands.append(band[:, :, skip : skip + -(-(stop - start) // stride)])
            projected = self._project(bands[0])
            if start == 0:
                if stop == height:
                    finest, second = projected, bands[1]
                    break
                finest = _empty(projected, -(-height // STRIDES[0]))
                second = _empty(bands[1], -(-height // STRIDES[1]))
            assert finest is not None
            assert second is not None
            for whole, band, stride in ((finest, projected, STRIDES[0]), (second, bands[1], STRIDES[1])):
                whole[:, :, start // stride : start // stride + band.shape[2]] = band
        assert finest is not None
        return finest, self._deep(second)

    def _bands(self, height: int, width: int, device: torch.device) -> list[tuple[int, int]]:
        budget = _BAND_BYTES if device.type == "cpu" else _DEVICE_BAND_BYTES
        count = max(1, round(height * width * self._bytes_per_pixel / budget))
        rows = -(-height // (count * _STRIDE)) * _STRIDE
        return [(start, min(start + rows, height)) for start in range(0, height, rows)]


def _empty(like: Tensor, height: int) -> Tensor:
    """A map of so many rows, channels last in memory."""
    _, channels, _, width = like.shape
    return like.new_empty((1, height, width, channels)).permute(0, 3, 1, 2)


@torch.inference_mode()
@separate_steps()
def reach(shallow: nn.Module) -> int | None:
    """How many pixels above and below a pixel its features depend on, a multiple of 8; None where on all.

    Found by a row that is not a number: so is all that depends on it.
    """
    like = next(shallow.parameters())
    farthest = 0
    middle = _PROBE_ROWS // 2
    for row in (middle, middle + _STRIDE - 1):
        image = like.new_zeros((1, 3, _PROBE_ROWS, _PROBE_COLUMNS))
        image[:, :, row] = torch.nan
        for features, stride in zip(shallow(image)[:2], STRIDES, strict=False):
            touched = features.isnan().any(1).any(-1)[0].nonzero().flatten()
            first, last = int(touched[0]) * stride, int(touched[-1]) * stride
            farthest = max(farthest, last - row + stride, row - first + stride)
    farthest = -(-farthest // _STRIDE) * _STRIDE
    return farthest if farthest < middle // 2 else None


def shallow_stages(backbone: Backbone) -> nn.Module:
    """An encoder like the given one that ends with the maps at strides 4 and 8.

    The stages after them are left out where the encoder runs its stages one after the other; otherwise it is the
    given one, whose first two maps count.
    """
    encoder = _sharing_copy(backbone.encoder)
    siblings, before, after = _stages(encoder)
    for name in after:
        setattr(siblings, name, nn.Identity())
    shallow = _with_encoder(backbone, encoder)
    probe = _probe(backbone)
    try:
        same = [torch.equal(a, b) for a, b in zip(shallow(probe)[:2], backbone(probe)[:2], strict=True)]
    except (RuntimeError, ValueError, TypeError):
        return backbone  # stages that need each other
    return _FirstMaps(shallow) if all(same) and before else backbone


class _FirstMaps(nn.Module):
    """The maps at strides 4 and 8 of an encoder."""

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, images: Tensor) -> list[Tensor]:
        return self.encoder(images)[:2]


def _deep_stages(backbone: Backbone, shallow: nn.Module) -> nn.Module | None:
    """An encoder that goes on from the map at stride 8, or None where there is no such thing."""
    if shallow is backbone or backbone.pad_to != 1:
        return None
    encoder = _sharing_copy(backbone.encoder)
    siblings, before, _ = _stages(encoder)
    for name in before:
        setattr(siblings, name, nn.Identity())
    for name, child in list(encoder.named_children()):
        if child is siblings:
            break
        if siblings is not encoder:
            setattr(encoder, name, nn.Identity())
    probe = _probe(backbone)
    try:
        found = encoder(shallow(probe)[1])[2:]
        same = [torch.equal(a, b) for a, b in zip(found, backbone(probe)[2:], strict=True)]
    except (RuntimeError, ValueError, TypeError):
        return None
    return encoder if all(same) else None


def _stages(encoder: Any) -> tuple[nn.Module, list[str], list[str]]:
    """The module that holds the stages, its children up to the one that ends at stride 8, and those after it."""
    stage = encoder.feature_info.module_name()[-3]
    flat = stage.replace(".", "_")  # timm may lift inner modules to the top, under such names
    path, _, last = ("", "", flat) if flat in dict(encoder.named_children()) else stage.rpartition(".")
    siblings = encoder.get_submodule(path)
    names = [name for name, _ in siblings.named_children()]
    if last not in names:
        return siblings, [], []
    end = names.index(last) + 1
    return siblings, names[:end], names[end:]


def _sharing_copy(module: nn.Module) -> Any:
    """A copy with the same tensors: modules of its own, without memory of its own."""
    return copy.deepcopy(module, {id(t): t for t in (*module.parameters(), *module.buffers())})


def _with_encoder(backbone: Backbone, encoder: nn.Module) -> Backbone:
    other = copy.copy(backbone)
    other._modules = dict(backbone._modules)
    other.encoder = encoder
    return other


def _probe(backbone: nn.Module) -> Tensor:
    like = next(backbone.parameters())
    return torch.linspace(-1, 1, 3 * _SMALL**2, dtype=like.dtype, device=like.device).view(
        1, 3, _SMALL, _SMALL
    )
