"""Encoders: any timm model that offers feature maps at strides 4, 8, 16 and 32."""

from __future__ import annotations

import difflib
import functools
from collections.abc import Iterator, Sequence
from typing import Any, Self

import timm
import torch
import torch.nn.functional as F
from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import Tensor, nn

from src.errors import UserError
from src.models.pretrained import load_packaged_weights

STRIDES = (4, 8, 16, 32)
_PARITY = 8  # sides that are even up to the last map that is made in parts
_ODD_SIZE = (65, 99)  # leaves a remainder at every stride
# arguments of timm.create_model that read files: a configuration may come with a stranger's checkpoint
_WEIGHT_OPTIONS = (
    "checkpoint_path",
    "pretrained_cfg",
    "pretrained_cfg_overlay",
    "pretrained_strict",
    "cache_dir",
)


class Backbone(nn.Module):
    """A timm ``features_only`` encoder.

    Args:
        name: timm model name.
        weights: ``timm`` downloads timm's pretrained weights, ``package`` takes those that a Python package
            ships (EfficientNet-Lite0 only), ``none`` starts from random values.
        mean, std: normalisation of RGB in 0..1, per channel; by default what timm says that the model's weights
            expect, and ImageNet's where it says nothing.
        freeze_norm_statistics: normalise with the statistics that came with the weights, and never update them:
            those of two crops are too noisy to train with.
        freeze_norm_affine: keep scale and shift of BatchNorm layers fixed while their statistics follow the
            data, as in the released training configuration.
        pad_to: zero-pad the input at the bottom and right to a multiple of this and crop the feature maps to
            ceil(size / stride); 1 for none. By default 32 for encoders that need it because they would drop the last
            pixels (ConvNeXt, DenseNet, Swin), 8 for those whose kernels lie elsewhere when a map's side is odd
            (TensorFlow's padding), so that parts of a photo give the features of the whole, and 1 for all others.
        options: further arguments of ``timm.create_model``, none that say where weights come from.

    Attributes:
        channels: channels of the four maps.
        mean, std: of the normalisation.

    Raises:
        UserError: the model has no feature maps at strides 4, 8, 16 and 32, or takes images of one size only.
        UserError: pretrained weights could not be fetched.
    """

    def __init__(
        self,
        name: str,
        weights: str = "timm",
        mean: tuple[float, float, float] | None = None,
        std: tuple[float, float, float] | None = None,
        freeze_norm_affine: bool = False,
        freeze_norm_statistics: bool = False,
        pad_to: int | None = None,
        **options: Any,
    ) -> None:
        super().__init__()
        if chosen := [option for option in _WEIGHT_OPTIONS if option in options]:
            raise UserError(
                f"model.backbone.{chosen[0]} is no option here: weights come by model.backbone.weights or init_from"
            )
        if weights not in ("timm", "package", "none"):
            raise UserError(f"model.backbone.weights is {weights!r}; choose timm, package or none")
        indices, needed = _pyramid_of(name, options, pad_to)
        expected = timm.get_pretrained_cfg(name, allow_unregistered=True)
        self.mean: tuple[float, ...] = tuple(mean or (expected and expected.mean) or IMAGENET_DEFAULT_MEAN)
        self.std: tuple[float, ...] = tuple(std or (expected and expected.std) or IMAGENET_DEFAULT_STD)
        self.pad_to = needed
        self.encoder: Any = _create(name, weights == "timm", indices, options)
        self.channels: tuple[int, ...] = tuple(self.encoder.feature_info.channels())
        self._channels_last = "NHWC" in str(getattr(self.encoder, "output_fmt", ""))  # Swin computes in it
        if weights == "package":
            load_packaged_weights(self.encoder, name)
        self._freeze_norm_statistics = freeze_norm_statistics
        if freeze_norm_affine:
            for norm in self._norms():
                for parameter in norm.parameters(recurse=False):
                    parameter.requires_grad_(False)
        self.train()  # a new module counts as training without having been told

    def train(self, mode: bool = True) -> Self:
        """Training mode, except for norms whose statistics are frozen."""
        super().train(mode)
        if self._freeze_norm_statistics:
            for norm in self._norms():
                norm.eval()
        return self

    def _norms(self) -> Iterator[nn.Module]:
        # found anew each time, because synchronised ones may have taken their places
        return (m for m in self.encoder.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm))

    def forward(self, images: Tensor) -> list[Tensor]:
        """Normalised (B, 3, H, W) -> F1..F4, each (B, C_i, ceil(H / stride), ceil(W / stride))."""
        height, width = images.shape[-2:]
        images = F.pad(images, (0, -width % self.pad_to, 0, -height % self.pad_to))
        maps = self.encoder(images)
        if self._channels_last:
            maps = [x.permute(0, 3, 1, 2) for x in maps]
        return [x[..., : -(-height // s), : -(-width // s)] for x, s in zip(maps, STRIDES, strict=True)]


def _create(name: str, pretrained: bool, indices: tuple[int, ...], options: dict[str, Any]) -> Any:
    try:
        return timm.create_model(
            name, features_only=True, pretrained=pretrained, out_indices=indices, **options
        )
    except (OSError, RuntimeError, ConnectionError) as error:
        if not pretrained:
            raise
        raise UserError(
            f"The pretrained weights of {name} could not be fetched ({type(error).__name__}: {error}). Connect to "
            "the Hugging Face Hub once (they are then cached), or train from random weights with "
            "model.backbone.weights=none, or use model/size=nano, whose weights come with the installation."
        ) from error


def _pyramid_of(name: str, options: dict[str, Any], pad_to: int | None) -> tuple[tuple[int, ...], int]:
    """``_pyramid``, which is found anew where an option has no hash."""
    try:
        hash(tuple(options.values()))
    except TypeError:
        return _pyramid.__wrapped__(name, pad_to, **options)
    return _pyramid(name, pad_to, **options)


@functools.cache
def _pyramid(name: str, pad_to: int | None, /, **options: Any) -> tuple[tuple[int, ...], int]:
    """Which of the encoder's maps have strides 4, 8, 16 and 32, and the ``pad_to`` given or else needed.

    Many networks of one process have the same encoder, and to ask a second one takes as long as to build it.
    """
    if not timm.is_model(name):
        close = (
            ", ".join(difflib.get_close_matches(name, timm.list_models(), n=6)) or "see timm.list_models()"
        )
        raise UserError(f"timm has no model {name!r} (model.backbone.name). Similar names: {close}")
    with torch.device("meta"):
        try:
            probe: Any = timm.create_model(name, features_only=True, pretrained=False, **options)
        except RuntimeError as error:  # as of a pretrained tag that there is not
            raise UserError(f"model.backbone.name={name}: {error}") from error
    reductions = list(probe.feature_info.reduction())
    missing = [s for s in STRIDES if s not in reductions]
    if missing:
        raise UserError(
            f"{name} has feature maps at strides {reductions}, but the decoders need {list(STRIDES)}. Choose an "
            "encoder with a feature pyramid (ResNet, ConvNeXt, Swin, EfficientNet, ...)."
        )
    places = [len(reductions) - 1 - reductions[::-1].index(s) for s in STRIDES]
    start = list(probe.feature_info.out_indices)
    if pad_to is None:
        pad_to = _PARITY if _depends_on_parity(probe) else 1 if _rounds_up(probe, places) else STRIDES[-1]
    _check_takes_any_size(name, probe, max(pad_to, STRIDES[-1]), places)
    return tuple(start[place] for place in places), pad_to


def _depends_on_parity(encoder: nn.Module) -> bool:
    """Whether kernels lie on other pixels when a map's side is odd: timm's layers called ``Conv2dSame`` and alike."""
    return any(type(module).__name__.endswith("Same") for module in encoder.modules())


@torch.no_grad()
def _check_takes_any_size(name: str, probe: Any, multiple: int, places: Sequence[int]) -> None:
    height, width = 3 * multiple, 5 * multiple
    try:
        maps = _map_sizes(probe, height, width)
    except (RuntimeError, ValueError, AssertionError, NotImplementedError) as error:
        raise UserError(
            f"{name} takes images of one size only ({error}), but photos and crops have any. Choose a convolutional "
            "encoder (ResNet, ConvNeXt, EfficientNet, ...), or for a Swin add +model.backbone.strict_img_size=false "
            "+model.backbone.always_partition=true"
        ) from error
    found = [maps[place] for place in places]
    if found != [(height // stride, width // stride) for stride in STRIDES]:
        raise UserError(
            f"{name}: its maps of a photo of {width}x{height} pixels are {', '.join(f'{w}x{h}' for h, w in found)}, "
            "not a fourth, an eighth and so on, as of convolutions without padding. Choose another encoder (ResNet, "
            "ConvNeXt, EfficientNet, Swin, ...), or +model.backbone.pad_to=64 for one that works in larger patches."
        )


def _map_sizes(probe: Any, height: int, width: int) -> list[tuple[int, ...]]:
    """Height and width of every map that an encoder on the ``meta`` device gives of an image."""
    rows = 1 if "NHWC" in str(getattr(probe, "output_fmt", "")) else 2
    maps = probe.eval()(torch.empty((1, 3, height, width), device="meta"))
    return [tuple(x.shape[rows : rows + 2]) for x in maps]


@torch.no_grad()
def _rounds_up(probe: Any, places: Sequence[int]) -> bool:
    """Whether an encoder on the ``meta`` device gives maps of ceil(size / stride) for any size."""
    height, width = _ODD_SIZE
    try:
        maps = _map_sizes(probe, height, width)
    except (RuntimeError, ValueError, AssertionError, NotImplementedError):
        return False  # it takes no such size
    return [maps[place] for place in places] == [(-(-height // s), -(-width // s)) for s in STRIDES]
