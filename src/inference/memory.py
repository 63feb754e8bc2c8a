"""How much memory there is, and how much inference on a whole image takes."""

from __future__ import annotations

import copy
import ctypes
import os
import weakref
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

_GIB = 2**30
_LEAST = 2 * _GIB  # enough for windows; a machine that is short of memory may still manage
_SHARE = 0.75  # of the free memory, left to inference by default
_CONSTANT = 1.0 * _GIB  # libraries, weights and bands
_FEWEST = 512 * 512
_PROBE_SIDE = 256
_CGROUP_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")


def available_bytes(device: torch.device) -> int:
    """Memory that inference may take: a share of what is free on the device, or of the container's limit."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0] * _SHARE)
    free = [_meminfo("MemAvailable")]
    for name in _CGROUP_LIMITS:
        path = Path(name)
        if path.is_file() and (text := path.read_text().strip()).isdigit():
            free.append(int(text))
    known = [value for value in free if value]
    return max(_LEAST, int(min(known) * _SHARE)) if known else 2 * _LEAST


def return_freed_memory() -> None:
    """Give the operating system back what building a network took; the C library would keep it (glibc only)."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if os.name == "posix" else None
    if trim is not None:
        trim(0)


def _meminfo(key: str) -> int:
    """Bytes of an entry of /proc/meminfo; 0 where there is none (not Linux)."""
    path = Path("/proc/meminfo")
    if not path.is_file():
        return 0
    for line in path.read_text().splitlines():
        name, _, value = line.partition(":")
        if name == key:
            return int(value.split()[0]) * 1024
    return 0


def whole_image_pixels(network: Any, memory: int, banded: bool = False) -> int:
    """How many pixels of an image fit into ``memory`` bytes when it is treated whole; an estimate on the safe side.

    The largest moments are the transformer decoder's attention to the memory at stride 8 beside the maps that the
    high-resolution branch keeps and, where the encoder does not run in bands, the largest maps of the encoder.

    Args:
        network: the segmenter. memory: bytes of the whole process. banded: whether the encoder runs in bands.

    Raises:
        ValueError: not even a small image fits.
    """
    width = _query_width(network)
    encoder = 0 if banded else bytes_per_pixel(network.backbone)
    decoder = 4 * (width / 4 / 4 + width / 2 / 16 + 8 * width / 64)
    image = 3 + 12
    pixels = int((memory - _CONSTANT) / (image + max(encoder, decoder)))
    if pixels < _FEWEST:
        raise ValueError(f"{memory / _GIB:.1f} GiB of memory are too little for inference; 2 are enough")
    return pixels


def _query_width(network: Any) -> int:
    return network.transformer_decoder.query_features.embedding_dim


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
