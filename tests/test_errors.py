"""What is left of an error."""

from __future__ import annotations

import weakref

import pytest

from src.errors import UserError, explained


class Activations:
    """Something large on a device."""


@pytest.mark.parametrize("kind", [RuntimeError, UserError])
def test_a_failed_run_of_a_sweep_keeps_nothing_alive(kind: type[Exception]) -> None:
    alive: list[weakref.ref[Activations]] = []

    def step() -> None:
        activations = Activations()
        alive.append(weakref.ref(activations))
        raise MemoryError

    def run() -> None:
        batch = Activations()
        alive.append(weakref.ref(batch))
        try:
            step()
        except MemoryError as error:
            raise kind("out of memory") from error

    with pytest.raises(kind) as kept, explained(go_on=True):
        run()
    assert kept.value.__cause__ is not None  # the error is there
    assert [reference() for reference in alive] == [None, None]
