"""Networks with more classes that start from checkpoints with fewer."""

import copy
import functools

import pytest
import torch

from src.checkpoints.files import CheckpointError, read, write
from src.checkpoints.growth import SHARE, carry_weights, grow_weights
from src.checkpoints.names import NameTableError
from src.checkpoints.network import build_network
from src.config import compose_config, to_plain

SMALL = [
    "model/size=nano",
    "model.size.width=16",
    "model.size.query_width=32",
    "model.size.feedforward=32",
    "run_dir=.",
]
HEAD = "transformer_decoder.class_head."
GROWN = ("background", "person", "building", "tree", "ground", "sky", "water", "car", "bus")


@functools.cache
def made(*overrides):
    config = to_plain(compose_config("train", [*SMALL, *overrides]))
    torch.manual_seed(len(overrides))
    return config, build_network(config)


def network_of(*overrides):
    return copy.deepcopy(made(*overrides))


@pytest.fixture(scope="module", params=["massformer", "mpformer"])
def experiment(request):
    return f"experiment={request.param}"


@pytest.fixture(scope="module")
def checkpoint(experiment, tmp_path_factory):
    path = tmp_path_factory.mktemp("base") / "base.ckpt"
    config, network = network_of(experiment)
    write(path, config, network.state_dict())
    return read(path)


@pytest.fixture
def grown(experiment):
    return network_of(experiment, "+data.classes.car=[1,2,3]", "+data.classes.bus=[4,5,6]")[1]


def test_rows_move_with_their_classes_and_the_last_one_stays_last(checkpoint, grown):
    rows = grow_weights(grown, checkpoint, GROWN, "background")
    old, new = checkpoint.state[HEAD + "weight"], grown.state_dict()[HEAD + "weight"]
    assert torch.equal(new[:7], old[:7])
    assert torch.equal(new[9], old[7])  # "no object"
    assert torch.equal(new[7], old[0])
    assert torch.equal(new[8], old[0])
    bias, before = grown.state_dict()[HEAD + "bias"], checkpoint.state[HEAD + "bias"]
    assert torch.equal(bias[1:7], before[1:7])
    assert bias[9] == before[7]
    named = {(row.row, row.name, row.start) for row in rows}
    assert named == {(7, "car", "background"), (8, "bus", "background")}
    assert {row.tensor for row in rows} >= {HEAD + "weight", HEAD + "bias"}


def test_everything_else_is_carried_over_and_the_checkpoint_is_left_alone(checkpoint, grown):
    before = {name: tensor.clone() for name, tensor in checkpoint.state.items()}
    touched = {row.tensor for row in grow_weights(grown, checkpoint, GROWN, "background")}
    for name, tensor in grown.state_dict().items():
        assert torch.equal(checkpoint.state[name], before[name])
        if name not in touched:
            assert torch.equal(tensor, before[name]), name
    assert ("piloting.class_embedding.weight" in touched) == (grown.piloting is not None)


def test_probabilities_of_known_classes_and_no_object_stay(checkpoint, grown, experiment):
    grow_weights(grown, checkpoint, GROWN, "background")
    base = network_of(experiment)[1]
    base.load_state_dict(checkpoint.state)
    images = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        old, new = (net.eval()(images).class_logits.softmax(-1) for net in (base, grown))
    torch.testing.assert_close(new[..., 1:7], old[..., 1:7])
    torch.testing.assert_close(new[..., 9], old[..., 7])
    torch.testing.assert_close(new[..., 7], SHARE * old[..., 0])
    torch.testing.assert_close(new[..., [0, 7, 8]].sum(-1), old[..., 0])


def test_a_checkpoint_that_has_the_classes_already_is_loaded_as_it_is(tmp_path):
    config, network = network_of()
    write(tmp_path / "a.ckpt", config, network.state_dict())
    other = network_of("seed=1")[1]
    assert grow_weights(other, read(tmp_path / "a.ckpt"), GROWN[:7], "background") == []
    state = network.state_dict()
    for name, tensor in other.state_dict().items():
        assert torch.equal(tensor, state[name])


def test_rows_follow_the_names_of_their_classes_where_nothing_is_new(checkpoint, experiment):
    network = network_of(experiment, "seed=1")[1]
    assert grow_weights(network, checkpoint, GROWN[6::-1], "background") == []
    for part in ("weight", "bias"):
        found, before = network.state_dict()[HEAD + part], checkpoint.state[HEAD + part]
        assert torch.equal(found[:7], before[:7].flip(0))
        assert torch.equal(found[7], before[7])
    if network.piloting is not None:
        found = network.state_dict()["piloting.class_embedding.weight"]
        assert torch.equal(found, checkpoint.state["piloting.class_embedding.weight"].flip(0))


def test_without_others_a_new_row_starts_from_no_object(checkpoint, grown):
    rows = grow_weights(grown, checkpoint, GROWN, "ignore")
    weight, old = grown.state_dict()[HEAD + "weight"], checkpoint.state[HEAD + "weight"]
    assert torch.equal(weight[7], old[7])
    assert torch.equal(weight[9], old[7])
    assert rows[0].start == "no object"


def test_a_network_cannot_shrink_or_change(checkpoint, grown):
    with pytest.raises(CheckpointError, match=r"knows water, which data\.classes .* does not have"):
        grow_weights(grown, checkpoint, [*GROWN[:6], "lake", "car", "bus"], "background")
    with pytest.raises(CheckpointError, match=r"data\.others=car is no class"):
        grow_weights(grown, checkpoint, GROWN, "car")
    _, wider = network_of("+data.classes.car=[1,2,3]", "+data.classes.bus=[4,5,6]", "model.size.width=24")
    with pytest.raises(NameTableError, match="does not fit this network"):
        grow_weights(wider, checkpoint, GROWN, "background")


def test_rows_follow_their_names_into_other_classes(checkpoint, experiment):
    ours = ("water", "car", "person")
    _, network = network_of(
        experiment,
        *(f"~data.classes.{n}" for n in checkpoint.classes if n not in ours),
        "+data.classes.car=[1,2,3]",
    )
    classes = ("person", "water", "car")
    fresh = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    assert carry_weights(network, checkpoint, classes) == (
        ["car"],
        [name for name in checkpoint.classes if name not in classes],
    )
    known = list(checkpoint.classes)
    for part in ("weight", "bias"):
        theirs, now = checkpoint.state[HEAD + part], network.state_dict()[HEAD + part]
        assert torch.equal(now[[0, 1, 3]], theirs[[known.index("person"), known.index("water"), 7]])
        assert torch.equal(now[2], fresh[HEAD + part][2])
    touched = {HEAD + "weight", HEAD + "bias", "piloting.class_embedding.weight"}
    for name, tensor in network.state_dict().items():
        if name not in touched:
            assert torch.equal(tensor, checkpoint.state[name]), name


def test_many_new_classes_leave_others_its_half(checkpoint, experiment):
    new = [f"n{index}" for index in range(120)]
    _, network = network_of(experiment, *(f"+data.classes.{name}=[1,2,3]" for name in new))
    before = checkpoint.state[HEAD + "bias"][0]
    grow_weights(network, checkpoint, (*checkpoint.classes, *new), "background")
    bias = network.state_dict()[HEAD + "bias"]
    assert torch.isclose((bias[0] - before).exp(), torch.tensor(0.5))
    assert torch.isclose((bias[[0, *range(7, 127)]] - before).exp().sum(), torch.tensor(1.0))
