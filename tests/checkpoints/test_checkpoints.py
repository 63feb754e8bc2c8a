"""Checkpoint files: what is read, what is refused, and with which message."""

import contextlib
import os
import pickle
import stat
import sys
import types

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from src.checkpoints import CheckpointError, load
from src.checkpoints.files import read, read_file, read_tensors, write
from src.checkpoints.names import NameTableError
from src.checkpoints.network import build_network, load_weights
from src.config import compose_config, to_plain
from src.errors import UserError
from src.structures import MaskPrediction


@pytest.fixture(scope="module")
def config():
    overrides = ["model/size=nano", "model.size.width=16", "model.size.query_width=32", "run_dir=."]
    return to_plain(compose_config("train", [*overrides, "model.size.feedforward=32"]))


@pytest.fixture(scope="module")
def network(config):
    torch.manual_seed(0)
    return build_network(config).eval()


@pytest.fixture
def checkpoint(config, network, tmp_path):
    write(tmp_path / "runs" / "a.ckpt", config, network.state_dict())
    return tmp_path / "runs" / "a.ckpt"


class NotATensor:
    """Stands for the objects that other programs pickle."""


class Attack:
    """What a stranger could hide in a pickle."""

    def __reduce__(self):
        return os.mkdir, ("owned",)


def test_a_written_network_is_loaded_and_answers_the_same(checkpoint, network):
    loaded = load(checkpoint)
    assert not loaded.training
    images = torch.randn(1, 3, 65, 97)
    with torch.no_grad():
        ours, theirs = network(images), loaded(images)
    assert isinstance(theirs, MaskPrediction)
    assert theirs.class_logits.shape == (1, 20, 8)
    assert theirs.mask_logits.shape == (1, 20, 33, 49)
    assert theirs.edge_logits.shape == (1, 1, 33, 49)
    for a, b in zip(ours, theirs, strict=True):
        assert torch.equal(a, b)


def test_reading_gives_configuration_classes_and_names_without_prefix(checkpoint, config, network):
    content = read(checkpoint)
    assert content.config == config
    assert list(content.classes)[:2] == ["background", "person"]
    assert set(content.state) == set(network.state_dict())
    assert content.path == checkpoint


def test_tensors_outside_of_the_network_are_left_out(config, network, tmp_path):
    state = {f"network.{name}": t for name, t in network.state_dict().items()}
    torch.save(
        {"state_dict": {**state, "criterion.x": torch.zeros(1)}, "config": config}, tmp_path / "a.ckpt"
    )
    assert set(read(tmp_path / "a.ckpt").state) == set(network.state_dict())


def test_writing_replaces_a_file_whole_and_leaves_nothing_else(checkpoint, config, network):
    write(checkpoint, config, network.state_dict())
    assert [file.name for file in checkpoint.parent.iterdir()] == ["a.ckpt"]
    assert stat.S_IMODE(checkpoint.stat().st_mode) & stat.S_IRUSR


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(CheckpointError, match=r"none\.ckpt: no such checkpoint file"):
        load(tmp_path / "none.ckpt")


@pytest.mark.parametrize("content", [b"", b"not a checkpoint at all", b"hello world", b"PK\x03\x04 cut off"])
def test_files_that_are_no_checkpoints_are_named(tmp_path, content):
    path = tmp_path / "broken.ckpt"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"broken\.ckpt"):
        load(path)


@pytest.mark.parametrize("share", [0.1, 0.5, 0.999])
def test_half_a_checkpoint_is_an_error(checkpoint, share):
    whole = checkpoint.read_bytes()
    checkpoint.write_bytes(whole[: int(len(whole) * share)])
    with pytest.raises(CheckpointError, match=r"a\.ckpt"):
        load(checkpoint)


@pytest.mark.parametrize("content", [NotATensor(), Attack(), pickle.loads])
def test_unsafe_files_are_refused_with_the_way_out(tmp_path, content, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"state_dict": {}, "message_hub": content}, tmp_path / "unsafe.pth")
    with pytest.raises(
        CheckpointError, match=r"unsafe\.pth cannot be read safely.*, [\w.]+ for one.*weights_only=False"
    ):
        read_file(tmp_path / "unsafe.pth")
    assert not (tmp_path / "owned").exists()


def test_other_programs_checkpoints_point_to_the_converter(tmp_path):
    torch.save({"state_dict": {"backbone.conv1.weight": torch.zeros(1)}, "meta": {}}, tmp_path / "a.pth")
    with pytest.raises(CheckpointError, match=r"no 'config'\. .*convert_checkpoint\.py"):
        load(tmp_path / "a.pth")
    torch.save([1, 2], tmp_path / "list.pth")
    with pytest.raises(CheckpointError, match="holds a list, not a checkpoint"):
        load(tmp_path / "list.pth")


@pytest.mark.parametrize(
    "target",
    [
        "os.system",
        "builtins.eval",
        "src.config.compose_config",
        "torch.nn.Linear",
        "srcXmodels.a",
        "src.models",
    ],
)
def test_a_configuration_can_name_parts_of_networks_only(config, target):
    broken = {"model": {"network": {**config["model"]["network"], "piloting": {"_target_": target}}}}
    with pytest.raises(CheckpointError, match="not part of a network"):
        build_network(broken)


@pytest.mark.parametrize(
    "target", ["src.models.backbone.timm.create_model", "src.models.segmenter.count_parameters"]
)
def test_functions_reachable_through_the_networks_modules_are_refused(config, target):
    broken = {"model": {"network": {**config["model"]["network"], "piloting": {"_target_": target}}}}
    with pytest.raises(CheckpointError, match="names src"):
        build_network(broken)


def test_a_part_that_this_version_lacks_is_named(config):
    broken = {"model": {"network": {**config["model"]["network"], "_target_": "src.models.segmenter.Other"}}}
    with pytest.raises(
        CheckpointError, match=r"src\.models\.segmenter\.Other, which this version does not have"
    ):
        build_network(broken)


def test_weights_of_another_architecture_or_number_of_classes_are_refused(checkpoint, config):
    other = to_plain(compose_config("train", ["model/size=nano", "run_dir=.", "+data.classes.car=[1,2,3]"]))
    with pytest.raises(NameTableError, match=r"a\.ckpt does not fit this network.*shapes differ"):
        load_weights(build_network(other), read(checkpoint))


def test_building_does_not_fetch_pretrained_weights(config, monkeypatch):
    weights = [build_network(config).state_dict()["backbone.encoder.conv_stem.weight"] for _ in range(2)]
    assert not torch.equal(*weights)  # random
    monkeypatch.setattr(
        "src.models.backbone.load_packaged_weights", lambda *_: pytest.fail("weights fetched")
    )
    parts = config["model"]["network"]
    hidden = {"model": {"network": {**parts, "piloting": {**parts["backbone"], "weights": "package"}}}}
    assert build_network(hidden).piloting is not None


def broken_configurations():
    """Changes of a configuration's network that no program of this project writes, by name."""

    def change(part, **values):
        return lambda network: {**network, part: {**network[part], **values}}

    return {
        "missing": lambda network: None,
        "list": lambda network: [1],
        "text": lambda network: "network",
        "no target": lambda network: {key: value for key, value in network.items() if key != "_target_"},
        "target is a number": lambda network: {**network, "_target_": 3},
        "no backbone": lambda network: {key: value for key, value in network.items() if key != "backbone"},
        "backbone is a list": lambda network: {**network, "backbone": [1]},
        "unknown argument": change("transformer_decoder", colour="red"),
        "unknown argument of a factory": change("pixel_decoder", colour="red"),
        "wrong type": change("transformer_decoder", num_layers="three"),
        "weights from a file": change("backbone", checkpoint_path="other.pth"),
    }


@pytest.mark.parametrize("name", broken_configurations())
def test_configurations_that_do_not_fit_are_told(config, name):
    network = broken_configurations()[name](config["model"]["network"])
    with pytest.raises(UserError):
        build_network({"model": {"network": network}})
    with pytest.raises(CheckpointError, match="does not describe a network"):
        build_network({"model": network and [network]})


def change_tensor(content, value):
    content["state_dict"]["network.transformer_decoder.class_head.weight"] = value


BROKEN_CONTENTS = {
    "state is a list": (lambda content: content.update(state_dict=[1]), "does not hold names with tensors"),
    "no state": (lambda content: content.pop("state_dict"), "does not hold names with tensors"),
    "a name is a number": (
        lambda content: content["state_dict"].update({3: torch.zeros(1)}),
        "does not hold names with tensors",
    ),
    "a number": (lambda content: change_tensor(content, 3), "does not hold names with tensors"),
    "sparse": (
        lambda content: change_tensor(content, torch.zeros(8, 32).to_sparse()),
        "does not hold names with tensors",
    ),
    "meta": (
        lambda content: change_tensor(content, torch.zeros(8, 32, device="meta")),
        "does not hold names with tensors",
    ),
    "integers": (
        lambda content: change_tensor(content, torch.zeros(8, 32, dtype=torch.int64)),
        "1 tensors hold other numbers",
    ),
    "complex": (
        lambda content: change_tensor(content, torch.zeros(8, 32, dtype=torch.complex64)),
        "1 tensors hold other numbers",
    ),
    "nan": (lambda content: change_tensor(content, torch.full((8, 32), torch.nan)), "1 of .* hold NaN"),
}


@pytest.mark.filterwarnings("ignore:Validating sparse")
@pytest.mark.parametrize("name", BROKEN_CONTENTS)
def test_contents_that_are_no_weights_are_told(checkpoint, name):
    spoil, message = BROKEN_CONTENTS[name]
    content = read_file(checkpoint)
    spoil(content)
    torch.save(content, checkpoint)
    with pytest.raises(UserError, match=rf"a\.ckpt.*{message}"):
        load(checkpoint)


def test_classes_that_the_configuration_does_not_name_are_told(checkpoint, config, network):
    write(checkpoint, {"model": config["model"]}, network.state_dict())
    assert load(checkpoint)  # the network itself is complete
    with pytest.raises(CheckpointError, match=r"a\.ckpt: its configuration does not name the classes"):
        _ = read(checkpoint).classes


@pytest.mark.parametrize("wrapped", [True, False])
@pytest.mark.parametrize("prefix", ["", "module."])
def test_tensors_of_any_program(tmp_path, wrapped, prefix):
    state = {f"{prefix}a.weight": torch.ones(2), f"{prefix}b": torch.zeros(3)}
    torch.save({"meta": {"epoch": 1}, "state_dict": state} if wrapped else state, tmp_path / "a.pth")
    save_file(state, tmp_path / "a.safetensors")
    for file in ("a.pth", "a.safetensors"):
        tensors = read_tensors(tmp_path / file)
        assert set(tensors) == {"a.weight", "b"}
        assert torch.equal(tensors["a.weight"], torch.ones(2))


@pytest.mark.parametrize(
    "content", [{}, {"state_dict": {}}, {"state_dict": 3}, {"epoch": 1, "w": torch.ones(1)}]
)
def test_files_without_tensors_are_refused(tmp_path, content):
    torch.save(content, tmp_path / "a.pth")
    with pytest.raises(CheckpointError, match=r"a\.pth holds no state dict"):
        read_tensors(tmp_path / "a.pth")


def test_broken_and_missing_safetensors_are_refused(tmp_path):
    (tmp_path / "a.safetensors").write_bytes(b"\x08\0\0\0\0\0\0\0{broken}")
    with pytest.raises(CheckpointError, match=r"a\.safetensors is not a safetensors file"):
        read_tensors(tmp_path / "a.safetensors")
    with pytest.raises(CheckpointError, match=r"b\.safetensors: no such checkpoint file"):
        read_tensors(tmp_path / "b.safetensors")


def test_objects_of_other_programs_beside_the_weights_are_passed_over(tmp_path, monkeypatch):
    """As mmengine's history in the files that its training writes."""
    module = types.ModuleType("mmengine_like")
    history = type("History", (), {"__module__": "mmengine_like"})
    module.History = history
    monkeypatch.setitem(sys.modules, "mmengine_like", module)
    log = history()
    log.values = np.arange(3)
    weight = torch.randn(2)
    torch.save(
        {"meta": {"iter": 3}, "hub": {"loss": log}, "state_dict": {"a": weight}}, tmp_path / "iter.pth"
    )
    monkeypatch.delitem(sys.modules, "mmengine_like")
    assert torch.equal(read_tensors(tmp_path / "iter.pth")["a"], weight)
    with pytest.raises(CheckpointError, match="cannot be read safely"):
        read_file(tmp_path / "iter.pth")


def test_passing_over_runs_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"hub": Attack(), "state_dict": {"a": torch.zeros(1)}}, "bad.pth")
    with contextlib.suppress(CheckpointError):
        read_tensors("bad.pth")
    assert not (tmp_path / "owned").exists()
