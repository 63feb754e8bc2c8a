"""How much memory there is, and how much inference on a whole image takes."""

from __future__ import annotations

import copy
import weakref
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from src.inference.bands.rows import DEVICE_BAND_BYTES
from src.machine import free_memory

_GIB = 2**30
_LEAST = 2 * _GIB  # enough for windows; a machine that is short of memory may still manage
_SHARE = 0.75  # of the free memory, left to inference by default
_LIBRARIES = 1.25 * _GIB  # the process before it has a network, small bands, and gaps between blocks
_DEVICE_BANDS = 12 * DEVICE_BAND_BYTES  # that live at a time on a device, and what its kernels need
_IMAGE = 3 + 12  # bytes of a pixel: 8-bit, and normalised
_FEWEST = 512 * 512
_SUFFICIENT = 1024 * 1024
_PROBE_SIDE = 256


def available_bytes(device: torch.device) -> int:
    """Memory that inference may take: a share of what is free on the device, or of the container's limit."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0] * _SHARE)
    free = free_memory()
    return 2 * _LEAST if free is None else max(_LEAST, int(free * _SHARE))


class WholeImageCost:
    """The memory of a process that treats an image whole, or of its tensors on a device; on the safe side.

    The largest moments are the transformer decoder's attention to the memory at stride 8 beside the maps that the
    high-resolution branch keeps, and the encoder: a band of it, or its largest maps where it does not run in bands.
    Of networks whose high-resolution maps stay whole everything is counted on the ``meta`` device.

    Args:
        network: the segmenter. band_bytes: memory of a band of the encoder; None where it does not run in bands.
        streamed: whether the high-resolution branch runs in bands.
    """

    def __init__(self, network: Any, band_bytes: int | None = None, streamed: bool = True) -> None:
        weights = sum(p.numel() * p.element_size() for p in network.parameters())
        on_cpu = next(network.parameters()).device.type == "cpu"
        # the network and its copy for inference
        self._fixed = (_LIBRARIES if on_cpu else _DEVICE_BANDS) + 2 * weights
        self._band_bytes = band_bytes
        width = network.transformer_decoder.query_features.embedding_dim
        if streamed:
            self._encoder = bytes_per_pixel(network.backbone)
            self._maps = 4 * (width / 4 / 4 + width / 2 / 16 + 6 * width / 64)
        else:
            self._encoder = 0.0
            self._maps = bytes_per_pixel(_Queries(network))

    def bytes(self, pixels: int) -> float:
        """Of an image of so many pixels."""
        encoder = self._encoder * pixels
        if self._band_bytes is not None:
            encoder = min(encoder, self._band_bytes)
        return self._fixed + _IMAGE * pixels + max(encoder, self._maps * pixels)

    def pixels(self, memory: int) -> int:
        """The most that fit into ``memory`` bytes.

        Raises:
            ValueError: not even a small image fits.
        """
        if self.bytes(_FEWEST) > memory:
            raise ValueError(
                f"{memory / _GIB:.1f} GiB of memory are too little for inference with this network; "
                f"{self.bytes(_SUFFICIENT) / _GIB:.1f} are enough"
            )
        fit, too_many = _FEWEST, 2 * _FEWEST
        while self.bytes(too_many) <= memory:
            fit, too_many = too_many, 2 * too_many
        while too_many - fit > 1:
            middle = (fit + too_many) // 2
            fit, too_many = (middle, too_many) if self.bytes(middle) <= memory else (fit, middle)
        return fit


class _Queries(nn.Module):
    """A segmenter up to its queries' predictions."""

    def __init__(self, network: Any) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> object:
        return self.network.transformer_decoder(self.network.pixel_features(images))


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of the tensors that live at a time, apart from those that were there before.

    Attributes:
        peak: the most so far.
    """

    def __init__(self) -> None:
        super().__init__()
        self.peak = self._live = 0
        self._known: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        for tensor in tree_leaves((args, kwargs)):
            if isinstance(tensor, Tensor):
                self._known.add(_identity(tensor))
        found = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(found):
            if isinstance(tensor, Tensor) and _identity(tensor) not in self._known:
                self._follow(tensor.untyped_storage())
        return found

    def _follow(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        self._known.add(key)
        self._live += size
        self.peak = max(self.peak, self._live)

        def gone() -> None:
            self._known.discard(key)
            self._live -= size

        weakref.finalize(storage, gone)


def _identity(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata


def bytes_per_pixel(encoder: nn.Module) -> float:
    """Most bytes that an encoder's maps take at a time, for each pixel of the image.

    Found on the ``meta`` device, where maps have sizes but no content; so nothing is computed.

    Args:
        encoder: of a normalised image (1, 3, H, W), in evaluation mode.
    """
    shadow = copy.deepcopy(encoder).to("meta")
    dtype = next((p.dtype for p in shadow.parameters()), torch.float32)
    with torch.no_grad(), LiveBytes() as live:
        shadow(torch.zeros((1, 3, _PROBE_SIDE, _PROBE_SIDE), dtype=dtype, device="meta"))
    return live.peak / _PROBE_SIDE**2
