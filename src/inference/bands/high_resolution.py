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

from collections.abc import Iterator
from typing import NamedTuple, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from src.inference.bands.deformable import DeformableBand
from src.inference.bands.rows import (
    RollingRows,
    Rows,
    RowsGoneError,
    cached_bands,
    empty_map,
    resize_band,
    resized_rows,
    source_rows,
)
from src.models.convolution import convolve, folded
from src.models.layers import ConvNormAct
from src.models.pixel_decoder.egf import EdgeGuidedFusion
from src.models.pixel_decoder.lse import LowLevelStructure, SpatialAttention

_ROWS_KEPT = 64  # of the fusion's input, above those that the last band reached


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
        try:
            return self._fuse(image_rows, size, s1, context, _ROWS_KEPT)
        except RowsGoneError:  # offsets of one band that reach far above those of the band before
            return self._fuse(image_rows, size, s1, context, size[0])

    def _fuse(
        self, image_rows: Rows, size: tuple[int, int], s1: Tensor, context: Tensor, kept: int
    ) -> FusedMap:
        height = size[0]
        edge_logits = empty_map(s1, 1, size)
        gated = RollingRows(self._gated_bands(image_rows, size, s1, context, edge_logits), kept)
        sampled = empty_map(s1, self._sample_fusion.out_channels, size)
        widest = max(sampled.shape[1], self._sample_fusion.widest(sampled))
        for start, stop in cached_bands(widest, size, sampled.device):
            sampled[:, :, start:stop] = self._sample_fusion(gated, height, start, stop)
        return FusedMap(sampled, context, edge_logits)

    def _gated_bands(
        self, image_rows: Rows, size: tuple[int, int], s1: Tensor, context: Tensor, edge_logits: Tensor
    ) -> Iterator[Tensor]:
        """The fusion's input (1, d/2, n, w) from top to bottom; fills in the edge logits on the way."""
        edge_weight, edge_bias = self._edge_reduce
        context_edges = F.conv2d(context, edge_weight)
        for start, stop, detail in self._detail_bands(image_rows, size, s1):
            enlarged = resized_rows(context_edges, start, stop, size)
            edges = convolve(detail, edge_weight, edge_bias, add=enlarged, overwrite=True)
            edge_logits[:, :, start:stop] = self._edge_head(edges)
            gate = detail.sigmoid_().mul_(resized_rows(context, start, stop, size))
            yield self._reduce(gate)

    def mask_features(self, fused: FusedMap, start: int, stop: int) -> Tensor:
        """Rows start..stop of the mask features, (1, D, n, w)."""
        height, width = fused.sampled.shape[2:]
        rows = source_rows(start, stop, height, fused.context.shape[2], fused.context)
        context = F.conv2d(fused.context[:, :, rows.start : rows.stop], self._output_weight)
        sampled, enlarged = fused.sampled[:, :, start:stop], resize_band(context, rows, width)
        return convolve(sampled, self._direct_weight, self._direct_bias, add=enlarged, overwrite=True)

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
        widest = max(s1.shape[1], self._sample_detail.widest(s1))
        for start, stop in cached_bands(widest, size, s1.device):
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


def _joined(held: Tensor | None, fresh: Tensor | None) -> Tensor:
    parts = [x for x in (held, fresh) if x is not None and x.shape[2]]
    return torch.cat(parts, dim=2) if len(parts) > 1 else parts[0]
