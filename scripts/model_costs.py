"""Parameters and multiply-accumulates of every published model at 4096x3072, next to the published figures.

    python scripts/model_costs.py                # prints the table, writes docs/costs.md and docs/costs.csv

Nothing is computed: the networks live on torch's meta device. Takes less than a minute.
"""

from __future__ import annotations

import argparse
import csv
import io
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from src.checkpoints.network import build_network
from src.config import compose_config, to_plain
from src.files import write_atomically
from src.models.costs import OTHER, UNCOUNTED_BY_PAPER, count_macs, total
from src.models.segmenter import count_parameters
from src.published import published_result

DOCS = Path(__file__).resolve().parent.parent / "docs"
HEIGHT, WIDTH = 3072, 4096
TOLERANCE = 2.0  # per cent; a larger difference from the paper needs an explanation
LAYERS = "transformer layers"
PARTS = {
    "backbone": "backbone",
    "pixel_decoder": "pixel decoder",
    "transformer_decoder.layers.*": LAYERS,
    "transformer_decoder.class_head": "heads",
    "transformer_decoder.mask_head": "heads",
    OTHER: "masks",
}

_LAYERS_LEFT_OUT = (
    "Without the transformer layers the count is {without_layers:.1f} G ({without_difference:+.1f} %)"
)


class Model(NamedTuple):
    """One row of the table.

    Attributes:
        name: as shown.
        overrides: of the configuration; the first names the experiment.
        release_gmacs: what the authors' code counts by the same convention, where it was measured.
        explanation: of a difference from the paper above ``TOLERANCE``; ``{...}`` are fields of ``Row``.
    """

    name: str
    overrides: tuple[str, ...]
    release_gmacs: float | None = None
    explanation: str = ""


MODELS = (
    Model(
        "baseline",
        ("experiment=ablation_baseline",),
        explanation=_LAYERS_LEFT_OUT + ": the paper's ladder seems to leave them out.",
    ),
    Model("+CST", ("experiment=ablation_cst",), explanation=_LAYERS_LEFT_OUT + ", as on the other rungs."),
    Model(
        "+CST+RFB",
        ("experiment=ablation_rfb",),
        explanation=_LAYERS_LEFT_OUT
        + "; the rest lies in the plain modules, which the paper does not describe and this project chose.",
    ),
    Model(
        "+CST+RFB+LSE",
        ("experiment=ablation_lse",),
        explanation=_LAYERS_LEFT_OUT + ", as on the other rungs.",
    ),
    Model(
        "MaSSFormer",
        ("experiment=massformer",),
        2117.9,
        _LAYERS_LEFT_OUT + ": the authors' code counts the same as ours, more than they print.",
    ),
    Model(
        "MaSSFormer-Lite",
        ("experiment=massformer_lite",),
        explanation="The paper does not describe the Lite model; everything at half width gives its parameters, but "
        "no count of that network that we know gives its printed figure (without the transformer layers it is "
        "{without_layers:.1f} G).",
    ),
    Model("Mask2Former", ("experiment=mask2former",), 3122.0),
    Model(
        "MPFormer",
        ("experiment=mpformer",),
        explanation="At inference MPFormer is Mask2Former; the same network counts {square:.1f} G at "
        "4096x4096, so the paper's figure is probably for that size. Its {parameters:,.0f} parameters are "
        "Mask2Former's without 100 x 256 query positions and with a 7 x 256 class embedding for piloting.",
    ),
    Model("MaSSFormer, Swin-B", ("experiment=massformer", "model/backbone=swin_b")),
    Model("Mask2Former, Swin-B", ("experiment=mask2former", "model/backbone=swin_b")),
)


class Row(NamedTuple):
    """Measurements of one model; counts in 10^9 multiply-accumulates, differences in per cent.

    Attributes:
        parameters, paper_parameters: millions.
        gmacs: by the paper's convention, forward as released. difference: from ``paper_gmacs``.
        release_gmacs: of the authors' code.
        without_layers, without_difference: the same without the transformer layers.
        inference: by the paper's convention, forward as this project's inference does it.
        full: every kind of operation, forward as released.
        square: by the paper's convention at 4096x4096, 0 where no explanation needs it.
        parts: by the paper's convention, by part of the network.
    """

    model: Model
    parameters: float
    paper_parameters: float | None
    gmacs: float
    paper_gmacs: float | None
    release_gmacs: float | None
    without_layers: float
    inference: float
    full: float
    square: float
    parts: dict[str, float]

    @property
    def difference(self) -> float | None:
        return _per_cent(self.gmacs, self.paper_gmacs)

    @property
    def without_difference(self) -> float | None:
        return _per_cent(self.without_layers, self.paper_gmacs)

    @property
    def explanation(self) -> str:
        """Why the count differs from the paper's, empty where it does not.

        Raises:
            ValueError: it differs and no reason is written down.
        """
        if self.difference is None or abs(self.difference) <= TOLERANCE:
            return ""
        if not self.model.explanation:
            raise ValueError(
                f"{self.model.name}: {self.gmacs:.1f} G differs from the paper's {self.paper_gmacs} G by "
                f"{self.difference:+.1f} %; find out why and write it down in MODELS"
            )
        return self.model.explanation.format(
            without_layers=self.without_layers,
            without_difference=self.without_difference,
            square=self.square,
            parameters=1e6 * self.parameters,
        )


def measure(model: Model) -> Row:
    """Count one model."""
    config = to_plain(compose_config("train", [*model.overrides, "recipe=paper", "run_dir=."]))
    with torch.device("meta"):
        network: Any = build_network(config).eval()
    released = count_macs(network, HEIGHT, WIDTH, PARTS)
    square = count_macs(network, WIDTH, WIDTH) if "{square" in model.explanation else {}
    network.transformer_decoder.masks_at_memory_size = True
    inference = count_macs(network, HEIGHT, WIDTH, PARTS)

    parts = {part: total({part: kinds}, UNCOUNTED_BY_PAPER) / 1e9 for part, kinds in released.items()}
    gmacs = sum(parts.values())
    paper = published_result(config["name"], config["model"]["backbone"]["name"])
    return Row(
        model,
        count_parameters(network) / 1e6,
        paper and paper.parameters,
        gmacs,
        paper and paper.gmacs,
        model.release_gmacs,
        gmacs - parts[LAYERS],
        total(inference, UNCOUNTED_BY_PAPER) / 1e9,
        total(released) / 1e9,
        total(square, UNCOUNTED_BY_PAPER) / 1e9,
        {part: parts[part] for part in dict.fromkeys(PARTS.values())},
    )


COLUMNS = (
    "model",
    "params M",
    "paper",
    "GMACs, paper's convention",
    "paper",
    "difference",
    "released code",
    "in our inference",
    "fully counted",
)


def cells(row: Row) -> list[str]:
    """A row of ``COLUMNS`` as text."""
    return [
        row.model.name,
        f"{row.parameters:.2f}",
        _text(row.paper_parameters, ".2f"),
        f"{row.gmacs:.1f}",
        _text(row.paper_gmacs, ".0f"),
        _text(row.difference, "+.1f", " %"),
        _text(row.release_gmacs, ".1f"),
        f"{row.inference:.1f}",
        f"{row.full:.1f}",
    ]


def markdown(rows: Sequence[Row]) -> str:
    """The page of the documentation."""
    differences = [
        f"- **{row.model.name}** ({row.difference:+.1f} %): {row.explanation}"
        for row in rows
        if row.explanation
    ]
    part_names = list(rows[0].parts)
    return "\n".join(
        [
            "# Parameters and multiply-accumulates",
            "",
            f"One {WIDTH}x{HEIGHT} image, seven classes, 10^9 multiply-accumulates. Made by `python "
            "scripts/model_costs.py`, which counts operators on meta tensors; `docs/costs.csv` holds the same.",
            "",
            *_table(COLUMNS, [cells(row) for row in rows]),
            "",
            "*The paper's convention* counts convolutions, linear layers, matrix products, norms (2 to 5 per value), "
            "and bilinear resizing and sampling (4 per value). It leaves out deformable convolution and the products "
            "of queries and keys in masked attention, which the tool that counts traced operators does not know. "
            "*Fully counted* adds these. *In our inference* the attention masks are computed at the memories' size; "
            "the answer is the same up to rounding.",
            "",
            f"## Differences from the paper above {TOLERANCE:.0f} %",
            "",
            *differences,
            "",
            "## By part, paper's convention",
            "",
            *_table(
                ("model", *part_names),
                [[row.model.name, *(f"{row.parts[part]:.1f}" for part in part_names)] for row in rows],
            ),
            "",
        ]
    )


def comma_separated(rows: Sequence[Row]) -> str:
    """The same as CSV, one line per model."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    numbers = ("parameters", "paper_parameters", "gmacs", "paper_gmacs", "difference", "release_gmacs")
    counts = ("inference", "full", "without_layers")
    writer.writerow(["model", *numbers, *counts, *rows[0].parts, "explanation"])
    for row in rows:
        values = [getattr(row, field) for field in numbers + counts] + list(row.parts.values())
        rounded = ["" if value is None else round(value, 3) for value in values]
        writer.writerow([row.model.name, *rounded, row.explanation])
    return text.getvalue()


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the table and write the page and the CSV."""
    parser = argparse.ArgumentParser(
        description="Count the parameters and multiply-accumulates of every published model, print them, and write "
        "costs.md and costs.csv (by default those in docs)."
    )
    parser.add_argument("--output", type=Path, default=DOCS, help="folder of costs.md and costs.csv")
    folder = parser.parse_args(arguments).output
    rows = [measure(model) for model in MODELS]
    table = Table(title=f"one {WIDTH}x{HEIGHT} image, 10^9 multiply-accumulates")
    for i, column in enumerate(COLUMNS):
        table.add_column(column, justify="right" if i else "left")
    for row in rows:
        table.add_row(*cells(row))
    console = Console(highlight=False)
    console.print(table)
    for row in rows:
        if row.explanation:
            console.print(f"{row.model.name} ({row.difference:+.1f} %): {row.explanation}")
    write_atomically(folder / "costs.md", markdown(rows).encode())
    write_atomically(folder / "costs.csv", comma_separated(rows).encode())
    console.print(f"tables: {folder / 'costs.md'} and costs.csv beside it")


def _per_cent(value: float, reference: float | None) -> float | None:
    return None if reference is None else 100 * (value / reference - 1)


def _text(value: float | None, style: str, unit: str = "") -> str:
    return "-" if value is None else f"{value:{style}}{unit}"


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    lines = [columns, ["---", *["---:"] * (len(columns) - 1)], *rows]
    return [f"| {' | '.join(line)} |" for line in lines]


if __name__ == "__main__":
    main()
