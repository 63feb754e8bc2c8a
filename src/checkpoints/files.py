"""Reading and writing the files of checkpoints, whoever wrote them.

A checkpoint is a file of ``torch.save`` with two entries that matter here: ``state_dict``, whose tensors of the
network carry the prefix ``network.``, and ``config``, the resolved configuration as plain values, of which
``config["model"]["network"]`` says how to build the network. Training adds what it needs to resume.

Checkpoints may come from strangers: files are read with ``weights_only=True``. What their configuration may name is
bounded where it is used: ``network`` builds this project's networks alone, ``src.engine.stored_data`` its data.
"""

from __future__ import annotations

import pickle
import re
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypeGuard

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file as load_safetensors
from torch import Tensor

from src.errors import UserError
from src.files import atomic_file

PREFIX = "network."
_UNSAFE_OBJECT = re.compile(r"GLOBAL ([\w.]+)")


class CheckpointError(UserError):
    """A checkpoint cannot be used; the message names the file, the reason and the cure."""


class Checkpoint(NamedTuple):
    """What evaluation and fine-tuning need of a checkpoint.

    Attributes:
        config: the resolved configuration, plain dicts and lists.
        state: tensors of the network, without prefix.
        path: where it was read.
    """

    config: dict[str, Any]
    state: dict[str, Tensor]
    path: Path

    @property
    def classes(self) -> dict[str, list[int]]:
        """Class name -> RGB colour, in the order of the ids.

        Raises:
            CheckpointError: the configuration does not name them.
        """
        data = self.config.get("data")
        classes = data.get("classes") if isinstance(data, dict) else None
        if not isinstance(classes, dict) or not classes:
            raise CheckpointError(f"{self.path}: its configuration does not name the classes (data.classes)")
        return classes

    @property
    def fingerprint(self) -> str:
        """A few characters that tell these weights from others."""
        checksum = 0
        for name in sorted(self.state):
            values = self.state[name].detach().cpu().contiguous().flatten()
            checksum = zlib.crc32(values.view(torch.uint8).numpy().data, zlib.crc32(name.encode(), checksum))
        return f"{checksum:08x}"

    @property
    def enlarge_to(self) -> tuple[int, int] | None:
        """Two edge lengths that smaller photos were brought to in evaluation; None for no enlargement.

        Raises:
            CheckpointError: the configuration names something else.
        """
        data = self.config["data"]
        if not data.get("enlarge"):
            return None
        edges = data.get("evaluation_limit", (4096, 3072))
        if not isinstance(edges, list | tuple) or [type(edge) for edge in edges] != [int, int]:
            raise CheckpointError(f"{self.path}: data.evaluation_limit={edges} is not two edge lengths")
        return edges[0], edges[1]


class _StandIn:
    """What stands for an object of a class that is not known here: nothing of it is kept, and nothing runs."""

    def __init__(self, *_: object, **__: object) -> None:
        pass

    def __setstate__(self, _: object) -> None:
        pass


def _stand_ins(path: Path) -> list[Callable[..., Any] | tuple[Callable[..., Any], str]]:
    """One for each class that the file names and that ``weights_only`` does not allow."""
    try:
        unknown = torch.serialization.get_unsafe_globals_in_checkpoint(path)
    except Exception:  # files of before PyTorch 1.6, and bytes that are no checkpoint
        return []
    return [(type(name.rpartition(".")[2], (_StandIn,), {}), name) for name in unknown]


def read_file(path: str | Path, *, foreign: bool = False) -> dict[str, Any]:
    """Read a ``torch.save`` file safely.

    Args:
        path: of the file.
        foreign: whether objects of unknown classes, such as the history that mmengine keeps, are passed over.

    Raises:
        CheckpointError: no such file, not a checkpoint, or one that needs unsafe unpickling.
    """
    path = Path(path).expanduser()
    if path.is_dir():
        raise CheckpointError(
            f"{path} is a folder; give a file in it: checkpoints/best.ckpt, or last.ckpt to resume"
        )
    if not path.is_file():
        raise CheckpointError(f"{path}: no such checkpoint file")
    try:
        with torch.serialization.safe_globals(_stand_ins(path) if foreign else []):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        named = _UNSAFE_OBJECT.search(str(error))
        found = f", {named[1]} for one" if named else ""
        raise CheckpointError(
            f"{path} cannot be read safely: it holds Python objects besides tensors and plain values{found}, or it "
            "is damaged. Reading such objects runs code that the file brings. If you trust its source, open it once "
            "with torch.load(..., weights_only=False) and save {'state_dict': checkpoint['state_dict']} as a new "
            "file."
        ) from error
    except Exception as error:  # bytes that are no checkpoint make the reader fail in any way
        raise CheckpointError(
            f"{path} is not a checkpoint, or it is incomplete ({type(error).__name__}: {error})"
        ) from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} holds a {type(content).__name__}, not a checkpoint")
    return content


def read(path: str | Path) -> Checkpoint:
    """Read a checkpoint that training or the converter wrote.

    Raises:
        CheckpointError: the file is unreadable, it does not come from this project, or its weights are not finite.
    """
    return _described(read_file(path), path)


def read_training(path: str | Path) -> tuple[Checkpoint, int]:
    """Read a checkpoint from which training can go on, and how many steps it has completed.

    Raises:
        CheckpointError: as ``read``, or it holds weights alone.
    """
    content = read_file(path)
    checkpoint = _described(content, path)
    if "optimizer_states" not in content:
        raise CheckpointError(
            f"{path} holds weights alone, and no state of an optimiser to go on from: start a new run from them with "
            "init_from instead of resume."
        )
    return checkpoint, int(content.get("global_step", 0))


def _described(content: Mapping[str, Any], path: str | Path) -> Checkpoint:
    config, state = content.get("config"), content.get("state_dict")
    if not isinstance(config, dict) or "model" not in config:
        raise CheckpointError(
            f"{path} was not written by this project: it has the entries {sorted(map(str, content))[:8]} but no "
            "'config'. Checkpoints of other programs go through scripts/convert_checkpoint.py --from <format> first."
        )
    if not _is_state_dict(state):
        raise CheckpointError(f"{path}: its 'state_dict' does not hold names with tensors")
    tensors = {name.removeprefix(PREFIX): t for name, t in state.items() if name.startswith(PREFIX)}
    # such a network would answer every pixel with the first class, and nobody would know why
    broken = [name for name, tensor in tensors.items() if not tensor.isfinite().all()]
    if broken:
        raise CheckpointError(
            f"{path}: {len(broken)} of {len(tensors)} tensors hold NaN or infinity, {broken[0]} for one. The "
            "training that wrote it has diverged; take an earlier checkpoint."
        )
    return Checkpoint(config, tensors, Path(path))


def read_tensors(path: str | Path) -> dict[str, Tensor]:
    """The tensors of any program's checkpoint, by name.

    Accepts safetensors files, ``torch.save`` files with an entry ``state_dict`` (mmengine; everything beside it
    is ignored, objects of its own too) and plain state dicts. The prefix ``module.``, which distributed training
    leaves, is dropped.

    Raises:
        CheckpointError: the file is unreadable, or it holds no tensors.
    """
    path = Path(path)
    if path.suffix == ".safetensors" and path.is_file():
        try:
            state: Any = load_safetensors(path)
        except SafetensorError as error:
            raise CheckpointError(
                f"{path} is not a safetensors file, or it is incomplete: {error}"
            ) from error
    else:
        content = read_file(path, foreign=True)
        state = content.get("state_dict", content)
    if not state or not _is_state_dict(state):
        raise CheckpointError(
            f"{path} holds no state dict: expected names with tensors, directly or under 'state_dict'"
        )
    if all(name.startswith("module.") for name in state):
        state = {name.removeprefix("module."): tensor for name, tensor in state.items()}
    return state


def write(path: str | Path, config: Mapping[str, Any], state: Mapping[str, Tensor]) -> None:
    """Write a checkpoint of weights alone, atomically."""
    write_file(path, {"state_dict": {PREFIX + name: t for name, t in state.items()}, "config": dict(config)})


def write_file(path: str | Path, content: Mapping[str, Any]) -> None:
    """``torch.save`` that never leaves half a file behind."""
    with atomic_file(Path(path)) as file:
        torch.save(dict(content), file)


def _is_state_dict(state: Any) -> TypeGuard[dict[str, Tensor]]:
    """Whether this is a dictionary from names to tensors that hold numbers, as opposed to sparse and meta ones."""
    return isinstance(state, dict) and all(
        isinstance(name, str)
        and isinstance(tensor, Tensor)
        and tensor.layout is torch.strided
        and not tensor.is_meta
        for name, tensor in state.items()
    )
