"""The layers of the project: imports point down, and frameworks stay where they belong."""

import ast
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

# from the bottom up; members of one layer do not import each other, except for the modules of the foundation
LAYERS = (
    {
        "allocation",
        "machine",
        "structures",
        "errors",
        "files",
        "photos",
        "pictures",
        "sheet",
        "tiling",
        "published",
    },
    {"models", "losses", "metrics", "data", "checkpoints"},
    {"inference", "audit"},
    {"engine", "report"},
    {"train", "evaluate", "predict", "prepare", "config"},
)
FOUNDATION, ENTRY_POINTS = LAYERS[0], LAYERS[-1]


def modules():
    """Name and syntax tree of every module below ``src``."""
    for file in sorted((ROOT / "src").rglob("*.py")):
        parts = file.relative_to(ROOT).with_suffix("").parts
        yield ".".join(parts).removesuffix(".__init__"), ast.parse(file.read_text(encoding="utf-8"))


def imports(tree):
    """Every module that a tree imports, also inside functions; relative imports start with a dot."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            module = "." * node.level + (node.module or "")
            submodules = [f"{module}.{alias.name}" for alias in node.names]
            yield from {name if name in NAMES else module for name in submodules}


def layer_of(module):
    member = module.split(".")[1]
    found = [i for i, members in enumerate(LAYERS) if member in members]
    assert found, f"{module} belongs to no layer: name its place in tests/test_imports.py"
    return found[0]


def allowed(module, imported):
    """Whether a module of src may import another."""
    ours, theirs = module.split(".")[1], imported.split(".")[1]
    if ours == theirs or (ours in ENTRY_POINTS and theirs == "config"):
        return True
    if ours in FOUNDATION and theirs in FOUNDATION:
        return True
    return layer_of(imported) < layer_of(module)


MODULES = [(name, tree) for name, tree in modules() if name != "src"]
NAMES = {name for name, _ in MODULES}


@pytest.mark.parametrize(("name", "tree"), MODULES, ids=[name for name, _ in MODULES])
def test_imports_point_down(name, tree):
    wrong = [m for m in imports(tree) if m.startswith("src.") and not allowed(name, m)]
    assert not wrong, f"{name} imports {wrong}, which lie beside or above it"
    relative = [m for m in imports(tree) if m.startswith(".")]
    assert not relative, f"{name} has relative imports"


def test_the_rule_sees_what_it_forbids():
    assert not allowed("src.models.layers", "src.losses.points")
    assert not allowed("src.data.folder", "src.engine.module")
    assert not allowed("src.structures", "src.models.layers")
    assert not allowed("src.engine.module", "src.config")
    assert not allowed("src.train", "src.evaluate")
    assert allowed("src.engine.module", "src.models.segmenter")
    assert allowed("src.train", "src.config")
    tree = ast.parse("def f():\n    from src.models import layers\n    import src.data.folder as x")
    assert set(imports(tree)) == {"src.models.layers", "src.data.folder"}


def test_there_are_no_cycles():
    graph = {name: {m for m in imports(tree) if m in NAMES and m != name} for name, tree in MODULES}
    try:
        order = list(TopologicalSorter(graph).static_order())
    except CycleError as error:
        pytest.fail(f"modules import each other: {' <- '.join(error.args[1])}")
    assert set(order) == NAMES


@pytest.mark.parametrize(
    ("framework", "homes"),
    [
        ("lightning", ("src.train", "src.evaluate", "src.engine", "src.data.datamodule")),
        ("hydra", tuple(f"src.{name}" for name in ENTRY_POINTS)),
        ("omegaconf", tuple(f"src.{name}" for name in ENTRY_POINTS)),
        ("wandb", ("src.train", "src.engine")),
    ],
)
def test_frameworks_stay_where_they_belong(framework, homes):
    users = {name for name, tree in MODULES if any(m.split(".")[0] == framework for m in imports(tree))}
    assert users, f"nothing imports {framework}: the test reads the wrong files"
    strangers = {name for name in users if not any(name == h or name.startswith(f"{h}.") for h in homes)}
    assert not strangers, f"{sorted(strangers)} must not import {framework}"


def test_no_module_is_called_after_nothing():
    vague = {"utils", "util", "helpers", "helper", "common", "misc"}
    assert not [name for name, _ in MODULES if vague & set(name.split("."))]
