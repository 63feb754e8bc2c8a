"""The high-resolution branch in bands of rows: detail (LSE), fusion (EGF) and mask features.

The branch works at half the image's size, where one whole map of 256 channels of a 12-megapixel photo takes
3 GiB. It is local, apart from the deformable convolutions, whose offsets are known before anything is sampled:
a band needs the rows that its offsets reach, no others. So results equal those of the modules on whole maps.

Linear steps are reordered where that saves work, which changes results by rounding only: a 1x1 convolution of an
upsampled map is done before the upsampling, BatchNorm goes into the convolution before it, and the last 1x1
convolution of the fusion goes into the one that makes mask features. Between the two passes over the
image only the fusion's d/2 sampled channels are kept.

d decoder width, D query width, h w half the image's size, n rows of a band
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import NamedTuple, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from src.allocation import return_freed_memory
from src.inference.folding import folded
from src.inference.rows import bands, resize_band, resized_rows, source_rows
from src.models.convolution import convolve
from src.models.deformable import DeformableConv, deform_conv2d
from src.models.layers import ConvNormAct
from src.models.pixel_decoder.egf import EdgeGuidedFusion
from src.models.pixel_decoder.lse import LowLevelStructure, SpatialAttention

_BAND_BYTES = (
    16 * 2**20
)  # of one map of a band; the allocator hands blocks of this size back without clearing them
_DEVICE_BAND_BYTES = 2**30

Rows = Callable[[int, int], Tensor]
"""Gives rows start..stop of a map, (1, C, stop - start, w)."""


class FusedMap(NamedTuple):
    """What is kept of the high-resolution branch.

    Attributes:
        sampled: (1, d/2, h, w) output of the fusion's deformable convolution.
        context: (1, d, h/2, w/2) the global branch at stride 4.
        edge_logits: (1, 1, h, w).
    """

    sampled: Tensor
    context: Tensor
    edge_logits: Tensor


class HighResolutionBranch:
    """LSE, EGF and the mask output of a pixel decoder, in bands.

    Args:
        detail, fusion, mask_output: modules of the pixel decoder, in evaluation mode; they are not changed.
    """

    def __init__(self, detail: LowLevelStructure, fusion: EdgeGuidedFusion, mask_output: ConvNormAct) -> None:
        self._detail = detail
        self._plain_weight, self._plain_bias = folded(detail.plain.conv, detail.plain.norm)
        self._sample_detail = DeformableBand(detail.deformable)
        merge_weight, self._merge_bias = folded(detail.merge.conv, detail.merge.norm)
        self._merge_weights = merge_weight.chunk(2, dim=1)
        self._edge_reduce = folded(fusion.edge_reduce.conv, fusion.edge_reduce.norm)
        self._edge_head = fusion.edge_head
        self._reduce = fusion.reduce
        self._sample_fusion = DeformableBand(fusion.deformable)

        # mask features = relu(output(expand(sampled) + context)) = relu(direct(sampled) + output(context))
        expand_weight, expand_bias = folded(fusion.expand, fusion.norm)
        output_weight, output_bias = folded(mask_output.conv, mask_output.norm)
        self._output_weight = output_weight
        self._direct_weight = torch.einsum("oc,ci->oi", output_weight[..., 0, 0], expand_weight[..., 0, 0])
        self._direct_weight = self._direct_weight[..., None, None]
        self._direct_bias = output_bias + output_weight[..., 0, 0] @ expand_bias

    @classmethod
    def of(cls, pixel_decoder: nn.Module) -> Self | None:
        """The branch of a pixel decoder, or None when its slots hold other modules."""
        parts = [getattr(pixel_decoder, name, None) for name in ("detail", "fusion", "mask_output")]
        detail, fusion, mask_output = parts
        if not isinstance(detail, LowLevelStructure) or not isinstance(fusion, EdgeGuidedFusion):
            return None
        assert isinstance(mask_output, ConvNormAct)
        return cls(detail, fusion, mask_output)

    def fuse(self, image_rows: Rows, size: tuple[int, int], s1: Tensor, context: Tensor) -> FusedMap:
        """Run detail and fusion.

        Args:
            image_rows: normalised image at half size. size: h and w.
            s1: (1, d, h/2, w/2). context: (1, d, h/2, w/2), the upsampled D2.
        """
        height = size[0]
        like = s1.new_empty(0)
        gated = _empty_map(like, self._reduce.out_channels, size)
        edge_logits = _empty_map(like, 1, size)
        edge_weight, edge_bias = self._edge_reduce
        context_edges = F.conv2d(context, edge_weight)
        for start, stop, detail in self._detail_bands(image_rows, size, s1):
            enlarged = resized_rows(context_edges, start, stop, size)
            edges = convolve(detail, edge_weight, edge_bias, add=enlarged, overwrite=True)
            edge_logits[:, :, start:stop] = self._edge_head(edges)
            gate = detail.sigmoid_().mul_(resized_rows(context, start, stop, size))
            gated[:, :, start:stop] = self._reduce(gate)
        del s1, detail, gate, edges, context_edges
        return_freed_memory()

        sampled = _empty_map(like, self._sample_fusion.out_channels, size)
        rows = _rows_of(gated)
        for start, stop in self.ranges(gated.shape[1], size):
            sampled[:, :, start:stop] = self._sample_fusion(rows, height, start, stop)
        return FusedMap(sampled, context, edge_logits)

    def mask_features(self, fused: FusedMap, start: int, stop: int) -> Tensor:
        """Rows start..stop of the mask features, (1, D, n, w)."""
        height, width = fused.sampled.shape[2:]
        rows = source_rows(start, stop, height, fused.context.shape[2], fused.context)
        context = F.conv2d(fused.context[:, :, rows.start : rows.stop], self._output_weight)
        sampled, enlarged = fused.sampled[:, :, start:stop], resize_band(context, rows, width)
        return convolve(sampled, self._direct_weight, self._direct_bias, add=enlarged, overwrite=True)

    def ranges(self, channels: int, size: tuple[int, int]) -> Iterator[tuple[int, int]]:
        """Bands of a map of so many channels."""
        budget = _BAND_BYTES if self._direct_bias.device.type == "cpu" else _DEVICE_BAND_BYTES
        yield from bands(size[0], max(1, budget // (4 * channels * size[1])))

    def _detail_bands(
        self, image_rows: Rows, size: tuple[int, int], s1: Tensor
    ) -> Iterator[tuple[int, int, Tensor]]:
        """Ranges of rows and the detail map (1, d, n, w) there, from top to bottom."""
        height = size[0]
        plain_s1, sampled_s1 = s1.chunk(2, dim=1)
        image_weight, s1_weight = self._plain_weight.split((3, plain_s1.shape[1]), dim=1)
        plain_s1 = F.conv2d(plain_s1, s1_weight)

        def plain(start: int, stop: int) -> Tensor:
            enlarged = resized_rows(plain_s1, start, stop, size)
            return convolve(
                image_rows(start, stop), image_weight, self._plain_bias, add=enlarged, overwrite=True
            )

        def sampling_input(start: int, stop: int) -> Tensor:
            return torch.cat((image_rows(start, stop), resized_rows(sampled_s1, start, stop, size)), dim=1)

        def sampled(start: int, stop: int) -> Tensor:
            return self._sample_detail(sampling_input, height, start, stop)

        first = AttendedRows(self._detail.plain_attention, plain, height)
        second = AttendedRows(self._detail.deformable_attention, sampled, height)
        for start, stop in self.ranges(s1.shape[1], size):
            detail = F.conv2d(first(start, stop), self._merge_weights[0], self._merge_bias)
            detail = convolve(second(start, stop), self._merge_weights[1], add=detail, overwrite=True)
            yield start, stop, detail


class AttendedRows:
    """Spatial attention of a map whose rows are computed once, from top to bottom.

    Args:
        attention: the module. rows: gives the map it acts on, which is overwritten. height: h.
    """

    def __init__(self, attention: SpatialAttention, rows: Rows, height: int) -> None:
        self._conv, self._rows, self._height = attention.conv, rows, height
        self._margin = attention.conv.kernel_size[0] // 2
        self._held: Tensor | None = None  # rows of the map that the next band needs
        self._above: Tensor | None = None  # statistics of the rows above the band
        self._statistics: Tensor | None = None  # of the held rows

    def __call__(self, start: int, stop: int) -> Tensor:
        """Rows start..stop, which follow those of the last call; (1, C, n, w)."""
        margin, height = self._margin, self._height
        below = min(stop + margin, height)
        known = 0 if self._held is None else self._held.shape[2]
        x = _joined(self._held, self._rows(start + known, below) if start + known < below else None)
        fresh = x[:, :, known:]
        statistics = torch.cat((fresh.mean(1, keepdim=True), fresh.amax(1, keepdim=True)), dim=1).sigmoid_()
        statistics = _joined(self._statistics, statistics)
        above = statistics.new_zeros((1, 2, margin, x.shape[3])) if self._above is None else self._above
        missing = stop + margin - below
        framed = F.pad(torch.cat((above, statistics), dim=2), (0, 0, 0, missing))
        attention = F.conv2d(framed, self._conv.weight, self._conv.bias, padding=(0, margin))

        count = stop - start
        self._held, self._statistics = x[:, :, count:].clone(), statistics[:, :, count:].clone()
        self._above = framed[:, :, count : count + margin].clone()
        return x[:, :, :count].mul_(attention.add_(1))  # x + x * attention


class DeformableBand:
    """A deformable convolution with its norm and activation, for a band of rows.

    Args:
        module: in evaluation mode; it is not changed.
    """

    def __init__(self, module: DeformableConv) -> None:
        self._offset, self._padding = module.offset, module.padding
        self._taps = module.kernel_size**2
        self._margin = module.padding  # rows beside the last band that its samples reached
        self._weight, self._bias = folded(module.conv, module.norm)
        self.out_channels = len(self._weight)

    def __call__(self, rows: Rows, height: int, start: int, stop: int) -> Tensor:
        """Output rows start..stop, (1, C, n, w).

        Args:
            rows: gives the input. height: rows of the input in all.
        """
        padding = self._padding
        margin = self._margin
        reached = _framed(rows, height, start - margin, stop + margin)
        near = reached[:, :, margin - padding : padding - margin or None]
        offset, modulation = F.conv2d(
            near, self._offset.weight, self._offset.bias, padding=(0, padding)
        ).split((2 * self._taps, self._taps), dim=1)
        reach = self._reach(offset, max(start, height - stop))
        if reach > margin:  # rarely: neighbouring bands reach about as far
            reached = _framed(rows, height, start - reach, stop + reach)
        else:
            reached = reached[:, :, margin - reach : reach - margin or None]
        self._margin = reach
        modulation = modulation.sigmoid()
        if reached.device.type == "cpu":
            return deform_conv2d(
                reached,
                offset,
                self._weight,
                modulation,
                bias=self._bias,
                relu=True,
                padding=(padding - reach, padding),
                backend="gather",
            )
        # other kernels take no negative padding: rows that only others reach into are computed and cut
        frame = (0, 0, reach, reach)
        return deform_conv2d(
            reached,
            F.pad(offset, frame),
            self._weight,
            F.pad(modulation, frame),
            bias=self._bias,
            relu=True,
            padding=padding,
        )[:, :, reach : reach + stop - start]

    def _reach(self, offset: Tensor, farthest: int) -> int:
        """How many rows above and below the band are sampled; farther than two rows outside all is zero."""
        vertical = offset[:, 0::2].float().nan_to_num(0.0)
        longest = max(map(float, vertical.aminmax()), key=abs)
        longest = abs(longest)
        return self._padding + (farthest + 2 if longest > farthest else math.ceil(longest))


def _rows_of(x: Tensor) -> Rows:
    return lambda start, stop: x[:, :, start:stop]


def _framed(rows: Rows, height: int, start: int, stop: int) -> Tensor:
    """Rows start..stop, zero where they lie outside 0..height."""
    inside = rows(max(start, 0), min(stop, height))
    above, below = max(0, -start), max(0, stop - height)
    return F.pad(inside, (0, 0, above, below)) if above or below else inside


def _joined(held: Tensor | None, fresh: Tensor | None) -> Tensor:
    parts = [x for x in (held, fresh) if x is not None and x.shape[2]]
    return torch.cat(parts, dim=2) if len(parts) > 1 else parts[0]


def _empty_map(like: Tensor, channels: int, size: tuple[int, int]) -> Tensor:
    """(1, channels, h, w), channels last in memory."""
    return like.new_empty((1, *size, channels)).permute(0, 3, 1, 2)
