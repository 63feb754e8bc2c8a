"""Every experiment composes, builds and trains one step; the ladder adds one module at a time."""

import itertools
from pathlib import Path

import pytest
import torch
from hydra.errors import HydraException
from hydra.utils import instantiate

from src.checkpoints.network import build_network
from src.config import CONFIG_DIR, compose_config, to_plain
from src.structures import IGNORE, Targets

EXPERIMENTS = sorted(file.stem for file in Path(CONFIG_DIR, "experiment").glob("*.yaml"))
LADDER = [f"ablation_{name}" for name in ("baseline", "cst", "rfb", "lse", "egf")]
NEW_CATEGORIES = [f"new_category{variant}" for variant in ("", "_naive", "_uniform", "_oracle")]
BACKBONES = ["resnet18", "resnet50", "swin_b", "efficientnet_lite0", "convnext_t_dinov3"]


def compose(*overrides):
    return compose_config("train", [*overrides, "run_dir=."])


def build_on_meta(config):
    with torch.device("meta"):
        return build_network(to_plain(config))


def train_one_step(config, size=(64, 96), batch=2):
    """Build as training does, run forward, loss and backward; returns network and loss terms."""
    torch.manual_seed(0)
    network = build_network(to_plain(config)).train()
    criterion = instantiate(config.loss, _convert_="all")
    images = torch.randint(0, 256, (batch, 3, *size), dtype=torch.uint8)
    labels = torch.zeros(batch, *size, dtype=torch.uint8)
    labels[:, : size[0] // 2], labels[:, :, size[1] // 2 :], labels[:, :4] = 3, 5, IGNORE
    targets = Targets(labels, (torch.rand(labels.shape) > 0.9).to(torch.uint8))
    terms = criterion(network(network.normalise(images), targets), targets)
    sum(terms.values()).backward()
    return network, terms


def check_step(network, terms):
    assert all(term.isfinite() for term in terms.values())
    silent = [n for n, p in network.named_parameters() if p.requires_grad and p.grad is None]
    assert not silent, f"no gradient reaches {silent[:5]}"
    assert all(p.grad.isfinite().all() for p in network.parameters() if p.grad is not None)


SMALL = ("model.size.num_queries=8", "recipe.num_points=64")


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_every_experiment_trains_one_step(experiment):
    config = compose(f"experiment={experiment}", "model/size=nano", "model.size.num_layers=3", *SMALL)
    assert config.name == experiment
    network, terms = train_one_step(config)
    check_step(network, terms)
    edges = experiment in ("massformer", "massformer_lite", "ablation_egf", *NEW_CATEGORIES)
    assert ("loss_edge" in terms) == edges
    assert any(name.startswith("pilot.") for name in terms) == (experiment == "mpformer")


@pytest.mark.parametrize("size", ["full", "lite", "nano"])
@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_every_size_combines_with_every_experiment(experiment, size):
    config = compose(f"experiment={experiment}", f"model/size={size}")
    backbone = {"full": "resnet50.tv_in1k", "lite": "resnet18.tv_in1k", "nano": "tf_efficientnet_lite0"}[size]
    assert config.model.backbone.name == backbone
    width = {"full": 256, "lite": 128, "nano": 128}[size]
    network = build_on_meta(config)
    assert network.transformer_decoder.query_features.weight.shape[1] == width
    classes = 8 if experiment in NEW_CATEGORIES else 7
    assert network.transformer_decoder.class_head.out_features == classes + 1


@pytest.mark.parametrize("backbone", BACKBONES)
def test_every_backbone_trains_one_step(backbone):
    size = (
        "model.size.width=16",
        "model.size.query_width=32",
        "model.size.feedforward=32",
        "model.size.num_layers=3",
    )
    overrides = ("experiment=massformer", f"model/backbone={backbone}", "model.backbone.weights=none")
    network, terms = train_one_step(compose(*overrides, *size, *SMALL), size=(64, 68))
    check_step(network, terms)


def test_backbones_of_the_configuration_are_all_tested():
    assert {file.stem for file in Path(CONFIG_DIR, "model", "backbone").glob("*.yaml")} == set(BACKBONES)


@pytest.mark.parametrize("experiment", ["massformer", "mask2former"])
def test_the_published_swin_comparison_builds(experiment):
    network = build_on_meta(compose(f"experiment={experiment}", "model/backbone=swin_b"))
    assert network.backbone.channels == (128, 256, 512, 1024)


def names_below(network, prefix):
    return {name for name in network.state_dict() if name.startswith(prefix)}


@pytest.mark.parametrize(
    ("lower", "upper", "slot"),
    [
        ("ablation_baseline", "ablation_cst", "context"),
        ("ablation_cst", "ablation_rfb", "scale"),
        ("ablation_rfb", "ablation_lse", "detail"),
        ("ablation_lse", "ablation_egf", "fusion"),
    ],
)
def test_each_rung_changes_its_own_slot_alone(lower, upper, slot):
    below, above = (build_on_meta(compose(f"experiment={rung}")) for rung in (lower, upper))
    prefix = f"pixel_decoder.{slot}."
    assert names_below(below, prefix) != names_below(above, prefix)
    rest = [
        {name: tuple(t.shape) for name, t in network.state_dict().items() if not name.startswith(prefix)}
        for network in (below, above)
    ]
    assert rest[0] == rest[1]
    kinds = [
        {name: type(module).__name__ for name, module in network.pixel_decoder.named_children()}
        for network in (below, above)
    ]
    changed = {name for name in kinds[0] if kinds[0][name] != kinds[1][name]}
    assert changed == {slot}


def test_the_last_rung_is_the_full_model():
    last, full = (to_plain(compose(f"experiment={name}")) for name in ("ablation_egf", "massformer"))
    assert last["model"] == full["model"]
    assert last["loss"] == full["loss"]


def test_variants_of_new_categories_differ_in_one_setting():
    plain = {name: to_plain(compose(f"experiment={name}")) for name in NEW_CATEGORIES}
    full = plain.pop("new_category")
    assert (full["loss"]["pseudo"], full["data"]["supervision"]) == ("reversed", "pseudo")
    for name, change in (
        ("new_category_naive", {"loss": {**full["loss"], "pseudo": "precise"}}),
        ("new_category_uniform", {"loss": {**full["loss"], "pseudo": "uniform"}}),
        ("new_category_oracle", {"data": {**full["data"], "supervision": "precise"}}),
    ):
        assert plain[name] == {**full, **change, "name": name, "logger": plain[name]["logger"]}


def test_new_classes_come_after_the_known_ones():
    config = compose("experiment=new_category", "data.new_classes=[boat,bus]")
    assert list(config.data.classes)[6:] == ["water", "boat", "bus"]
    assert len({tuple(colour) for colour in config.data.classes.values()}) == 9
    assert config.model.num_classes == 9


def test_rung_files_differ_in_the_slot_line_alone():
    files = [Path(CONFIG_DIR, "experiment", f"{name}.yaml").read_text().splitlines() for name in LADDER]
    for lower, upper in itertools.pairwise(files):
        slots = [
            (a, b) for a, b in zip(lower, upper, strict=True) if a != b and not a.startswith(("#", "name:"))
        ]
        assert len(slots) == 1
        assert slots[0][0].endswith(": plain")


@pytest.mark.parametrize(
    ("override", "complaint"),
    [
        ("experiment=masformer", "experiment/masformer"),
        ("model/backbone=resnet", "model/backbone/resnet"),
        ("model.size.widht=3", "widht"),
        ("recipe.optimiser.learning_rate=1", "learning_rate"),
        ("unheard_of=1", "unheard_of"),
    ],
)
def test_an_unknown_override_is_named(override, complaint):
    with pytest.raises(HydraException, match=complaint):
        compose(override)


def test_unknown_choices_list_the_known_ones():
    with pytest.raises(HydraException, match=r"(?s)Available options in 'model/backbone'.*resnet50.*swin_b"):
        compose("model/backbone=resnet")


def test_the_number_of_classes_follows_the_data():
    network = build_on_meta(compose("model/size=nano", "+data.classes.car=[1,2,3]"))
    assert network.transformer_decoder.class_head.out_features == 9


def test_every_configuration_is_plain_after_resolution():
    def check(value):
        if isinstance(value, dict):
            assert all(isinstance(key, str | int) for key in value)
            for item in value.values():
                check(item)
        elif isinstance(value, list):
            for item in value:
                check(item)
        else:
            assert value is None or isinstance(value, str | int | float | bool)

    for experiment in EXPERIMENTS:
        check(to_plain(compose(f"experiment={experiment}")))


def test_small_photos_bring_scales_that_can_still_be_chosen() -> None:
    assert min(compose_config("train", ["data=synthetic"]).data.scales) == 0.5
    for data in ("camvid", "camvid_car"):
        assert list(compose_config("train", [f"data={data}"]).data.scales) == [0.75, 1.0, 1.25, 1.5]
        assert list(compose_config("train", [f"data={data}", "recipe.scales=[2]"]).data.scales) == [2]


def test_mask2formers_loss_gives_edges_no_weight():
    assert instantiate(compose("experiment=massformer", "loss=mask2former").loss).edge_weight == 0
    assert instantiate(compose("experiment=massformer").loss).edge_weight == 10
