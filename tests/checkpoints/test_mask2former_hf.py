"""Mask2Former against the independent implementation of Hugging Face transformers, with its weights."""

from __future__ import annotations

import copy
from functools import partial
from typing import NamedTuple

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from src.checkpoints.mask2former_hf import from_hugging_face, to_hugging_face
from src.checkpoints.names import NameTableError, check_fits
from src.models.backbone import Backbone
from src.models.pixel_decoder.multiscale_deformable import MultiscaleDeformablePixelDecoder
from src.models.segmenter import Segmenter
from src.models.transformer_decoder.masked_attention import MaskedAttentionDecoder

transformers = pytest.importorskip("transformers")

STAGES = ["stage1", "stage2", "stage3", "stage4"]
TOLERANCE = 1e-5  # our position code is float32
LEFT_OUT = {
    "criterion.empty_weight",
    "model.pixel_level_module.encoder.swin.layernorm.weight",
    "model.pixel_level_module.encoder.swin.layernorm.bias",
}


class Pair(NamedTuple):
    """Their network, the tensors of its checkpoint file, and our network with the same weights."""

    theirs: nn.Module
    file: dict[str, Tensor]
    ours: Segmenter


def perturbed(model: nn.Module) -> nn.Module:
    """No parameter may be zero, one, or equal to its neighbour, or a mistake could go unseen."""
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            spread = 0.1 if parameter.dim() < 2 else 0.1 * parameter.std()
            parameter.add_(max(float(spread), 0.01) * torch.randn_like(parameter))
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.weight.copy_(1 + 0.1 * torch.randn_like(module.weight))
                module.running_mean.copy_(0.1 * torch.randn_like(module.running_mean))
                module.running_var.copy_(1 + 0.1 * torch.rand_like(module.running_var))
    return model.eval()


def centre_masks(theirs: nn.Module) -> None:
    """Let about half of all mask logits be negative, so that masked attention masks something."""
    decoder = theirs.model.pixel_level_module.decoder
    with torch.no_grad():
        features = theirs.model(torch.randn(2, 3, 96, 96)).pixel_decoder_last_hidden_state
        decoder.mask_projection.bias -= features.mean((0, 2, 3))


def make_pair(backbone_config: object, backbone: Backbone, folder: object, swin: bool) -> Pair:
    config = transformers.Mask2FormerConfig(backbone_config=backbone_config, num_labels=7)
    theirs = perturbed(transformers.Mask2FormerForUniversalSegmentation(config))
    centre_masks(theirs)
    theirs.save_pretrained(folder)
    file = load_file(f"{folder}/model.safetensors")
    ours = Segmenter(
        backbone,
        partial(MultiscaleDeformablePixelDecoder, feature_norm=swin),
        MaskedAttentionDecoder(7, num_layers=9, activation="relu"),
    )
    state = from_hugging_face(file)
    check_fits(state, ours.state_dict(), "the checkpoint")
    ours.load_state_dict(state)
    return Pair(theirs, file, ours.eval())


@pytest.fixture(scope="module")
def resnet(tmp_path_factory) -> Pair:
    config = transformers.ResNetConfig(out_features=STAGES)
    return make_pair(config, Backbone("resnet50", weights="none"), tmp_path_factory.mktemp("resnet"), False)


@pytest.fixture(scope="module")
def swin(tmp_path_factory) -> Pair:
    config = transformers.SwinConfig(out_features=STAGES)
    backbone = Backbone(
        "swin_tiny_patch4_window7_224", "none", pad_to=224, strict_img_size=False, always_partition=True
    )
    return make_pair(config, backbone, tmp_path_factory.mktemp("swin"), True)


def assert_equal_answers(pair: Pair, height: int, width: int) -> None:
    """All ten predictions of a batch of two, and that their attention masks mask something.

    In float64, because in float32 rounding moves a mask logit of almost 0 across the threshold now and then.
    """
    images = torch.randn(2, 3, height, width, generator=torch.Generator().manual_seed(1)).double()
    theirs, ours = copy.deepcopy(pair.theirs).double(), copy.deepcopy(pair.ours).double()
    with torch.no_grad():
        expected = theirs.model(images, output_hidden_states=True)
        layers = ours.predict_layers(images).layers
        answer = ours(images)
    states = expected.transformer_decoder_intermediate_states
    assert len(layers) == len(states) == len(expected.masks_queries_logits) == 10
    largest = 0.0
    for layer, state, masks in zip(layers, states, expected.masks_queries_logits, strict=True):
        classes = theirs.class_predictor(state.transpose(0, 1)).detach()
        pairs = (layer.class_logits, classes), (layer.mask_logits, masks)
        largest = max(largest, *(float((one - other).abs().max()) for one, other in pairs))
        torch.testing.assert_close(layer.class_logits, classes, atol=TOLERANCE, rtol=0)
        torch.testing.assert_close(layer.mask_logits, masks, atol=TOLERANCE, rtol=0)
        assert 0.02 < (masks < 0).float().mean() < 0.98
    print(f"{height}x{width}: largest difference of ten predictions {largest:.2g}, allowed {TOLERANCE:g}")
    assert answer.mask_logits.shape[-2:] == (-(-height // 4), -(-width // 4))
    torch.testing.assert_close(answer.mask_logits, expected.masks_queries_logits[-1], atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize(("height", "width"), [(64, 128), (97, 75)])
def test_resnet_answers_are_equal(resnet, height, width):
    """Neither side pads: maps have ceil(size / stride) rows at any size."""
    assert_equal_answers(resnet, height, width)


@pytest.mark.slow
def test_swin_answers_are_equal(swin):
    """At multiples of 32 x window only: timm pads a map to whole windows after shifting, transformers before."""
    assert_equal_answers(swin, 224, 224)


def assert_round_trip(pair: Pair) -> None:
    back = to_hugging_face(pair.ours.state_dict())
    assert set(pair.file) - set(back) <= LEFT_OUT
    assert set(back) <= set(pair.file)
    assert all(torch.equal(tensor, pair.file[name]) for name, tensor in back.items())


def test_resnet_round_trip(resnet):
    assert_round_trip(resnet)


@pytest.mark.slow
def test_swin_round_trip(swin):
    assert_round_trip(swin)


@pytest.mark.parametrize(
    "name",
    [
        "class_predictor.bias",
        "model.pixel_level_module.decoder.level_embed",
        "model.pixel_level_module.encoder.encoder.stages.2.layers.5.layer.1.convolution.weight",
        "model.transformer_module.decoder.layers.8.cross_attn.in_proj_bias",
    ],
)
def test_a_missing_tensor_is_named(resnet, name):
    state = from_hugging_face({key: tensor for key, tensor in resnet.file.items() if key != name})
    with pytest.raises(NameTableError, match=r"x\.safetensors does not fit .* 1 tensors are missing"):
        check_fits(state, resnet.ours.state_dict(), "x.safetensors")


@pytest.mark.parametrize("part", ["q_proj", "k_proj", "v_proj"])
def test_a_missing_projection_is_named(resnet, part):
    absent = f"model.transformer_module.decoder.layers.3.self_attn.{part}.weight"
    short = {"q_proj": "query", "k_proj": "key", "v_proj": "value"}[part]
    state = {name: tensor for name, tensor in resnet.file.items() if name != absent}
    with pytest.raises(NameTableError, match=rf"no .*layers\.3\.self_attention\.projection\.{short}\.weight"):
        from_hugging_face(state)


@pytest.mark.parametrize(
    ("convert", "name"),
    [
        (from_hugging_face, "model.transformer_module.decoder.unheard_of"),
        (to_hugging_face, "pixel_decoder.fusion.norm.weight"),
        (to_hugging_face, "piloting.class_embedding.weight"),
    ],
)
def test_an_unknown_tensor_is_named(convert, name):
    with pytest.raises(NameTableError, match=name):
        convert({name: torch.zeros(1)})
