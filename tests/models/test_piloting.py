"""Mask-piloted queries: what they are made of, that nothing leaks from them, and their loss."""

from __future__ import annotations

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from src.losses.criterion import SetCriterion
from src.losses.matcher import HungarianMatcher
from src.losses.points import UncertaintyPoints
from src.models.backbone import Backbone
from src.models.pixel_decoder.multiscale_deformable import MultiscaleDeformablePixelDecoder
from src.models.segmenter import Segmenter
from src.models.transformer_decoder.masked_attention import MaskedAttentionDecoder
from src.models.transformer_decoder.piloting import MaskPiloting
from src.structures import (
    IGNORE,
    PilotedQueries,
    PixelFeatures,
    QueryPrediction,
    Targets,
    TrainingPrediction,
)

K, D = 5, 32


def targets_of(*labels: Tensor) -> Targets:
    stacked = torch.stack(labels)
    return Targets(stacked, torch.zeros_like(stacked))


def stripes(classes: list[int], height: int = 64, width: int = 96) -> Tensor:
    """A label map of vertical stripes, one for each class."""
    columns = torch.arange(width) * len(classes) // width
    return torch.tensor(classes, dtype=torch.uint8)[columns].expand(height, width)


NOTHING = torch.full((64, 96), IGNORE, dtype=torch.uint8)
TWO_IMAGES = targets_of(stripes([4, 0, 2]), stripes([1, IGNORE]))


def silent_piloting(num_queries: int = 7) -> MaskPiloting:
    return MaskPiloting(K, D, num_queries, label_noise=0.0, point_noise=0.0)


def test_groups_repeat_the_classes_of_each_image():
    pilots = silent_piloting()(TWO_IMAGES)
    # three classes in the richest image, so two groups fit into seven queries
    assert pilots.groups.tolist() == [0, 0, 0, 1, 1, 1]
    assert pilots.labels.tolist() == [[0, 2, 4] * 2, [1, K, K] * 2]
    assert pilots.target_masks.tolist() == [[0, 1, 2] * 2, [0, -1, -1] * 2]


def test_a_group_is_never_cut():
    assert silent_piloting(num_queries=1)(TWO_IMAGES).groups.tolist() == [0, 0, 0]


def test_without_noise_queries_and_masks_are_the_truth():
    piloting = silent_piloting()
    pilots = piloting(TWO_IMAGES)
    for b, label in enumerate(TWO_IMAGES.labels):
        for query, attend, target in zip(pilots.queries[b], pilots.attend[b], pilots.labels[b], strict=True):
            if target == K:
                assert not query.any()
                assert not attend.any()
            else:
                torch.testing.assert_close(query, piloting.class_embedding.weight[target])
                cells = (label == target).unflatten(1, (-1, 4)).unflatten(0, (-1, 4)).any(-1).any(1)
                assert torch.equal(attend, cells)


@pytest.mark.parametrize(("height", "width"), [(64, 64), (65, 71), (99, 67)])
def test_masks_cover_maps_of_any_size(height, width):
    """A single pixel in the last row and column is not lost."""
    label = torch.zeros(height, width, dtype=torch.uint8)
    label[-1, -1] = 3
    attend = silent_piloting()(targets_of(label)).attend
    assert attend.shape[-2:] == (-(-height // 4), -(-width // 4))
    assert attend[0, 1].nonzero().tolist() == [[attend.shape[-2] - 1, attend.shape[-1] - 1]]


def test_noise_has_the_stated_rates():
    torch.manual_seed(0)
    label = torch.zeros(256, 256, dtype=torch.uint8)
    label[:, 64:] = 1  # a quarter and three quarters of the image
    batch = targets_of(*[label] * 10)
    clean = MaskPiloting(K, D, 100, label_noise=0.0, point_noise=0.0)(batch)
    noisy = MaskPiloting(K, D, 100, label_noise=0.2, point_noise=0.2)
    with torch.no_grad():
        noisy.class_embedding.weight.copy_(torch.eye(K, D))
    pilots = noisy(batch)
    flipped = (pilots.attend ^ clean.attend).float()
    assert flipped[:, 0::2].mean().item() == pytest.approx(0.2 * 0.25, rel=0.02)
    assert flipped[:, 1::2].mean().item() == pytest.approx(0.2 * 0.75, rel=0.02)
    changed = (pilots.queries.argmax(-1) != pilots.labels).float()
    assert changed.mean().item() == pytest.approx(0.2 * (K - 1) / K, abs=0.04)  # 3 deviations of 1000 draws
    assert torch.equal(pilots.labels, clean.labels)  # the answers are never noised


def test_the_same_seed_gives_the_same_queries():
    piloting = MaskPiloting(K, D)

    def draw(seed: int) -> PilotedQueries:
        torch.manual_seed(seed)
        return piloting(TWO_IMAGES)

    first, second, other = draw(1), draw(1), draw(2)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert not torch.equal(first.attend, other.attend)


def test_images_without_a_class_get_fillers():
    pilots = silent_piloting()(targets_of(NOTHING, NOTHING))
    assert (pilots.labels == K).all()
    assert (pilots.target_masks == -1).all()
    assert pilots.queries.shape[1] == len(pilots.groups) >= 1


# ------------------------------------------------------------------------------------------ in the decoder


def decoder(num_layers: int = 4) -> MaskedAttentionDecoder:
    torch.manual_seed(0)
    return MaskedAttentionDecoder(K, D, 64, 6, num_layers, activation="relu", learned_positions=False)


def pixel_features(batch: int = 2) -> PixelFeatures:
    generator = torch.Generator().manual_seed(0)

    def normal(*size: int) -> Tensor:
        return torch.randn(batch, D, *size, generator=generator)

    return PixelFeatures(normal(16, 24), (normal(2, 3), normal(4, 6), normal(8, 12)))


def test_learned_queries_do_not_notice_piloted_ones():
    network, pixels = decoder().train(), pixel_features()
    torch.manual_seed(0)
    pilots = MaskPiloting(K, D, 7)(TWO_IMAGES)
    changed = pilots._replace(queries=torch.randn_like(pilots.queries) * 10, attend=~pilots.attend)
    count = pilots.queries.shape[1]
    alone = network(pixels)
    for without, one, other in zip(alone, network(pixels, pilots), network(pixels, changed), strict=True):
        assert torch.equal(one.class_logits[:, count:], other.class_logits[:, count:])
        assert torch.equal(one.mask_embeddings[:, count:], other.mask_embeddings[:, count:])
        torch.testing.assert_close(one.class_logits[:, count:], without.class_logits, atol=1e-5, rtol=1e-5)
        assert not torch.equal(one.class_logits[:, :count], other.class_logits[:, :count])


def test_groups_do_not_notice_each_other():
    network, pixels = decoder().train(), pixel_features()
    pilots = silent_piloting()(TWO_IMAGES)
    queries = pilots.queries.clone()
    queries[:, 3:] += torch.randn_like(queries[:, 3:])
    for one, other in zip(
        network(pixels, pilots), network(pixels, pilots._replace(queries=queries)), strict=True
    ):
        assert torch.equal(one.class_logits[:, :3], other.class_logits[:, :3])
        assert not torch.equal(one.class_logits[:, 3:6], other.class_logits[:, 3:6])


def test_every_layer_imposes_the_piloted_masks():
    network, pixels = decoder(num_layers=6).train(), pixel_features()
    torch.manual_seed(0)
    pilots = MaskPiloting(K, D, 7, point_noise=0.5)(TWO_IMAGES)
    seen: list[Tensor] = []
    for layer in network.layers:
        layer.register_forward_pre_hook(lambda _, arguments: seen.append(arguments[4]))
    network(pixels, pilots)
    assert len(seen) == 6
    for index, attend in enumerate(seen):
        step = (8, 4, 2)[index % 3]
        middle = pilots.attend[..., step // 2 :: step, step // 2 :: step].flatten(2)
        expected = middle | ~middle.any(-1, keepdim=True)
        assert torch.equal(attend[:, 0, : expected.shape[1]] == 0, expected)
    assert not torch.equal(seen[0][:, 0, 6:], seen[3][:, 0, 6:])  # learned ones follow their predictions


# ------------------------------------------------------------------------------------------ loss and training


def criterion(num_points: int = 256) -> SetCriterion:
    return SetCriterion(K, HungarianMatcher(num_points=num_points), UncertaintyPoints(num_points))


def perfect_prediction(targets: Targets, labels: Tensor) -> QueryPrediction:
    """Answers of queries that predict the class and the mask of ``labels`` (B, Q)."""
    maps = F.one_hot(targets.labels.long().where(targets.labels < K, K), K + 1).permute(0, 3, 1, 2).float()
    answers = F.one_hot(labels, K + 1).float()
    return QueryPrediction(40 * answers, 40 * answers, maps - 0.5)


def test_loss_compares_each_query_with_its_own_target():
    torch.manual_seed(0)
    pilots = silent_piloting()(TWO_IMAGES)
    learned = perfect_prediction(TWO_IMAGES, pilots.labels[:, :3])

    everywhere = SetCriterion(K, HungarianMatcher(num_points=256), UncertaintyPoints(1024, importance=0))

    def losses(labels: Tensor) -> dict[str, float]:
        piloted = perfect_prediction(TWO_IMAGES, labels)
        terms = everywhere(TrainingPrediction((learned,), None, (piloted,), pilots), TWO_IMAGES)
        return {name: float(term) for name, term in terms.items() if name.startswith("pilot.")}

    right = losses(pilots.labels)
    assert set(right) == {"pilot.loss_class", "pilot.loss_mask", "pilot.loss_dice"}
    assert right["pilot.loss_class"] < 1e-6
    assert right["pilot.loss_mask"] < 0.5  # a few points fall between two classes
    assert right["pilot.loss_dice"] < 0.1
    swapped = pilots.labels.clone()
    swapped[0, 3:5] = swapped[0, [4, 3]]  # in the second group; two of eight queries
    wrong = losses(swapped)
    assert wrong["pilot.loss_class"] == pytest.approx(
        2 * 2 / 8 * 40, rel=0.01
    )  # weight 2, 2 of 8, logit gap 40
    assert wrong["pilot.loss_mask"] > right["pilot.loss_mask"] + 5
    assert wrong["pilot.loss_dice"] == pytest.approx(5 * 2 / 8, abs=0.2)
    fillers = pilots.labels.clone()
    fillers[1, 1:3] = 0  # what queries without a target answer does not matter
    assert losses(fillers)["pilot.loss_class"] == right["pilot.loss_class"]


def small_segmenter(piloting: MaskPiloting | None) -> Segmenter:
    return Segmenter(
        Backbone("resnet18", weights="none"),
        partial(MultiscaleDeformablePixelDecoder, query_width=D, num_layers=1, num_heads=4),
        MaskedAttentionDecoder(K, D, 64, 6, 3, num_heads=4, activation="relu", learned_positions=False),
        piloting,
    )


def test_training_lowers_the_piloted_loss():
    torch.manual_seed(0)
    network, loss = small_segmenter(MaskPiloting(K, D, 7)).train(), criterion()
    optimiser = torch.optim.AdamW(network.parameters(), 1e-3)
    images = TWO_IMAGES.labels[:, None].float().expand(-1, 3, -1, -1) / K
    history = []
    for _ in range(16):
        terms = loss(network(images, TWO_IMAGES), TWO_IMAGES)
        piloted = [term for name, term in terms.items() if name.startswith("pilot.")]
        assert len(piloted) == 3 * 4  # three terms before the first layer and after each
        optimiser.zero_grad()
        torch.stack(list(terms.values())).sum().backward()
        optimiser.step()
        history.append(float(torch.stack(piloted).sum().detach()))
    assert all(map(torch.isfinite, map(torch.tensor, history)))
    assert sum(history[-3:]) < 0.7 * sum(history[:3])


@pytest.mark.parametrize("labels", [(NOTHING, NOTHING), (NOTHING, stripes([1])), (stripes([3, 1]),)])
def test_every_parameter_takes_part(labels):
    """As distributed training needs it, whatever the batch holds."""
    torch.manual_seed(0)
    targets = targets_of(*labels)
    network = small_segmenter(MaskPiloting(K, D, 7)).train()
    terms = criterion()(network(torch.randn(len(labels), 3, 64, 96), targets), targets)
    torch.stack(list(terms.values())).sum().backward()
    unused = [name for name, parameter in network.named_parameters() if parameter.grad is None]
    assert unused == []
    assert all(parameter.grad.isfinite().all() for parameter in network.parameters())
    if (targets.labels == IGNORE).all():
        assert not network.piloting.class_embedding.weight.grad.any()


def test_inference_does_without_piloting(monkeypatch):
    network = small_segmenter(MaskPiloting(K, D, 7)).eval()
    without = small_segmenter(None).eval()
    state = {name: x for name, x in network.state_dict().items() if not name.startswith("piloting.")}
    without.load_state_dict(state)
    monkeypatch.setattr(MaskPiloting, "forward", lambda *_: pytest.fail("piloting ran in evaluation mode"))
    images = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        one, other = network(images), without(images)
    assert one.class_logits.shape == (1, 6, K + 1)
    assert torch.equal(one.mask_logits, other.mask_logits)
