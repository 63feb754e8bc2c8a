"""Convert checkpoints of other programs to this project's format, and back.

    python scripts/convert_checkpoint.py --from massformer-release iter_80000.pth massformer.ckpt
    python scripts/convert_checkpoint.py --to massformer-release massformer.ckpt release.pth

The architecture is deduced from the tensors. What is written can be evaluated, used for prediction and fine-tuned
(``init_from=massformer.ckpt``). Every tensor must have its place: unknown or missing names are an error.
"""

from __future__ import annotations

import argparse
import colorsys
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import safetensors.torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from src.checkpoints.files import PREFIX, read, read_tensors, write, write_file
from src.checkpoints.formats import FORMATS, Format
from src.checkpoints.names import NameTableError, check_fits
from src.checkpoints.network import build_network
from src.config import CONFIG_DIR, compose_config, to_plain
from src.errors import UserError, explained
from src.files import check_writable, write_atomically

CLASS_HEAD = "transformer_decoder.class_head.weight"
NUM_MASS13K_CLASSES = 7


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line; faults of files end it with their message."""
    options = _parse(arguments)
    with explained():
        if options.target.is_dir():
            raise UserError(f"{options.target} is a folder; give the file to write")
        if options.target.exists() and not options.force:
            raise UserError(f"{options.target} exists already; give --force to replace it")
        check_writable(options.target.parent, "OUT's folder")
        if options.source_format:
            form = FORMATS[options.source_format]
            try:
                count = import_checkpoint(options.source, options.target, form, options.classes)
            except NameTableError as error:
                raise UserError(
                    f"{options.source} does not hold what was expected, a network of {form.description}: {error}. "
                    f"{_other_format(options.source, form)}"
                ) from error
        else:
            count = export_checkpoint(options.source, options.target, FORMATS[options.target_format])
    print(f"{options.target}: {count} tensors")


def import_checkpoint(source: Path, target: Path, form: Format, classes: str | None = None) -> int:
    """Turn another program's checkpoint into one of this project; returns the number of tensors.

    Args:
        source: their file (``torch.save`` or safetensors). target: ours.
        form: what wrote the source.
        classes: name of a file in ``conf/data/classes``. By default seven classes are taken for those of
            MaSS13K, and any other number gets numbered names.

    Raises:
        UserError: unreadable file, or another number of classes than ``classes`` has.
        NameTableError: tensors do not fit the table or the network.
    """
    state = form.to_ours(read_tensors(source))
    config = network_config(form.overrides(state), num_classes(state, source), classes)
    check_fits(state, build_network(config).state_dict(), str(source))
    write(target, config, state)
    return len(state)


def _other_format(source: Path, form: Format) -> str:
    """What a file may be that does not fit the format it was taken for."""
    state = read_tensors(source)
    if any(name.startswith(PREFIX) for name in state):
        return "It looks like a checkpoint of this project, which needs no conversion."
    for name, other in FORMATS.items():
        if other is not form:
            with suppress(NameTableError):
                other.to_ours(state)
                return f"Its tensors have the names of another format: --from {name}"
    return "Its tensors have the names of no format known here (--help lists them)."


def export_checkpoint(source: Path, target: Path, form: Format) -> int:
    """Turn a checkpoint of this project into another program's; returns the number of tensors.

    A file that ends in ``.safetensors`` holds the tensors alone. In others class names and colours go where mmengine
    looks for them.

    Raises:
        CheckpointError: unreadable file. NameTableError: the other program has no such network.
    """
    checkpoint = read(source)
    theirs = form.to_theirs(checkpoint.state)
    expected = network_config(form.overrides(checkpoint.state), len(checkpoint.classes))
    check_fits(checkpoint.state, build_network(expected).state_dict(), str(source))
    if target.suffix == ".safetensors":  # what Hugging Face reads: tensors and nothing else
        tensors = {name: tensor.contiguous() for name, tensor in theirs.items()}
        write_atomically(target, safetensors.torch.save(tensors, metadata={"format": "pt"}))
        return len(theirs)
    names, colours = tuple(checkpoint.classes), [list(colour) for colour in checkpoint.classes.values()]
    write_file(
        target, {"meta": {"dataset_meta": {"classes": names, "palette": colours}}, "state_dict": theirs}
    )
    return len(theirs)


def num_classes(state: Mapping[str, Tensor], source: Path) -> int:
    """K of a network's tensors under our names; the class head has one more output."""
    if CLASS_HEAD not in state:
        raise NameTableError(f"{source} has no class head, so the number of classes is unknown")
    return len(state[CLASS_HEAD]) - 1


def network_config(overrides: Sequence[str], count: int, classes: str | None = None) -> dict[str, Any]:
    """The part of the configuration that a checkpoint needs: name, network, and data with ``count`` classes."""
    mass13k = classes is None and count == NUM_MASS13K_CLASSES
    data = ["data=mass13k" if mass13k else "data=own"] + ([f"data/classes={classes}"] if classes else [])
    config = compose_config("train", [*overrides, *data, "run_dir=."])
    if classes is None and not mass13k:
        config.data.classes = numbered_classes(count)
    if len(config.data.classes) != count:
        raise UserError(
            f"the checkpoint has {count} classes, but conf/data/classes/{classes}.yaml has "
            f"{len(config.data.classes)}"
        )
    plain = to_plain(config)
    return {key: plain[key] for key in ("name", "model", "data")}


def numbered_classes(count: int) -> dict[str, list[int]]:
    """``class_0``, ``class_1``, ... with colours spread over the hues."""
    golden = 0.618034  # the golden ratio's steps keep neighbours far apart
    return {
        f"class_{i}": [round(255 * c) for c in colorsys.hsv_to_rgb(i * golden % 1, 0.75, 1 - i % 3 * 0.2)]
        for i in range(count)
    }


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    listing = "\n".join(f"  {name:20} {form.description}" for name, form in FORMATS.items())
    parser = argparse.ArgumentParser(
        description="Convert checkpoints of other programs to this project's format, and back.",
        epilog=f"formats:\n{listing}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    direction = parser.add_mutually_exclusive_group(required=True)
    direction.add_argument("--from", dest="source_format", choices=FORMATS, help="format of IN; OUT is ours")
    direction.add_argument("--to", dest="target_format", choices=FORMATS, help="format of OUT; IN is ours")
    parser.add_argument("source", type=Path, metavar="IN", help="checkpoint to read")
    parser.add_argument("target", type=Path, metavar="OUT", help="checkpoint to write")
    parser.add_argument(
        "--classes",
        choices=sorted(file.stem for file in Path(CONFIG_DIR, "data", "classes").glob("*.yaml")),
        help="names and colours, a file in conf/data/classes (default: mass13k for 7 classes, else numbered)",
    )
    parser.add_argument("--force", action="store_true", help="replace OUT if it exists")
    options = parser.parse_args(arguments)
    if options.classes and options.target_format:
        parser.error(
            "--classes goes with --from: the names and colours of a checkpoint of this project are its own"
        )
    return options


if __name__ == "__main__":
    main()
