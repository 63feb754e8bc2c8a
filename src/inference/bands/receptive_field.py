"""Receptive field boosting (RFB) in bands of rows.

Its offsets take 3 k k channels for every kernel size k, and its convolution at stride 4 reads an upsampled map: of a
12-megapixel photo 116 and 400 MB that are written once and read once. In bands they stay in the processor's cache.

d decoder width, h w size of the map at stride 8
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from src.inference.bands.deformable import DeformableBand, framed
from src.inference.bands.rows import cached_bands, empty_map, resized_rows, rows_of
from src.models.convolution import Geometry, convolve, folded
from src.models.pixel_decoder.rfb import ReceptiveFieldBoosting


class BandedReceptiveField(nn.Module):
    """The same as a ``ReceptiveFieldBoosting`` module in evaluation mode, which is not changed."""

    def __init__(self, module: ReceptiveFieldBoosting) -> None:
        super().__init__()
        self.module = module
        self._branches = [DeformableBand(branch) for branch in module.branches]  # type: ignore[arg-type]
        self._merge = folded(module.merge, module.merge_norm)
        self._refine = folded(module.refine, module.refine_norm)

    def forward(self, d3_up: Tensor, s2: Tensor) -> tuple[Tensor, Tensor]:
        """(B, d, h, w) twice -> D2 (B, d, h, w) and its upsampling (B, d, 2h, 2w)."""
        if d3_up.is_meta:  # where memory is counted: how far a band reaches depends on what is computed
            return self.module(d3_up, s2)
        x = d3_up + s2
        _, channels, height, width = x.shape
        rows, d2 = rows_of(x), empty_map(x, channels, (height, width))
        widest = max(branch.widest(x) for branch in self._branches)
        for start, stop in cached_bands(widest, (height, width), x.device):
            parts = [branch(rows, height, start, stop) for branch in self._branches]
            d2[:, :, start:stop] = convolve(torch.cat(parts, dim=1), *self._merge)

        size = (2 * height, 2 * width)
        refined = empty_map(x, channels, size)
        for start, stop in cached_bands(channels, size, x.device):
            near = framed(lambda a, b: resized_rows(d2, a, b, size), size[0], start - 1, stop + 1)
            refined[:, :, start:stop] = convolve(near, *self._refine, Geometry(padding=(0, 1)))
        return d2, refined
