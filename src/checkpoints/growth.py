"""Starting a network from a checkpoint, also of other classes.

The class head has one row per class and a last one for "no object"; everything else of the network does not depend on
the number of classes, except for the class embedding of mask piloting. Rows are carried over by the classes' names.
Those of classes that the checkpoint does not have stay random, unless a trained network is taught them (``others``).

Then a new row starts as a copy of the row of the class that the checkpoint gives to new objects ("others"), with a
bias that hands it a small share of that class's probability. Since exp(b + log p) + exp(b + log(1 - p)) = exp(b), the
probabilities of all other classes and of "no object" stay exactly what they were (the idea of Cermelli et al.,
"Modeling the Background for Incremental Learning in Semantic Segmentation", CVPR 2020, who share evenly; a small
share leaves the argmax alone).
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from src.checkpoints.files import Checkpoint, CheckpointError, read
from src.checkpoints.names import NameTableError, check_fits
from src.checkpoints.network import load_weights
from src.errors import UserError

log = logging.getLogger(__name__)

SHARE = 0.01  # of the probability of "others", for each new class
_LEFT = 0.5  # the least that "others" keeps
_HEAD = "transformer_decoder.class_head"
_PILOTS = "piloting.class_embedding.weight"


class NewRow(NamedTuple):
    """A row that the checkpoint does not have: its tensor and index, its class, and the class it starts from."""

    tensor: str
    row: int
    name: str
    start: str


def start_from(network: nn.Module, path: str, classes: Sequence[str], others: str | None = None) -> None:
    """Load the weights of another run, and log what starts otherwise.

    Args:
        network: built for ``classes``. path: of a checkpoint of the same architecture. classes: K names, ascending by
            id.
        others: where the network is taught new classes, see ``grow_weights``; None for other data.

    Raises:
        UserError: the checkpoint does not fit; CheckpointError: as ``grow_weights``, or it cannot be read.
    """
    checkpoint = read(path)
    try:
        if others is None:
            _carry(network, checkpoint, classes)
            return
        rows = grow_weights(network, checkpoint, classes, others)
    except NameTableError as error:
        encoder = checkpoint.config["model"]["network"]["backbone"].get("name")
        raise UserError(
            "give this run the experiment and the model options that the checkpoint was trained with, such as "
            f"model/size=nano (its encoder is {encoder}): {error}"
        ) from error
    log.info("weights start from %s, %s", path, "apart from:" if rows else "all of them")
    for row in rows:
        log.info("  %s, row %d (%s) is new: starts from %s", *row)


def _carry(network: nn.Module, checkpoint: Checkpoint, classes: Sequence[str]) -> None:
    known = list(checkpoint.classes)
    log.info("weights start from %s", checkpoint.path)
    pairs = list(zip(known, classes, strict=False))
    if len(known) == len(classes) and all(
        a == b or (a not in classes and b not in known) for a, b in pairs
    ):  # other names for the same, such as "lake"
        load_weights(network, checkpoint)
        for before, name in pairs:
            if before != name:
                log.warning("  class %s starts as what was %s there", name, before)
        return
    new, left_out = carry_weights(network, checkpoint, classes)
    if new:
        log.warning("  classes that it does not have start from random values: %s", ", ".join(new))
    if left_out:
        log.warning("  classes that it has besides are left out: %s", ", ".join(left_out))


def grow_weights(
    network: nn.Module, checkpoint: Checkpoint, classes: Sequence[str], others: str
) -> list[NewRow]:
    """Copy a checkpoint's weights into the same network with more classes.

    Args:
        network: built for ``classes``.
        checkpoint: of the same architecture; its classes are among ``classes``.
        classes: K names, ascending by id.
        others: name of the class, one of the checkpoint's, that new objects have had so far; "ignore" when they have
            had none: new rows then start from "no object".

    Returns:
        the rows that the checkpoint does not have.

    Raises:
        CheckpointError: the checkpoint has a class that the network has not, or lacks ``others``.
        NameTableError: anything but the number of classes differs.
    """
    known = list(checkpoint.classes)
    if lost := [name for name in known if name not in classes]:
        raise CheckpointError(
            f"{checkpoint.path} knows {', '.join(lost)}, which data.classes ({', '.join(classes)}) does not have. "
            "A network can grow, not shrink: keep the old classes in data.classes."
        )
    new = [name for name in classes if name not in known]
    if new and others not in (*known, "ignore"):
        raise CheckpointError(f"data.others={others} is no class of {checkpoint.path} ({', '.join(known)})")
    state = dict(checkpoint.state)
    rows: list[NewRow] = []
    if list(classes) != known:
        start = others if others != "ignore" else "no object"
        source = known.index(others) if new and others != "ignore" else len(known)
        order = [known.index(name) if name in known else source for name in classes]
        parts = {_HEAD + ".weight": [*order, len(known)], _HEAD + ".bias": [*order, len(known)]}
        if _PILOTS in state:
            parts[_PILOTS] = order
            # these queries have no row for "no object"; the mean of all classes stands in for it
            state[_PILOTS] = torch.cat((state[_PILOTS], state[_PILOTS].mean(0, keepdim=True)))
        for tensor, taken in parts.items():
            state[tensor] = state[tensor][taken]
            rows += [NewRow(tensor, list(classes).index(name), name, start) for name in new]
        if new:
            kept = list(classes).index(others) if others != "ignore" else len(classes)
            _share(state[_HEAD + ".bias"], [classes.index(name) for name in new], kept)
    check_fits(state, network.state_dict(), str(checkpoint.path))
    network.load_state_dict(state)
    return sorted(rows)


def carry_weights(
    network: nn.Module, checkpoint: Checkpoint, classes: Sequence[str]
) -> tuple[list[str], list[str]]:
    """Copy a checkpoint's weights into the same network for other classes.

    Rows of the class head follow the classes' names. Those of classes that the checkpoint does not have stay as the
    network has them, so with random values where it is new.

    Args:
        network: built for ``classes``. checkpoint: of the same architecture. classes: K names, ascending by id.

    Returns:
        the classes that are new, and those of the checkpoint that are left out.

    Raises:
        NameTableError: anything but the number of classes differs.
    """
    known, state, own = list(checkpoint.classes), dict(checkpoint.state), network.state_dict()
    ours = [index for index, name in enumerate(classes) if name in known]
    theirs = [known.index(classes[index]) for index in ours]
    # the last row is "no object", of these queries there is none
    ends = {_HEAD + ".weight": 1, _HEAD + ".bias": 1, _PILOTS: 0}
    for tensor, end in ends.items():
        if tensor in state and tensor in own and state[tensor].shape[1:] == own[tensor].shape[1:]:
            rows = own[tensor].clone()
            rows[[*ours, *[len(classes)] * end]] = state[tensor][[*theirs, *[len(known)] * end]]
            state[tensor] = rows
    check_fits(state, own, str(checkpoint.path))
    network.load_state_dict(state)
    return [name for name in classes if name not in known], [name for name in known if name not in classes]


def _share(bias: Tensor, new: Sequence[int], others: int) -> None:
    """Hand the new classes their shares of the probability of "others", less each where they are many; in place."""
    share = min(SHARE, (1 - _LEFT) / len(new))
    bias[new] += math.log(share)
    bias[others] += math.log(1 - share * len(new))
