"""An encoder's first stages, which give their maps at strides 4 and 8 a few rows at a time.

What these stages compute is local. Those of a ResNet work as streams of rows, in the processor's cache (see
``src.inference.bands.row_streams``); those of other encoders in large bands, of which each computes again the rows
beside it that its receptive field reaches.

B batch (1 here), C channels, H W image size
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, Protocol, Self

import torch
from torch import Tensor, nn

from src.inference.bands.row_streams import row_chain
from src.inference.bands.rows import Rows, bands, cached_rows
from src.inference.memory import bytes_per_pixel
from src.models.backbone import STRIDES, Backbone
from src.models.convolution import separate_steps
from src.models.layers import full_float32

_STRIDE = STRIDES[1]  # of the coarsest map made in bands
_BAND_BYTES = 768 * 2**20  # of all maps of an overlapping band; smaller ones compute more rows twice
_BAND_EXCESS = 1.5  # these bands are of equal height, so one may be larger than that
_STREAM_BYTES = 256 * 2**20  # of all maps of a streamed band, some times that of its largest map
_DEVICE_BAND_BYTES = 2**30
_PROBE_ROWS = 768
_PROBE_COLUMNS = 64
_SMALL = 128  # side of the image with which a division is tried
_SMALL_BAND = 20  # rows of that image at a time


class MapRows(NamedTuple):
    """Rows of the maps at strides 4 and 8, (1, C, n, w), that follow those before; None where there are none yet."""

    first: Tensor | None
    second: Tensor | None


class ShallowStages(Protocol):
    """The first stages.

    Attributes:
        band_bytes: about the memory of the maps that live at a time on a CPU.
    """

    band_bytes: int

    def maps(self, network: Any, image: Tensor) -> Iterator[MapRows]:
        """The maps of an image (3, H, W) uint8, from top to bottom; the next step may overwrite the rows."""
        ...


def banded_stages(backbone: Backbone, stages: nn.Module) -> ShallowStages | None:
    """The fastest way to run the first stages of an encoder, or None where they are not local.

    Args:
        stages: of ``shallow_stages``.
    """
    return StreamedStages.of(backbone, stages) or OverlappingStages.of(stages)


class StreamedStages:
    """Stages whose layers take rows as they come.

    Args:
        first: layers up to the map at stride 4. second: those from there to the map at stride 8.
        channels: of the map at stride 4.
    """

    band_bytes = _STREAM_BYTES

    def __init__(self, first: Sequence[nn.Module], second: Sequence[nn.Module], channels: int) -> None:
        self._first, self._second, self._channels = first, second, channels

    @classmethod
    def of(cls, backbone: Backbone, stages: nn.Module) -> Self | None:
        """The first stages of an encoder if its layers are known and follow one another; else None."""
        siblings, before, _ = _stages(backbone.encoder)
        end = _flat_names(backbone.encoder)[-4]
        if backbone.pad_to != 1 or siblings is not backbone.encoder or end not in before[:-1]:
            return None
        layers, cut = [siblings.get_submodule(name) for name in before], before.index(end) + 1
        if row_chain(layers) is None:
            return None
        streamed = cls(layers[:cut], layers[cut:], backbone.channels[0])
        return streamed if streamed._equals(stages, _probe(backbone)) else None

    def maps(self, network: Any, image: Tensor) -> Iterator[MapRows]:
        """See ``ShallowStages``."""
        height, width = image.shape[1:]
        rows = cached_rows(self._channels, -(-width // STRIDES[0]), image.device) * STRIDES[0]
        yield from self._maps(lambda a, b: network.normalise(image[:, a:b])[None], height, rows)

    def _maps(self, image_rows: Rows, height: int, rows: int) -> Iterator[MapRows]:
        first, second = row_chain(self._first), row_chain(self._second)
        assert first is not None
        assert second is not None
        for start, stop in bands(height, rows):
            last = stop == height
            image = image_rows(start, stop).contiguous(memory_format=torch.channels_last)
            finest = first.push(image, last)
            yield MapRows(finest, None)
            yield MapRows(None, second.push(finest, last))

    @full_float32()
    @torch.inference_mode()
    def _equals(self, stages: nn.Module, image: Tensor) -> bool:
        tolerance = torch.finfo(image.dtype).eps ** 0.5
        found = zip(*self._maps(lambda a, b: image[:, :, a:b], _SMALL, _SMALL_BAND), strict=True)
        for rows, expected in zip(found, stages(image)[:2], strict=True):
            ours = torch.cat([part for part in rows if part is not None], dim=2)
            if ours.shape != expected.shape:
                return False
            if float((ours - expected).abs().max()) > tolerance * float(expected.abs().max()):
                return False
        return True


class OverlappingStages:
    """Stages that run on large bands, each with the rows beside it that it depends on.

    Args:
        stages: of ``shallow_stages``. reach: rows above and below a pixel that its features depend on.
    """

    band_bytes = int(_BAND_EXCESS * _BAND_BYTES)

    def __init__(self, stages: nn.Module, reach: int) -> None:
        self._stages, self._reach = stages, reach
        self._bytes_per_pixel = bytes_per_pixel(stages)

    @classmethod
    def of(cls, stages: nn.Module) -> Self | None:
        """None where features depend on the whole image."""
        rows = reach(stages)
        return None if rows is None else cls(stages, rows)

    def maps(self, network: Any, image: Tensor) -> Iterator[MapRows]:
        """See ``ShallowStages``."""
        height, width = image.shape[1:]
        for start, stop in self._bands(height, width, image.device):
            above, below = max(0, start - self._reach), min(height, stop + self._reach)
            found = []
            for band, stride in zip(
                self._stages(network.normalise(image[:, above:below])[None])[:2], STRIDES, strict=False
            ):
                skip = (start - above) // stride
                found.append(band[:, :, skip : skip + -(-(stop - start) // stride)])
            yield MapRows(*found)

    def _bands(self, height: int, width: int, device: torch.device) -> list[tuple[int, int]]:
        budget = _BAND_BYTES if device.type == "cpu" else _DEVICE_BAND_BYTES
        count = max(1, round(height * width * self._bytes_per_pixel / budget))
        return list(bands(height, -(-height // (count * _STRIDE)) * _STRIDE))


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


def deep_stages(backbone: Backbone, shallow: nn.Module) -> nn.Module | None:
    """An encoder that goes on from the map at stride 8, or None where there is no such thing."""
    if shallow is backbone or _STRIDE % backbone.pad_to:  # the map at stride 8 would be cut
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
    stage, flat = encoder.feature_info.module_name()[-3], _flat_names(encoder)[-3]
    path, _, last = ("", "", flat) if flat in dict(encoder.named_children()) else stage.rpartition(".")
    try:
        siblings = encoder.get_submodule(path)
    except AttributeError:  # timm keeps some encoders inside of another module
        return encoder, [], []
    names = [name for name, _ in siblings.named_children()]
    if last not in names:
        return siblings, [], []
    end = names.index(last) + 1
    return siblings, names[:end], names[end:]


def _flat_names(encoder: Any) -> list[str]:
    """Under which timm may have lifted the modules that give the maps to the top."""
    return [name.replace(".", "_") for name in encoder.feature_info.module_name()]


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
