"""The weights of precise and pseudo labels on masks drawn by hand."""

import pytest
import torch

from src.losses.evidence import confidence, proximity, pseudo_masks, reversed_weight, weigh
from src.losses.points import boundary_weight
from src.structures import IGNORE

OTHERS, PERSON, CAR, BUS = 0, 1, 2, 3
NEW = torch.tensor([CAR, BUS])


def half(width=12, height=12, at=6):
    mask = torch.zeros(1, height, width)
    mask[:, :, at:] = 1
    return mask


def scores(height=20, width=20, **regions):
    """(2, H, W) uint8 scores, 0 but for the regions ``car=(rows, columns, score)`` and ``bus``."""
    pseudo = torch.zeros(2, height, width, dtype=torch.uint8)
    for channel, name in enumerate(("car", "bus")):
        if name in regions:
            rows, columns, score = regions[name]
            pseudo[channel, rows, columns] = score
    return pseudo


def evidence(label, pseudo, reverse=True, others=OTHERS):
    return weigh(label, pseudo, NEW, others, kernel=5, strength=5.0, reverse=reverse)


class TestReversedWeight:
    def test_across_a_straight_boundary(self):
        weight = reversed_weight(half())[0]
        expected = torch.tensor([1, 1, 1, 1, 0, 0, 0, 0, 1, 1, 1, 1.0])
        torch.testing.assert_close(weight, expected.expand(12, -1), atol=1e-6, rtol=0)

    def test_falls_with_the_precise_weight(self):
        masks = half(24, 24, 12)
        w = proximity(masks, 9)[0, 12]
        weight = reversed_weight(masks, kernel=9, strength=2.0)[0, 12]
        torch.testing.assert_close(weight[8:11], 1 - 2 * w[8:11])
        assert (weight[8:11].diff() < 0).all()
        assert weight[11] == weight[12] == 0  # 1 - 2 w would be 0.11 here

    def test_takes_off_what_the_precise_weight_adds(self):
        masks = half(24, 24, 12)
        both = 1 + 2 * boundary_weight(masks, 9) + reversed_weight(masks, kernel=9, strength=2.0)
        inner = both[0, 4:-4, 4:-4]  # away from the border, which is a boundary to the precise weight
        torch.testing.assert_close(inner[:, :7], torch.full((16, 7), 2.0))
        torch.testing.assert_close(inner[:, 9:], torch.full((16, 7), 2.0))

    @pytest.mark.parametrize("kernel", [3, 5, 9])
    def test_every_pixel_beside_a_boundary_weighs_nothing(self, kernel):
        masks = torch.zeros(3, 30, 30)
        masks[0, 15, 15] = 1  # a point
        masks[1, 10:20, 8] = 1  # a thin line
        masks[2, 10:20, 10:20] = 1  # a square with its corners
        weight = reversed_weight(masks, kernel, strength=0.1)  # hardly falls
        for mask, values in zip(masks, weight, strict=True):
            for y in range(1, 29):
                for x in range(1, 29):
                    around = mask[y - 1 : y + 2, x - 1 : x + 2]
                    if around.min() != around.max():
                        assert values[y, x] == 0

    def test_the_border_of_the_image_is_no_boundary(self):
        assert (reversed_weight(torch.ones(1, 8, 8)) == 1).all()
        assert (reversed_weight(half())[0, :, -1] == 1).all()

    def test_the_empty_mask_is_trusted_everywhere(self):
        assert (reversed_weight(torch.zeros(1, 8, 8)) == 1).all()


class TestConfidence:
    @pytest.mark.parametrize(
        ("score", "expected"), [(0, 1), (127, 0), (254, 1), (190, 126 / 254), (64, 126 / 254)]
    )
    def test_of_one_class_is_the_distance_from_one_half(self, score, expected):
        values = confidence(torch.full((1, 1, 1), score, dtype=torch.uint8))
        assert values.flatten().tolist() == pytest.approx([expected, expected], abs=1e-6)

    def test_of_two_rivals_is_low_for_both_and_high_for_a_third(self):
        pseudo = torch.tensor([230, 204, 0], dtype=torch.uint8)[:, None, None]
        none, first, second, third = (value / 254 for value in (24, 230, 204, 0))
        lead = first - second
        assert confidence(pseudo).flatten().tolist() == pytest.approx(
            [first - none, lead, lead, first - third], abs=1e-6
        )

    def test_masks_take_the_leader_and_none_at_one_half(self):
        pseudo = torch.tensor([[200, 128, 127, 0], [100, 129, 0, 0]], dtype=torch.uint8)[:, None]
        none, car, bus = pseudo_masks(pseudo)[:, 0]
        assert car.tolist() == [1, 0, 0, 0]
        assert bus.tolist() == [0, 1, 0, 0]
        assert none.tolist() == [0, 0, 1, 1]


class TestWeigh:
    """A scene of 20 x 20: a person on the left, "others" on the right, a car in the others."""

    def scene(self):
        label = torch.full((20, 20), OTHERS, dtype=torch.uint8)
        label[:, :6] = PERSON
        label[5:15, 10:20] = CAR
        return label, scores(car=(slice(5, 15), slice(10, 20), 254))

    def test_named_classes_close_their_pixels_and_pseudo_labels_decide_in_the_others(self):
        label, pseudo = self.scene()
        found = evidence(label, pseudo)
        assert torch.equal(found.closed, label == PERSON)
        assert torch.equal(found.open, label != PERSON)
        assert found.labelled
        none, car, bus = found.trust
        torch.testing.assert_close(car, reversed_weight((label == CAR).float()[None])[0])
        torch.testing.assert_close(none, car)  # where one begins the other ends
        assert (bus == 1).all()  # certainly none anywhere
        assert car[10, 15] == 1  # the middle of the car
        assert car[5, 15] == car[4, 15] == 0  # its upper boundary, from both sides
        assert car[10, 19] == 1  # the car goes on beyond the border of the image
        assert not found.doubtful.any()

    def test_without_the_reversed_weight_the_confidence_is_left(self):
        label, pseudo = self.scene()
        pseudo[0, 5:15, 10:20] = 190
        trust = evidence(label, pseudo, reverse=False).trust
        assert trust[1, 5, 15] == trust[1, 10, 15] == pytest.approx(126 / 254)
        assert trust[1, 0, 0] == 1

    def test_an_image_without_pseudo_labels_leaves_its_others_in_doubt(self):
        label, _ = self.scene()
        label[label == CAR] = OTHERS
        found = evidence(label, torch.full((2, 20, 20), 127, dtype=torch.uint8))
        assert (found.trust == 0).all()
        assert found.doubtful.tolist() == [True, True]

    def test_pseudo_labels_of_one_class_leave_the_other_in_doubt(self):
        label, pseudo = self.scene()
        pseudo[1] = 127
        assert evidence(label, pseudo).doubtful.tolist() == [False, True]

    def test_a_class_may_only_hide_where_precise_labels_name_nothing(self):
        label = torch.full((20, 20), PERSON, dtype=torch.uint8)
        found = evidence(label, torch.full((2, 20, 20), 127, dtype=torch.uint8))
        assert not found.doubtful.any()

    def test_an_image_without_precise_labels_is_open_everywhere(self):
        label = torch.full((20, 20), IGNORE, dtype=torch.uint8)
        label[5:15, 5:15] = CAR
        found = evidence(label, scores(car=(slice(5, 15), slice(5, 15), 254)))
        assert found.open.all()
        assert not found.closed.any()
        assert not found.labelled

    def test_ignored_pixels_beside_precise_labels_are_neither(self):
        label, pseudo = self.scene()
        label[0] = IGNORE
        found = evidence(label, pseudo)
        assert not found.open[0].any()
        assert not found.closed[0].any()

    def test_objects_may_have_been_ignored_instead_of_others(self):
        label, pseudo = self.scene()
        label[label == OTHERS] = IGNORE
        found = evidence(label, pseudo, others=IGNORE)
        assert torch.equal(found.open, label != PERSON)
        assert found.labelled
