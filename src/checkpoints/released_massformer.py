"""Tensor names of the released MaSSFormer checkpoints (mmengine files of the authors' mmsegmentation fork)."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from src.checkpoints.names import NameTableError, count_blocks, shape_of

_PIXEL = "decode_head.pixel_decoder.pixel_decoder."
_LAYER = "decode_head.transformer_decoder.layers.{i}."


def _with_prefix(ours: str, theirs: str, pairs: list[tuple[str, str]]) -> list[tuple[str, str]]:
    return [(ours + a, theirs + b) for a, b in pairs]


_CONV_NORM = [("conv.", "conv."), ("norm.", "bn.")]
_DEFORMABLE = [("offset.", "dcn_offset."), ("conv.", "dcn."), ("norm.", "dcn_bn.")]
_DEFORMABLE_UP = [
    *_with_prefix("deform.", "", _DEFORMABLE),
    ("up.", "up_sample."),
    ("norm.", "up_bn."),
]
_ATTENTION = [("projection.", "in_proj_"), ("output.", "out_proj.")]
_SQUEEZE_EXCITE = [("reduce.", "mlp.0.mlp.0."), ("norm.", "mlp.0.mlp.1."), ("expand.", "mlp.0.mlp.3.")]


def _window_attention(block: str, attention: str, feedforward: str) -> list[tuple[str, str]]:
    ours, theirs = f"context.{block}.", "CST.cross_self_attn."
    return [
        *_with_prefix(ours + "attention.", f"{theirs}{attention}.attn.", _ATTENTION),
        (ours + "expand.", f"{theirs}{feedforward}.layers.0.0."),
        (ours + "reduce.", f"{theirs}{feedforward}.layers.1."),
    ]


_PIXEL_DECODER = [
    *_with_prefix("laterals.{i}.", "in_projections.{i}.", _CONV_NORM),
    # the release counts its squeeze-excite blocks from stride 32 down to 4
    *(pair for i in range(4) for pair in _with_prefix(f"excitations.{i}.", f"SEB.{3 - i}.", _SQUEEZE_EXCITE)),
    *_with_prefix("global_context.", "conv_avg.", _CONV_NORM),
    *_with_prefix("context.coarse.", "CST.dcn1.", _DEFORMABLE_UP),
    *_with_prefix("context.fine.", "CST.dcn2.", _DEFORMABLE_UP),
    *_window_attention("cross_block", "cross_attn", "ffn1"),
    *_window_attention("self_block", "self_attn", "ffn2"),
    *_with_prefix("scale.branches.{i}.", "RFB.deformaspp.{i}.", _DEFORMABLE),
    ("scale.merge.", "RFB.conv1."),
    ("scale.merge_norm.", "RFB.bn."),
    ("scale.refine.", "RFB.upconv."),
    ("scale.refine_norm.", "RFB.bn2."),
    *_with_prefix("detail.plain.", "LSE.cbn1.", _CONV_NORM),
    ("detail.plain_attention.conv.", "LSE.conv1."),
    *_with_prefix("detail.deformable.", "LSE.dcn3.", _DEFORMABLE),
    ("detail.deformable_attention.conv.", "LSE.conv2."),
    *_with_prefix("detail.merge.", "LSE.cbn2.", _CONV_NORM),
    *_with_prefix("fusion.edge_reduce.", "edge_conv.0.", _CONV_NORM),
    ("fusion.edge_head.", "edge_conv.1."),
    ("fusion.reduce.", "edge_rec.conv1."),
    *_with_prefix("fusion.deformable.", "edge_rec.dcn.", _DEFORMABLE),
    ("fusion.expand.", "edge_rec.conv2."),
    ("fusion.norm.", "edge_rec.norm."),
    *_with_prefix("mask_output.", "out.0.", _CONV_NORM),
    *(pair for i in range(3) for pair in _with_prefix(f"memory_outputs.{i}.", f"out.{i + 1}.", _CONV_NORM)),
]

_DECODER_LAYER = [
    *_with_prefix("cross_attention.", "cross_attn.attn.", _ATTENTION),
    *_with_prefix("self_attention.", "self_attn.attn.", _ATTENTION),
    ("cross_norm.", "norms.0."),
    ("self_norm.", "norms.1."),
    ("feedforward_norm.", "norms.2."),
    ("expand.", "ffn.layers.0.0."),
    ("reduce.", "ffn.layers.1."),
]

RELEASED_MASSFORMER: list[tuple[str, str]] = [
    ("backbone.encoder.", "backbone."),
    *_with_prefix("pixel_decoder.", _PIXEL, _PIXEL_DECODER),
    *_with_prefix("transformer_decoder.layers.{i}.", _LAYER, _DECODER_LAYER),
    ("transformer_decoder.norm.", "decode_head.transformer_decoder.post_norm."),
    ("transformer_decoder.query_features.", "decode_head.query_feat."),
    ("transformer_decoder.query_positions.", "decode_head.query_embed."),
    ("transformer_decoder.level_embedding.", "decode_head.level_embed."),
    ("transformer_decoder.class_head.", "decode_head.cls_embed."),
    ("transformer_decoder.mask_head.{i}.", "decode_head.mask_embed.{i}."),
]
"""(ours, theirs) prefixes; every tensor of a released checkpoint fits exactly one."""

# blocks per stage, kind of block, channels of a bottleneck's first convolution -> timm's ResNet
_RESNETS: dict[tuple[tuple[int, ...], str, int], str] = {
    ((2, 2, 2, 2), "basic", 64): "resnet18.tv_in1k",
    ((3, 4, 6, 3), "basic", 64): "resnet34.tv_in1k",
    ((3, 4, 6, 3), "bottleneck", 64): "resnet50.tv_in1k",
    ((3, 4, 23, 3), "bottleneck", 64): "resnet101.tv_in1k",
    ((3, 8, 36, 3), "bottleneck", 64): "resnet152.tv_in1k",
    ((3, 4, 6, 3), "bottleneck", 128): "wide_resnet50_2.tv_in1k",
    ((3, 4, 23, 3), "bottleneck", 128): "wide_resnet101_2.tv_in1k",
}


def massformer_overrides(state: Mapping[str, Tensor]) -> list[str]:
    """The configuration of a MaSSFormer, deduced from the shapes of its tensors.

    Number of heads and activations leave no trace in shapes; they are the released ones.

    Args:
        state: tensors under this project's names.

    Returns:
        Overrides of ``train.yaml``; the number of classes is left out.

    Raises:
        NameTableError: a tensor that decides is missing, or the backbone is no known ResNet.
    """
    width, _ = shape_of(state, "pixel_decoder.global_context.conv.weight")[:2]
    num_queries, query_width = shape_of(state, "transformer_decoder.query_features.weight")
    num_layers = count_blocks(state, "transformer_decoder.layers.")
    return [
        "experiment=massformer",
        "recipe=paper",
        f"model.backbone.name={_resnet_name(state)}",
        f"model.size.width={width}",
        f"model.size.query_width={query_width}",
        f"model.size.feedforward={shape_of(state, 'transformer_decoder.layers.0.expand.weight')[0]}",
        f"model.size.num_queries={num_queries}",
        f"model.size.num_layers={num_layers}",
        "+model.pixel_decoder.context.feedforward="
        f"{shape_of(state, 'pixel_decoder.context.cross_block.expand.weight')[0]}",
    ]


def _resnet_name(state: Mapping[str, Tensor]) -> str:
    stages = [f"backbone.encoder.layer{i}." for i in (1, 2, 3, 4)]
    blocks = tuple(count_blocks(state, stage) for stage in stages)
    kind = "bottleneck" if f"{stages[0]}0.conv3.weight" in state else "basic"
    channels = shape_of(state, f"{stages[0]}0.conv1.weight")[0]
    try:
        return _RESNETS[blocks, kind, channels]
    except KeyError:
        raise NameTableError(
            f"the backbone is no ResNet known here: stages of {list(blocks)} {kind} blocks, {channels} channels "
            "in the first"
        ) from None
