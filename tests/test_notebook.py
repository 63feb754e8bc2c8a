"""The notebook runs from top to bottom on a fresh checkpoint, imports ``src`` and defines nothing."""

from __future__ import annotations

import ast
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

from src.checkpoints.files import write
from src.config import build, compose_config, to_plain

NOTEBOOK = Path(__file__).resolve().parent.parent / "notebooks" / "inspect_predictions.ipynb"


def test_the_notebook_defines_nothing_and_carries_no_output() -> None:
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            assert not cell.outputs
            kinds = {type(node) for node in ast.walk(ast.parse(cell.source))}
            assert not kinds & {ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Lambda}


@pytest.mark.slow
def test_the_notebook_runs(scenes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = compose_config(
        "train",
        [
            "model/size=nano",
            "model.backbone.weights=none",
            "data=mass13k",
            "data.root=moved/away",
            f"run_dir={tmp_path}",
        ],
    )
    write(tmp_path / "model.ckpt", to_plain(config), build(config.model.network).state_dict())
    monkeypatch.setenv("CHECKPOINT", str(tmp_path / "model.ckpt"))
    monkeypatch.setenv("DATA_ROOT", str(scenes))
    monkeypatch.setenv("IMAGES", "1")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")

    notebook = nbformat.read(NOTEBOOK, as_version=4)
    executed = NotebookClient(
        notebook, timeout=300, resources={"metadata": {"path": NOTEBOOK.parent}}
    ).execute()

    pictures = [
        output
        for cell in executed.cells
        if cell.cell_type == "code"
        for output in cell.outputs
        if "image/png" in output.get("data", {})
    ]
    assert len(pictures) == 3  # panel, edges and scores of one photo
    text = "".join(o.get("text", "") for c in executed.cells if c.cell_type == "code" for o in c.outputs)
    assert "sky" in text  # the table of scores
