"""Tensor names of the released MaSSFormer checkpoints (mmengine files of the authors' mmsegmentation fork)."""

from __future__ import annotations

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
