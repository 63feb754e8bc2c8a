"""The network as training sees it: gradients, recomputation, compiling, overfitting."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from omegaconf import DictConfig

from src.config import build
from src.data.targets import boundary_map
from src.engine.callbacks import SynchronisedNorms
from src.engine.optimisation import Optimisation
from src.inference.whole import predict_whole
from src.models.recomputation import checkpoint_network
from src.structures import Targets


@pytest.mark.slow
def test_overfitting_one_crop_drives_the_loss_below_a_tenth(configure: Callable[..., DictConfig]) -> None:
    config = configure(
        "model.backbone.weights=package", "recipe.num_points=512", "recipe.optimiser.lr=2.0e-3"
    )
    torch.manual_seed(0)
    label = torch.zeros(96, 96, dtype=torch.uint8)  # sky above ground, and a house
    label[:40], label[40:] = 5, 4
    label[20:64, 24:56] = 2
    colours = torch.tensor(list(config.data.classes.values()), dtype=torch.float32)
    image = colours[label.long()] * 0.6 + 40 + 20 * torch.rand(96, 96, 3)
    images = image.clamp(0, 255).byte().permute(2, 0, 1)[None].repeat(2, 1, 1, 1)
    boundary = torch.from_numpy(boundary_map(label.numpy()))
    targets = Targets(label[None].repeat(2, 1, 1), boundary[None].repeat(2, 1, 1))

    network, criterion = build(config.model.network).train(), build(config.loss)
    optimisation = Optimisation(**config.recipe.optimiser)
    optimiser = optimisation.optimiser(network)
    losses = []
    for _ in range(160):
        loss = torch.stack(list(criterion(network(network.normalise(images)), targets).values())).sum()
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimiser.step()
        losses.append(float(loss.detach()))
    assert min(losses[-10:]) < losses[0] / 10, losses[::10]


@pytest.fixture
def fresh_compiler() -> None:
    """Without what other shapes have taught it: shapes that vary take it many times as long."""
    torch.compiler.reset()


def gradients_of(network: torch.nn.Module, *outputs: str) -> dict[str, torch.Tensor]:
    """Gradients of the mean squares of the last prediction's outputs and of its edges."""
    prediction = network(torch.randn(2, 3, 64, 64))
    values = [prediction.edge_logits, *(getattr(prediction.layers[-1], name) for name in outputs)]
    torch.stack([value.square().mean() for value in values]).sum().backward()
    return {name: p.grad for name, p in network.named_parameters() if p.grad is not None}


def test_recomputed_activations_change_neither_gradients_nor_statistics(
    configure: Callable[..., DictConfig],
) -> None:
    config = configure()
    results, kept = [], []
    for recompute in (False, True):
        torch.manual_seed(0)
        network = build(config.model.network).train()
        if recompute:
            checkpoint_network(network)
        own = {tensor.untyped_storage()._cdata for tensor in network.parameters()}
        saved: dict[int, torch.UntypedStorage] = {}

        def keep(x: torch.Tensor, saved: dict[int, torch.UntypedStorage] = saved) -> torch.Tensor:
            saved[x.untyped_storage()._cdata] = x.untyped_storage()
            return x

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
            results.append((gradients_of(network, "mask_logits"), dict(network.named_buffers())))
        kept.append(sum(storage.nbytes() for key, storage in saved.items() if key not in own))
    assert kept[1] < 0.6 * kept[0]
    for plain, recomputed in zip(*results, strict=True):
        assert plain.keys() == recomputed.keys()
        for name, tensor in plain.items():
            torch.testing.assert_close(tensor, recomputed[name], msg=name)


@pytest.mark.slow
def test_recomputation_in_a_compiled_network(
    configure: Callable[..., DictConfig], fresh_compiler: None
) -> None:
    config = configure("model/size=lite", "recipe.pooled_norm=frozen")
    gradients = []
    for compiled in (False, True):
        torch.manual_seed(0)
        network = build(config.model.network).train()
        if compiled:
            checkpoint_network(network)
            network.compile(backend="aot_eager")
        gradients.append(gradients_of(network, "mask_logits", "class_logits"))
    plain, recomputed = gradients
    assert plain.keys() == recomputed.keys()
    largest = max(gradient.norm() for gradient in plain.values())
    # compiling rounds otherwise, and some gradients are nothing but rounding
    for name, gradient in plain.items():
        assert (recomputed[name] - gradient).norm() < 1e-2 * gradient.norm() + 1e-4 * largest, name


@pytest.mark.parametrize(("norm", "size"), [("frozen", "lite"), ("batch", "lite"), ("batch", "nano")])
def test_synchronised_norms_keep_their_kind(
    configure: Callable[..., DictConfig], norm: str, size: str
) -> None:
    """Lightning replaces norms after everything else; the stem is recomputed with those in their places.

    Those of the nano model's encoder hold the activations too.
    """
    config = configure(
        f"model/size={size}", f"recipe.pooled_norm={norm}", "recipe.freeze_norm_statistics=true"
    )
    network = build(config.model.network)
    checkpoint_network(network)
    plain = copy.deepcopy(network).train()
    network = SynchronisedNorms().apply(network).train()
    trains = {
        name: module.training
        for name, module in network.named_modules()
        if isinstance(module, torch.nn.SyncBatchNorm)
    }
    assert trains
    assert not any(training for name, training in trains.items() if name.startswith("backbone."))
    assert any(name.startswith("pixel_decoder.global_context") for name in trains) == (norm == "batch")
    image = torch.randn(1, 3, 64, 96)
    for ours, theirs in zip(network.backbone(image), plain.backbone(image), strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("experiment", ["massformer", "ablation_lse", "mask2former"])
def test_synchronised_norms_predict_the_same(configure: Callable[..., DictConfig], experiment: str) -> None:
    """As validation in a run over several devices does."""
    torch.manual_seed(0)
    network = build(configure(f"experiment={experiment}").model.network)
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(module.running_mean, -0.5, 0.5)
            torch.nn.init.uniform_(module.running_var, 0.5, 2)
    synchronised = SynchronisedNorms().apply(copy.deepcopy(network)).eval()
    assert any(isinstance(module, torch.nn.SyncBatchNorm) for module in synchronised.modules())
    image = torch.randint(0, 256, (3, 96, 128), dtype=torch.uint8)
    found, expected = (
        list(predict_whole(net, image).bands((96, 128))) for net in (synchronised, network.eval())
    )
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)


@pytest.mark.slow
def test_a_compiled_network_agrees(configure: Callable[..., DictConfig], fresh_compiler: None) -> None:
    torch.manual_seed(0)
    network = build(configure().model.network).eval()
    images = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        expected = network(images)
        network.compile(backend="aot_eager")
        actual = network(images)
    torch.testing.assert_close(actual.mask_logits, expected.mask_logits, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(actual.class_logits, expected.class_logits, atol=1e-4, rtol=1e-4)
