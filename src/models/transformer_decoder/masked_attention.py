"""Transformer decoder with masked attention (Mask2Former, CVPR 2022), as MaSSFormer uses it.

B batch, Q queries, P piloted queries, D query width, K classes, h w a map's size
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from src.errors import UserError
from src.models.layers import MultiheadAttention, resize
from src.models.position import SineAxes, sine_axes
from src.structures import PilotedQueries, PixelFeatures, QueryPrediction


def _half(x: Tensor) -> Tensor:
    """(B, D, h, w) -> (B, D, h/2, w/2), rounded up."""
    return resize(x, (-(-x.shape[-2] // 2), -(-x.shape[-1] // 2)))


class _WithHalf(torch.autograd.Function):
    """A map and the same at half its size, whose gradients are summed in place.

    The map is the largest of a training step. Left alone, its gradient, that of the half and their sum lie in memory
    at a time.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> tuple[Tensor, Tensor]:
        ctx.size = x.shape
        ctx.set_materialize_grads(False)
        return x.view_as(x), _half(x)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, whole: Tensor | None, half: Tensor | None) -> Tensor | None:
        if half is None:
            return whole
        grad = torch.ops.aten.upsample_bilinear2d_backward(half, half.shape[-2:], ctx.size, False)
        return grad if whole is None else grad.add_(whole)


class DecoderLayer(nn.Module):
    """Masked cross-attention, self-attention and feed-forward, each with a residual and post-norm."""

    def __init__(self, width: int, feedforward: int, num_heads: int, activation: nn.Module) -> None:
        super().__init__()
        self.cross_attention = MultiheadAttention(width, num_heads)
        self.cross_norm = nn.LayerNorm(width)
        self.self_attention = MultiheadAttention(width, num_heads)
        self.self_norm = nn.LayerNorm(width)
        self.expand = nn.Linear(width, feedforward)
        self.activation = activation
        self.reduce = nn.Linear(feedforward, width)
        self.feedforward_norm = nn.LayerNorm(width)

    def forward(
        self,
        queries: Tensor,
        positions: Tensor,
        memory: Tensor,
        memory_position: SineAxes,
        attend: Tensor,
        visible: Tensor | None,
    ) -> Tensor:
        """One layer.

        Args:
            queries, positions: (B, Q, D).
            memory: (B, h w, D). memory_position: of h rows and w columns.
            attend: (B, 1, Q, h w), 0 where a query may attend, else -inf.
            visible: (Q, Q) bool, True where a query may see another one; None for all.
        """
        keys = self._keys(memory, memory_position)
        values = self.cross_attention.values(memory)
        x = self.cross_attention.attend(queries + positions, keys, values, attend)
        del keys, values  # the room of two memories
        queries = self.cross_norm(queries + x)
        x = self.self_attention(queries + positions, queries + positions, queries, visible)
        queries = self.self_norm(queries + x)
        x = self.reduce(self.activation(self.expand(queries)))
        return self.feedforward_norm(queries + x)

    def _keys(self, memory: Tensor, position: SineAxes) -> Tensor:
        """(B, h w, D), of the sum of memory and position.

        In inference the two are projected apart: the code of a position is that of its row beside that of its column,
        so few numbers are to be projected, and no sum as large as the memory is made.
        """
        # on the meta device products are counted, as the released code has them
        if torch.is_grad_enabled() or memory.is_meta or torch.is_autocast_enabled(memory.device.type):
            return self.cross_attention.keys(memory + position.map().flatten(0, 1).to(memory.dtype))
        weight, bias = self.cross_attention.parameters_of(1)
        of_rows, of_columns = weight.chunk(2, dim=1)
        rows = F.linear(position.rows.to(memory.dtype), of_rows, bias)[:, None]
        columns = F.linear(position.columns.to(memory.dtype), of_columns)
        keys = torch.empty_like(memory, memory_format=torch.contiguous_format)
        for found, tokens in zip(keys, memory, strict=True):
            torch.add(rows, columns, out=found.view(len(rows), len(columns), -1))
            found.addmm_(tokens, weight.t())
        return keys


class MaskedAttentionDecoder(nn.Module):
    """Learned queries attend, layer by layer, to the pixels of the masks that they predict.

    The attention mask of a layer is the previous prediction resized to that layer's memory. Since resizing is
    linear, resizing the mask features first and multiplying at memory size gives the same logits for a
    fraction of the products. Training and ``src.inference`` do so. A call of the network in evaluation mode keeps the
    released order of operations unless ``masks_at_memory_size`` is set, because rounding may move a logit of almost 0
    across the threshold.

    Args:
        num_classes: K; the class head has one more output for "no object".
        width: D. feedforward: hidden width of the layers.
        num_queries: Q. num_layers: decoder layers, at least 3; layer i attends to memory i mod 3.
        activation: of the feed-forward layers, ``gelu`` (MaSSFormer's release) or ``relu`` (Mask2Former).
        learned_positions: whether queries carry a learned position embedding (MPFormer drops it).
    """

    num_memories = 3

    def __init__(
        self,
        num_classes: int,
        width: int = 256,
        feedforward: int = 2048,
        num_queries: int = 100,
        num_layers: int = 6,
        num_heads: int = 8,
        activation: str = "gelu",
        learned_positions: bool = True,
    ) -> None:
        super().__init__()
        if activation not in ("gelu", "relu"):
            raise ValueError(f"activation {activation!r} is unknown; choose gelu or relu")
        if num_layers < self.num_memories:
            raise UserError(
                f"num_layers={num_layers} of the transformer decoder: give at least {self.num_memories}, one for "
                "each of the maps that its queries attend to in turn"
            )
        act = nn.GELU() if activation == "gelu" else nn.ReLU()
        self.masks_at_memory_size = False
        self.query_features = nn.Embedding(num_queries, width)
        self.query_positions = nn.Embedding(num_queries, width) if learned_positions else None
        self.level_embedding = nn.Embedding(self.num_memories, width)
        self.layers = nn.ModuleList(
            DecoderLayer(width, feedforward, num_heads, act) for _ in range(num_layers)
        )
        self.norm = nn.LayerNorm(width)
        self.class_head = nn.Linear(width, num_classes + 1)
        self.mask_head = nn.Sequential(
            nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width)
        )
        for parameter in self.layers.parameters():
            if parameter.dim() > 1:
                nn.init.xavier_uniform_(parameter)

    def forward(
        self, pixels: PixelFeatures, piloted: PilotedQueries | None = None
    ) -> tuple[QueryPrediction, ...]:
        """Predict before the first layer and after every layer.

        The last prediction multiplies with the mask features as they are, the earlier ones with features at
        half the memories' finest stride (1/4 of the image), where deep supervision takes place.

        Returns:
            num_layers + 1 predictions. With piloted queries these come first along the query axis.
        """
        mask_features, coarse = self._with_auxiliary_features(pixels)
        early = self.training or self.masks_at_memory_size
        reduced = [
            resize(coarse.detach(), (memory.shape[-2], memory.shape[-1])) if early else coarse
            for memory in pixels.memories
        ]
        *auxiliary, last = self.decode(pixels.memories, reduced, piloted)
        return (
            *(QueryPrediction(classes, embeddings, coarse) for classes, embeddings in auxiliary),
            QueryPrediction(*last, mask_features),
        )

    def decode(
        self, memories: Sequence[Tensor], reduced: Sequence[Tensor], piloted: PilotedQueries | None = None
    ) -> list[tuple[Tensor, Tensor]]:
        """Class logits (B, Q, K+1) and mask embeddings (B, Q, D), before the first layer and after every layer.

        Args:
            memories: three maps (B, D, ., .), coarsest first.
            reduced: for each memory the mask features that make its attention masks, at its size or finer.
            piloted: extra queries.
        """
        sizes = [(memory.shape[-2], memory.shape[-1]) for memory in memories]
        tokens, positions = self._prepare(memories)
        queries, query_positions, visible = self._queries(len(memories[0]), piloted)
        del memories  # a caller who keeps none of them has their room for the attention

        predictions = []
        for index, layer in enumerate(self.layers):
            predictions.append(self._heads(queries))
            level = index % self.num_memories
            attend = self._attention_mask(predictions[-1][1], reduced[level], sizes[level], piloted)
            queries = layer(queries, query_positions, tokens[level], positions[level], attend, visible)
        predictions.append(self._heads(queries))
        return predictions

    def _heads(self, queries: Tensor) -> tuple[Tensor, Tensor]:
        """(B, Q, D) -> class logits (B, Q, K+1), mask embeddings (B, Q, D)."""
        queries = self.norm(queries)
        return self.class_head(queries), self.mask_head(queries)

    @staticmethod
    def _with_auxiliary_features(pixels: PixelFeatures) -> tuple[Tensor, Tensor]:
        """Mask features, and those of intermediate predictions: at stride 4, twice the finest memory's size."""
        whole = pixels.mask_features
        height, width = whole.shape[-2:]
        if height <= 2 * pixels.memories[-1].shape[-2] and width <= 2 * pixels.memories[-1].shape[-1]:
            return whole, whole
        if torch.is_grad_enabled() and whole.requires_grad:
            return _WithHalf.apply(whole)
        return whole, _half(whole)

    def _prepare(self, memories: Sequence[Tensor]) -> tuple[list[Tensor], list[SineAxes]]:
        """Tokens (B, h w, D) of the memories and the positions of their pixels, coarsest first."""
        tokens, positions = [], []
        for memory, level in zip(memories, self.level_embedding.weight, strict=True):
            height, width = memory.shape[-2:]
            tokens.append(memory.flatten(2).transpose(1, 2) + level)
            positions.append(sine_axes(height, width, memory.shape[1], memory.device))
        return tokens, positions

    def _queries(self, batch: int, piloted: PilotedQueries | None) -> tuple[Tensor, Tensor, Tensor | None]:
        queries = self.query_features.weight.expand(batch, -1, -1)
        if self.query_positions is None:
            positions = torch.zeros_like(queries)
        else:
            positions = self.query_positions.weight.expand(batch, -1, -1)
        if piloted is None:
            return queries, positions, None
        queries = torch.cat((piloted.queries.to(queries.dtype), queries), dim=1)
        positions = torch.cat((torch.zeros_like(piloted.queries, dtype=positions.dtype), positions), dim=1)
        # a query sees its own group and the learned queries (group -1), which see only each other
        groups = F.pad(piloted.groups, (0, self.query_features.num_embeddings), value=-1)
        visible = (groups[:, None] == groups[None, :]) | (groups[None, :] == -1)
        return queries, positions, visible

    @torch.no_grad()
    def _attention_mask(
        self, embeddings: Tensor, features: Tensor, size: tuple[int, int], piloted: PilotedQueries | None
    ) -> Tensor:
        """What to add to the attention's logits, (B, 1, Q, h w): 0 where a query may attend, else -inf.

        A query whose mask is empty attends everywhere.
        """
        logits = torch.einsum("bqd,bdhw->bqhw", embeddings, features.to(embeddings.dtype))
        # in place: one map of a large photo's queries is the largest that the decoder makes
        attend = resize(logits, size).ge_(0).flatten(2)  # sigmoid >= 0.5
        if piloted is not None:
            # sampled, not averaged: an average would remove the point noise
            own = F.interpolate(piloted.attend.to(embeddings.dtype), size, mode="nearest-exact") > 0
            attend[:, : own.shape[1]] = own.flatten(2)
        attend += attend.amax(-1, keepdim=True) == 0
        return attend.reciprocal_().neg_().add_(1)[:, None]  # 1 becomes 0, and 0 becomes -inf
