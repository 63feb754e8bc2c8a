"""Deformable convolution of a map whose rows are fetched when they are needed.

h w  size of the map   n  rows of a band
"""

from __future__ import annotations

import math

import torch.nn.functional as F
from torch import Tensor

from src.inference.bands.rows import Rows
from src.models.convolution import folded
from src.models.deformable import DeformableConv, deform_conv2d, resolved_backend
from src.models.layers import single_precision

_COLUMN_BANDS = 4  # as many bands torchvision's columns may fill


class DeformableBand:
    """A deformable convolution with its norm and activation, for a band of rows.

    Args:
        module: in evaluation mode; it is not changed.

    Attributes:
        out_channels: of the result.
    """

    def __init__(self, module: DeformableConv) -> None:
        self._offset, self._padding = module.offset, module.padding
        self._taps = module.kernel_size**2
        self._margin = module.padding  # rows beside the last band that its samples reached
        self._weight, self._bias = folded(module.conv, module.norm)
        self.out_channels = len(self._weight)

    def widest(self, x: Tensor) -> int:
        """Channels for which bands of ``x`` are to be sized: of the offsets, or what torchvision's operator holds."""
        gathers = resolved_backend(x) == "gather"
        return max(3 * self._taps, 0 if gathers else self._weight.shape[1] * self._taps // _COLUMN_BANDS)

    def __call__(self, rows: Rows, height: int, start: int, stop: int) -> Tensor:
        """Output rows start..stop, (1, C, n, w).

        Args:
            rows: gives the input. height: rows of the input in all.
        """
        padding = self._padding
        margin = self._margin
        reached = framed(rows, height, start - margin, stop + margin)
        near = reached[:, :, margin - padding : padding - margin or None]
        weight, bias = self._offset.weight, self._offset.bias
        with single_precision(near.device):  # half precision would round the pixel
            predicted = F.conv2d(near.to(weight.dtype), weight, bias, padding=(0, padding))
        offset, modulation = predicted.split((2 * self._taps, self._taps), dim=1)
        reach = self._reach(offset, max(start, height - stop))
        if reach > margin:  # rarely: neighbouring bands reach about as far
            reached = framed(rows, height, start - reach, stop + reach)
        else:
            reached = reached[:, :, margin - reach : reach - margin or None]
        self._margin = reach
        modulation = modulation.sigmoid()
        if resolved_backend(reached) == "gather":
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
        # torchvision's takes no negative padding: rows that only others reach into are computed and cut
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


def framed(rows: Rows, height: int, start: int, stop: int) -> Tensor:
    """Rows start..stop, zero where they lie outside 0..height."""
    inside = rows(max(start, 0), min(stop, height))
    above, below = max(0, -start), max(0, stop - height)
    return F.pad(inside, (0, 0, above, below)) if above or below else inside
