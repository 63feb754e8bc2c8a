"""The data that a checkpoint was trained on, whoever wrote the checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from src.checkpoints.files import CheckpointError
from src.data.datamodule import SegmentationDataModule
from src.data.new_categories import NewCategoryData
from src.errors import UserError

_KNOWN = {
    f"{kind.__module__}.{kind.__qualname__}": kind for kind in (SegmentationDataModule, NewCategoryData)
}
_CURE = "give the data yourself: data=<choice> data.root=<folder>"


def build_data(config: Mapping[str, Any], **changes: Any) -> SegmentationDataModule:
    """The data module that the configuration in a checkpoint describes.

    The configuration may be a stranger's. So it can name this project's two data modules only, its values are plain
    ones (nothing in them is instantiated or interpolated), and scenes are drawn below the current folder only.

    Args:
        config: ``checkpoint.config``. changes: arguments that take the place of its own.

    Raises:
        CheckpointError: it names something else, or its values do not fit. UserError: as the data module's.
    """
    node = config.get("data")
    target = node.get("_target_") if isinstance(node, dict) else None
    if not isinstance(node, dict) or not isinstance(target, str) or target not in _KNOWN:
        raise CheckpointError(f"the checkpoint's configuration names {target} as its data; {_CURE}")
    arguments = {key: value for key, value in node.items() if key != "_target_"} | changes
    root = Path(str(arguments.get("root"))).expanduser().resolve()
    if arguments.get("synthetic") is not None and not root.is_relative_to(Path.cwd()) and not root.is_dir():
        raise CheckpointError(f"the checkpoint would draw synthetic scenes in {root}; {_CURE}")
    try:
        return _KNOWN[target](**arguments)
    except UserError:
        raise
    except Exception as error:
        raise CheckpointError(
            f"the checkpoint's data cannot be opened as it says ({error}); {_CURE}"
        ) from error
