"""Distances within which two boundaries count as matching."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from src.errors import UserError

SLACK = 1e-3
"""Squared distances between pixels are whole numbers; with this slack 1.4142 stands for the root of 2."""


@dataclass(frozen=True)
class Tolerance:
    """A distance in pixels, or relative to the image's diagonal.

    Attributes:
        value: pixels, or percent of the diagonal.
        unit: which of the two.
    """

    value: float
    unit: Literal["px", "%"] = "px"

    def __post_init__(self) -> None:
        if not (math.isfinite(self.value) and self.value >= 0):
            raise ValueError(f"a tolerance is a distance of at least 0, not {self.value}")

    def __str__(self) -> str:
        return f"{self.value:.4g} {self.unit}"

    def squared_limit(self, height: int, width: int) -> int:
        """Largest squared distance between two pixels of such an image that is within the tolerance."""
        pixels = self.value if self.unit == "px" else self.value / 100 * math.hypot(height, width)
        return math.floor(pixels**2 + SLACK)


def parse_tolerance(tolerance: float | str) -> Tolerance:
    """Read a tolerance from a configuration.

    Args:
        tolerance: a number of pixels, or a string such as ``"0.75%"``, of the image's diagonal.

    Raises:
        UserError: neither of the two.
    """
    try:
        if isinstance(tolerance, str) and tolerance.strip().endswith("%"):
            return Tolerance(float(tolerance.strip().removesuffix("%")), "%")
        return Tolerance(float(tolerance), "px")
    except ValueError as error:
        raise UserError(
            f'{tolerance!r} is no tolerance; give pixels, as in 2, or a share of the diagonal, as in "0.75%"'
        ) from error


CURVE = (
    Tolerance(1),
    Tolerance(math.sqrt(2)),
    Tolerance(2),
    Tolerance(3),
    Tolerance(5),
    Tolerance(0.75, "%"),
)
"""Tolerances that are always reported beside the chosen one."""
