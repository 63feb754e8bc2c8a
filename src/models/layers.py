"""Small layers shared by the pixel decoders and the transformer decoders."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from src.errors import UserError
from src.models import pointwise

ONE_IMAGE_PER_DEVICE = (
    "Batch norm of a pooled (1x1) map cannot train with one image per device. Use a batch size of 2 or more per "
    "device (recipe.batch_size=2), or recipe.pooled_norm=frozen (fixed statistics), or recipe.pooled_norm=group "
    "(group norm), or trainer.sync_batchnorm=true on several GPUs."
)
PooledNorm = Literal["batch", "frozen", "group"]


class ConvNormAct(nn.Sequential):
    """CBR(k): k x k convolution without bias, BatchNorm, ReLU; (B, in, H, W) -> (B, out, H, W)."""

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, kernel_size, padding=kernel_size // 2, bias=False)
        self.norm = nn.BatchNorm2d(out_channels)
        self.act = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        if pointwise.applies(x, self.conv, self.norm):
            return pointwise.pointwise_norm(x, self.conv, self.norm, relu=True)
        return super().forward(x)


class PooledBatchNorm(nn.BatchNorm2d):
    """BatchNorm for 1x1 maps, whose statistics come from the batch alone.

    Raises:
        UserError: in training with one value per channel, where the variance does not exist.
    """

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, 1, 1) -> (B, C, 1, 1)."""
        if self.training and x.numel() == x.shape[1]:
            raise UserError(ONE_IMAGE_PER_DEVICE)
        return super().forward(x)


class FrozenStatisticsNorm(nn.Module):
    """BatchNorm that never updates or uses batch statistics; scale and shift still learn.

    No subclass of PyTorch's, which would become an ordinary one where norms are synchronised over devices.
    """

    running_mean: Tensor
    running_var: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        norm = nn.BatchNorm2d(channels)  # for its parameters, buffers and their names
        self.eps = norm.eps
        self.weight, self.bias = norm.weight, norm.bias
        for name, buffer in norm.named_buffers():
            self.register_buffer(name, buffer)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps)


def pooled_norm(kind: PooledNorm, channels: int) -> nn.Module:
    """Norm for a globally pooled (B, C, 1, 1) map.

    ``batch`` is the paper's BatchNorm. ``frozen`` keeps its parameters and running statistics but never
    updates the latter, ``group`` is GroupNorm: both are deviations for small batches.
    """
    if kind == "batch":
        return PooledBatchNorm(channels)
    if kind == "frozen":
        return FrozenStatisticsNorm(channels)
    if kind == "group":
        return nn.GroupNorm(max(1, math.gcd(32, channels // 4, channels)), channels)
    raise UserError(f"recipe.pooled_norm is {kind!r}; choose batch, frozen or group")


class GlobalContext(nn.Module):
    """g4: global average pooling of F4, then CBR(1); (B, C, H, W) -> (B, d, 1, 1)."""

    def __init__(self, in_channels: int, width: int, norm: PooledNorm = "batch") -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, width, 1, bias=False)
        self.norm = pooled_norm(norm, width)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.norm(self.conv(x.mean((-2, -1), keepdim=True))))


class SqueezeExcite(nn.Module):
    """x + x * sigmoid(sigmoid(MLP(GAP(x)))).

    The sigmoid is applied twice, as in the released implementation: published weights depend on it.
    """

    def __init__(self, width: int, norm: PooledNorm = "batch") -> None:
        super().__init__()
        self.reduce = nn.Conv2d(width, width // 2, 1, bias=False)
        self.norm = pooled_norm(norm, width // 2)
        self.expand = nn.Conv2d(width // 2, width, 1, bias=False)

    def forward(self, x: Tensor, overwrite: bool = False) -> Tensor:
        """(B, d, H, W) -> (B, d, H, W), in the place of ``x`` with ``overwrite``."""
        factor = 1 + self.gate(x)  # one pass over x instead of two
        return x.mul_(factor) if overwrite else x * factor

    def gate(self, x: Tensor) -> Tensor:
        """(B, d, H, W) -> the factor (B, d, 1, 1) that is added to 1, in (1/2, 1)."""
        pooled = x.mean((-2, -1), keepdim=True)
        return self.expand(F.relu(self.norm(self.reduce(pooled)))).sigmoid().sigmoid()


class MultiheadAttention(nn.Module):
    """Multi-head attention over batch-first tokens, with the residual left to the caller.

    Query, key and value projections are packed in one (3D, D) matrix, as in ``torch.nn.MultiheadAttention``.
    """

    def __init__(self, width: int, num_heads: int = 8) -> None:
        super().__init__()
        if width % num_heads:
            raise UserError(f"width {width} must be divisible by {num_heads} heads")
        self.num_heads = num_heads
        self.projection = nn.Linear(width, 3 * width)
        self.output = nn.Linear(width, width)
        nn.init.xavier_uniform_(self.projection.weight)
        nn.init.zeros_(self.projection.bias)
        nn.init.zeros_(self.output.bias)

    def parameters_of(self, part: int) -> tuple[Tensor, Tensor]:
        """Weight (D, D) and bias (D,) of the queries' (0), the keys' (1) or the values' (2) projection."""
        return self.projection.weight.chunk(3)[part], self.projection.bias.chunk(3)[part]

    def _project(self, x: Tensor, part: int) -> Tensor:
        return F.linear(x, *self.parameters_of(part))

    def keys(self, x: Tensor) -> Tensor:
        """(B, M, D) projected, for ``attend``."""
        return self._project(x, 1)

    def values(self, x: Tensor) -> Tensor:
        """(B, M, D) projected, for ``attend``."""
        return self._project(x, 2)

    def forward(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None) -> Tensor:
        """Attend.

        Args:
            query: (B, N, D). key, value: (B, M, D).
            mask: broadcastable to (B, heads, N, M): bool, where True lets a query attend to a key, or added to the
                logits. At least one key per query must be allowed.

        Returns:
            (B, N, D).
        """
        return self.attend(query, self.keys(key), self.values(value), mask)

    def attend(self, query: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None = None) -> Tensor:
        """Like ``forward``, with keys and values that are projected already."""
        q, k, v = (
            x.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)  # (B, heads, N, D / heads)
            for x in (self._project(query, 0), keys, values)
        )
        attended = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return self.output(attended.transpose(1, 2).flatten(2))


def single_precision(device: torch.device) -> AbstractContextManager[object]:
    """Autocast off, for steps that half precision would spoil; also on devices without autocast (``meta``)."""
    if torch.amp.is_autocast_available(device.type):
        return torch.autocast(device.type, enabled=False)
    return nullcontext()


@contextmanager
def full_float32() -> Iterator[None]:
    """On CUDA, float32 convolutions and products in float32 proper: not in TF32, which has 10 bits of a mantissa."""
    cudnn: Any = torch.backends.cudnn
    places: tuple[Any, ...] = (cudnn, torch.backends.cuda.matmul)
    name, value = "allow_tf32", cast(Any, False)
    try:
        before = [getattr(place, name) for place in places]
    except RuntimeError:  # someone has used the interface of PyTorch 2.9, and the older one refuses to tell
        places = (cudnn.conv, torch.backends.cuda.matmul)
        name, value = "fp32_precision", "ieee"
        before = [getattr(place, name) for place in places]
    try:
        for place in places:
            setattr(place, name, value)
        yield
    finally:
        for place, setting in zip(places, before, strict=True):
            setattr(place, name, setting)


def resize(x: Tensor, size: tuple[int, int]) -> Tensor:
    """Bilinear resize without corner alignment; (B, C, h, w) -> (B, C, *size)."""
    if x.shape[-2:] == torch.Size(size):
        return x
    return F.interpolate(x, size=size, mode="bilinear", align_corners=False)


def upsample(x: Tensor) -> Tensor:
    """up2: bilinear, twice as large on both sides."""
    return F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)


def crop_like(x: Tensor, reference: Tensor) -> Tensor:
    """Cut a map that a x2 upsampling left one row or column too large.

    Encoder maps have ceil(size / stride) rows, so twice the coarser map is never smaller than the finer one
    and the surplus lies at the bottom and right. For sides that are multiples of 32 nothing is cut.
    """
    return x[..., : reference.shape[-2], : reference.shape[-1]]
