"""Published results on MaSS13K, to print next to one's own.

Sources: "MaSS13K: A Matting-level Semantic Segmentation Benchmark" (CVPR 2025, arXiv 2503.18364), tables of results
and of the ablation, and for CoordFormer its own paper (2026). mIoU and BIoU in percent, BF1 in 0..1. GMACs are
multiply-accumulates at 4096x3072, in 10^9; the paper calls them FLOPs.
"""

from __future__ import annotations

import math
from typing import NamedTuple


class Scores(NamedTuple):
    """Scores on one split; BF1 is None where it was not published."""

    miou: float
    biou: float
    bf1: float | None = None


class PublishedResult(NamedTuple):
    """One row of a published table.

    Attributes:
        method, backbone: as printed.
        val, test: scores; test is None where it was not published.
        parameters: millions.
        gmacs: at 4096x3072.
        experiment: the configuration of this project that builds the method, or None.
        encoder: how the timm name of its published backbone begins.
    """

    method: str
    backbone: str
    val: Scores
    test: Scores | None = None
    parameters: float | None = None
    gmacs: float | None = None
    experiment: str | None = None
    encoder: str = "resnet50"


RESULTS = (
    PublishedResult(
        "Mask2Former",
        "R50",
        Scores(88.28, 47.40, 0.5458),
        Scores(88.00, 46.13, 0.5330),
        44.01,
        3123,
        "mask2former",
    ),
    PublishedResult(
        "MPFormer",
        "R50",
        Scores(87.76, 47.81, 0.5513),
        Scores(87.18, 47.17, 0.5486),
        43.9,
        4155,
        "mpformer",
    ),
    PublishedResult("PEM", "R50", Scores(83.41, 40.51, 0.4675), Scores(83.38, 39.99, 0.4644), 35.5, 1859),
    PublishedResult(
        "SegNeXt", "MSCAN-B", Scores(87.71, 39.93, 0.4615), Scores(88.11, 39.45, 0.4596), 27.57, 1536
    ),
    PublishedResult(
        "DeepLabv3+", "R50", Scores(86.66, 40.08, 0.4718), Scores(85.14, 38.65, 0.4678), 41.22, 8008
    ),
    PublishedResult(
        "MaSSFormer-Lite",
        "R18",
        Scores(87.11, 45.35, 0.5137),
        Scores(86.13, 43.28, 0.5086),
        15.07,
        771,
        "massformer_lite",
        "resnet18",
    ),
    PublishedResult(
        "MaSSFormer",
        "R50",
        Scores(88.97, 48.97, 0.5639),
        Scores(88.21, 48.39, 0.5593),
        37.42,
        2036,
        "massformer",
    ),
    PublishedResult(
        "CoordFormer",
        "DINOv3-S+",
        Scores(92.53, 53.24, 0.5965),
        Scores(92.30, 52.40, 0.5916),
        29.92,
        6430,
    ),
)
"""Comparison with the state of the art, val and test."""

LADDER = (
    PublishedResult("baseline", "R50", Scores(85.54, 42.69), gmacs=1298, experiment="ablation_baseline"),
    PublishedResult("+CST", "R50", Scores(88.11, 44.42), gmacs=1348, experiment="ablation_cst"),
    PublishedResult("+RFB", "R50", Scores(88.29, 45.23), gmacs=1692, experiment="ablation_rfb"),
    PublishedResult("+LSE", "R50", Scores(88.02, 47.36), gmacs=1928, experiment="ablation_lse"),
    PublishedResult(
        "+EGF", "R50", Scores(88.97, 48.97), parameters=37.42, gmacs=2036, experiment="ablation_egf"
    ),
)
"""Ablation of MaSSFormer's modules on val; each rung adds one, the last is the full model."""


def published_result(experiment: str, encoder: str) -> PublishedResult | None:
    """The published row of an experiment, or None.

    Args:
        experiment: a name of ``conf/experiment``.
        encoder: timm name of the backbone in use: a row holds for its own backbone only.
    """
    for row in RESULTS + LADDER:
        if row.experiment == experiment and encoder.split(".")[0] == row.encoder:
            return row
    return None


class Comparison(NamedTuple):
    """One line of "ours / paper / difference"."""

    metric: str
    ours: float
    paper: float
    difference: float


def compare(ours: Scores, row: PublishedResult, split: str) -> list[Comparison]:
    """Own scores next to the published ones; a metric that either side lacks, also as nan, is left out.

    Args:
        ours: in the units of this file. row: see ``published_result``. split: ``val`` or ``test``.
    """
    paper = {"val": row.val, "test": row.test}.get(split)
    if paper is None:
        return []
    return [
        Comparison(metric, mine, theirs, mine - theirs)
        for metric, mine, theirs in zip(("mIoU", "BIoU", "BF1"), ours, paper, strict=True)
        if mine is not None and theirs is not None and not math.isnan(mine)
    ]
