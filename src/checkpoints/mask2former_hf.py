"""Tensor names of Mask2Former checkpoints in the format of Hugging Face transformers, with ResNet or Swin encoder.

The table holds the names in checkpoint *files* (``model.safetensors``), which have been stable; the names inside a
running model differ between versions of transformers. Our encoders are timm's.

Two things are not a matter of names. transformers keeps query, key and value projections apart where this project
packs them in one matrix, and its files hold tensors that are derived or never used.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor

from src.checkpoints.names import NameTableError, translate

_LEVEL = "model.pixel_level_module."
_ENCODER = _LEVEL + "encoder."
_DECODER = "model.transformer_module.decoder."


def _with_prefix(ours: str, theirs: str, pairs: list[tuple[str, str]]) -> list[tuple[str, str]]:
    return [(ours + a, theirs + b) for a, b in pairs]


def _separate(ours: str, theirs: str, names: tuple[str, str, str]) -> list[tuple[str, str]]:
    """Projections that are packed in ours; ``query``, ``key`` and ``value`` exist only while translating."""
    return [(ours + part, theirs + name) for part, name in zip(_PARTS, names, strict=True)]


_PARTS = ("query.", "key.", "value.")

_RESNET_BLOCK = [
    *(
        pair
        for i in range(3)
        for pair in (
            (f"conv{i + 1}.", f"layer.{i}.convolution."),
            (f"bn{i + 1}.", f"layer.{i}.normalization."),
        )
    ),
    ("downsample.0.", "shortcut.convolution."),
    ("downsample.1.", "shortcut.normalization."),
]
_RESNET = [
    ("conv1.", "embedder.embedder.convolution."),
    ("bn1.", "embedder.embedder.normalization."),
    *(
        pair
        for stage in range(4)
        for pair in _with_prefix(
            f"layer{stage + 1}.{{i}}.", f"encoder.stages.{stage}.layers.{{i}}.", _RESNET_BLOCK
        )
    ),
]

_SWIN_BLOCK = [
    ("norm1.", "layernorm_before."),
    ("norm2.", "layernorm_after."),
    ("attn.relative_position_bias_table", "attention.self.relative_position_bias_table"),
    *_separate("attn.qkv.", "attention.self.", _PARTS),
    ("attn.proj.", "attention.output.dense."),
    ("mlp.fc1.", "intermediate.dense."),
    ("mlp.fc2.", "output.dense."),
]
_SWIN = [
    ("patch_embed.proj.", "embeddings.patch_embeddings.projection."),
    ("patch_embed.norm.", "embeddings.norm."),
    *(
        pair
        for stage in range(4)
        for pair in _with_prefix(
            f"layers_{stage}.blocks.{{i}}.", f"encoder.layers.{stage}.blocks.{{i}}.", _SWIN_BLOCK
        )
    ),
    # timm reduces at the beginning of a stage, transformers at the end of the one before
    *((f"layers_{stage + 1}.downsample.", f"encoder.layers.{stage}.downsample.") for stage in range(3)),
]

_PIXEL_LAYER = [
    ("attention.offsets.", "self_attn.sampling_offsets."),
    ("attention.weights.", "self_attn.attention_weights."),
    ("attention.value.", "self_attn.value_proj."),
    ("attention.output.", "self_attn.output_proj."),
    ("attention_norm.", "self_attn_layer_norm."),
    ("expand.", "fc1."),
    ("reduce.", "fc2."),
    ("feedforward_norm.", "final_layer_norm."),
]
_PIXEL_DECODER = [
    *((f"projections.{{i}}.{j}.", f"input_projections.{{i}}.{j}.") for j in (0, 1)),
    ("level_embedding.weight", "level_embed"),
    *_with_prefix("layers.{i}.", "encoder.layers.{i}.", _PIXEL_LAYER),
    ("lateral.", "adapter_1.0."),
    ("lateral_norm.", "adapter_1.1."),
    ("fine.", "layer_1.0."),
    ("fine_norm.", "layer_1.1."),
    ("mask_output.", "mask_projection."),
]

_DECODER_LAYER = [
    ("cross_attention.projection.", "cross_attn.in_proj_"),
    ("cross_attention.output.", "cross_attn.out_proj."),
    ("cross_norm.", "cross_attn_layer_norm."),
    *_separate("self_attention.projection.", "self_attn.", ("q_proj.", "k_proj.", "v_proj.")),
    ("self_attention.output.", "self_attn.out_proj."),
    ("self_norm.", "self_attn_layer_norm."),
    ("expand.", "fc1."),
    ("reduce.", "fc2."),
    ("feedforward_norm.", "final_layer_norm."),
]

MASK2FORMER_HF: list[tuple[str, str]] = [
    *_with_prefix("backbone.encoder.", _ENCODER, _RESNET + _SWIN),
    *(
        (f"pixel_decoder.feature_norms.{i}.", f"{_ENCODER}hidden_states_norms.stage{i + 1}.")
        for i in range(4)
    ),
    *_with_prefix("pixel_decoder.", _LEVEL + "decoder.", _PIXEL_DECODER),
    *_with_prefix("transformer_decoder.layers.{i}.", _DECODER + "layers.{i}.", _DECODER_LAYER),
    ("transformer_decoder.norm.", _DECODER + "layernorm."),
    ("transformer_decoder.query_features.", "model.transformer_module.queries_features."),
    ("transformer_decoder.query_positions.", "model.transformer_module.queries_embedder."),
    ("transformer_decoder.level_embedding.", "model.transformer_module.level_embed."),
    ("transformer_decoder.class_head.", "class_predictor."),
    *(
        (f"transformer_decoder.mask_head.{2 * i}.", f"{_DECODER}mask_predictor.mask_embedder.{i}.0.")
        for i in range(3)
    ),
]
"""(ours, theirs) prefixes, with packed projections still apart on our side."""

_DERIVED = re.compile(
    r"criterion\.empty_weight"  # the class weights of their loss
    r"|.*\.attention\.self\.relative_position_index"  # recomputed from the window
    rf"|{re.escape(_ENCODER)}(swin\.)?layernorm\..*"  # the classifier's norm, which no feature map passes
)
_PACKED = re.compile(r"(.*\.(?:self_attention\.projection|attn\.qkv)\.)(weight|bias)")
_APART = re.compile(r"(.*\.(?:self_attention\.projection|attn\.qkv)\.)(?:query|key|value)\.(weight|bias)")


def from_hugging_face(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Names of ``Segmenter.state_dict`` for the tensors of a transformers checkpoint file.

    Whether the result fits a network is for ``names.check_fits`` to say.

    Raises:
        NameTableError: a name that the table does not know, or a projection without its query, key or value.
    """
    kept = {name: tensor for name, tensor in state.items() if not _DERIVED.fullmatch(name)}
    renamed = translate(kept, MASK2FORMER_HF)
    found = [_APART.fullmatch(name) for name in renamed]
    for prefix, kind in sorted({(match[1], match[2]) for match in found if match}):
        parts = [f"{prefix}{part}{kind}" for part in _PARTS]
        absent = [part for part in parts if part not in renamed]
        if absent:
            raise NameTableError(f"a projection is incomplete: there is no {' and no '.join(absent)}")
        renamed[prefix + kind] = torch.cat([renamed.pop(part) for part in parts])
    return renamed


def to_hugging_face(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The reverse of ``from_hugging_face``, without the tensors that it leaves out.

    Raises:
        NameTableError: a name that the table does not know, such as those of another pixel decoder.
    """
    apart: dict[str, Tensor] = {}
    for name, tensor in state.items():
        packed = _PACKED.fullmatch(name)
        if packed:
            prefix, kind = packed.groups()
            # clone: safetensors refuses tensors that share memory
            apart |= {f"{prefix}{p}{kind}": x.clone() for p, x in zip(_PARTS, tensor.chunk(3), strict=True)}
        else:
            apart[name] = tensor
    return translate(apart, MASK2FORMER_HF, reverse=True)
