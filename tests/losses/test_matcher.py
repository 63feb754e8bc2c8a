"""Hungarian matching: costs entry by entry, the best of all assignments, values that are not finite."""

import itertools
import logging
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from src.losses.matcher import HungarianMatcher


def case(queries, targets, points=11, classes=4, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return (
        torch.randn(queries, classes + 1, generator=generator),
        3 * torch.randn(queries, points, generator=generator),
        torch.randperm(classes, generator=generator)[:targets].sort().values,
        (torch.rand(targets, points, generator=generator) > 0.5).float(),
    )


def plain_costs(class_logits, point_logits, labels, point_masks):
    """Weighted total cost of every query and target, in Python floats."""
    points = point_logits.shape[1]
    total = []
    for q in range(len(class_logits)):
        exponentials = [math.exp(x) for x in class_logits[q].tolist()]
        row = []
        for t, label in enumerate(labels.tolist()):
            probabilities = [1 / (1 + math.exp(-x)) for x in point_logits[q].tolist()]
            mask = point_masks[t].tolist()
            entropy = -sum(
                m * math.log(p) + (1 - m) * math.log(1 - p) for p, m in zip(probabilities, mask, strict=True)
            )
            overlap = sum(p * m for p, m in zip(probabilities, mask, strict=True))
            dice = 1 - (2 * overlap + 1) / (sum(probabilities) + sum(mask) + 1)
            row.append(-2 * exponentials[label] / sum(exponentials) + 5 * entropy / points + 5 * dice)
        total.append(row)
    return total


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 6), st.integers(1, 4), st.integers(0, 1000))
def test_costs_and_the_assignment_are_the_best_possible(queries, targets, seed):
    arguments = case(queries, targets, seed=seed)
    matcher = HungarianMatcher()
    plain = torch.tensor(plain_costs(*arguments))
    torch.testing.assert_close(sum(matcher.costs(*arguments).values()), plain, atol=1e-4, rtol=1e-4)
    rows, columns = matcher(*arguments)
    assert len(rows) == len(columns) == min(queries, targets)
    assert len(set(rows.tolist())) == len(rows)
    assert len(set(columns.tolist())) == len(columns)
    found = float(plain[rows, columns].sum())
    if queries >= targets:
        options = (
            sum(float(plain[q, t]) for t, q in enumerate(chosen))
            for chosen in itertools.permutations(range(queries), targets)
        )
    else:
        options = (
            sum(float(plain[q, t]) for q, t in enumerate(chosen))
            for chosen in itertools.permutations(range(targets), queries)
        )
    assert found == pytest.approx(min(options), abs=1e-3)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize(("argument", "term"), [(0, "class"), (1, "mask")])
def test_values_that_are_not_finite_are_survived_and_named(bad, argument, term, caplog):
    arguments = list(case(5, 3))
    arguments[argument] = arguments[argument].clone()
    arguments[argument][2, 1] = bad
    with caplog.at_level(logging.WARNING):
        rows, columns = HungarianMatcher()(*arguments)
    assert sorted(columns.tolist()) == [0, 1, 2]
    if not (argument == 0 and bad == float("-inf")):  # softmax knows what to do with a single -inf
        assert 2 not in rows.tolist()
        assert f"the {term} cost has" in caplog.text
        assert "not finite" in caplog.text


def test_everything_bad_still_gives_an_assignment():
    class_logits, point_logits, labels, masks = case(4, 2)
    rows, columns = HungarianMatcher()(
        class_logits * float("nan"), point_logits * float("nan"), labels, masks
    )
    assert len(rows) == len(columns) == 2


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_single(dtype):
    class_logits, point_logits, labels, masks = case(6, 3, points=4096)
    half = (class_logits.to(dtype), point_logits.to(dtype), labels, masks)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        ours = HungarianMatcher()(*half)
        costs = HungarianMatcher().costs(half[0].float(), half[1].float(), labels, masks)
    assert all(cost.dtype == torch.float32 for cost in costs.values())
    theirs = HungarianMatcher()(half[0].float(), half[1].float(), labels, masks)
    for a, b in zip(ours, theirs, strict=True):
        assert torch.equal(a, b)
    exact = plain_costs(half[0].double(), half[1].double(), labels, masks)
    torch.testing.assert_close(sum(costs.values()), torch.tensor(exact), atol=1e-3, rtol=1e-4)


def test_huge_logits_do_not_overflow():
    class_logits, point_logits, labels, masks = case(4, 2)
    costs = HungarianMatcher().costs(1e4 * class_logits, 1e4 * point_logits, labels, masks)
    assert all(cost.isfinite().all() for cost in costs.values())
