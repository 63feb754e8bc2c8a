"""The whole network: backbone, pixel decoder, transformer decoder (MaSS13K, figure 4)."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from src.models.backbone import Backbone
from src.structures import MaskPrediction, PixelFeatures, QueryPrediction, Targets, TrainingPrediction

SMALLEST_SIDE = 64  # of an image, pixels


class Segmenter(nn.Module):
    """MaSSFormer and its relatives: one query predicts one class and one mask.

    Args:
        backbone: encoder with ``channels``, ``mean`` and ``std``.
        pixel_decoder: builds the pixel decoder from ``in_channels``, the backbone's.
        transformer_decoder: maps ``PixelFeatures`` to predictions.
        piloting: optional module that makes extra queries from the ground truth in training (MPFormer).
    """

    pixel_mean: Tensor
    pixel_std: Tensor

    def __init__(
        self,
        backbone: Backbone,
        pixel_decoder: Callable[..., nn.Module],
        transformer_decoder: nn.Module,
        piloting: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.pixel_decoder = pixel_decoder(in_channels=backbone.channels)
        self.transformer_decoder = transformer_decoder
        self.piloting = piloting
        self.register_buffer("pixel_mean", torch.tensor(backbone.mean).view(3, 1, 1) * 255, persistent=False)
        self.register_buffer("pixel_std", torch.tensor(backbone.std).view(3, 1, 1) * 255, persistent=False)

    def normalise(self, images: Tensor) -> Tensor:
        """uint8 RGB (..., 3, H, W) -> float32, as the backbone's weights expect it, on the same device."""
        return (images.float() - self.pixel_mean) / self.pixel_std

    def forward(self, images: Tensor, targets: Targets | None = None) -> MaskPrediction | TrainingPrediction:
        """Predict masks.

        Args:
            images: normalised (B, 3, H, W); both sides at least ``SMALLEST_SIDE``.
            targets: ground truth, used in training by piloting only.

        Returns:
            In evaluation mode a ``MaskPrediction``; in training mode a ``TrainingPrediction``.
        """
        if not self.training:
            return self.answer(self.pixel_features(images))
        return self.predict_layers(images, targets)

    def pixel_features(self, images: Tensor) -> PixelFeatures:
        """Normalised (B, 3, H, W) -> mask features, memories and edge logits.

        Raises:
            ValueError: not a (B, 3, H, W) batch of normalised values, or a side below ``SMALLEST_SIDE``.
        """
        if not images.is_floating_point():
            raise ValueError(
                f"images must be normalised floating point values, not {images.dtype}; "
                "network.normalise(images) makes them from uint8 RGB"
            )
        if images.dim() != 4 or images.shape[1] != 3:
            raise ValueError(f"images must have shape (B, 3, H, W), not {tuple(images.shape)}")
        if min(images.shape[-2:]) < SMALLEST_SIDE:
            raise ValueError(
                f"images must be at least {SMALLEST_SIDE} pixels on both sides, not "
                f"{images.shape[-2]}x{images.shape[-1]}; enlarge or pad them first"
            )
        return self.pixel_decoder(images, self.backbone(images))

    def answer(self, pixels: PixelFeatures) -> MaskPrediction:
        """The last prediction of the transformer decoder, with its mask logits multiplied out."""
        last: QueryPrediction = self.transformer_decoder(pixels)[-1]
        return MaskPrediction(last.class_logits, last.mask_logits, pixels.edge_logits)

    def predict_layers(self, images: Tensor, targets: Targets | None = None) -> TrainingPrediction:
        """All predictions, as deep supervision needs them, in either mode."""
        pixels = self.pixel_features(images)
        piloted = self.piloting(targets) if self.piloting is not None and targets is not None else None
        layers: Sequence[QueryPrediction] = self.transformer_decoder(pixels, piloted)
        if piloted is None:
            return TrainingPrediction(tuple(layers), pixels.edge_logits)
        count = piloted.queries.shape[1]
        return TrainingPrediction(
            tuple(_slice(layer, slice(count, None)) for layer in layers),
            pixels.edge_logits,
            tuple(_slice(layer, slice(count)) for layer in layers),
            piloted,
        )


def _slice(prediction: QueryPrediction, queries: slice) -> QueryPrediction:
    return prediction._replace(
        class_logits=prediction.class_logits[:, queries],
        mask_embeddings=prediction.mask_embeddings[:, queries],
    )


def count_parameters(module: nn.Module) -> int:
    """Number of parameters, frozen ones included."""
    return sum(parameter.numel() for parameter in module.parameters())
