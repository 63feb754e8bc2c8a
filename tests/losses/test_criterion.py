"""The composite loss against a slow computation of its own, and what must not break it."""

import math

import pytest
import torch
import torch.multiprocessing as mp
from hypothesis import given, settings
from hypothesis import strategies as st

from src.losses import criterion as module
from src.losses.criterion import SetCriterion
from src.losses.mask import dice_loss, mask_loss
from src.losses.matcher import HungarianMatcher
from src.losses.points import BoundaryPoints, SampledPoints, UncertaintyPoints, sample_points
from src.structures import IGNORE, PilotedQueries, QueryPrediction, Targets, TrainingPrediction

CLASSES, QUERIES, WIDTH, HEIGHT, LENGTH = 4, 6, 8, 12, 16


class FixedPoints(BoundaryPoints):
    """The same coordinates for every mask."""

    def __init__(self, num_points=20):
        super().__init__(num_points)
        self.coordinates = torch.rand(num_points, 2, generator=torch.Generator().manual_seed(5))

    def __call__(self, logits, weight_map):
        coordinates = self.coordinates.expand(len(logits), -1, -1)
        return SampledPoints(coordinates, self.weights(sample_points(weight_map[:, None], coordinates)[:, 0]))


def criterion_with(points, num_points=25, **arguments):
    return SetCriterion(CLASSES, HungarianMatcher(num_points=num_points), points, **arguments)


def predictions(batch=2, layers=3, seed=0, edges=True):
    generator = torch.Generator().manual_seed(seed)

    def random(*shape):
        return torch.randn(*shape, generator=generator).requires_grad_()

    coarse, fine = (
        random(batch, WIDTH, HEIGHT // 4, LENGTH // 4),
        random(batch, WIDTH, HEIGHT // 2, LENGTH // 2),
    )
    made = tuple(
        QueryPrediction(
            random(batch, QUERIES, CLASSES + 1),
            random(batch, QUERIES, WIDTH),
            fine if i == layers - 1 else coarse,
        )
        for i in range(layers)
    )
    return TrainingPrediction(made, random(batch, 1, HEIGHT // 2, LENGTH // 2) if edges else None)


def label_maps(batch=2, seed=0, ignore=0.2):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, CLASSES, (batch, HEIGHT // 4, LENGTH // 4), generator=generator)
    labels = labels.repeat_interleave(4, 1).repeat_interleave(4, 2).to(torch.uint8)
    labels[torch.rand(labels.shape, generator=generator) < ignore] = IGNORE
    boundaries = (torch.rand(labels.shape, generator=generator) > 0.8).to(torch.uint8)
    return Targets(labels, boundaries)


def bilinear(image, x, y):
    """Value of a nested list at (x, y) in 0..1 over the map; zero outside."""
    height, width = len(image), len(image[0])
    x, y = x * width - 0.5, y * height - 0.5
    total = 0.0
    for row in (math.floor(y), math.floor(y) + 1):
        for column in (math.floor(x), math.floor(x) + 1):
            if 0 <= row < height and 0 <= column < width:
                total += image[row][column] * (1 - abs(y - row)) * (1 - abs(x - column))
    return total


def entropy(logit, target):
    return max(logit, 0) - logit * target + math.log1p(math.exp(-abs(logit)))


def softmax(logits):
    exponentials = [math.exp(x - max(logits)) for x in logits]
    return [x / sum(exponentials) for x in exponentials]


def mask_of(labels, name):
    return [[1.0 if value == name else 0.0 for value in row] for row in labels]


def boundary_weights(mask):
    """|mean of the 5 x 5 neighbourhood - mask|, zeros outside."""
    height, width = len(mask), len(mask[0])
    return [
        [
            abs(
                sum(
                    mask[y][x]
                    for y in range(max(0, i - 2), min(height, i + 3))
                    for x in range(max(0, j - 2), min(width, j + 3))
                )
                / 25
                - mask[i][j]
            )
            for j in range(width)
        ]
        for i in range(height)
    ]


def logit_map(layer, b, q):
    weights, features = layer.mask_embeddings[b, q].tolist(), layer.mask_features[b].tolist()
    height, width = len(features[0]), len(features[0][0])
    return [
        [sum(w * f[i][j] for w, f in zip(weights, features, strict=True)) for j in range(width)]
        for i in range(height)
    ]


def best_assignment(costs, remaining, columns):
    """Cheapest choice of a query for every target, by trying all."""
    if not columns:
        return 0.0, []
    best = (math.inf, [])
    for q in remaining:
        rest, chosen = best_assignment(costs, remaining - {q}, columns[1:])
        if costs[q][columns[0]] + rest < best[0]:
            best = (costs[q][columns[0]] + rest, [q, *chosen])
    return best


def plain_loss(prediction, targets, coordinates, match_coordinates):
    """All terms in plain Python: one image, query, target and point at a time."""
    labels = targets.labels.tolist()
    present = [sorted({v for row in image for v in row} - {IGNORE}) for image in labels]
    num_masks = max(sum(len(names) for names in present), 1)
    terms = {}
    last = len(prediction.layers) - 1
    for number, layer in enumerate(prediction.layers):
        prefix = "" if number == last else f"d{number}."
        class_sum = class_weight = mask_sum = dice_sum = 0.0
        for b, names in enumerate(present):
            maps = [logit_map(layer, b, q) for q in range(QUERIES)]
            costs = []
            for q in range(QUERIES):
                probabilities = softmax(layer.class_logits[b, q].tolist())
                values = [bilinear(maps[q], x, y) for x, y in match_coordinates[b]]
                row = []
                for name in names:
                    wanted = [bilinear(mask_of(labels[b], name), x, y) for x, y in match_coordinates[b]]
                    bce = sum(entropy(v, w) for v, w in zip(values, wanted, strict=True)) / len(values)
                    row.append(-2 * probabilities[name] + 5 * bce + 5 * dice(values, wanted))
                costs.append(row)
            chosen = best_assignment(costs, frozenset(range(QUERIES)), list(range(len(names))))[1]
            answer = dict(zip(chosen, names, strict=True))
            for q in range(QUERIES):
                name = answer.get(q, CLASSES)
                weight = 0.1 if name == CLASSES else 1.0
                class_sum -= weight * math.log(softmax(layer.class_logits[b, q].tolist())[name])
                class_weight += weight
            for q, name in answer.items():
                mask = mask_of(labels[b], name)
                weight_map = boundary_weights(mask)
                values = [bilinear(maps[q], x, y) for x, y in coordinates]
                wanted = [bilinear(mask, x, y) for x, y in coordinates]
                factors = [1 + 5 * bilinear(weight_map, x, y) for x, y in coordinates]
                mask_sum += sum(
                    f * entropy(v, w) for f, v, w in zip(factors, values, wanted, strict=True)
                ) / len(values)
                dice_sum += dice(values, wanted)
        terms[f"{prefix}loss_class"] = 2 * class_sum / class_weight
        terms[f"{prefix}loss_mask"] = 5 * mask_sum / num_masks
        terms[f"{prefix}loss_dice"] = 5 * dice_sum / num_masks
    edge = []
    for b, image in enumerate(targets.boundaries.tolist()):
        logits = prediction.edge_logits[b, 0].tolist()
        for i, row in enumerate(image):
            for j, target in enumerate(row):
                # resizing clamps at the border where sampling takes zeros
                y = min(max((i + 0.5) / HEIGHT, 0.5 / len(logits)), 1 - 0.5 / len(logits))
                x = min(max((j + 0.5) / LENGTH, 0.5 / len(logits[0])), 1 - 0.5 / len(logits[0]))
                edge.append(entropy(bilinear(logits, x, y), target))
    terms["loss_edge"] = 10 * sum(edge) / len(edge)
    return terms


def dice(logits, wanted):
    probabilities = [1 / (1 + math.exp(-v)) for v in logits]
    overlap = sum(p * w for p, w in zip(probabilities, wanted, strict=True))
    return 1 - (2 * overlap + 1) / (sum(probabilities) + sum(wanted) + 1)


@pytest.mark.parametrize("seed", [0, 1])
def test_equals_a_plain_computation(seed):
    points = FixedPoints()
    prediction, targets = predictions(seed=seed), label_maps(seed=seed)
    torch.manual_seed(seed)
    ours = {k: v.detach() for k, v in criterion_with(points)(prediction, targets).items()}
    torch.manual_seed(seed)
    match_coordinates = [torch.rand(1, 25, 2)[0].tolist() for _ in range(2)]
    plain = plain_loss(prediction, targets, points.coordinates.tolist(), match_coordinates)
    assert set(ours) == set(plain)
    for name, value in plain.items():
        assert float(ours[name]) == pytest.approx(value, rel=1e-4), name


def test_baselines_have_no_edge_term_and_equal_weights():
    prediction = predictions(edges=False)
    terms = criterion_with(UncertaintyPoints(30))(prediction, label_maps())
    assert "loss_edge" not in terms
    assert set(terms) == {f"{p}loss_{t}" for p in ("d0.", "d1.", "") for t in ("class", "mask", "dice")}


def test_weights_scale_their_terms():
    prediction, targets, points = predictions(), label_maps(), FixedPoints()
    torch.manual_seed(0)
    ones = criterion_with(points, class_weight=1, mask_weight=1, dice_weight=1, edge_weight=1)(
        prediction, targets
    )
    torch.manual_seed(0)
    full = criterion_with(points)(prediction, targets)
    for name, value in ones.items():
        factor = {"class": 2, "mask": 5, "dice": 5, "edge": 10}[name.split("_")[-1]]
        assert float(full[name]) == pytest.approx(factor * float(value), rel=1e-5)


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 100), st.sampled_from([0.0, 0.5, 0.95]))
def test_ignored_pixels_belong_to_no_mask(seed, ignore):
    labels = label_maps(seed=seed, ignore=ignore).labels[0]
    image = criterion_with(FixedPoints()).image_targets(labels)
    assert image.labels.tolist() == sorted(set(labels.flatten().tolist()) - {IGNORE})
    for mask, name in zip(image.masks, image.labels.tolist(), strict=True):
        assert torch.equal(mask.bool(), labels == name)
    assert image.masks.sum() == (labels != IGNORE).sum()


@pytest.mark.parametrize("which", [[0], [1], [0, 1]])
def test_images_with_everything_ignored_give_finite_terms_and_reach_every_tensor(which):
    prediction, targets = predictions(), label_maps()
    targets.labels[which] = IGNORE
    terms = criterion_with(BoundaryPoints(20))(prediction, targets)
    assert all(term.isfinite() for term in terms.values())
    sum(terms.values()).backward()
    for layer in prediction.layers:
        assert layer.class_logits.grad.isfinite().all()
        assert layer.mask_embeddings.grad is not None
        assert layer.mask_features.grad is not None
    if len(which) == 2:
        assert float(terms["loss_mask"]) == float(terms["loss_dice"]) == 0
        assert float(terms["loss_class"]) > 0  # everything is "no object"


def test_an_ignored_image_does_not_change_the_mask_terms_of_another():
    prediction, targets, points = predictions(), label_maps(), FixedPoints()
    targets.labels[1] = IGNORE
    torch.manual_seed(0)
    both = criterion_with(points)(prediction, targets)
    first = TrainingPrediction(
        tuple(QueryPrediction(*(tensor[:1] for tensor in layer)) for layer in prediction.layers),
        prediction.edge_logits[:1],
    )
    torch.manual_seed(0)
    alone = criterion_with(points)(first, Targets(targets.labels[:1], targets.boundaries[:1]))
    for name in ("loss_mask", "loss_dice", "d0.loss_mask", "d1.loss_dice"):
        assert float(both[name]) == pytest.approx(float(alone[name]), rel=1e-5)


def test_more_targets_than_queries_are_matched_as_far_as_they_go():
    prediction = predictions()
    few = prediction._replace(
        layers=tuple(
            QueryPrediction(layer.class_logits[:, :2], layer.mask_embeddings[:, :2], layer.mask_features)
            for layer in prediction.layers
        )
    )
    terms = criterion_with(BoundaryPoints(20))(few, label_maps(ignore=0))
    assert all(term.isfinite() for term in terms.values())


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_bad_query_does_not_stop_the_matching(bad):
    prediction, targets = predictions(), label_maps()
    criterion = criterion_with(FixedPoints())
    with torch.no_grad():
        for layer in prediction.layers:
            layer.class_logits[:, 3] = bad
            layer.mask_embeddings[:, 3] = bad
    images = [criterion.image_targets(label) for label in targets.labels]
    for layer in criterion.match(prediction.layers, images):
        for (queries, chosen), image in zip(layer, images, strict=True):
            assert len(chosen) == len(image.labels)
            assert 3 not in queries.tolist()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_predictions_give_single_precision_terms(dtype):
    prediction, targets, points = predictions(), label_maps(), FixedPoints()
    half = TrainingPrediction(
        tuple(QueryPrediction(*(t.detach().to(dtype) for t in layer)) for layer in prediction.layers),
        prediction.edge_logits.detach().to(dtype),
    )
    single = TrainingPrediction(
        tuple(QueryPrediction(*(t.float() for t in layer)) for layer in half.layers), half.edge_logits.float()
    )
    torch.manual_seed(0)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        ours = criterion_with(points)(half, targets)
    torch.manual_seed(0)
    expected = criterion_with(points)(single, targets)
    for name, term in ours.items():
        assert term.dtype == torch.float32
        assert float(term) == pytest.approx(float(expected[name]), rel=1e-5), name


def test_layers_that_share_a_map_have_it_sampled_once(monkeypatch):
    sampled = []
    original = module.sample_points
    monkeypatch.setattr(
        module, "sample_points", lambda maps, c: sampled.append(maps.shape) or original(maps, c)
    )
    prediction, targets = predictions(layers=7), label_maps()
    criterion = criterion_with(FixedPoints())
    images = [criterion.image_targets(label) for label in targets.labels]
    criterion.match(prediction.layers, images)
    assert sum(shape[1] == WIDTH for shape in sampled) == 2 * 2  # images x maps


def test_piloted_queries_answer_their_fixed_targets():
    targets, points = label_maps(), FixedPoints()
    criterion = criterion_with(points)
    images = [criterion.image_targets(label) for label in targets.labels]
    count = max(len(image.labels) for image in images)
    labels = torch.full((2, count), CLASSES)
    masks = torch.full((2, count), -1)
    for b, image in enumerate(images):
        labels[b, : len(image.labels)] = image.labels
        masks[b, : len(image.labels)] = torch.arange(len(image.labels))
    pilots = PilotedQueries(
        torch.zeros(2, count, WIDTH),
        torch.ones(2, count, HEIGHT, LENGTH, dtype=torch.bool),
        torch.zeros(count, dtype=torch.int64),
        labels,
        masks,
    )
    piloted = tuple(
        QueryPrediction(layer.class_logits[:, :count], layer.mask_embeddings[:, :count], layer.mask_features)
        for layer in predictions(seed=4).layers
    )
    terms = criterion(predictions()._replace(piloted=piloted, pilots=pilots), targets)
    total = sum(len(image.labels) for image in images)
    class_sum = mask_sum = dice_sum = 0.0
    for b, image in enumerate(images):
        for p, name in enumerate(image.labels.tolist()):
            class_sum -= math.log(softmax(piloted[-1].class_logits[b, p].tolist())[name])
            grid = logit_map(piloted[-1], b, p)
            mask = mask_of(targets.labels[b].tolist(), name)
            weight_map = boundary_weights(mask)
            values = [bilinear(grid, x, y) for x, y in points.coordinates.tolist()]
            wanted = [bilinear(mask, x, y) for x, y in points.coordinates.tolist()]
            factors = [1 + 5 * bilinear(weight_map, x, y) for x, y in points.coordinates.tolist()]
            mask_sum += sum(f * entropy(v, w) for f, v, w in zip(factors, values, wanted, strict=True)) / len(
                values
            )
            dice_sum += dice(values, wanted)
    assert float(terms["pilot.loss_class"]) == pytest.approx(2 * class_sum / total, rel=1e-4)
    assert float(terms["pilot.loss_mask"]) == pytest.approx(5 * mask_sum / total, rel=1e-4)
    assert float(terms["pilot.loss_dice"]) == pytest.approx(5 * dice_sum / total, rel=1e-4)
    assert {name for name in terms if name.startswith("pilot.")} == {
        f"pilot.{p}loss_{t}" for p in ("d0.", "d1.", "") for t in ("class", "mask", "dice")
    }


def test_pure_losses_at_their_extremes():
    masks = torch.tensor([[1.0, 0.0, 1.0, 0.0]])
    certain = 30 * (2 * masks - 1)
    assert float(mask_loss(certain, masks, torch.ones(1, 4), 1)) == pytest.approx(0, abs=1e-6)
    assert float(dice_loss(certain, masks, 1)) == pytest.approx(0, abs=1e-6)
    assert float(mask_loss(-certain, masks, torch.ones(1, 4), 1)) == pytest.approx(30)
    assert float(dice_loss(-certain, masks, 1)) == pytest.approx(1 - 1 / 5)
    assert float(mask_loss(certain * 0, masks, torch.full((1, 4), 3.0), 2)) == pytest.approx(
        1.5 * math.log(2)
    )


def _few_or_many_masks(rank, targets):
    """Two masks in the batch of rank 0, six in that of rank 1."""
    targets.labels[:] = 1
    if rank:
        for name in range(3):
            targets.labels[:, 4 * name : 4 * name + 4] = name


def _two_processes(rank, path, results):
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{path}", rank=rank, world_size=2)
    try:
        prediction, targets = predictions(), label_maps(ignore=0)
        _few_or_many_masks(rank, targets)
        torch.manual_seed(0)
        terms = criterion_with(FixedPoints())(prediction, targets)
        results[rank] = (float(terms["loss_mask"]), float(terms["loss_dice"]), float(terms["loss_class"]))
    finally:
        torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_masks_are_counted_over_both_processes(tmp_path):
    with mp.Manager() as manager:
        results = manager.dict()
        mp.spawn(_two_processes, (str(tmp_path / "store"), results), nprocs=2)
        distributed = dict(results)
    for rank, masks in ((0, 2), (1, 6)):
        prediction, targets = predictions(), label_maps(ignore=0)
        _few_or_many_masks(rank, targets)
        torch.manual_seed(0)
        alone = criterion_with(FixedPoints())(prediction, targets)
        # alone the sum is divided by the process's own masks, together by the mean of 2 and 6
        assert distributed[rank][0] == pytest.approx(float(alone["loss_mask"]) * masks / 4, rel=1e-5)
        assert distributed[rank][1] == pytest.approx(float(alone["loss_dice"]) * masks / 4, rel=1e-5)
        assert distributed[rank][2] == pytest.approx(float(alone["loss_class"]), rel=1e-5)
