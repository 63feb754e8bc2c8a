"""Name tables: both directions, and what does not fit."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from src.checkpoints.names import NameTableError, check_fits, translate

TABLE = [
    ("encoder.", "backbone."),
    ("layers.{i}.norm.", "decoder.{i}.ln."),
    ("layers.{i}.linear.", "decoder.{i}.fc."),
    ("queries", "embed.weight"),
]


@given(
    st.sets(st.integers(0, 300), max_size=6), st.lists(st.sampled_from(["a", "b.c", "weight"]), unique=True)
)
def test_translation_and_its_reverse_are_inverse(numbers, tails):
    names = [f"encoder.{tail}" for tail in tails] + [f"layers.{i}.norm.{t}" for i in numbers for t in tails]
    state = {name: torch.tensor(i) for i, name in enumerate([*names, "queries"])}
    theirs = translate(state, TABLE, reverse=True)
    assert len(theirs) == len(state)
    assert not set(theirs) & set(state)
    assert translate(theirs, TABLE) == state


def test_translation_replaces_the_prefix_and_keeps_the_number():
    state = {"decoder.12.fc.weight": torch.zeros(1), "backbone.decoder.1.fc.bias": torch.zeros(1)}
    assert set(translate(state, TABLE)) == {"layers.12.linear.weight", "encoder.decoder.1.fc.bias"}


def test_a_dot_in_the_table_is_a_dot():
    with pytest.raises(NameTableError, match="1 tensors have no place in the name table: backboneX"):
        translate({"backboneX": torch.zeros(1)}, TABLE)


def test_a_name_that_fits_twice_raises():
    with pytest.raises(NameTableError, match=r"a\.b\.x fits several"):
        translate({"a.b.x": torch.zeros(1)}, [("one.", "a."), ("two.", "a.b.")])


def test_two_names_for_one_tensor_raise():
    with pytest.raises(NameTableError, match=r"two tensors would be named c\.x; the second is b\.x"):
        translate({"a.x": torch.zeros(1), "b.x": torch.zeros(1)}, [("c.", "a."), ("c.", "b.")])


def test_many_unknown_names_are_counted_and_the_first_listed():
    state = {f"unknown.{i}": torch.zeros(1) for i in range(9)}
    with pytest.raises(NameTableError, match=r"9 tensors .*unknown\.0; .*unknown\.3; \.\.\. \(5 more\)"):
        translate(state, TABLE)


def test_check_fits_names_every_kind_of_difference():
    expected = {"a": torch.zeros(2), "b": torch.zeros(3), "c": torch.zeros(1)}
    check_fits(dict(expected), expected, "file.ckpt")
    with pytest.raises(NameTableError) as error:
        check_fits({"a": torch.zeros(2), "b": torch.zeros(4), "d": torch.zeros(1)}, expected, "file.ckpt")
    message = str(error.value)
    assert "file.ckpt does not fit this network" in message
    assert "1 tensors are missing: c" in message
    assert "1 tensors have no place in the network: d" in message
    assert "b is (4,), the network has (3,)" in message
