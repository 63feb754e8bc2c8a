"""From a checkpoint to its network.

Checkpoints may come from strangers: a configuration can only name classes of this project's network.
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from src.checkpoints.files import Checkpoint, CheckpointError, read
from src.checkpoints.names import check_fits
from src.errors import UserError

_BUILDABLE = "src.models."
_BACKBONE = "src.models.backbone.Backbone"


def build_network(config: Mapping[str, Any]) -> nn.Module:
    """Build the network that ``config["model"]["network"]`` describes, with random weights.

    Args:
        config: resolved configuration, maybe a stranger's.

    Raises:
        CheckpointError: the configuration names something other than a part of the network, or does not fit it.
    """
    model = config.get("model")
    node = model.get("network") if isinstance(model, dict) else None
    network = _build(node)
    if not isinstance(network, nn.Module):
        raise CheckpointError("the checkpoint's configuration does not describe a network (model.network)")
    return network


def _build(node: Any) -> Any:
    """Instantiate nested ``_target_`` nodes that lie in ``src.models``, as Hydra would, and nothing else."""
    if isinstance(node, list):
        return [_build(item) for item in node]
    if not isinstance(node, dict):
        return node
    arguments = {key: _build(value) for key, value in node.items() if key not in ("_target_", "_partial_")}
    target = node.get("_target_")
    if target is None:
        return arguments
    factory = _network_module(target)
    if f"{factory.__module__}.{factory.__qualname__}" == _BACKBONE:
        arguments["weights"] = "none"  # they are in the checkpoint; nothing is fetched on its behalf
    if node.get("_partial_"):
        return functools.partial(factory, **arguments)
    try:
        return factory(**arguments)
    except UserError:
        raise
    except Exception as error:
        raise CheckpointError(
            f"{target} cannot be built as the checkpoint's configuration says: {error}"
        ) from error


def _network_module(target: Any) -> type[nn.Module]:
    """The class of a ``_target_``; CheckpointError unless it is a network module of this project."""
    if not isinstance(target, str) or not target.startswith(_BUILDABLE):
        raise CheckpointError(
            f"the checkpoint's configuration names {target}, which is not part of a network"
        )
    module, _, name = target.rpartition(".")
    try:
        factory = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise CheckpointError(f"the checkpoint names {target}, which this version does not have") from error
    if not (isinstance(factory, type) and issubclass(factory, nn.Module)):
        raise CheckpointError(f"the checkpoint's configuration names {target}, which is not a network module")
    return factory


def load(path: str | Path) -> nn.Module:
    """The network of a checkpoint, in evaluation mode on the CPU.

    Calling it on normalised float images (B, 3, H, W) of any size from 64 x 64 gives a ``MaskPrediction``:
    ``class_logits`` (B, Q, K+1), ``mask_logits`` (B, Q, H/2, W/2) and ``edge_logits`` (B, 1, H/2, W/2) or None, at
    stride 4 in networks without a branch for details; ``network.normalise`` prepares uint8 RGB.

    Raises:
        CheckpointError: the file is unreadable. NameTableError: its tensors do not fit its configuration.
    """
    return load_network(read(path))


def load_network(checkpoint: Checkpoint) -> nn.Module:
    """``load`` for a checkpoint that has been read already."""
    network = build_network(checkpoint.config)
    load_weights(network, checkpoint)
    return network.eval()


def load_weights(network: nn.Module, checkpoint: Checkpoint) -> None:
    """Copy a checkpoint's weights into a network of the same architecture.

    Raises:
        NameTableError: names or shapes differ (another architecture, or another number of classes).
    """
    check_fits(checkpoint.state, network.state_dict(), str(checkpoint.path))
    network.load_state_dict(checkpoint.state)
