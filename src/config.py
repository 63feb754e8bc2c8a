"""Composing the project's configuration, for entry points, scripts, tests and the notebook."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import QuotedString
from hydra.errors import HydraException, InstantiationException
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import InterpolationKeyError

from src.data.classes import extend_classes
from src.engine import slurm
from src.errors import UserError

# Options whose value is a path, whatever characters it has.
_PATHS = re.compile(
    r"[+]{0,2}(checkpoint|compare|input|output|predictions|resume|init_from|run_dir"
    r"|data\.(root|store|cache_folder|pseudo_labels|folders\.\w+\.(images|labels))|hydra\.(run|sweep)\.dir)"
)

# Options of processes that follow the first of a run, by what may be given instead. Folders named by the time differ.
_FOLLOWERS = {
    "hydra/job_logging": ("hydra/job_logging=stdout", "hydra.job_logging.root.level=WARNING"),
    "hydra/hydra_logging": ("hydra/hydra_logging=none",),
    "hydra.output_subdir": ("hydra.output_subdir=null",),
    "hydra.run.dir": (
        'hydra.run.dir="outputs/${name}/${resumable:.,${oc.select:resume},${hydra.job.override_dirname}}"',
    ),
}

CONFIG_DIR = str(Path(__file__).resolve().parent.parent / "conf")

# ${count:${data.classes}}: how many entries a mapping has
OmegaConf.register_new_resolver("count", len, replace=True)
# ${mul:a,b}: the product of two whole numbers
OmegaConf.register_new_resolver("mul", lambda a, b: int(a) * int(b), replace=True)
# ${resumable:default,${resume},${hydra.job.override_dirname}}: a name that a run has again when SLURM starts it again
OmegaConf.register_new_resolver("resumable", slurm.resumable_name, replace=True)
# ${extend:${known_classes},${data.new_classes}}: the classes with new ones after them
OmegaConf.register_new_resolver("extend", extend_classes, replace=True)


def compose_config(name: str = "train", overrides: Sequence[str] = ()) -> DictConfig:
    """The configuration that ``python -m src.<name> <overrides>`` would use."""
    with initialize_config_dir(CONFIG_DIR, version_base="1.3"):
        return compose(name, overrides=quoted_paths(overrides))


def quoted_paths(overrides: Sequence[str]) -> list[str]:
    """Overrides with quotes round those paths that Hydra's grammar would not take for text.

    Hydra reads letters of ASCII and few other characters, takes commas for a sweep and 2024 for a number.
    ``null``, and what has quotes of its own, stay as they are, and so do sweeps in a multirun.
    """
    sweeps = any(
        word == "-m" or word.startswith("--multi") or word == "hydra.mode=MULTIRUN" for word in overrides
    )
    return [_quoted(override, sweeps) for override in overrides]


def _quoted(override: str, sweeps: bool) -> str:
    key, equals, value = override.partition("=")
    if not equals or not _PATHS.fullmatch(key) or not value:
        return override
    try:
        parsed = OverridesParser.create().parse_override(override)
    except HydraException:
        pass
    else:
        plain = isinstance(parsed.value(), str | QuotedString) and value == value.strip()
        if plain or parsed.value() is None or (sweeps and parsed.is_sweep_override()):
            return override
    escaped = re.sub(r'(\\*)(["]|$)', lambda found: found[1] * 2 + found[2].replace('"', '\\"'), value)
    return f'{key}="{escaped}"'


def data_config(overrides: Sequence[str]) -> dict[str, Any]:
    """The dataset that overrides such as ``data=own data.root=<folder>`` choose, as plain values.

    Raises:
        UserError: no dataset is chosen, or the overrides are wrong.
    """
    try:
        data = compose_config("evaluate", overrides).get("data")
    except HydraException as error:
        raise UserError(str(error)) from error
    if data is None:
        raise UserError("choose a dataset: data=<choice> data.root=<folder>")
    return to_plain(data)


def run(main: Callable[[], Any], together: bool = False) -> None:
    """Run a program of Hydra's with the arguments it was given, paths taken as they are.

    Args:
        main: the program.
        together: whether it may be one of several processes that do the same work. The first of them is then heard
            and keeps Hydra's records; the others warn, and make no folder of their own.
    """
    given = quoted_paths(sys.argv[1:])
    if together and rank() > 0:
        keys = {word.partition("=")[0].lstrip("+~") for word in given}
        added = [word for key, words in _FOLLOWERS.items() if key not in keys for word in words]
        # beside other overrides: Hydra does not take them on both sides of a flag
        last = max(
            (at for at, word in enumerate(given, start=1) if "=" in word and word[0] != "-"), default=0
        )
        given[last:last] = added
    sys.argv[1:] = given
    main()


def rank() -> int:
    """Of this process among those that torchrun, SLURM or Lightning has started for one run; 0 for the first."""
    names = ("RANK", "LOCAL_RANK", "SLURM_PROCID")  # as Lightning looks for it
    return int(next((os.environ[name] for name in names if name in os.environ), 0))


def to_plain(config: DictConfig) -> dict[str, Any]:
    """Every interpolation resolved, plain dicts, lists and values only.

    Raises:
        UserError: a value refers to another that the chosen groups do not have.
    """
    try:
        plain = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
    except InterpolationKeyError as error:
        raise UserError(f"the chosen options do not fit together: {str(error).splitlines()[0]}") from error
    assert isinstance(plain, dict)
    return {str(key): value for key, value in plain.items()}


def refuse_unknown(config: Mapping[str, Any], files: str, prefix: str = "", part: str = "") -> None:
    """Refuse keys that ``+key=value`` has added and that nothing would read.

    Args:
        config: part of a configuration. files: those below ``conf`` that have its keys, with wildcards.
        prefix: of the part's keys, for the message. part: of the files that has them; all by default.

    Raises:
        UserError: a key is in none of the files.
    """
    contents: list[Any] = [OmegaConf.load(file) for file in Path(CONFIG_DIR).glob(files)]
    known = {key for content in contents for key in (content[part] if part else content)}
    if unknown := [f"{prefix}{key}" for key in config if key not in known]:
        names = ", ".join(str(key) for key in config if key in known)
        raise UserError(f"nothing reads {', '.join(unknown)}; known are {names}")


def build(node: Any, **arguments: Any) -> Any:
    """Instantiate a ``_target_`` node; a ``UserError`` of its constructor arrives as it is.

    Containers arrive as plain dicts and lists.
    """
    try:
        return instantiate(node, _convert_="all", **arguments)
    except InstantiationException as error:
        if isinstance(error.__cause__, UserError):
            raise error.__cause__ from None
        raise


def sweep_jobs(folder: Path) -> list[tuple[int, Path, tuple[str, ...]]]:
    """Number, folder and overrides of the jobs of a Hydra sweep that have begun; none where Hydra keeps no record."""
    found = []
    for overrides in folder.glob("**/.hydra/overrides.yaml"):
        job = OmegaConf.load(overrides.with_name("hydra.yaml")).hydra.job
        if not OmegaConf.is_missing(job, "num"):  # of a run that was started again by itself
            found.append((int(job.num), overrides.parent.parent, tuple(map(str, OmegaConf.load(overrides)))))
    return found
