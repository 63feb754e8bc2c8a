"""Telling a network's configuration from the shapes of its tensors.

Checkpoints of other programs do not say how to build their network. Number of heads and activations leave no trace in
shapes; they are taken to be the published ones.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from torch import Tensor

from src.checkpoints.names import NameTableError

State = Mapping[str, Tensor]

# blocks per stage, kind of block, channels of the first convolution -> timm's ResNet
_RESNETS: dict[tuple[tuple[int, ...], str, int], str] = {
    ((2, 2, 2, 2), "basic", 64): "resnet18.tv_in1k",
    ((3, 4, 6, 3), "basic", 64): "resnet34.tv_in1k",
    ((3, 4, 6, 3), "bottleneck", 64): "resnet50.tv_in1k",
    ((3, 4, 23, 3), "bottleneck", 64): "resnet101.tv_in1k",
    ((3, 8, 36, 3), "bottleneck", 64): "resnet152.tv_in1k",
    ((3, 4, 6, 3), "bottleneck", 128): "wide_resnet50_2.tv_in1k",
    ((3, 4, 23, 3), "bottleneck", 128): "wide_resnet101_2.tv_in1k",
}
# blocks per stage, channels of the first stage, side of a window -> timm's Swin
_SWINS: dict[tuple[tuple[int, ...], int, int], str] = {
    ((2, 2, 6, 2), 96, 7): "swin_tiny_patch4_window7_224.ms_in1k",
    ((2, 2, 18, 2), 96, 7): "swin_small_patch4_window7_224.ms_in1k",
    ((2, 2, 18, 2), 128, 7): "swin_base_patch4_window7_224.ms_in22k",
    ((2, 2, 18, 2), 128, 12): "swin_base_patch4_window12_384.ms_in22k",
    ((2, 2, 18, 2), 192, 7): "swin_large_patch4_window7_224.ms_in22k",
    ((2, 2, 18, 2), 192, 12): "swin_large_patch4_window12_384.ms_in22k",
}


def massformer_overrides(state: State) -> list[str]:
    """Configuration overrides of a MaSSFormer with a ResNet; the number of classes is left out.

    Args:
        state: tensors under this project's names.

    Raises:
        NameTableError: a tensor that decides is missing, or nobody knows the backbone.
    """
    context_width = _shape(state, "pixel_decoder.context.cross_block.expand.weight")[0]
    return [
        "experiment=massformer",
        "recipe=paper",
        f"model.backbone.name={_resnet(state)}",
        f"model.size.width={_shape(state, 'pixel_decoder.global_context.conv.weight')[0]}",
        *_decoder_overrides(state),
        f"+model.pixel_decoder.context.feedforward={context_width}",
    ]


def mask2former_overrides(state: State) -> list[str]:
    """As ``massformer_overrides``, for a Mask2Former with a ResNet or a Swin transformer."""
    swin = "backbone.encoder.patch_embed.proj.weight" in state
    hidden, width = _shape(state, "pixel_decoder.layers.0.expand.weight")
    return [
        "experiment=mask2former",
        "recipe=paper",
        *(["model/backbone=swin_b"] if swin else []),
        f"model.backbone.name={_swin(state) if swin else _resnet(state)}",
        f"model.pixel_decoder.feature_norm={'pixel_decoder.feature_norms.0.weight' in state}",
        f"model.pixel_decoder.num_layers={_count(state, 'pixel_decoder.layers.')}",
        f"model.pixel_decoder.expansion={hidden // width}",
        *_decoder_overrides(state),
    ]


def _decoder_overrides(state: State) -> list[str]:
    num_queries, width = _shape(state, "transformer_decoder.query_features.weight")
    hidden = _shape(state, "transformer_decoder.layers.0.expand.weight")[0]
    return [
        f"model.size.query_width={width}",
        f"model.size.feedforward={hidden}",
        f"model.size.num_queries={num_queries}",
        f"model.size.num_layers={_count(state, 'transformer_decoder.layers.')}",
    ]


def _resnet(state: State) -> str:
    stages = [f"backbone.encoder.layer{i}." for i in (1, 2, 3, 4)]
    blocks = tuple(_count(state, stage) for stage in stages)
    kind = "bottleneck" if f"{stages[0]}0.conv3.weight" in state else "basic"
    channels = _shape(state, f"{stages[0]}0.conv1.weight")[0]
    name = _RESNETS.get((blocks, kind, channels))
    if name is None:
        raise NameTableError(
            f"the backbone is no ResNet known here: stages of {list(blocks)} {kind} blocks, {channels} channels "
            "in the first"
        )
    return name


def _swin(state: State) -> str:
    blocks = tuple(_count(state, f"backbone.encoder.layers_{i}.blocks.") for i in range(4))
    channels = _shape(state, "backbone.encoder.patch_embed.proj.weight")[0]
    # a window of side w has (2 w - 1)^2 relative positions
    table = _shape(state, "backbone.encoder.layers_0.blocks.0.attn.relative_position_bias_table")
    window = (math.isqrt(table[0]) + 1) // 2
    name = _SWINS.get((blocks, channels, window))
    if name is None:
        raise NameTableError(
            f"the backbone is no Swin transformer known here: stages of {list(blocks)} blocks, {channels} channels, "
            f"windows of {window}"
        )
    return name


def _shape(state: State, name: str) -> tuple[int, ...]:
    if name not in state:
        raise NameTableError(f"{name} is missing, so the architecture cannot be told")
    return tuple(state[name].shape)


def _count(state: State, prefix: str) -> int:
    """How many different numbers follow ``prefix``, which ends in a dot."""
    return len({name[len(prefix) :].split(".", 1)[0] for name in state if name.startswith(prefix)})
