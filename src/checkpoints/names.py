"""Tables of tensor names, applied both ways.

A table is a list of (ours, theirs) prefixes. A tensor's name is translated by replacing the one prefix that it
starts with; ``{i}`` in both prefixes stands for any number. A name that no prefix fits, or that two fit, raises.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence

from torch import Tensor

from src.errors import UserError

NameTable = Sequence[tuple[str, str]]


class NameTableError(UserError):
    """Tensor names or shapes do not fit the table or the network."""


def _rename(name: str, rules: Sequence[tuple[re.Pattern[str], str]]) -> str | None:
    found = {pattern.sub(replacement, name, count=1) for pattern, replacement in rules if pattern.match(name)}
    if len(found) > 1:
        raise NameTableError(f"{name} fits several entries of the name table: {sorted(found)}")
    return found.pop() if found else None


def _compile(source: Iterable[str], target: Iterable[str]) -> list[tuple[re.Pattern[str], str]]:
    return [
        (re.compile(re.escape(s).replace(r"\{i\}", r"(\d+)")), t.replace("{i}", r"\g<1>"))
        for s, t in zip(source, target, strict=True)
    ]


def translate(state: Mapping[str, Tensor], table: NameTable, *, reverse: bool = False) -> dict[str, Tensor]:
    """Rename every tensor of ``state`` from theirs to ours, or from ours to theirs with ``reverse``.

    Raises:
        NameTableError: names that no entry fits, or two tensors that would get the same name.
    """
    ours, theirs = zip(*table, strict=True)
    rules = _compile(ours, theirs) if reverse else _compile(theirs, ours)
    renamed: dict[str, Tensor] = {}
    unknown = []
    for name, tensor in state.items():
        new = _rename(name, rules)
        if new is None:
            unknown.append(name)
        elif new in renamed:
            raise NameTableError(f"two tensors would be named {new}; the second is {name}")
        else:
            renamed[new] = tensor
    if unknown:
        raise NameTableError(f"{len(unknown)} tensors have no place in the name table: {_listing(unknown)}")
    return renamed


def check_fits(state: Mapping[str, Tensor], expected: Mapping[str, Tensor], source: str) -> None:
    """Raise unless ``state`` has exactly the names and shapes of ``expected``, and the same kinds of numbers.

    Raises:
        NameTableError: names ``source`` and the first differences.
    """
    problems = []
    missing = [name for name in expected if name not in state]
    unused = [name for name in state if name not in expected]
    shapes = [
        f"{name} is {tuple(state[name].shape)}, the network has {tuple(tensor.shape)}"
        for name, tensor in expected.items()
        if name in state and state[name].shape != tensor.shape
    ]
    kinds = [
        f"{name} holds {state[name].dtype}, the network {tensor.dtype}"
        for name, tensor in expected.items()
        if name in state and state[name].is_floating_point() != tensor.is_floating_point()
    ]
    if missing:
        problems.append(f"{len(missing)} tensors are missing: {_listing(missing)}")
    if unused:
        problems.append(f"{len(unused)} tensors have no place in the network: {_listing(unused)}")
    if shapes:
        problems.append(f"{len(shapes)} shapes differ: {_listing(shapes)}")
    if kinds:
        problems.append(f"{len(kinds)} tensors hold other numbers: {_listing(kinds)}")
    if problems:
        raise NameTableError(f"{source} does not fit this network. " + ". ".join(problems))


def _listing(names: Sequence[str], most: int = 4) -> str:
    shown = "; ".join(names[:most])
    return shown if len(names) <= most else f"{shown}; ... ({len(names) - most} more)"
