"""Inference on photos larger than memory: the whole in small, and windows at full size.

The network divides naturally. What a photo shows is decided by its global branch (strides 16 and 32, context
transmission and the transformer decoder), which needs to see everything but no fine detail. Where things end is
decided by its shallow features (strides 2 to 8), which are local. So

1. the whole photo, reduced by a whole factor f, goes through the network once. It gives the queries (their classes
   and mask embeddings), the global branch's map at stride 8, and the gates of squeeze-excitation, which
   depend on means over the whole photo;
2. windows of the photo at full size go through the encoder's first two stages, the scale and the detail and
   fusion slots. The global map enters enlarged f times where the network has its own at full size;
3. the windows' mask features are multiplied with the same embeddings everywhere, so a query means the same thing
   in every window, and class scores are blended where windows overlap.

With f = 1 and one window this is inference on the whole image. Memory depends on the reduced photo and the window,
not on the photo's size: scores of windows side by side go into scratch files where classes or columns are many.

K classes, d decoder width, H W photo, n rows of a band
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from src.inference.bands.encoder import BandedEncoder
from src.inference.bands.high_resolution import HighResolutionBranch
from src.inference.bands.rows import Rows, resize_band, source_rows
from src.inference.bands.shallow_stages import shallow_stages
from src.inference.large_photos import PhotoRows, reduced
from src.inference.whole import Band, DensePrediction, half_size, predict_whole
from src.inference.window_scores import Scores, ScoresInMemory, ScoresOnDisk, WindowRow
from src.models.layers import crop_like
from src.models.pixel_decoder.dual_branch import DualBranchPixelDecoder
from src.models.segmenter import SMALLEST_SIDE
from src.tiling import Span, blend_weights, spread

_STRIDE = 32  # of the encoder: windows start on its grid
_SCALE_STRIDE = 8  # of the scale slot
_EMITTED_ROWS = 128
_BAND_SHARE = 16  # of the room for scores that a band of rows takes; whoever writes it makes maps of its size


class Tiling(NamedTuple):
    """Sizes of windows, in pixels; they start at multiples of 32.

    Attributes:
        window: height and width of the largest window.
        overlap: of neighbours, at most a third of the window.
        margin: strip along inner sides whose scores are not used.
    """

    window: tuple[int, int] = (1024, 1536)
    overlap: int = 192
    margin: int = 64


class _Overview(NamedTuple):
    """What the windows take from the reduced photo.

    Attributes:
        factor: how many times smaller the reduced photo is.
        context: (1, d, h, w) input of the scale slot, at stride 8 of the reduced photo.
        gates: factors of S1 and S2, (1, d, 1, 1) each.
        classes: (1, Q, K) class probabilities. embeddings: (1, Q, D).
    """

    factor: int
    context: Tensor
    gates: tuple[Tensor, Tensor]
    classes: Tensor
    embeddings: Tensor


class TiledPredictor:
    """Predicts photos of any size in windows.

    Args:
        network: a segmenter with MaSSFormer's pixel decoder, in evaluation mode.
        tiling: sizes of the windows.
        overview_pixels: the reduced photo has at most so many.
        encoder: the network's encoder in bands, for less memory.
        epsilon: queries are left out that together change no score by more than this.
        score_bytes: of the scores of windows side by side that stay in memory; more go into scratch files.

    Raises:
        ValueError: the network's pixel decoder cannot be divided, or the windows' sizes contradict each other.
    """

    def __init__(
        self,
        network: Any,
        tiling: Tiling,
        overview_pixels: int,
        encoder: BandedEncoder | None = None,
        epsilon: float = 0.0,
        score_bytes: int = 2**30,
    ) -> None:
        if not is_divisible(network):
            raise ValueError(
                f"{type(network.pixel_decoder).__name__} cannot be divided into windows; choose inference=whole, "
                "with a limit if memory is short"
            )
        for side in tiling.window:
            spread(side, side, tiling.overlap, _STRIDE)  # refuses windows that cannot overlap so
        self._network, self._tiling, self._overview_pixels = network, tiling, overview_pixels
        self._shallow = shallow_stages(network.backbone)
        self._encoder, self._epsilon, self._score_bytes = encoder, epsilon, score_bytes
        self._branch = HighResolutionBranch.of(network.pixel_decoder)

    @torch.inference_mode()
    def bands(self, photo: PhotoRows) -> Iterator[Band]:
        """Scores at the photo's size, from top to bottom."""
        overview = self._overview(photo)
        height, width = photo.size
        tiling = self._tiling
        spans = spread(height, tiling.window[0], tiling.overlap, _STRIDE)
        columns = spread(width, tiling.window[1], tiling.overlap, _STRIDE)
        across = list(zip(columns, blend_weights(columns, tiling.margin), strict=True))
        row_bytes = 4 * (overview.classes.shape[2] + 1) * width
        above: WindowRow | None = None
        for index, (span, weight) in enumerate(zip(spans, blend_weights(spans, tiling.margin), strict=True)):
            row = self._row_of_windows(photo.rows(*span), span, across, weight, overview)
            stop = spans[index + 1].start if index + 1 < len(spans) else span.stop
            count = max(1, min(_EMITTED_ROWS, self._score_bytes // (_BAND_SHARE * row_bytes)))
            for first in range(span.start, stop, count):
                last = min(first + count, stop)
                sums = row.sums(first, last)
                if above is not None and first < above.rows.stop:
                    shared = above.sums(first, min(last, above.rows.stop))
                    sums[:, : shared.shape[1]] += shared
                classes = overview.classes.shape[2]
                yield Band(first, sums[:classes], sums[classes] if len(sums) > classes else None)
            above = row.below(stop)

    def _overview(self, photo: PhotoRows) -> _Overview:
        """Run the network on the reduced photo and keep what the windows need."""
        height, width = photo.size
        factor = 1
        while -(-height // factor) * -(-width // factor) > self._overview_pixels:
            factor += 1
        decoder = self._network.pixel_decoder
        context: list[Tensor] = []
        gates: list[Tensor] = []
        handles = [decoder.scale.register_forward_pre_hook(lambda module, inputs: context.append(inputs[0]))]
        handles += [
            excitation.register_forward_pre_hook(lambda module, inputs: gates.append(module.gate(inputs[0])))
            for excitation in decoder.excitations[:2]
        ]
        try:
            prediction = predict_whole(
                self._network, self._tensor(_tall_enough(reduced(photo, factor))), self._encoder
            )
        finally:
            for handle in handles:
                handle.remove()
        prediction.leave_out_queries(self._epsilon)
        return _Overview(factor, context[0], (gates[0], gates[1]), prediction.classes, prediction.embeddings)

    def _tensor(self, pixels: NDArray[np.uint8]) -> Tensor:
        device = self._network.pixel_mean.device
        return torch.from_numpy(np.ascontiguousarray(pixels)).to(device).permute(2, 0, 1)

    def _row_of_windows(
        self,
        pixels: NDArray[np.uint8],
        rows: Span,
        across: list[tuple[Span, Tensor]],
        weight: Tensor,
        overview: _Overview,
    ) -> WindowRow:
        """Scores, and edges as last channel where there are some, of all windows with these rows."""
        channels = overview.classes.shape[2] + 1
        fits = channels * 4 * rows.length * sum(span.length for span, _ in across) <= self._score_bytes
        keep = ScoresInMemory if fits else ScoresOnDisk
        windows: list[Scores] = []
        for span, _ in across:
            image = self._tensor(pixels[:, span.start : span.stop])
            windows.append(keep(self._window(image, rows, span, overview)))
        return WindowRow(rows, weight, across, windows)

    def _window(self, image: Tensor, rows: Span, columns: Span, overview: _Overview) -> Iterator[Tensor]:
        """(K or K + 1, n, w) scores, and edge probabilities if there are some, of one window, in bands of rows."""
        network, decoder = self._network, self._network.pixel_decoder
        size = (image.shape[1], image.shape[2])
        features = self._shallow(network.normalise(image)[None])
        s1, s2 = (
            (1 + gate) * lateral(feature)
            for gate, lateral, feature in zip(overview.gates, decoder.laterals, features, strict=False)
        )
        top, left = rows.start // _SCALE_STRIDE, columns.start // _SCALE_STRIDE
        below, right = top + s2.shape[2], left + s2.shape[3]
        enlarged = _enlarged_window(overview.context, overview.factor, Span(top, below), Span(left, right))
        context = crop_like(decoder.scale(enlarged, s2)[1], s1)
        prediction = DensePrediction(
            overview.classes, overview.embeddings, *self._mask_features(image, s1, context)
        )
        for band in prediction.bands(size):
            yield band.scores if band.edges is None else torch.cat((band.scores, band.edges[None]))

    def _mask_features(self, image: Tensor, s1: Tensor, context: Tensor) -> tuple[Rows, int, Tensor | None]:
        """Mask features of a window by rows, how many rows there are, and edge logits."""
        branch, decoder = self._branch, self._network.pixel_decoder
        if branch is not None:
            fused = branch.fuse(*half_size(self._network, image), s1, context)
            rows = partial(branch.mask_features, fused)
            return rows, fused.sampled.shape[2], fused.edge_logits
        detail = decoder.detail(s1, self._network.normalise(image)[None])
        d1, edge_logits = decoder.fusion(detail, context)
        features = decoder.mask_output(d1)
        return lambda start, stop: features[:, :, start:stop], features.shape[2], edge_logits


def _tall_enough(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """A reduced photo, continued at its lower and right side to the shortest side that a network takes."""
    missing = [max(0, SMALLEST_SIDE - side) for side in pixels.shape[:2]]
    return np.pad(pixels, ((0, missing[0]), (0, missing[1]), (0, 0)), mode="edge") if any(missing) else pixels


def is_divisible(network: Any) -> bool:
    """Whether a network can work in windows: it has MaSSFormer's pixel decoder, with any slots."""
    return isinstance(network.pixel_decoder, DualBranchPixelDecoder)


def _enlarged_window(x: Tensor, factor: int, rows: Span, columns: Span) -> Tensor:
    """A window of a map enlarged by a whole factor, without the rest of it."""
    height, width = factor * x.shape[2], factor * x.shape[3]
    vertical = source_rows(*rows, height, x.shape[2], x)
    horizontal = source_rows(*columns, width, x.shape[3], x)
    part = x[:, :, vertical.start : vertical.stop, horizontal.start : horizontal.stop]
    band = resize_band(part, vertical, factor * part.shape[3])
    return band[..., horizontal.skip : horizontal.skip + columns.length]
