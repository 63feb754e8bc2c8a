"""scripts/convert_checkpoint.py: architectures, classes, files and refusals."""

import pytest
import torch

from scripts.convert_checkpoint import main, network_config, numbered_classes
from src.checkpoints import load
from src.checkpoints.files import read, read_tensors, write
from src.checkpoints.formats import FORMATS
from src.checkpoints.names import NameTableError
from src.checkpoints.network import build_network
from src.config import compose_config, to_plain

RELEASE = FORMATS["massformer-release"]
SMALL = (
    "model/size=lite",
    "model.size.width=16",
    "model.size.query_width=32",
    "model.size.feedforward=48",
    "model.size.num_queries=9",
    "model.size.num_layers=4",
    "recipe=paper",
)


def config_of(*overrides):
    return to_plain(compose_config("train", [*overrides, "run_dir=."]))


def shapes(network):
    return {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}


def build_on_meta(config):
    with torch.device("meta"):
        return build_network(config)


@pytest.fixture(scope="module")
def small():
    """Configuration and weights of a small network with five classes."""
    config = config_of(*SMALL)
    classes = {name: config["data"]["classes"][name] for name in list(config["data"]["classes"])[:5]}
    config["data"]["classes"] = classes
    config["model"]["network"]["transformer_decoder"]["num_classes"] = 5
    torch.manual_seed(0)
    return config, build_network(config).eval()


@pytest.fixture
def ours(small, tmp_path):
    config, network = small
    write(tmp_path / "ours.ckpt", config, network.state_dict())
    return tmp_path / "ours.ckpt"


@pytest.fixture
def release(ours, tmp_path, capsys):
    main(["--to", "massformer-release", str(ours), str(tmp_path / "release.pth")])
    assert "tensors" in capsys.readouterr().out
    return tmp_path / "release.pth"


def test_there_and_back_gives_the_same_network(small, release, tmp_path):
    main(["--from", "massformer-release", str(release), str(tmp_path / "again.ckpt")])
    _, network = small
    again = load(tmp_path / "again.ckpt")
    for name, tensor in network.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor), name
    images = torch.randn(1, 3, 96, 64)
    with torch.no_grad():
        for a, b in zip(network(images), again(images), strict=True):
            assert torch.equal(a, b)


def test_safetensors_hold_the_same_tensors(ours, release, tmp_path):
    main(["--to", "massformer-release", str(ours), str(tmp_path / "release.safetensors")])
    expected = torch.load(release, weights_only=True)["state_dict"]
    found = read_tensors(tmp_path / "release.safetensors")
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())


def test_the_released_file_has_the_released_names_and_class_names(small, release):
    content = torch.load(release, weights_only=True)
    names = set(content["state_dict"])
    assert {"backbone.conv1.weight", "decode_head.cls_embed.bias", "decode_head.query_feat.weight"} <= names
    assert all(name.startswith(("backbone.", "decode_head.")) for name in names)
    meta = content["meta"]["dataset_meta"]
    assert list(meta["classes"]) == list(small[0]["data"]["classes"])
    assert len(meta["palette"]) == 5


def test_a_checkpoint_with_seven_classes_is_taken_for_mass13k(tmp_path):
    config = config_of(*SMALL)
    write(tmp_path / "a.ckpt", config, build_network(config).state_dict())
    main(["--to", "massformer-release", str(tmp_path / "a.ckpt"), str(tmp_path / "a.pth")])
    main(["--from", "massformer-release", str(tmp_path / "a.pth"), str(tmp_path / "b.ckpt")])
    assert read(tmp_path / "b.ckpt").classes == config["data"]["classes"]


def test_other_numbers_of_classes_get_numbers_and_distinct_colours(release, tmp_path):
    main(["--from", "massformer-release", str(release), str(tmp_path / "b.ckpt")])
    assert list(read(tmp_path / "b.ckpt").classes) == [f"class_{i}" for i in range(5)]
    colours = numbered_classes(150)
    assert len({tuple(colour) for colour in colours.values()}) == 150
    assert all(0 <= value <= 255 for colour in colours.values() for value in colour)


def test_a_class_list_of_another_length_is_refused(release, tmp_path, capsys):
    command = ["--from", "massformer-release", str(release), str(tmp_path / "b.ckpt"), "--classes", "mass13k"]
    with pytest.raises(SystemExit):
        main(command)
    assert "5 classes, but conf/data/classes/mass13k.yaml has 7" in capsys.readouterr().err
    assert not (tmp_path / "b.ckpt").exists()


@pytest.mark.parametrize(
    "backbone",
    ["resnet18", "resnet34", "resnet50", "resnet101", "resnet152", "wide_resnet50_2", "wide_resnet101_2"],
)
def test_every_resnet_is_recognised_by_its_shapes(backbone):
    network = build_on_meta(config_of("recipe=paper", f"model.backbone.name={backbone}.tv_in1k"))
    theirs = RELEASE.to_theirs(network.state_dict())
    overrides = RELEASE.overrides(RELEASE.to_ours(theirs))
    deduced = network_config(overrides, 7)
    assert deduced["model"]["backbone"]["name"].split(".")[0] == backbone
    assert shapes(build_on_meta(deduced)) == shapes(network)


def test_widths_queries_and_layers_are_recognised():
    network = build_on_meta(config_of(*SMALL, "+model.pixel_decoder.context.feedforward=80"))
    deduced = network_config(RELEASE.overrides(network.state_dict()), 7)
    assert shapes(build_on_meta(deduced)) == shapes(network)
    assert deduced["model"]["size"] == {
        "width": 16,
        "query_width": 32,
        "feedforward": 48,
        "num_queries": 9,
        "num_layers": 4,
    }


@pytest.mark.parametrize(
    ("overrides", "complaint"),
    [
        (("experiment=ablation_baseline",), "no place in the name table"),
        (("experiment=ablation_lse",), "tensors are missing: pixel_decoder.fusion"),
        (("model/backbone=efficientnet_lite0",), "layer1.0.conv1.weight is missing"),
        (("recipe.pooled_norm=group",), "tensors are missing"),
    ],
)
def test_networks_that_the_release_cannot_build_are_not_exported(tmp_path, capsys, overrides, complaint):
    config = config_of(*SMALL, *overrides)
    write(tmp_path / "a.ckpt", config, build_network(config).state_dict())
    with pytest.raises(SystemExit):
        main(["--to", "massformer-release", str(tmp_path / "a.ckpt"), str(tmp_path / "a.pth")])
    assert complaint in capsys.readouterr().err
    assert not (tmp_path / "a.pth").exists()


def test_a_resnet_nobody_knows_is_refused(small):
    state = dict(small[1].state_dict())
    state["backbone.encoder.layer3.9.conv1.weight"] = torch.zeros(1)
    with pytest.raises(NameTableError, match=r"no ResNet known here: stages of \[2, 2, 3, 2\] basic blocks"):
        RELEASE.overrides(state)


def test_an_existing_file_is_kept_without_force(release, tmp_path, capsys):
    target = tmp_path / "b.ckpt"
    target.write_text("precious")
    with pytest.raises(SystemExit) as stop:
        main(["--from", "massformer-release", str(release), str(target)])
    assert stop.value.code == 1
    assert "exists already; give --force" in capsys.readouterr().err
    assert target.read_text() == "precious"
    main(["--from", "massformer-release", str(release), str(target), "--force"])
    assert load(target)


def test_another_format_than_named_is_told(release, tmp_path, capsys):
    with pytest.raises(SystemExit):
        main(["--from", "mask2former-hf", str(release), str(tmp_path / "b.ckpt")])
    said = capsys.readouterr().err
    assert f"{release} does not hold what was expected, a network of Mask2Former" in said
    assert "--from massformer-release" in said
    torch.save({"weight": torch.zeros(2)}, tmp_path / "other.pth")
    with pytest.raises(SystemExit):
        main(["--from", "mask2former-hf", str(tmp_path / "other.pth"), str(tmp_path / "b.ckpt")])
    assert "the names of no format known here" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["--from", "massformer-release", str(release), str(tmp_path)])
    assert "give the file to write" in capsys.readouterr().err


def test_missing_input_and_our_own_checkpoints_are_explained(ours, tmp_path, capsys):
    for source, complaint in (
        (tmp_path / "none.pth", "no such checkpoint file"),
        (ours, "It looks like a checkpoint of this project"),
        (tmp_path, "is a folder"),
    ):
        with pytest.raises(SystemExit):
            main(["--from", "massformer-release", str(source), str(tmp_path / "b.ckpt")])
        assert complaint in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["--to", "massformer-release", str(tmp_path / "none.ckpt"), str(tmp_path / "b.pth")])
    assert "no such checkpoint file" in capsys.readouterr().err
