"""Choices in the metrics' definitions, which a study must fix before its test cases are measured."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from edue_lightning.uncertainty import Tie

Members = Literal["logits", "probabilities"]
"""Contents of a prediction's members: logits, or probabilities in [0, 1]."""


@dataclass(frozen=True)
class MetricSettings:
    """Choices in the metrics' definitions.

    Attributes:
        poor_dice: Dice below which a segmentation is poor, so that quality control should flag it; one number, or one
            per structure by name.
        surface_tolerance: distance in mm (in pixels where the spacing is unknown) up to which a surface counts as
            right in the normalised surface Dice; one number, or one per structure by name.
        majority_tie: whether a voxel that exactly half of the raters marked belongs to the soft-majority mask:
            `foreground` (q >= 0.5) or `background` (q > 0.5, as in MRNet's code).
        ged_distance: distance of two masks in the generalised energy distance, 1 - IoU or 1 - Dice.
        extra: metrics of your own by their names in tables, each a `PerCaseMetric`; see `docs/extend.md`.
    """

    poor_dice: float | Mapping[str, float] = 0.8
    surface_tolerance: float | Mapping[str, float] = 1.0
    majority_tie: Tie = "foreground"
    ged_distance: Literal["iou", "dice"] = "iou"
    extra: Mapping[str, Any] = field(default_factory=dict)

    def check(self, structures: tuple[str, ...]) -> None:
        """Check that every structure has its numbers.

        Args:
            structures: names of the K structures.

        Raises:
            ValueError: if a setting names other structures, is out of range, or is an unknown word.
        """
        for name in ("poor_dice", "surface_tolerance"):
            value = getattr(self, name)
            if isinstance(value, Mapping) and set(value) != set(structures):
                raise ValueError(f"{name} must name the structures {', '.join(structures)}, not {', '.join(value)}")
            numbers = value.values() if isinstance(value, Mapping) else [value]
            if not all(number >= 0 for number in numbers):
                raise ValueError(f"{name} must not be negative: {value}")
            if name == "poor_dice" and not all(number <= 1 for number in numbers):
                raise ValueError(f"{name} must be at most 1, as every Dice is: {value}")
        for name, known in (("majority_tie", ("foreground", "background")), ("ged_distance", ("iou", "dice"))):
            if getattr(self, name) not in known:
                raise ValueError(f"{name} must be one of {', '.join(known)}, not {getattr(self, name)!r}")

    def poor_dice_of(self, structure: str) -> float:
        """Return the Dice below which a segmentation of a structure is poor."""
        return _of(self.poor_dice, structure)

    def surface_tolerance_of(self, structure: str) -> float:
        """Return the tolerated distance of a structure."""
        return _of(self.surface_tolerance, structure)


def _of(value: float | Mapping[str, float], structure: str) -> float:
    return value[structure] if isinstance(value, Mapping) else value
