"""Label photos with a trained network.

``python -m src.predict checkpoint=<file> input=<photo or folder> output=<folder>``
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import hydra
import torch
from omegaconf import DictConfig
from PIL import Image
from rich.console import Console

from src.checkpoints.files import Checkpoint, read
from src.checkpoints.network import load_network
from src.config import CONFIG_DIR, refuse_unknown, run, to_plain
from src.errors import UserError, explained
from src.files import check_writable, given_path, remove_leftovers
from src.inference.predictor import Predictor
from src.inference.results.inputs import find_photos, names, others
from src.inference.results.jobs import Job, kept_lines, unfinished
from src.inference.results.outputs import KINDS, OutputPlan
from src.inference.results.work import predict_all
from src.inference.tiled import Tiling

_LEFT_FOR = 24 * 3600  # seconds; a file that is not finished and has not changed for so long is nobody's
_PRECISIONS = {"float32": None, "bfloat16": torch.bfloat16, "float16": torch.float16}


@hydra.main(version_base="1.3", config_path=CONFIG_DIR, config_name="predict")
def main(config: DictConfig) -> None:
    """Predict as configured; exit code 1 when a photo failed."""
    with explained(
        after_interrupt="the same command begins with the first photo again; those that were not reached keep what "
        "an earlier run has made"
        if config.overwrite
        else "the same command continues with the photos that are left"
    ):
        failures = predict(to_plain(config))
    if failures:
        raise SystemExit(1)


def predict(config: dict[str, Any]) -> dict[Path, str]:
    """Write the files of every photo; returns the photos that failed, with the reason.

    Raises:
        UserError: nothing can be predicted as configured; raised before any work is done.
    """
    refuse_unknown({key: value for key, value in config.items() if key != "inference"}, "predict.yaml")
    refuse_unknown(config["inference"], "inference/*.yaml", "inference.")
    console = Console(soft_wrap=True, highlight=False, markup=False)
    source, folder = _folders(config)
    precision = config["precision"]
    if precision not in _PRECISIONS:
        raise UserError(f"precision={precision}: choose one of {', '.join(_PRECISIONS)}")
    _check_values(config)
    device = _device(config["device"])
    Image.MAX_IMAGE_PIXELS = round(
        config["inference"]["max_megapixels"] * 1e6 / 2
    )  # Pillow refuses twice as many
    photos = find_photos(source)
    if source.is_dir() and (left_out := others(source)):
        console.print(left_out)
    checkpoint = read(Path(config["checkpoint"]).expanduser())
    trained_with = checkpoint.config.get("data")
    if isinstance(trained_with, dict) and trained_with.get("synthetic"):
        console.print(
            f"{checkpoint.path} was trained on synthetic scenes alone: expect little of it on photos"
        )
    plan, network_id = _plan(config, checkpoint), checkpoint.fingerprint
    jobs = [
        Job(photo, name, plan.files(folder, name))
        for photo, name in zip(photos, names(source, photos), strict=True)
    ]
    check_writable(folder, "output")
    for place in {path.parent for job in jobs for path in job.files.values()}:
        remove_leftovers(place, time.time() - _LEFT_FOR)

    failures: dict[Path, str] = {}
    todo, done = list(jobs), 0
    if not config["overwrite"]:
        todo = unfinished(jobs, failures)
        for line in kept_lines([job for job in jobs if job.photo not in failures], todo, network_id):
            console.print(line)
    if todo:
        inference = config["inference"]
        enlarge_to = inference["enlarge_to"]
        if enlarge_to == "checkpoint":
            enlarge_to = checkpoint.enlarge_to
        network = load_network(checkpoint).to(device)
        if "edges" in plan.kinds and not _predicts_edges(network):
            raise UserError(
                f"outputs={list(plan.kinds)}: the network of {checkpoint.path} predicts no edges; leave edges out"
            )
        predictor = _predictor(network, inference, enlarge_to, _PRECISIONS[precision])
        del network
        del checkpoint  # its tensors are copied, and would lie in memory beside the photos
        failed, done = predict_all(todo, plan, predictor, network_id, console)
        failures |= failed
    for photo, reason in failures.items():
        console.print(f"failed: {reason if str(photo) in reason else f'{photo}: {reason}'}")
    console.print(
        f"{done} photo{'s' * (done != 1)} predicted, {len(failures)} failed; results: {folder.resolve()}"
    )
    return failures


def _folders(config: dict[str, Any]) -> tuple[Path, Path]:
    for key in ("checkpoint", "input", "output"):
        if config[key] is None:
            raise UserError(
                f"{key} is not given. Usage: "
                "python -m src.predict checkpoint=<file> input=<photo or folder> output=<folder>"
            )
    _, source, folder = (given_path(config[key], key) for key in ("checkpoint", "input", "output"))
    if folder.exists() and not folder.is_dir():
        raise UserError(f"output={folder} is a file; give a folder")
    if source.is_dir() and folder.resolve().is_relative_to(source.resolve()):
        raise UserError(
            f"output={folder} lies inside input={source}, so results would be taken for photos; choose another folder"
        )
    for kind in KINDS:  # they would be replaced, or taken for results
        if source.resolve().is_relative_to((folder / kind).resolve()):
            raise UserError(
                f"input={source} lies where results are written, in {folder / kind}; choose another output"
            )
    return source, folder


def _check_values(config: dict[str, Any]) -> None:
    """Refuse values of other kinds than are meant, which YAML makes of words and words of YAML."""
    inference = config["inference"]
    if not isinstance(config["overwrite"], bool):
        raise UserError(f"overwrite={config['overwrite']}: give true or false")
    for key, words in (("limit", (None,)), ("window", ()), ("enlarge_to", (None, "checkpoint"))):
        edges = inference[key]
        if edges in words:
            continue
        if not isinstance(edges, list) or len(edges) != 2 or not all(map(_is_count, edges)):
            raise UserError(f"inference.{key}={edges}: give two edge lengths in pixels, such as [4096,3072]")
    for key in ("overlap", "margin"):
        if not _is_count(inference[key], least=0):
            raise UserError(f"inference.{key}={inference[key]}: give a whole number of pixels")
    for key, least in (("max_megapixels", 0.0), ("memory_gb", 0.0), ("epsilon", -1.0)):
        value = inference[key]
        if value is None and key == "memory_gb":
            continue
        if isinstance(value, bool) or not isinstance(value, int | float) or not value > least:
            raise UserError(f"inference.{key}={value}: give a number")


def _is_count(value: Any, least: int = 1) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def _predictor(
    network: Any,
    inference: dict[str, Any],
    enlarge_to: tuple[int, int] | None,
    autocast: torch.dtype | None,
) -> Predictor:
    limit, window = inference["limit"], inference["window"]
    try:
        return Predictor(
            network,
            limit=None if limit is None else (limit[0], limit[1]),
            enlarge_to=enlarge_to,
            mode=inference["mode"],
            memory_gb=inference["memory_gb"],
            tiling=Tiling((window[0], window[1]), inference["overlap"], inference["margin"]),
            autocast=autocast,
            epsilon=inference["epsilon"],
        )
    except ValueError as error:
        raise UserError(str(error)) from error


@torch.inference_mode()
def _predicts_edges(network: Any) -> bool:
    probe = torch.zeros((3, 64, 64), dtype=torch.uint8, device=next(network.parameters()).device)
    return network.pixel_features(network.normalise(probe)[None]).edge_logits is not None


def _plan(config: dict[str, Any], checkpoint: Checkpoint) -> OutputPlan:
    classes = checkpoint.classes
    wanted = tuple(classes) if config["classes"] is None else _listed(config["classes"])
    if unknown := [name for name in wanted if name not in classes]:
        raise UserError(f"classes={unknown}: {checkpoint.path} knows {', '.join(classes)}")
    chosen = tuple(name for name in classes if name in wanted)
    if not chosen:
        raise UserError("classes=[]: name a class at least, or leave classes out for every class")
    kinds = _listed(config["outputs"] or ())
    if not kinds or (unknown := [kind for kind in kinds if kind not in KINDS]):
        raise UserError(f"outputs={list(kinds)}: choose from {', '.join(KINDS)}")
    if config["classes"] is not None and not {"masks", "cutouts"} & set(kinds):
        raise UserError(
            f"classes={list(chosen)} chooses what masks and cut-outs show, and outputs={list(kinds)} has neither: "
            "add masks or cutouts to outputs"
        )
    if config["classes"] is None and "cutouts" in kinds and len(classes) > 1:
        raise UserError(
            f"outputs={list(kinds)}: say with classes=[...] what is to be cut out, of {', '.join(classes)}"
        )
    if config["mask_bits"] not in (8, 16):
        raise UserError(f"mask_bits={config['mask_bits']}: choose 8 or 16")
    return OutputPlan(kinds, classes, chosen, config["mask_bits"])


def _listed(given: Any) -> tuple[str, ...]:
    """Several names, or one without brackets; each counts once."""
    return tuple(dict.fromkeys(map(str, given if isinstance(given, list | tuple) else [given])))


def _device(name: str) -> torch.device:
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"device={name} cannot be used: {str(error).splitlines()[0]}") from error


if __name__ == "__main__":
    run(main)
