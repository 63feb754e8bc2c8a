"""The criterion for precise and pseudo labels: the weight of every pixel of every mask, and the losses."""

import math

import pytest
import torch
import torch.nn.functional as F

from src.errors import UserError
from src.losses.criterion import ImageTargets, SetCriterion
from src.losses.decoupled import DecoupledCriterion
from src.losses.mask import dice_loss
from src.losses.matcher import HungarianMatcher
from src.losses.points import BoundaryPoints, TrustedPoints, boundary_weight
from src.structures import IGNORE, PilotedQueries, QueryPrediction, Targets, TrainingPrediction

CLASSES = ("others", "person", "sky", "car", "bus")
OTHERS, PERSON, SKY, CAR, BUS = range(5)
QUERIES, WIDTH, SIZE = 6, 8, 24


def criterion(pseudo="reversed", num_points=200, **options):
    options = {"points": TrustedPoints(num_points), "others": "others"} | options
    return DecoupledCriterion(
        CLASSES, ["car", "bus"], pseudo=pseudo, matcher=HungarianMatcher(num_points=50), **options
    )


def scene(labelled=True, seen=True):
    """A person on the left; a car, one score for all of it, that touches her and lies in the others."""
    label = torch.full((SIZE, SIZE), OTHERS if labelled else IGNORE, dtype=torch.uint8)
    pseudo = torch.full((2, SIZE, SIZE), 0 if seen else 127, dtype=torch.uint8)
    if seen:
        label[6:18, 8:] = CAR
        pseudo[0, 6:18, 4:] = 254  # reaches over her
    if labelled:
        label[:, :8] = PERSON
    return label, pseudo


def batch(*scenes):
    labels, pseudo = (torch.stack(parts) for parts in zip(*scenes, strict=True))
    return Targets(labels, torch.zeros_like(labels), pseudo)


def predictions(count=1, layers=2, seed=0, edges=True):
    generator = torch.Generator().manual_seed(seed)

    def random(*shape):
        return torch.randn(*shape, generator=generator).requires_grad_()

    features = random(count, WIDTH, SIZE // 2, SIZE // 2)
    made = tuple(
        QueryPrediction(random(count, QUERIES, 6), random(count, QUERIES, WIDTH), features)
        for _ in range(layers)
    )
    return TrainingPrediction(made, random(count, 1, SIZE // 2, SIZE // 2) if edges else None)


def weights(treatment, *scenes):
    """Class -> factor (H, W) of every pixel of its mask, of the first scene; trust and targets too."""
    target = criterion(treatment).all_targets(batch(*scenes))[0]
    factor = target.trust * (1 + 5 * target.weight_map)
    return dict(zip(target.labels.tolist(), factor, strict=True)), target


class TestWeights:
    def test_precise_masks_weigh_as_ever_up_to_the_last_pixel(self):
        label, pseudo = scene()
        factors, _ = weights("reversed", (label, pseudo))
        person = (label == PERSON).float()[None]
        torch.testing.assert_close(factors[PERSON], 1 + 5 * boundary_weight(person, 5)[0])

    def test_pseudo_masks_weigh_nothing_at_their_boundary_and_one_inside(self):
        factors, _ = weights("reversed", scene())
        assert (factors[CAR][5:7, 12:] == 0).all()
        assert (factors[CAR][17:19, 12:] == 0).all()
        assert (factors[CAR][10:14, 14:20] == 1).all()
        assert (factors[OTHERS][5:7, 12:] == 0).all()  # the same boundary from outside
        assert (factors[OTHERS][2, 14:20] == 1).all()

    def test_a_boundary_that_precise_labels_draw_keeps_its_weight_in_a_pseudo_mask(self):
        label, pseudo = scene()
        factors, _ = weights("reversed", (label, pseudo))
        # columns 7 and 8: the person ends, the pseudo mask goes on beneath her
        car = 1 + 5 * boundary_weight((label == CAR).float()[None], 5)[0]
        torch.testing.assert_close(factors[CAR][10:14, 6:10], car[10:14, 6:10])
        assert (factors[CAR][10:14, 7:9] == 3).all()

    def test_what_precise_labels_exclude_is_certain(self):
        label, pseudo = scene()
        factors, target = weights("reversed", (label, pseudo))
        assert (target.trust[:, :, :8] == 1).all()
        assert (target.masks[target.labels.tolist().index(CAR)][:, :8] == 0).all()
        assert (factors[PERSON][label != PERSON] >= 1).all()

    def test_confidence_counts(self):
        label, pseudo = scene()
        pseudo[0][pseudo[0] > 0] = 190
        factors, _ = weights("reversed", (label, pseudo))
        assert factors[CAR][12, 16] == pytest.approx(126 / 254)
        assert factors[CAR][2, 16] == 1

    def test_uniform_leaves_the_confidence_alone_and_no_boundary_weight(self):
        factors, _ = weights("uniform", scene())
        assert (factors[CAR][:, 12:] == 1).all()
        assert (factors[CAR][10:14, 7:9] == 3).all()  # this one is precise

    def test_precise_takes_pseudo_labels_at_their_word(self):
        label, pseudo = scene()
        factors, target = weights("precise", (label, pseudo))
        expected = SetCriterion(5, HungarianMatcher(num_points=50), BoundaryPoints(200)).image_targets(label)
        torch.testing.assert_close(torch.stack(list(factors.values())), 1 + 5 * expected.weight_map)
        assert torch.equal(target.masks, expected.masks)

    def test_ignored_pixels_weigh_nothing(self):
        label, pseudo = scene()
        label[0] = IGNORE
        for treatment in ("reversed", "uniform", "precise"):
            _, target = weights(treatment, (label, pseudo))
            assert (target.trust[:, 0] == 0).all()
        without = criterion().all_targets(Targets(label[None], label[None]))[0]
        assert (without.trust[:, 0] == 0).all()
        assert (without.trust[:, 1:] == 1).all()

    def test_two_new_classes_that_touch(self):
        label, pseudo = scene()
        label[6:18, 16:] = BUS
        pseudo[0, :, 16:] = 0
        pseudo[1, 6:18, 16:] = 254
        factors, target = weights("reversed", (label, pseudo))
        assert target.labels.tolist() == [OTHERS, PERSON, CAR, BUS]
        for name in (CAR, BUS):
            assert (factors[name][10:14, 15:17] == 0).all()
        assert (factors[OTHERS][10:14, 15:17] == 1).all()  # neither of them is "others"
        assert (factors[CAR][10:14, 20:22] == 1).all()
        assert (factors[PERSON][10:14, 15:17] == 1).all()


class TestAnswers:
    """Which classes a query may answer."""

    def allowed(self, *scenes, treatment="reversed"):
        target = criterion(treatment).all_targets(batch(*scenes))[0]
        rows = [[i for i, yes in enumerate(row) if yes] for row in target.candidates.tolist()]
        return dict(zip(target.labels.tolist(), rows, strict=False)), rows[-1]

    def test_precise_and_pseudo_labels_admit_one_answer(self):
        own, nothing = self.allowed(scene())
        assert own == {OTHERS: [OTHERS], PERSON: [PERSON], CAR: [CAR]}
        assert nothing == [5]

    def test_others_without_pseudo_labels_may_be_new(self):
        own, nothing = self.allowed(scene(seen=False))
        assert own == {OTHERS: [OTHERS, CAR, BUS], PERSON: [PERSON]}
        assert nothing == [CAR, BUS, 5]

    def test_without_precise_labels_a_query_may_answer_any_known_class(self):
        own, nothing = self.allowed(scene(labelled=False))
        assert own == {CAR: [CAR]}
        assert nothing == [OTHERS, PERSON, SKY, 5]

    def test_precise_treatment_knows_no_doubt(self):
        own, nothing = self.allowed(scene(seen=False), treatment="precise")
        assert own == {OTHERS: [OTHERS], PERSON: [PERSON]}
        assert nothing == [5]

    def test_the_class_term_is_cross_entropy_where_there_is_one_answer(self):
        ours, targets = criterion(), batch(scene())
        images = ours.all_targets(targets)
        logits = torch.randn(1, QUERIES, 6)
        assignment = [(torch.tensor([4, 0, 2]), torch.tensor([0, 2, 1]))]
        expected = SetCriterion.class_term(ours, logits, images, assignment)
        torch.testing.assert_close(ours.class_term(logits, images, assignment), expected)

    def test_probability_of_several_answers_adds_up(self):
        ours = criterion()
        images = ours.all_targets(batch(scene(seen=False)))
        logits = torch.full((1, 1, 6), -20.0)
        empty = (torch.tensor([], dtype=torch.int64),) * 2
        logits[0, 0, CAR] = logits[0, 0, BUS] = 0.0
        assert float(ours.class_term(logits, images, [empty])) == pytest.approx(0, abs=1e-6)
        logits[0, 0, PERSON] = 0.0
        assert float(ours.class_term(logits, images, [empty])) == pytest.approx(math.log(1.5), abs=1e-5)


class TestLosses:
    def test_equal_to_the_precise_criterion_without_new_classes_in_the_photo(self):
        """The same targets, weights and terms; only the draw of points differs, so all pixels agree on the loss."""
        label, _ = scene()
        prediction = predictions()
        targets = Targets(label[None], torch.zeros(1, SIZE, SIZE, dtype=torch.uint8))
        plain = SetCriterion(5, HungarianMatcher(num_points=5000), BoundaryPoints(20000))
        ours = criterion(num_points=20000)
        ours.matcher.num_points = 5000
        torch.manual_seed(0)
        expected = plain(prediction, targets)
        found = ours(prediction, targets)
        assert found.keys() == expected.keys()
        for name, value in expected.items():
            assert found[name].item() == pytest.approx(value.item(), rel=0.03), name

    @pytest.mark.parametrize("treatment", ["reversed", "uniform", "precise"])
    def test_all_kinds_of_images_together_have_finite_gradients(self, treatment):
        kinds = (scene(), scene(seen=False), scene(labelled=False), scene(labelled=False, seen=False))
        prediction = predictions(len(kinds))
        terms = criterion(treatment)(prediction, batch(*kinds))
        sum(terms.values()).backward()
        assert all(term.isfinite() for term in terms.values())
        for layer in prediction.layers:
            for tensor in layer:
                assert tensor.grad.isfinite().all()
        assert prediction.edge_logits.grad.isfinite().all()

    @pytest.mark.parametrize("treatment", ["reversed", "uniform"])
    def test_nothing_but_the_classes_is_learned_where_nothing_is_known(self, treatment):
        label = torch.full((1, SIZE, SIZE), OTHERS, dtype=torch.uint8)
        pseudo = torch.full((1, 2, SIZE, SIZE), 127, dtype=torch.uint8)
        terms = criterion(treatment)(predictions(), Targets(label, torch.ones_like(label), pseudo))
        known = {name: term.item() for name, term in terms.items() if not name.endswith("class")}
        assert len(known) == 2 * 2 + 1
        assert known == dict.fromkeys(known, 0)

    def test_masks_learn_nothing_from_pixels_that_cannot_be_believed(self):
        ours = criterion(num_points=4000)
        target = ours.all_targets(batch(scene()))[0]
        count = len(target.labels)
        features = torch.randn(
            1, count, SIZE, SIZE, requires_grad=True
        )  # each query has a channel of its own
        layer = QueryPrediction(torch.zeros(1, count, 6), torch.eye(count)[None], features)
        own = torch.arange(count)
        sum(ours._mask_terms("", layer, [target], [(own, own)], 1.0).values()).backward()
        reached = features.grad[0] != 0
        believed = target.trust > 0
        beside = F.max_pool2d(believed.float(), 3, 1, 1) > 0  # points lie between pixels
        assert not beside.all()
        assert not reached[~beside].any()
        assert reached[believed].float().mean() > 0.9

    def test_the_query_that_is_right_where_labels_can_be_believed_is_matched(self):
        mask, trust = torch.zeros(1, SIZE, SIZE), torch.zeros(1, SIZE, SIZE)
        mask[:, : SIZE // 2] = 1
        trust[..., : SIZE // 4] = 1
        right = 8 * (2 * mask - 1)
        logits = torch.cat((torch.where(trust > 0, -right, right), torch.where(trust > 0, right, -right)))
        layer = QueryPrediction(torch.zeros(1, 2, 6), torch.eye(2)[None], logits[None])
        target = ImageTargets(torch.tensor([CAR]), mask, None, trust)
        (((queries, _),),) = criterion().match([layer], [target])
        assert queries.tolist() == [1]

    def test_piloted_queries_keep_their_targets(self):
        prediction = predictions(2)
        pilots = PilotedQueries(
            torch.zeros(2, 3, WIDTH),
            torch.zeros(2, 3, SIZE // 4, SIZE // 4, dtype=torch.bool),
            torch.zeros(3, dtype=torch.int64),
            torch.tensor([[OTHERS, PERSON, CAR], [OTHERS, PERSON, 5]]),
            torch.tensor([[0, 1, 2], [0, 1, -1]]),
        )
        piloted = tuple(
            layer._replace(
                class_logits=layer.class_logits[:, :3], mask_embeddings=layer.mask_embeddings[:, :3]
            )
            for layer in predictions(2, seed=1, edges=False).layers
        )
        terms = criterion()(
            prediction._replace(pilots=pilots, piloted=piloted), batch(scene(), scene(seen=False))
        )
        assert any(name.startswith("pilot.") for name in terms)
        assert all(term.isfinite() for term in terms.values())


class TestEdges:
    def test_boundaries_drawn_by_pseudo_labels_do_not_count_and_precise_ones_do(self):
        label, pseudo = scene()
        boundaries = torch.zeros(1, SIZE, SIZE, dtype=torch.uint8)
        boundaries[:, :, 7:9] = 1
        boundaries[:, 5:7, 8:] = 1
        edges = criterion().edge_weights(Targets(label[None], boundaries, pseudo[None]))[0]
        assert (edges[:, :9] == 1).all()
        assert (edges[5:7, 12:] == 0).all()
        assert (edges[10:14, 14:20] == 1).all()
        naive = criterion("precise").edge_weights(Targets(label[None], boundaries, pseudo[None]))[0]
        assert (naive == 1).all()

    def test_without_precise_labels_only_the_interior_of_objects_is_known_to_have_no_edge(self):
        label, pseudo = scene(labelled=False)
        edges = criterion().edge_weights(Targets(label[None], torch.zeros_like(label)[None], pseudo[None]))[0]
        assert edges[12, 16] == 1
        assert (edges[label != CAR] == 0).all()


class TestPoints:
    def test_avoid_what_is_not_trusted(self):
        trust = torch.zeros(1, SIZE, SIZE)
        trust[:, :, SIZE // 2 :] = 1
        logits = torch.randn(1, SIZE, SIZE) * (1 - trust)  # the most uncertain lie where nothing is trusted
        found = TrustedPoints(300).trusted(logits, torch.zeros_like(trust), trust)
        assert found.coordinates.shape == (1, 300, 2)
        assert (found.coordinates[..., 0] > 0.45).all()
        assert (found.trust > 0).all()

    def test_prefer_boundaries_among_the_trusted(self):
        trust = torch.ones(1, SIZE, SIZE)
        mask = torch.zeros(1, SIZE, SIZE)
        mask[:, :, 12:] = 1
        points = TrustedPoints(400, importance=0.75)
        found = points.trusted(torch.ones(1, SIZE, SIZE), points.weight_map(mask), trust)
        near = ((found.coordinates[..., 0] - 0.5).abs() < 3 / SIZE).float().mean()
        assert near > 0.35  # a quarter of the width

    def test_a_mask_without_any_trust_has_no_weight(self):
        nothing = torch.zeros(1, SIZE, SIZE)
        found = TrustedPoints(50).trusted(torch.randn(1, SIZE, SIZE), nothing, nothing)
        assert found.weights.abs().max() == 0


def test_dice_with_weights_counts_points_in_shares():
    logits, masks = torch.randn(2, 6), (torch.rand(2, 6) > 0.5).float()
    trust = torch.tensor([1.0, 1.0, 1.0, 0.0, 0.0, 0.0]).expand(2, -1)
    found = dice_loss(logits, masks, 1, trust)
    torch.testing.assert_close(found, dice_loss(logits[:, :3], masks[:, :3], 1))
    probability = logits.sigmoid()[:, :3]
    expected = 1 - (2 * (probability * masks[:, :3]).sum(1) + 1) / (
        probability.sum(1) + masks[:, :3].sum(1) + 1
    )
    assert float(found) == pytest.approx(float(expected.sum()), rel=1e-5)
    torch.testing.assert_close(dice_loss(logits, masks, 1, torch.ones(2, 6)), dice_loss(logits, masks, 1))


def test_the_matcher_leaves_out_points_without_trust():
    matcher = HungarianMatcher(num_points=6)
    classes, labels = torch.zeros(3, 6), torch.tensor([1, 3])
    logits, masks = torch.randn(3, 6), (torch.rand(2, 6) > 0.5).float()
    half = torch.tensor([1.0, 1, 1, 0, 0, 0]).expand(2, -1)
    found = matcher.costs(classes, logits, labels, masks, half)
    expected = matcher.costs(classes, logits[:, :3], labels, masks[:, :3])
    every = matcher.costs(classes, logits, labels, masks, torch.ones(2, 6))
    plain = matcher.costs(classes, logits, labels, masks)
    for name in plain:
        torch.testing.assert_close(found[name], expected[name])
        torch.testing.assert_close(every[name], plain[name])


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"pseudo": "reverse"}, "reversed, uniform, precise"),
        ({"others": "thing"}, "thing"),
        ({"pseudo_kernel": 4}, "odd"),
    ],
)
def test_wrong_settings_are_named(options, complaint):
    with pytest.raises(UserError, match=complaint):
        criterion(**options)
